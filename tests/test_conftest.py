import subprocess
import sys

import jax
import pytest

from tests.conftest import sim_verdict


def test_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8


@pytest.mark.parametrize(
    ("python", "installed", "verdict"),
    [((3, 11), True, "run"), ((3, 11), False, "fail"), ((3, 12), False, "skip"), ((3, 13), True, "run")],
)
def test_missing_simulator_fails_on_the_reference_python(python, installed, verdict):
    assert sim_verdict(python, installed) == verdict


def test_skips_are_counted_by_reason(tmp_path):
    conftest = __import__("tests.conftest").conftest.__file__
    (tmp_path / "conftest.py").symlink_to(conftest)
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('i', range(3))\n"
        "def test_skipped(i): pytest.skip('no such camera')\n"
        "def test_passes(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "skipped tests: 3 (3 x no such camera)" in output
