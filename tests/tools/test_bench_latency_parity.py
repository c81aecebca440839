"""The latency bench's two sides give the same answers."""

import dataclasses

from tests.tools.latency_spec import TINY, spec_of
from tools.bench.latency_cases import fields
from tools.bench.latency_ours import OurLatency
from tools.bench.latency_rows import agreement
from tools.bench.peers.torch_latency import TorchLatency


def test_pytorch_gives_the_same_answers(dual):
    spec, ours = dual
    theirs = TorchLatency(spec)
    for name in ("joint, 2 steps", "forward, 2 steps", "policy, 2 steps"):
        said = agreement(ours.call(name)(), theirs.call(name)(), "float32")
        assert ("actions differ by" in said) == (not name.startswith("forward"))
        assert ("pixels" in said) == (not name.startswith("policy"))


def test_pytorch_gives_the_same_answers_with_one_expert(tmp_path):
    """Which hears the instruction in the modulation alone."""
    more = fields(text_attention=False, video_prediction="velocity")
    spec = spec_of(dataclasses.replace(TINY, topology="shared", model_fields=TINY.model_fields + more), tmp_path)
    mine, theirs = OurLatency(spec).call("joint, 2 steps")(), TorchLatency(spec).call("joint, 2 steps")()
    agreement(mine, theirs, "float32")
