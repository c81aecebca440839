"""The proofs at a small size: hostile clients beside good ones, in this process and against a real server."""

import asyncio
import collections

import numpy as np
import pytest

from tests.experiments.commands import run
from tests.serving.fake import FakePolicy, serving
from tools.prove import serve
from tools.prove.hostile import KINDS, VANISHING, bad_message


def test_every_bad_message_gets_a_sentence_or_a_close_and_good_clients_their_answers(tmp_path):
    policy = FakePolicy()

    async def main():
        async with serving(policy, max_message_bytes=serve.MOST_BYTES) as server:
            about = await serve.metadata(server.port)
            found, answers = await serve.disturb(
                server.port, about, ("policy", "joint"), bad=600, gone=60, seed=0, marker=tmp_path / "loaded"
            )
            crowd = await serve.crowd(server.port, 20, 3, ("policy", "joint"))
            while server.sessions:
                await asyncio.sleep(0.01)
        return found, answers, crowd

    found, answers, crowd = asyncio.run(main())
    ends = collections.Counter()
    for end, count in found["ends"].items():
        ends[end.partition(":")[0]] += count
    assert set(ends) == {*KINDS, "object dtype", "oversized"} and sum(ends.values()) == 600
    assert set(found["vanished_where"]) == set(VANISHING)
    assert {end for end in found["ends"] if end.endswith("closed")} == {"oversized: closed"}
    assert len(answers) >= 4 and len(crowd) == 60
    about = {"embodiments": {"arm": {"cameras": {"front": "", "wrist": ""}, "state": ["x", "y", "z"]}}}
    about["image_size"] = policy.tokenizer.image_size
    assert serve.check(policy, about, answers + crowd, 4)["largest_difference"] == 0
    crowd[0].actions = crowd[0].actions + 1e-3
    with pytest.raises(AssertionError, match="off by 0"):
        serve.check(policy, about, crowd, 4)


def test_an_answered_bad_message_would_be_noticed(tmp_path):
    """A seed gives the same messages again, and the pickle among them is a working one."""
    about = {"embodiments": {"arm": {"cameras": {"front": ""}, "state": ["x"]}}, "image_size": [4, 4]}
    first, second = (
        [bad_message(np.random.default_rng(i), about, 100, tmp_path / "loaded") for i in range(100)] for _ in range(2)
    )
    assert first == second
    import pickle

    import msgpack

    objects = [message for kind, message in first if kind == "object dtype"]
    pickle.loads(msgpack.unpackb(objects[0])["state"][b"data"])  # noqa: S301
    assert (tmp_path / "loaded").exists()


@pytest.mark.requires_sim
def test_a_real_server_answers_like_the_policy(debug_run, tmp_path):
    from wam.policy import load_policy

    modes = ("policy",)
    with serve.server(debug_run, tmp_path / "log.txt", "--modes=policy", "--max_batch=2") as running:
        taken = run("serve", f"--checkpoint={debug_run}", f"--port={running.port}", check=False)
        assert taken.stderr.strip().endswith(f"serve: port {running.port} is taken; choose another with --port")
        found = asyncio.run(
            serve.prove(running, load_policy(debug_run), sessions=6, requests=2, bad=60, gone=12, seed=0, modes=modes,
                        max_batch=2, marker=tmp_path / "loaded")
        )  # fmt: skip
        assert running.end() == 0
    assert found["largest_difference"] <= serve.TOLERANCE and found["answers"] >= 24
    assert found["rest"] == {"wam_sessions": 0, "wam_busy": 0, "process_open_fds": found["rest"]["process_open_fds"]}
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log and log.rstrip().endswith("serve: shutting down")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint=nowhere"], "nowhere holds no checkpoint"),
        (["--checkpoint=x", "--host=0.0.0.0"], "host '0.0.0.0' can be reached by others: set an API key"),
        (["--checkpoint=x", "--api_key_file={empty}"], "empty is empty: it should hold the key"),
        (["--checkpoint=x", "--mapping=none.json"], "none.json: No such file or directory"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(tmp_path, flags, said):
    (tmp_path / "empty").write_text("\n")
    done = run("serve", "--port=0", *(flag.format(empty=tmp_path / "empty") for flag in flags), check=False)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
