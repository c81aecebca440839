"""Who may import whom. The rules are this file; WORKSPACE.md repeats them in words."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_LINES = 400

# Inside wam: a part imports parts of its own number or lower.
LAYERS = {
    "batch": 0,
    "embodiment": 0,
    "rotations": 0,
    "config": 0,
    "fingerprint": 0,
    "models": 1,
    "encoders": 1,
    "tokenizers": 1,
    "diffusion": 2,
    "checkpoint": 3,
    "training": 3,
    "pretrained": 3,
    "imagination": 4,
    "inference": 4,
    "observations": 4,
    "session": 4,
    "planning": 4,
    "policy": 4,
    "envs": 4,
    "evaluation": 5,
    "serving": 5,
}
# Stricter than the numbers: these parts import only the parts named here.
ONLY = {"batch": set(), "rotations": set(), "embodiment": {"rotations"}, "envs": {"batch", "embodiment", "envs"}}
OF_WAM_FOR_DATA = ("wam.batch", "wam.embodiment")  # numpy only
ONLY_IMPORTED_BY = {"envs": {"envs", "evaluation", "serving"}}

FORBIDDEN = {
    "wam": {"grain", "tensorflow", "tensorflow_datasets", "ml_collections", "absl", "data_pipelines", "experiments"},
    "data_pipelines": {"jax", "jaxlib", "flax", "optax", "orbax", "ml_collections", "absl", "experiments"},
}
# Heavy modules, and the only files (or folders) of the libraries that are about them.
HEAVY = {
    "h5py": ("data_pipelines/sources/hdf5.py", "data_pipelines/sources/egodex.py"),
    "matplotlib": (
        "wam/evaluation/plots.py",
        "wam/evaluation/report.py",
        "wam/evaluation/dataset_plots.py",
        "wam/evaluation/diagnostic_plots.py",
    ),
    "websockets": ("wam/serving/",),
    "prometheus_client": ("wam/serving/",),
    "av": ("data_pipelines/sources/video.py", "data_pipelines/video_codec.py"),
    "pyarrow": ("data_pipelines/sources/lerobot",),
    "mujoco": ("wam/envs/",),
    "metaworld": ("wam/envs/",),
    "gymnasium": ("wam/envs/",),
    "sentencepiece": ("wam/encoders/tokenizer.py",),
    "tensorboardX": ("wam/training/metrics.py",),
    "tokenizers": ("wam/encoders/tokenizer.py",),
    "wandb": ("wam/training/metrics.py",),
}

Sources = dict[str, str]  # path relative to the root -> text


def read_sources(*folders: str) -> Sources:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in files}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_modules(path: str, text: str, modules: set[str]) -> set[str]:
    """Dotted names that a file imports, wherever in it; `from a import b` gives a.b where that is one of `modules`."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else base for name in names}
    return found


def part_of(module: str) -> str | None:
    """The part of wam a module belongs to: wam.models.dit -> models; None for wam itself and for others."""
    names = module.split(".")
    return names[1] if names[0] == "wam" and len(names) > 1 else None


def layer_violation(importer: str, imported: str) -> str | None:
    """Why one part of wam may not import another, or None."""
    unknown = [part for part in (importer, imported) if part not in LAYERS]
    if unknown:
        return f"{unknown[0]!r} has no layer: add it to LAYERS in tests/test_imports.py and to WORKSPACE.md"
    if importer == imported:
        return None
    if importer in ONLY and imported not in ONLY[importer]:
        return f"wam.{importer} may import only {sorted(ONLY[importer])} of wam"
    if imported in ONLY_IMPORTED_BY and importer not in ONLY_IMPORTED_BY[imported]:
        return f"wam.{imported} may be imported only by {sorted(ONLY_IMPORTED_BY[imported])} of wam"
    if LAYERS[imported] > LAYERS[importer]:
        return f"wam.{imported} is a higher layer than wam.{importer}"
    return None


def violations(sources: Sources) -> list[str]:
    """One sentence for every broken rule in the files of `wam` and `data_pipelines`."""
    modules = {module_name(path) for path in sources}
    graph: dict[str, set[str]] = {}
    found = []
    for path, text in sources.items():
        package = path.split("/")[0]
        importer = part_of(module_name(path))
        imports = imported_modules(path, text, modules)
        graph[module_name(path)] = {name for name in imports if name in modules} - {module_name(path)}
        for name in sorted(imports):
            top, imported = name.split(".")[0], part_of(name)
            if top in FORBIDDEN[package]:
                found.append(f"{path} imports {name}: {package} never imports {top}")
            if top in HEAVY and not path.startswith(HEAVY[top]):
                found.append(f"{path} imports {name}: {top} belongs in {', '.join(HEAVY[top])}")
            if package == "data_pipelines" and top == "wam" and name not in OF_WAM_FOR_DATA:
                found.append(f"{path} imports {name}: data_pipelines imports {' and '.join(OF_WAM_FOR_DATA)} only")
            if package == "wam" and imported is not None:
                reason = layer_violation(importer, imported) if importer else "wam/__init__.py imports no part of wam"
                found += [f"{path} imports {name}: {reason}"] if reason else []
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import cycle: " + " -> ".join(reversed(error.args[1])))
    return found


