"""A policy that costs nothing and whose answers can be told apart, and a server around it in this process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from wam.embodiment import EmbodimentSpec
from wam.observations import Embodiment
from wam.policy import Chunk
from wam.serving.observations import ObservationMapping
from wam.serving.server import PolicyServer, ServerConfig
from wam.serving.wire import pack, unpack

HORIZON, SIZE = 4, (8, 6)


def robot(name: str, views: tuple[str, ...], state_dim: int = 3) -> Embodiment:
    spec = EmbodimentSpec(name, ("delta", "gripper"), tuple("xyzuvw"[:state_dim]), ("dx", "grip"), control_hz=10.0)
    return Embodiment(spec, action_hz=10.0, views=views, frame_seconds=(0.0, 0.1, 0.2))


class FakePolicy:
    """What the server asks of `wam.policy.Policy`; its actions tell observation, noise key and mode."""

    def __init__(self, robots: Sequence[Embodiment] = (robot("arm", ("front", "wrist")),), delay: float = 0.0,
                 history: bool = False):  # fmt: skip
        self.robots, self.delay = {r.spec.name: r for r in robots}, delay
        self.tokenizer = SimpleNamespace(image_size=SIZE)
        self.engine = SimpleNamespace(config=SimpleNamespace(action_horizon=HORIZON, steps_per_token=2, video_frames=3))
        self.sessions = SimpleNamespace(frames=2) if history else None
        self.step = 7
        self.programs: set[tuple[str, str | None]] = set()
        self.calls: list[tuple[str, int, int]] = []
        """(mode, rows, batch size) of every call"""

    @property
    def embodiments(self) -> tuple[str, ...]:
        return tuple(self.robots)

    def embodiment(self, name: str) -> Embodiment:
        if name not in self.robots:
            raise ValueError(f"unknown embodiment {name!r}; the checkpoint knows {', '.join(self.robots)}")
        return self.robots[name]

    def example_observation(self) -> dict[str, Any]:
        return observation(self.robots[self.embodiments[0]])

    def infer_many(self, observations: Sequence[Mapping], ids: np.ndarray, memories: Any = None, *,
                   mode: str = "policy", program: Any = None, actions: Any = None, videos: Any = None,
                   prefixes: Any = None, batch_size: int | None = None) -> tuple[list[Chunk], list[Any]]:  # fmt: skip
        assert program is None or program.mode == mode
        self.programs.add((mode, program and program.name))
        time.sleep(self.delay)
        self.calls.append((mode, len(observations), batch_size or len(observations)))
        if any(o["instruction"] == "explode" for o in observations):
            raise RuntimeError("boom")
        if any(o["instruction"] == "refuse me" for o in observations):
            raise ValueError("the policy does not like this instruction")
        chunks = []
        for i, (seen, memory) in enumerate(zip(observations, memories or [None] * len(observations), strict=True)):
            frames = {image.ndim == 4 and len(image) for image in seen["images"].values()}
            if self.sessions and frames != ({2} if memory else {False}):
                raise ValueError(f"expected the frames since the last observation, got {frames}")
            chunk = self.chunk(seen, ids[i], mode, remembered=(memory or 0) if self.sessions else None)
            for given in (actions, prefixes):
                if given:
                    chunk.actions[: len(given[i])] = given[i]
            if videos:
                chunk.actions[:] += sum(float(clip.mean()) for clip in videos[i].values())
            chunks.append(chunk)
        return chunks, [(memory or 0) + 1 for memory in memories or [0] * len(observations)]

    @staticmethod
    def chunk(seen: Mapping[str, Any], ids: np.ndarray, mode: str, remembered: int | None = None) -> Chunk:
        pixels = sum(float(image.mean()) for image in seen["images"].values())
        mark = [float(seen["state"].sum()) + pixels, float(ids.astype(np.int64) @ [1_000_000, 1000, 1]) % 99991]
        actions = np.tile(np.array(mark, np.float32), (HORIZON, 1))
        actions[0, 0] += int(ids[2]) if remembered is None else remembered  # as many as were answered
        if seen["instruction"] == "go mad":
            actions[1, 1] = np.nan
        film = {camera: np.stack([image] * 2) for camera, image in seen["images"].items()}
        seconds = np.arange(HORIZON, dtype=np.float32) / 10
        shown = None if mode == "policy" else film
        return Chunk(None if mode == "video" else actions, shown, seconds, np.array([0.1, 0.2], np.float32))


def observation(of: Embodiment, seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for camera in of.views}
    state = rng.normal(size=of.spec.state_dim).astype(np.float32)
    return {"images": images, "state": state, "instruction": "push", "embodiment": of.spec.name, **changes}


@contextlib.asynccontextmanager
async def serving(policy: Any, mapping: ObservationMapping | None = None, fit: Any = None,
                  program: Any = None, **config: Any) -> AsyncIterator[PolicyServer]:  # fmt: skip
    server = PolicyServer(ServerConfig(**{"port": 0, "rate": 0.0, "max_batch": 4, **config}), lambda: policy,
                          mapping, fit, program)  # fmt: skip
    await server.listen()
    try:
        await server.warm_up()
        if isinstance(policy, FakePolicy):
            policy.calls.clear()  # those of the warming up
        yield server
    finally:
        await server.drain()


class Client:
    """A connection that speaks the protocol."""

    def __init__(self, connection: Any, metadata: dict):
        self.connection, self.metadata = connection, metadata

    async def ask(self, request: Any) -> Any:
        """The answer, or the sentence that the server sent instead."""
        await self.connection.send(request if isinstance(request, (bytes, str)) else pack(request))
        reply = await asyncio.wait_for(self.connection.recv(), 10)
        return reply if isinstance(reply, str) else unpack(reply)


@contextlib.asynccontextmanager
async def client(server: PolicyServer, **options: Any) -> AsyncIterator[Client]:
    async with connect(f"ws://127.0.0.1:{server.port}", compression=None, max_size=None, **options) as connection:
        yield Client(connection, unpack(await connection.recv()))


async def http_get(server: PolicyServer, path: str, *headers: str) -> tuple[int, str]:
    """(status, body)"""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())
    text = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    head, _, body = text.partition("\r\n\r\n")
    return int(head.split()[1]), body
