"""Open-loop imagined rollouts: chunk after chunk, each going on from what the one before imagined.

What comes next is never observed, so the state at the end of a chunk is where its actions lead by the constants fitted
on data (`Embodiments.lead`), and cameras whose future the model does not denoise are masked after the first chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.diffusion.sampler import Program
from wam.inference import Engine, Rows, Way, decoded, led_state, line_up, sampled
from wam.models.history import Ring, remember
from wam.models.joint_dit import JointDiT
from wam.observations import Observations
from wam.session import Memory, Sessions
from wam.tokenizers.video import VideoTokenizer
from wam.training.step import latents_of


class Imagined(NamedTuple):
    """Of `chunks` chunks, as far as a chunk's frames reach: n frames and `chunk_steps` actions each."""

    actions: np.ndarray | None
    """[chunks * steps, raw action dim] in the robot's units; None in mode video"""
    video: dict[str, np.ndarray]
    """camera -> [chunks * n, h, w, 3] uint8"""
    action_seconds: np.ndarray
    video_seconds: np.ndarray


class Imagination:
    """Rolls the model forward in a host loop of one compiled call a chunk, whatever lies behind."""

    def __init__(self, engine: Engine, observations: Observations, sessions: Sessions | None):
        self.engine, self.observations, self.sessions = engine, observations, sessions

    def __call__(self, observation: Mapping[str, Any], memory: Memory | None, program: Program, chunks: int,
                 ids: tuple[int, int], steps: int, actions: np.ndarray | None) -> tuple[Imagined, Memory]:  # fmt: skip
        """See `Policy.imagine`; `steps` actions pass in a chunk, `ids` and the chunk's number key the noise."""
        robot = self.observations.embodiment(observation["embodiment"])
        number = memory.chunk if memory else 0
        if self.sessions:
            row, ring = self.sessions.row(observation, memory)
        else:
            row, ring = self.observations.row(observation), None
        if actions is not None:
            actions = self.observations.actions(actions, robot.spec.name, exactly=chunks * steps)
        way, rows = line_up([program])
        run = self.engine.jit(("imagine", way), lambda *args: _chunk(way, *args))
        batch = {name: np.asarray(value)[None] for name, value in row.items()}
        mask, state = batch["action_mask"], np.asarray(observation["state"], np.float32)
        done, films = [], []
        remembered = ring
        for chunk in range(chunks):
            if actions is not None:
                given = actions[chunk * steps : chunk * steps + self.engine.config.action_horizon]
                batch |= {"action": np.zeros_like(row["action"])[None],
                          "action_mask": mask & (np.arange(mask.shape[2]) < len(given))[:, None]}  # fmt: skip
                self.observations.fill({"action": batch["action"][0]}, given, {**observation, "state": state})
            key = jnp.asarray([[*ids, number + chunk]], jnp.uint32)
            frames, action, after, ring = run(batch, key, rows, ring)
            remembered = ring if chunk == 0 else remembered
            films.append(np.asarray(frames[0]))
            if action is not None:
                done.append(robot.decode_action(np.asarray(action[0, 0]), state)[:steps])
                state = robot.decode_state(np.asarray(after["state"][0, 0]))
            batch = {**{name: value for name, value in batch.items() if name != "video"}, **after}
        film = np.concatenate(films, axis=1)
        shown = [robot.views[i] for i in self.engine.config.target_views if i < len(robot.views)]
        n, seconds = film.shape[1] // chunks, self.observations.frame_seconds(robot.spec.name)
        starts = np.arange(chunks)[:, None] * seconds[-1]
        result = Imagined(
            np.concatenate(done) if done else None,
            dict(zip(shown, film, strict=False)),  # a robot may have fewer cameras than there are views
            np.arange(chunks * steps, dtype=np.float32) / np.float32(robot.action_hz),
            (starts + seconds[1 : n + 1]).ravel().astype(np.float32),
        )
        if self.sessions is None:
            return result, Memory(number + 1)
        assert remembered is not None
        assert ring is not None
        past = self.sessions.after(observation, row, remembered, number + 1)
        assert past.past is not None
        return result, past._replace(past=past.past._replace(ring=ring))


def _chunk(way: Way, model: JointDiT, tokenizer: VideoTokenizer, batch: Batch, ids: Array, rows: Rows,
           ring: Ring | None) -> tuple[Array, Array | None, Batch, Ring | None]:  # fmt: skip
    """(frames [B, v, n, h, w, 3] uint8, actions [B, 1, K, A], what of the batch is new then, what is remembered)."""
    out, context = sampled(model, tokenizer, way, batch, ids, rows, ring)
    assert out.video is not None
    config, targets = model.config, np.array(model.config.target_views)
    future = jnp.moveaxis(out.video[:, 0], 2, 1)  # [B, v, f, P, C]
    history = latents_of(batch, tokenizer)[:, targets]
    frames = decoded(tokenizer, config, out.video, batch["camera"][:, targets], history)
    target = jnp.isin(jnp.arange(config.views), targets)
    after = {"view_mask": batch["view_mask"] & target, "state_mask": batch["state_mask"] & way.action}
    after["state"] = batch["state"] if out.action is None else led_state(model, batch, out.action)
    shape = (future.shape[0], config.views)
    if ring is None:  # the network knows first frames alone: the last one imagined is the next first
        video = jnp.zeros((*shape, 1, *frames.shape[3:]), jnp.uint8)
        return frames, out.action, after | {"video": video.at[:, targets].set(frames[:, :, -1:])}, None
    latents = jnp.zeros((*shape, 1 + config.frames_per_chunk, config.patches, config.latent_channels))
    after |= {"latents": latents.at[:, targets, 1:].set(future), "opens": jnp.zeros_like(batch["opens"])}
    return frames, out.action, after, remember(ring, context)