def test_imports_follow_the_rules():
    sources = read_sources("wam", "data_pipelines")
    assert "wam/batch.py" in sources
    assert violations(sources) == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("wam/training/loop.py", "import grain", "wam never imports grain"),
        ("wam/training/loop.py", "import tensorflow_datasets as tfds", "wam never imports tensorflow_datasets"),
        ("wam/config.py", "from ml_collections import config_dict", "wam never imports ml_collections"),
        ("wam/config.py", "from absl import flags", "wam never imports absl"),
        ("wam/policy.py", "from data_pipelines import store", "wam never imports data_pipelines"),
        ("wam/policy.py", "def f():\n    import experiments.train", "wam never imports experiments"),
        ("wam/policy.py", "import matplotlib.pyplot as plt", "matplotlib belongs in"),
        ("wam/training/loop.py", "import tensorboardX", "tensorboardX belongs in wam/training/metrics.py"),
        ("wam/evaluation/closed_loop.py", "import metaworld", "metaworld belongs in wam/envs/"),
        ("wam/models/dit.py", "from wam.diffusion import flow", "wam.diffusion is a higher layer than wam.models"),
        ("wam/models/dit.py", "from ..training import step", "wam.training is a higher layer than wam.models"),
        ("wam/batch.py", "from wam import config", "wam.batch may import only [] of wam"),
        ("wam/embodiment.py", "from wam.batch import X", "wam.embodiment may import only ['rotations']"),
        (
            "wam/envs/metaworld.py",
            "from wam.config import X",
            "wam.envs may import only ['batch', 'embodiment', 'envs']",
        ),
        ("wam/policy.py", "from wam.envs import metaworld", "wam.envs may be imported only by"),
        ("wam/novelty/a.py", "import wam.batch", "'novelty' has no layer"),
        ("wam/__init__.py", "from wam.policy import load_policy", "wam/__init__.py imports no part"),
        ("data_pipelines/store.py", "import jax.numpy as jnp", "data_pipelines never imports jax"),
        (
            "data_pipelines/store.py",
            "from wam.config import X",
            "data_pipelines imports wam.batch and wam.embodiment only",
        ),
        ("data_pipelines/store.py", "import mujoco", "mujoco belongs in wam/envs/"),
        ("wam/models/dit.py", "import wam.models.blocks", "import cycle: "),
    ],
)
def test_a_broken_rule_is_reported(path, text, said):
    others = ["wam/config.py", "wam/models/__init__.py", "wam/diffusion/flow.py", "wam/training/step.py"]
    sources = dict.fromkeys([*others, "wam/envs/metaworld.py"], "")
    sources["wam/models/blocks.py"] = "from wam.models import dit"
    sources["wam/models/dit.py"] = "import wam.batch"
    assert violations(sources) == []
    found = violations(sources | {path: text})
    assert len(found) == 1, found
    assert said in found[0]


def test_allowed_imports_pass():
    sources = {
        "wam/models/blocks.py": "import jax",
        "wam/models/dit.py": "from . import blocks\nfrom .blocks import Block\nfrom wam.tokenizers import video",
        "wam/tokenizers/video.py": "import wam.batch",
        "wam/evaluation/closed_loop.py": "from wam.policy import load_policy\nfrom wam.envs import metaworld",
        "wam/evaluation/plots.py": "import matplotlib",
        "wam/envs/metaworld.py": "import metaworld\nimport mujoco\nfrom wam.embodiment import EmbodimentSpec",
        "data_pipelines/store.py": "from wam.embodiment import Normalizer\nfrom wam import batch\nimport grain",
        "wam/batch.py": "import numpy",
    }
    assert violations(sources) == []


def test_the_package_imports_nothing_heavy():
    code = (
        "import sys, wam, wam.batch, wam.embodiment\n"
        "heavy = {'jax', 'flax', 'matplotlib', 'tensorflow', 'grain', 'mujoco'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_is_too_long():
    sources = read_sources("wam", "data_pipelines", "experiments", "tools", "tests")
    assert len(sources) >= 4
    too_long = {path: lines for path, text in sources.items() if (lines := len(text.splitlines())) > MAX_LINES}
    assert not too_long, f"split along the seam a reader would expect (limit {MAX_LINES} lines): {too_long}"
