"""Sessions of a policy: memory equals recomputation in every mode; imagination; modes row by row in one batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import ROBOT, small_config, small_observation, small_policy
from wam.diffusion import sampler
from wam.diffusion.sampler import Held, Sample
from wam.inference import line_up, observed, predictor
from wam.models.history import remember
from wam.session import Sessions, together
from wam.tokenizers.video import VideoTokenizer

M, f, r, W = 5, 2, 2, 3
N = f * r  # frames a chunk
CONFIG = small_config(chunks=M, latent_frames=1 + M * f, frames_per_latent=r, history_chunks=W, target_views=(0, 1),
                      latent_rate=10.0, embodiments=2)  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return small_policy(CONFIG, prefix_tokens=3)


@pytest.fixture(scope="module")
def session(policy):
    """Observations of one session, and the same as one batch that holds all of it."""
    seen = [small_observation(policy, seed, frames=N if seed else 0) for seed in range(M)]
    last = small_observation(policy, M, frames=N)["images"]
    rows = [policy.observations.row(observation) for observation in seen]
    clips = [{c: np.atleast_1d(o["images"][c]).reshape(-1, *policy.tokenizer.image_size, 3) for c in o["images"]}
             for o in seen] + [last]  # fmt: skip
    cameras = list(last)
    chunk = N * (rows[0]["video_time"][1] - rows[0]["video_time"][0])
    batch = {name: rows[0][name][None] for name in ("view_mask", "camera", "text", "text_mask", "embodiment")}
    batch |= {
        name: np.concatenate([row[name] for row in rows])[None] for name in ("state", "state_mask", "action_mask")
    }
    batch["video"] = np.stack([np.concatenate([clip[c] for clip in clips]) for c in cameras])[None]
    batch["frame_mask"] = np.ones((1, 1 + M * N), bool)
    batch["video_time"] = (np.arange(1 + M * N, dtype=np.float32) * chunk / N)[None]
    batch["action_time"] = (np.arange(M)[:, None] * chunk + rows[0]["action_time"])[None].astype(np.float32)
    batch["action"] = np.random.default_rng(0).standard_normal((1, M, 8, 4)).astype(np.float32)
    return seen, batch


def programs() -> list[sampler.Program]:
    standard = [sampler.program(mode, steps) for mode, steps in
                (("policy", 2), ("joint", 2), ("forward", 2), ("inverse", 1), ("video", 1))]  # fmt: skip
    return [*standard, *(dataclasses.replace(standard[1], solver=solver) for solver in sampler.SOLVERS[1:])]


@pytest.mark.parametrize("program", programs(), ids=lambda p: f"{p.name}-{p.solver}")
def test_memory_equals_recomputation(policy, session, program):
    """Chunk by chunk from real frames and a ring, against all chunks at once from everything before them."""
    seen, batch = session
    way, rows = line_up([program])

    def run(model, tokenizer: VideoTokenizer, batch, noise: Sample, future, ring):
        context, _ = observed(model, tokenizer, batch, None if ring is None else together([ring]))
        video = None if not way.video else future if way.video_is_given else noise.video
        action = None if not way.action else batch["action"] if program.action == "given" else noise.action
        predict = predictor(model, context, batch, rows.schedule)
        out = sampler.sample(predict, Sample(video, action), rows.schedule, Held(),
                             video_prediction=CONFIG.video_prediction, solver=program.solver)  # fmt: skip
        return out, None if ring is None else remember(ring, context)

    rng = np.random.default_rng(1)
    latents = policy.tokenizer.encode(jnp.asarray(batch["video"]), jnp.asarray(batch["camera"]))
    future = jnp.moveaxis(latents[:, :, 1:].reshape(1, 2, M, f, *latents.shape[3:]), 1, 3)
    noise = Sample(
        jnp.asarray(rng.standard_normal(future.shape), jnp.float32),
        jnp.asarray(rng.standard_normal(batch["action"].shape), jnp.float32),
    )
    expected, _ = policy.whole.jit(("whole", program), run)(batch, noise, future, None)
    memory = None
    step = policy.engine.jit(("step", program), run)
    for chunk, observation in enumerate(seen):
        row, ring = policy.sessions.row(observation, memory)
        row["action"] = batch["action"][0, chunk : chunk + 1]
        one = slice(chunk, chunk + 1)
        part = Sample(noise.video[:, one], noise.action[:, one])
        out, ring = step({name: np.asarray(x)[None] for name, x in row.items()}, part, future[:, one], ring)
        memory = policy.sessions.after(observation, row, ring, chunk + 1)
        for name in ("video", "action"):
            found, right = getattr(out, name), getattr(expected, name)
            assert (found is None) == (right is None)
            if found is not None:
                np.testing.assert_allclose(found[:, 0], right[:, chunk], atol=1e-4, err_msg=f"{name} of chunk {chunk}")
    assert int(memory.past.ring.length[0]) == M > memory.past.ring.chunk.shape[1] - 4 >= W - 1


def test_real_frames_overwrite_what_was_imagined(policy, session):
    seen, _ = session
    _, memory = policy.infer(seen[0])
    _, memory = policy.infer(seen[1], memory)
    dream, dreamt = policy.imagine(seen[2], memory, chunks=4)
    steps = policy.chunk_steps(ROBOT.name)
    assert dream.actions.shape == (4 * steps, 4)
    assert {v.shape for v in dream.video.values()} == {(4 * N, *policy.tokenizer.image_size, 3)}
    assert len(set(np.round(np.diff(dream.video_seconds), 5))) == 1
    _, awake = policy.infer(seen[2], memory)
    assert dreamt.past.ring.length[0] == awake.past.ring.length[0] + 3
    after_dream, _ = policy.infer(seen[3], dreamt._replace(chunk=awake.chunk), mode="joint")
    after_none, _ = policy.infer(seen[3], awake, mode="joint")
    # Not bit for bit: the last real chunk was remembered by another compiled program.
    np.testing.assert_allclose(after_dream.actions, after_none.actions, atol=1e-5)
    assert np.abs(after_dream.video["camera0"].astype(int) - after_none.video["camera0"]).max() <= 1
    forgetful, _ = policy.infer({**seen[3], "images": {c: x[-1] for c, x in seen[3]["images"].items()}}, mode="joint")
    assert not np.allclose(forgetful.actions, after_none.actions, atol=1e-3)
    _, too_far = policy.imagine(seen[2], memory, chunks=6)
    with pytest.raises(ValueError, match=r"memory: 5 chunks were imagined, .* load_policy\(ahead=5\)"):
        policy.infer(seen[3], too_far)


def test_a_session_begins_anew_under_another_instruction(policy, session):
    seen, _ = session
    _, memory = policy.infer(seen[0])
    other = {**seen[1], "instruction": "lift the block"}
    changed, _ = policy.infer(other, memory)
    fresh, _ = policy.infer(other, memory._replace(past=None))
    np.testing.assert_array_equal(changed.actions, fresh.actions)


def test_imagination_obeys_given_actions_and_needs_no_history():
    """Also of a checkpoint that knows first frames alone: the last imagined frame is the next first one."""
    plain = small_policy(small_config(latent_frames=1 + f, frames_per_latent=r, target_views=(0, 1), embodiments=2))
    observation = small_observation(plain)
    steps = plain.chunk_steps(ROBOT.name)
    actions = np.random.default_rng(0).uniform(-1, 1, (3 * steps, 4)).astype(np.float32)
    dream, memory = plain.imagine(observation, chunks=3, mode="forward", actions=actions)
    assert memory.past is None
    np.testing.assert_allclose(dream.actions, actions, atol=1e-5)
    other = actions.copy()
    other[2 * steps :] *= -1
    changed, _ = plain.imagine(observation, chunks=3, mode="forward", actions=other)
    np.testing.assert_array_equal(changed.video["camera0"][: 2 * N], dream.video["camera0"][: 2 * N])
    assert not np.array_equal(changed.video["camera0"][2 * N :], dream.video["camera0"][2 * N :])
    first, _ = plain.infer(observation, mode="forward", actions=actions[:steps])
    np.testing.assert_array_equal(first.video["camera1"], dream.video["camera1"][:N])
    with pytest.raises(ValueError, match=rf"actions: expected finite \[{2 * steps}, 4\]"):
        plain.imagine(observation, chunks=2, mode="forward", actions=actions)
    with pytest.raises(ValueError, match="makes no video"):
        plain.imagine(observation, mode="policy")


def test_rows_of_one_batch_may_have_modes_of_their_own(policy, session):
    seen, _ = session
    _, memory = policy.infer(seen[0])
    modes = ["policy", "joint", "forward", "inverse", "video"]
    rng = np.random.default_rng(0)
    actions = [rng.uniform(-1, 1, (8, 4)).astype(np.float32) if mode == "forward" else None for mode in modes]
    videos = [small_observation(policy, 9, frames=N)["images"] if mode == "inverse" else None for mode in modes]
    prefixes = [rng.uniform(-1, 1, (4, 4)).astype(np.float32) if mode == "joint" else None for mode in modes]
    ids = np.arange(15).reshape(5, 3).astype(np.uint32)
    memories = [None, memory, memory, None, memory]
    observations = [seen[0] if known is None else seen[1] for known in memories]
    together_, after = policy.infer_many(observations, ids, memories, mode=modes, actions=actions, videos=videos,
                                         prefixes=prefixes)  # fmt: skip
    np.testing.assert_array_equal(together_[1].actions[:4], prefixes[1])
    assert [m.chunk for m in after] == [1, 2, 2, 1, 2]
    for i, mode in enumerate(modes):
        given = {"actions": actions[i : i + 1] if actions[i] is not None else None,
                 "videos": videos[i : i + 1] if videos[i] is not None else None,
                 "prefixes": prefixes[i : i + 1] if prefixes[i] is not None else None}  # fmt: skip
        (alone,), _ = policy.infer_many(
            observations[i : i + 1], ids[i : i + 1], memories[i : i + 1], mode=mode, **given
        )
        assert (alone.actions is None) == (together_[i].actions is None) == (mode in ("forward", "video"))
        assert (alone.video is None) == (together_[i].video is None) == (mode in ("policy", "inverse"))
        if alone.actions is not None:
            np.testing.assert_allclose(together_[i].actions, alone.actions, atol=1e-4)
        if alone.video is not None:
            for camera, frames in alone.video.items():
                assert np.abs(together_[i].video[camera].astype(int) - frames).max() <= 1


@pytest.mark.parametrize(
    ("change", "request_", "message"),
    [
        ({"instruction": "  "}, {}, "observation.instruction: expected what to do in words"),
        ({"images": {"camera0": np.zeros((16, 16, 3), np.uint8)}}, {}, "lacks the camera 'camera1'"),
        ({"images": []}, {}, "observation.images: expected a mapping"),
        ({"state": "home"}, {}, "observation.state: expected 4 finite numbers"),
        ({}, {"mode": "value"}, "unknown mode 'value'|mode 'value'"),
        ({}, {"mode": "inverse"}, "needs `video`"),
        ({}, {"mode": "inverse", "video": {"camera0": np.zeros((1, 16, 16, 3), np.uint8)}}, "video.* expected"),
        ({}, {"prefix": np.zeros((3, 4))}, "prefix: expected a multiple of 2 actions"),
        ({}, {"prefix": np.zeros((8, 4))}, "fewer than the 8 of a chunk"),
        ({}, {"mode": "forward", "actions": np.full((8, 4), np.nan)}, "actions: .* got NaN or infinity"),
        ({}, {"program": sampler.program("joint", 1), "mode": "policy"}, "is of mode 'joint', not 'policy'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(policy, change, request_, message):
    with pytest.raises(ValueError, match=message):
        policy.infer({**small_observation(policy), **change}, **request_)


def test_frames_of_a_session_and_modes_that_were_not_trained_are_named(policy, session):
    seen, _ = session
    _, memory = policy.infer(seen[0])
    short = {camera: clip[:2] for camera, clip in seen[1]["images"].items()}
    with pytest.raises(ValueError, match="expected the 4 frames since the last observation"):
        policy.infer({**seen[1], "images": short}, memory)
    untrained = small_policy(small_config(latent_frames=3), policy_draws=0)
    untrained.assets["config"]["objective"]["modes"].update(policy=0.0, joint=0.0)
    with pytest.raises(ValueError, match=r"mode 'policy': this checkpoint was trained for async, .*objective\.modes"):
        untrained.infer(small_observation(untrained))
    counting = Sessions(policy.observations, dataclasses.replace(policy.engine.config, action_places="count"), ahead=1)
    with pytest.raises(ValueError, match="memory: this network numbers its action tokens"):
        counting.row(seen[1], memory)
    assert jax.tree.leaves(memory)  # the memory of a refused call is as it was
    policy.infer(seen[1], memory)
