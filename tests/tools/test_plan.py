"""The planner: its figures on recipes whose numbers are known, its advice, and one sentence for what cannot be."""

import dataclasses
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

from experiments.recipe import Recipe
from tools import plan
from wam.training.chips import CHIPS, chip_of
from wam.training.memory import device_bytes

ROOT = pathlib.Path(__file__).resolve().parents[2]


def recipe_of(name: str, **model) -> Recipe:
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    config.model.update(**model)
    return Recipe.of(config)


def run(*arguments: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "tools/plan.py", *arguments], cwd=ROOT, env=env, capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip


def test_the_command_plans_fourteen_billion_parameters_without_a_device():
    done = run("--config=experiments/configs/wan14b.py", "--mesh=data=8,fsdp=32", "--chip=H100,GB200", "--mfu=0.5")
    assert done.returncode == 0, done.stderr
    assert "256 devices" in done.stdout
    assert re.search(r"^parameters +16,\d{3},\d{3},\d{3}: video 14\.\d+B", done.stdout, re.MULTILINE)
    rows = {row[0]: row for row in map(str.split, done.stdout.splitlines()) if row and row[0] in CHIPS}
    assert set(rows) == {"H100", "GB200"}
    assert rows["H100"][-1] == "yes"


def test_the_expected_step_is_work_over_rate():
    recipe = recipe_of("base")
    setting = plan.setting_of(recipe, plan.parse_mesh("fsdp=8"))
    step = 10**18
    rows = plan.chip_rows(setting, [CHIPS["H100"], CHIPS["v5p"]], 0.4, step, 1000)
    assert f"{step / (8 * 989e12 * 0.4):.3g} s" in rows[1]
    assert f"{step / (8 * 459e12 * 0.4):.3g} s" in rows[2]
    per_day = 1000 * recipe.train.batch_size * 86_400 / (step / (8 * 989e12 * 0.4))
    assert plan.number(per_day) in rows[1]


@pytest.mark.parametrize(
    ("mesh", "model", "chip", "lever"),
    [
        ("fsdp=8", {"remat": "none"}, "H100", "model.remat=dots would"),
        ("fsdp=8", {}, "v5e", "model.remat=full would"),
        ("data=8", {}, "v6e", "model.remat=full and mesh data="),
    ],
)
def test_the_advice_holds(mesh, model, chip, lever):
    """What is advised names the lever, and the setting it names does fit, as the sentence says."""
    setting = plan.on_chip(plan.setting_of(recipe_of("base", **model), plan.parse_mesh(mesh)), CHIPS[chip])
    assert device_bytes(setting).total > plan.USABLE * CHIPS[chip].hbm
    said = plan.advice(setting, CHIPS[chip])
    assert said.startswith(lever), said
    name = said.split(" would bring it to ")[0]
    changed = next(changed for found, changed in plan.changes(setting, CHIPS[chip]) if found == name)
    total = device_bytes(changed).total
    assert total <= plan.USABLE * CHIPS[chip].hbm
    assert said.endswith(plan.size(total))


def test_what_cannot_be_helped_is_said():
    setting = plan.setting_of(recipe_of("wan14b", remat="full"), plan.parse_mesh("data=1"))
    # Primes, which no axis divides.
    setting = dataclasses.replace(setting, model=dataclasses.replace(setting.model, heads=41, grid=(1, 487)))
    tiny = dataclasses.replace(CHIPS["v5e"], hbm=1e6)
    assert plan.advice(setting, tiny).startswith("no two changes suffice; the least is ")


def test_a_chip_without_the_backend_is_counted_with_another():
    rows = plan.chip_rows(plan.setting_of(recipe_of("base"), plan.parse_mesh("fsdp=8")), [CHIPS["v5p"]], 0.4, 1, 1)
    assert "v5p: no cudnn attention there; counted with model.attention=xla" in rows


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("data=8,fdsp=2", "there is no axis 'fdsp'; did you mean 'fsdp'?"),
        ("data=8,fsdp", "'fsdp' is not AXIS=DEVICES; write it as data=8,fsdp=32"),
        ("data=2,data=4", "names 'data' twice"),
        ("data=-1,fsdp=8", "data must be at least 1"),
        ("", "is not AXIS=DEVICES"),
    ],
)
def test_a_bad_mesh_is_named(mesh, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        plan.parse_mesh(mesh)


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("data=7", "train.batch_size 256 does not divide over 7 devices (data x fsdp)"),
        ("fsdp=8,tensor=5", "mesh.tensor = 5 does not divide the 12 heads"),
        ("fsdp=8,context=3", "mesh.context = 3 does not divide the 256 patches of a frame"),
    ],
)
def test_a_mesh_that_does_not_divide_is_named(mesh, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        plan.setting_of(recipe_of("base"), plan.parse_mesh(mesh))


def test_accumulation_counts_into_the_batch():
    recipe = recipe_of("base")
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, accumulate=3))
    with pytest.raises(ValueError, match="accumulate 3 microbatches"):
        plan.setting_of(recipe, plan.parse_mesh("fsdp=8"))


def test_bad_input_is_one_sentence():
    for arguments, said in (
        (("--config=experiments/configs/base.py", "--mesh=fsdp=9"), "plan: train.batch_size 256 does not divide"),
        (("--config=experiments/configs/base.py", "--chip=H1000"), "plan: unknown chip 'H1000'; choose from H100"),
    ):
        done = run(*arguments)
        assert done.returncode == 1, done.stdout
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_chips_are_found_by_the_names_that_jax_gives():
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA GB200": "GB200", "TPU v5 lite": "v5e", "TPU v5": "v5p",
             "TPU v6 lite": "v6e"}  # fmt: skip
    for kind, name in names.items():
        assert chip_of(kind) is CHIPS[name]
    assert chip_of("cpu") is None
