"""What every test relies on: eight fake CPU devices, a compile cache, and skips that are counted, never overlooked."""

import collections
import importlib.metadata
import importlib.util
import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Read by jax when it is imported, so they stand here, before any test module imports it. Child processes inherit them.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile much and compute little. Child processes inherit this too.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 12):
    FLAGS.append(
        "--xla_cpu_use_fusion_emitters=false"
    )  # a training step compiles three times faster; later jaxlibs lack it
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every child process would compile all that it imports
if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")


def sim_verdict(python: tuple[int, int], installed: bool) -> str:
    """What becomes of a test that needs a simulator: "run", "skip" or "fail"."""
    if installed:
        return "run"
    return "skip" if python >= (3, 12) else "fail"


def require_sim() -> None:
    """Skips or fails the test that asks, where its simulator is missing."""
    verdict = sim_verdict(sys.version_info[:2], importlib.util.find_spec("metaworld") is not None)
    if verdict == "skip":
        pytest.skip("Meta-World is not installed (simulators are optional on Python >= 3.12)")
    if verdict == "fail":
        pytest.fail("Meta-World is not installed: run tools/setup.sh, or pip install -e '.[sim]'", pytrace=False)


def pytest_runtest_setup(item):
    if item.get_closest_marker("requires_sim"):
        require_sim()


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in skipped
    )
    listing = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    terminalreporter.write_line(f"skipped tests: {len(skipped)}" + (f" ({listing})" if listing else ""))


@pytest.fixture(scope="session")
def shared_samples() -> pathlib.Path:
    """Directory of small excerpts of public datasets, kept next to the checkout (too large and not ours to commit)."""
    path = ROOT.parent / "shared" / "samples"
    if not path.is_dir():
        pytest.skip("no ../shared/samples next to the checkout")
    return path


@pytest.fixture(scope="session")
def debug_run(tmp_path_factory) -> pathlib.Path:
    """A run directory of the `debug` recipe: data collected, 20 steps trained, by the real commands.

    Made once for all test processes.
    """
    import fcntl

    from tests.experiments.commands import run

    require_sim()
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    workdir = shared / "debug_run"
    with (shared / "debug_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "train.json").exists():
            config = "--config=experiments/configs/debug.py"
            run("collect", config, f"--out={workdir / 'data'}")
            run("train", config, f"--workdir={workdir}", f"--config.data.root={workdir / 'data'}", "--noprogress")
    return workdir
