"""The benchmark of video tokenizers: its cases, what both sides start from, and equality before timing."""

import json

import numpy as np
import pytest

from tools.bench import tokenizer, vae_cases, vae_exchange
from tools.bench.worker import WorkerError
from wam.pretrained.wan_vae import diffusers_config
from wam.tokenizers import wan_vae_config


@pytest.mark.parametrize("case", [*vae_cases.CPU, *vae_cases.GPU], ids=lambda case: case.name)
def test_every_case_tells_both_sides_the_same(case):
    spec = json.loads(json.dumps(case.spec("cpu") | {"diffusers": diffusers_config(case.config)}))
    assert vae_cases.Case(**spec["case"]) == case
    ratio = case.config.frames_per_latent
    assert (case.frames - 1) % ratio == 0
    if case.direction == "encode":
        assert case.input_shape == (case.batch, case.frames, case.height, case.width, 3)
    else:
        B, F, rows, columns, C = case.input_shape
        assert (B, 1 + ratio * (F - 1)) == (case.batch, case.frames)
        assert (rows * case.config.cell, columns * case.config.cell) == (case.height, case.width)
        assert spec["diffusers"]["z_dim"] == C


def test_weights_are_those_of_the_released_file_and_none_is_zero(monkeypatch):
    tiny = {**wan_vae_config.WAN_VAES["wan2.1"], "encoder_width": 8, "decoder_width": 8}
    monkeypatch.setitem(wan_vae_config.WAN_VAES, "wan2.1", tiny)
    case = vae_cases.Case("wan2.1", "decode", 5, 16, 16)
    weights = vae_exchange.weights(case, 0)
    assert len(weights) == 194
    assert weights["encoder.conv_in.weight"].shape == (8, 3, 3, 3, 3)
    assert weights["decoder.norm_out.gamma"].shape == (8, 1, 1, 1)
    assert all(array.dtype == np.float32 and (array != 0).all() for array in weights.values())
    assert vae_exchange.inputs(case, 0).shape == (1, 2, 2, 2, 16)


def test_results_that_differ_are_never_timed():
    ours = np.linspace(-1, 1, 1000, dtype=np.float32)
    assert tokenizer.agreement(ours, ours + np.float32(3e-5), "float32").startswith("results differ at most 3.0")
    with pytest.raises(WorkerError, match=r"differ at most 1\.0e-03 where 0\.0001 is allowed"):
        tokenizer.agreement(ours, ours + np.float32(1e-3), "float32")
    assert "by root mean square" in tokenizer.agreement(ours, ours * np.float32(1.01), "bfloat16")
    with pytest.raises(WorkerError, match="by root mean square"):
        tokenizer.agreement(ours, ours * np.float32(1.2), "bfloat16")
    with pytest.raises(WorkerError, match="nan where"):
        tokenizer.agreement(ours, ours * np.float32(np.nan), "float32")
    with pytest.raises(WorkerError, match=r"\[1000\] here and \[999\] in diffusers"):
        tokenizer.agreement(ours, ours[1:], "float32")


def test_dry_run_names_the_cases_and_quick_takes_fewer(capsys):
    tokenizer.main(["--device=cpu", "--dry_run"])
    out = capsys.readouterr().out
    assert all(case.name in out for case in vae_cases.CPU)
    tokenizer.main(["--device=cpu", "--dry_run", "--quick"])
    out = capsys.readouterr().out
    assert [case.name in out for case in vae_cases.CPU] == [case.quick for case in vae_cases.CPU]
    with pytest.raises(SystemExit, match="no case holds"):
        tokenizer.main(["--device=cpu", "--only", "gigantic", "--dry_run"])
