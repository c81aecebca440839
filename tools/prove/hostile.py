"""Clients that a server must survive: messages that are wrong in every way we know, and connections that vanish.

Everything is drawn from a seed and from the metadata that the server sends, which is all that a stranger would have.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from wam.serving.wire import pack

INSTRUCTIONS = ("open the faucet", "close the faucet", "push the button", "slide the plate to the left")
PATIENCE = 120.0  # seconds; no answer by then is a failure of the server

Request = dict[str, Any]
Draw = np.random.Generator


def observation(about: Request, seed: int) -> Request:
    """A good observation for the first embodiment of the server's metadata, in the names of `Policy.infer`."""
    rng = np.random.default_rng(seed)
    name, robot = next(iter(about["embodiments"].items()))
    shape = (*about["image_size"], 3)
    return {
        "images": {camera: rng.integers(0, 256, shape, dtype=np.uint8) for camera in robot["cameras"]},
        "state": (0.2 * rng.standard_normal(len(robot["state"]))).astype(np.float32),
        "instruction": INSTRUCTIONS[seed % len(INSTRUCTIONS)],
        "embodiment": name,
    }


def open_client(port: int) -> connect:
    return connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, open_timeout=PATIENCE)


# ---------------------------------------------------------------- messages


def _array(data: bytes, dtype: Any, shape: list) -> dict:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def _changed(seen: Request, **changes: Any) -> bytes:
    """Packed without the checks of `wire.pack`."""
    return msgpack.packb(
        {**seen, **changes}, default=lambda value: _array(value.tobytes(), value.dtype.str, list(value.shape))
    )


def _mutated(rng: Draw, seen: Request) -> bytes:
    """A good message with a few bytes of its first kilobyte changed. Where they hit pixels, it stays a good one."""
    message = bytearray(pack(seen))
    for place in rng.integers(0, min(len(message), 1000), rng.integers(1, 8)):
        message[place] = rng.integers(256)
    return bytes(message)


def _truncated(rng: Draw, seen: Request) -> bytes:
    message = pack(seen)
    return message[: rng.integers(0, len(message))]


def _wrong_dtype(rng: Draw, seen: Request) -> bytes:
    if rng.random() < 0.5:
        return _changed(seen, state=_array(b"\0" * 32, str(rng.choice(["<U2", "<c8", "V8", "|S8"])), [4]))
    images = {camera: image.astype(rng.choice(["<f4", "<i2", "|b1"])) for camera, image in seen["images"].items()}
    return _changed(seen, images=images)


def _not_finite(rng: Draw, seen: Request) -> bytes:
    state = seen["state"].astype(np.float64)
    state[rng.integers(len(state))] = rng.choice([np.nan, np.inf, -np.inf, 1e300])
    return _changed(seen, state=state)


def _missing_camera(rng: Draw, seen: Request) -> bytes:
    gone = rng.choice(sorted(seen["images"]))
    return _changed(seen, images={camera: image for camera, image in seen["images"].items() if camera != gone})


def _wrong_shape(rng: Draw, seen: Request) -> bytes:
    shape = rng.integers(0, 40, rng.integers(1, 5))
    return _changed(seen, images=dict.fromkeys(seen["images"], np.zeros(shape, np.uint8)))


def _deep(rng: Draw, _: Request) -> bytes:
    depth = int(rng.integers(8, 5000))
    return rng.choice([b"\x91", b"\x81\xa1a"]) * depth + b"\xc0"


def _huge_shape(rng: Draw, seen: Request) -> bytes:
    shape = [int(2 ** rng.integers(10, 62)) for _ in range(rng.integers(1, 4))]
    return _changed(seen, state=_array(b"\0" * 16, "<f4", shape))


def _huge_length(rng: Draw, _: Request) -> bytes:
    """A map, list, string or bytes that declares up to 4 GiB, and nothing follows."""
    return bytes([rng.choice([0xDF, 0xDD, 0xDB, 0xC6, 0xC9])]) + struct.pack(">I", rng.integers(1 << 20, 1 << 32))


def _bomb(rng: Draw, _: Request) -> bytes:
    """Small on the wire, large as Python objects: lists of empty maps."""
    lists, maps = int(rng.integers(10, 300)), int(rng.integers(1000, 3000))
    return b"\xdc" + struct.pack(">H", lists) + (b"\xdc" + struct.pack(">H", maps) + b"\x80" * maps) * lists


def _wrong_option(rng: Draw, seen: Request) -> bytes:
    name, value = [("mode", "dream"), ("mode", 3), ("reset", "yes"), ("session", -1), ("session", 2**63 * 1.5),
                   ("return_video", []), ("prefix", "x"), ("actions", np.zeros((3, 3))), ("imagse", 1),
                   ("x" * 3000, 1)][rng.integers(10)]  # fmt: skip
    return _changed(seen, **{name: value})


