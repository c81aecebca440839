"""The proofs at a small size: hostile clients beside good ones, in this process and against a real server."""

import asyncio
import collections
import socket

import jax
import numpy as np
import pytest

from tests.experiments.commands import run
from tests.helpers import small_config, small_observation, small_policy
from tests.serving.fake import FakePolicy, client, serving
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


def test_a_real_policy_answers_each_session_as_if_it_were_alone():
    """Two sessions with a past of their own, two that begin, one call: what each gets is what `infer` gives it."""
    config = small_config(chunks=3, latent_frames=7, frames_per_latent=2, history_chunks=2, target_views=(0, 1))
    policy = small_policy(config)
    policy.engine.params = jax.device_put(policy.engine.params, jax.devices()[0])  # as a checkpoint's are
    frames = policy.sessions.frames

    def seen(session: int, chunk: int) -> dict:
        return small_observation(policy, seed=10 * session + chunk, frames=frames if chunk else 0)

    async def play(server, session: int) -> list:
        async with client(server) as one:
            asked = [{**seen(session, chunk), "session": session} for chunk in range(1 + 2 * (session % 2))]
            return [await one.ask(request) for request in asked]

    async def main():
        async with serving(policy, modes=("joint",), max_batch=2, batch_window_ms=200) as server:
            compiled = signatures()
            answers = await asyncio.gather(*(play(server, session) for session in range(1, 5)))
            assert signatures() == compiled, "all was compiled before the server was healthy"
            return answers

    def signatures() -> list[int]:
        return [function._cache_size() for function in policy.engine._compiled.values()]

    for session, answers in enumerate(asyncio.run(main()), 1):
        memory = None
        for chunk, answer in enumerate(answers):
            ids = np.array([[0, session, chunk]], np.uint32)
            rows = next(size for size in (1, 2) if size >= answer["server_timing"]["batch"])
            want, (memory,) = policy.infer_many([seen(session, chunk)], ids, [memory], mode="joint", batch_size=rows)
            np.testing.assert_allclose(answer["actions"], want[0].actions, atol=1e-5)
            assert answer["chunk"] == chunk and answer["policy_timing"]["evaluations"] == 2


@pytest.mark.requires_sim
def test_the_command_serves_a_run(debug_run, tmp_path):
    from wam.policy import load_policy

    with serve.server(debug_run, tmp_path / "log.txt", "--modes=policy", "--max_batch=2") as running:
        found = asyncio.run(
            serve.prove(running, load_policy(debug_run), sessions=6, requests=2, bad=60, gone=12, seed=0,
                        modes=("policy",), max_batch=2, marker=tmp_path / "loaded")
        )  # fmt: skip
        assert running.end() == 0
    assert found["largest_difference"] <= serve.TOLERANCE and found["answers"] >= 24
    assert found["rest"]["wam_sessions"] == found["rest"]["wam_busy"] == 0
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log and log.rstrip().endswith("serve: shutting down")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint=nowhere", "--port=0"], "serve: nowhere holds no checkpoint"),
        (["--checkpoint=x", "--api_key_file={empty}"], "empty is empty: it should hold the key"),
        (["--checkpoint=x", "--port={taken}"], "is taken; choose another with --port"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(tmp_path, flags, said):
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"empty": tmp_path / "empty", "taken": taken.getsockname()[1]}
        done = run("serve", *(flag.format(**known) for flag in flags), check=False)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
