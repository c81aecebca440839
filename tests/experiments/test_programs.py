"""Flags to a sampler program."""

import pytest
from absl import flags

from experiments import programs  # defines the flags
from wam.diffusion.reuse import Reuse
from wam.diffusion.sampler import Guidance, program

STEPS = {"policy": 2, "joint": 4}


@pytest.fixture
def parse():
    values = flags.FLAGS

    def with_flags(mode, *arguments):
        values.unparse_flags()
        values(["evaluate", *arguments])
        return programs.program_from_flags(mode, STEPS)

    yield with_flags
    for holder in programs._ALL:
        values[holder.name].unparse()
    values.unparse_flags()


def test_flags_are_a_program(parse):
    assert parse(None) == program("policy", 2)
    assert programs.program_flags() == []
    assert parse("joint", "--solver=unipc") == program("joint", 4, solver="unipc")
    assert programs.program_flags() == ["solver"]


def test_every_flag_arrives(parse):
    given = ("--program=flash", "--sigma_video=0.6", "--solver=heun", "--reuse=0.95", "--max_skips=2", "--guidance=3",
             "--guidance_from=0.96")  # fmt: skip
    assert parse("joint", *given) == program(
        "flash", 4, sigma_video=0.6, solver="heun", reuse=Reuse(0.95, 2), video_guidance=Guidance(3.0, 0.96)
    )
    assert len(programs.program_flags()) == 7


def test_async(parse):
    assert parse(None, "--program=async", "--action_steps=1") == program("async", 4, action_steps=1)


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        ("policy", ["--program=flash"], "--program flash is a way to sample mode joint, not --mode policy"),
        ("joint", ["--max_skips=2"], "--max_skips is of --reuse, which is not given"),
        ("joint", ["--guidance_from=0.9"], "--guidance_from is of --guidance, which is not given"),
        ("joint", ["--reuse=2"], "reuse.threshold: expected a cosine"),
        (None, ["--guidance=3"], "'policy': video_guidance, but no video is generated"),
        (None, ["--sigma_video=0.7"], "sigma_video is of program 'flash'; 'policy' has none"),
    ],
)
def test_flags_that_do_not_go_together_are_named(parse, mode, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(mode, *arguments)