def _root(rng: Draw, _: Request) -> bytes:
    return msgpack.packb([None, 1, "infer", [1, 2], {}, True, msgpack.ExtType(5, b"x"), b"raw"][rng.integers(8)])


KINDS: dict[str, Callable[[Draw, Request], bytes | str]] = {
    "random bytes": lambda rng, _: rng.bytes(int(rng.integers(0, 2000))),
    "truncated": _truncated,
    "mutated": _mutated,
    "wrong dtype": _wrong_dtype,
    "state not finite": _not_finite,
    "missing camera": _missing_camera,
    "wrong shape": _wrong_shape,
    "unknown embodiment": lambda rng, seen: _changed(seen, embodiment=rng.bytes(8).hex()),
    "empty instruction": lambda rng, seen: _changed(seen, instruction=" " * int(rng.integers(3))),
    "deep nesting": _deep,
    "huge shape": _huge_shape,
    "huge length": _huge_length,
    "bomb": _bomb,
    "wrong option": _wrong_option,
    "no map": _root,
    "text": lambda rng, _: base64.b64encode(rng.bytes(int(rng.integers(1, 500)))).decode(),
}
MAY_BE_GOOD = {"mutated"}


def bad_message(rng: Draw, about: Request, most_bytes: int, marker: Path) -> tuple[str, bytes | str]:
    """(kind, message). Objects are pickled in such a way that whoever loads them makes the file `marker`."""
    kind = str(rng.choice([*KINDS, "object dtype", "oversized"]))
    seen = observation(about, int(rng.integers(1 << 31)))
    if kind == "object dtype":
        pickled = f"cbuiltins\nopen\n(S'{marker}'\nS'w'\ntR.".encode()
        return kind, _changed(seen, state=_array(pickled, str(rng.choice(["|O", "O8", "object"])), [1]))
    if kind == "oversized":
        return kind, rng.bytes(most_bytes + int(rng.integers(1, 1000)))
    return kind, KINDS[kind](rng, seen)


async def send_bad(port: int, about: Request, *, count: int, seed: int, most_bytes: int, marker: Path
                   ) -> collections.Counter[str]:  # fmt: skip
    """Sends `count` bad messages one after the other: how each ended, `KIND: sentence|closed|answered`.

    Raises:
        AssertionError: a message that cannot be good was answered. TimeoutError: one was ignored.
    """
    rng, ends = np.random.default_rng(seed), collections.Counter[str]()
    connection: ClientConnection | None = None
    for _ in range(count):
        kind, message = bad_message(rng, about, most_bytes, marker)
        if connection is None:
            connection = await open_client(port)
            await connection.recv()
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.send(message)
                reply = await connection.recv()
        except WebSocketException:
            ends[f"{kind}: closed"] += 1
            connection = None
            continue
        answered = isinstance(reply, bytes)
        assert kind in MAY_BE_GOOD or not answered, f"a message of the kind {kind!r} was answered"
        assert answered or 0 < len(reply.splitlines()) < 2, f"not one sentence: {reply!r}"
        ends[f"{kind}: {'answered' if answered else 'sentence'}"] += 1
    if connection is not None:
        await connection.close()
    return ends


# ---------------------------------------------------------------- connections


def _upgrade(port: int) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def _frame(message: bytes) -> bytes:
    """One masked binary frame (RFC 6455, section 5.2); the mask is zero, so the payload stays as it is."""
    return struct.pack(">BBQI", 0x82, 0x80 | 127, len(message), 0) + message


VANISHING = ("before the handshake", "in the handshake", "in a message", "in a fragment", "during inference", "unread")
"""The last one goes when the answer has come, without reading it."""


async def vanish(port: int, about: Request, *, count: int, seed: int) -> collections.Counter[str]:
    """`count` connections over raw sockets that end where they should not, half of them with a reset."""
    rng, ends = np.random.default_rng(seed), collections.Counter[str]()
    message = _frame(pack(observation(about, seed)))
    for _ in range(count):
        how = str(rng.choice(VANISHING))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if how == "in the handshake":
            upgrade = _upgrade(port)
            writer.write(upgrade[: rng.integers(1, len(upgrade))])
        elif how != "before the handshake":
            writer.write(_upgrade(port))
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
            assert b" 101 " in head.partition(b"\r\n")[0], head
            if how == "in a message":
                writer.write(message[: rng.integers(1, len(message))])
            elif how == "in a fragment":
                writer.write(b"\x02" + message[1 : rng.integers(20, len(message))])
            else:
                writer.write(message)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        await asyncio.sleep(0.1 if how == "unread" else float(rng.uniform(0, 0.01)))
        if rng.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        ends[how] += 1
    return ends
