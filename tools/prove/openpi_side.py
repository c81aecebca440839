"""The robot's side of `openpi_client.py`: runs in an environment with `openpi-client` and knows nothing of ours.

    python openpi_side.py PORT KEY_FILE ACTION_HORIZON

Reads observations from its standard input and writes actions to its standard output, one length-prefixed npz each. An
empty observation means that the last one still holds: the broker looks at it only when its chunk is used up.
"""

import io
import struct
import sys
import time
from pathlib import Path

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.base_policy import BasePolicy
from openpi_client.websocket_client_policy import WebsocketClientPolicy


class Timed(BasePolicy):
    """A policy that remembers how long each answer took."""

    def __init__(self, policy):
        self.policy, self.seconds = policy, []

    def infer(self, obs):
        start = time.monotonic()
        answer = self.policy.infer(obs)
        self.seconds.append(time.monotonic() - start)
        # The broker takes a step of every array of an answer.
        return {"actions": answer["actions"], "server_timing": answer["server_timing"]}


def read(stream):
    (length,) = struct.unpack(">Q", stream.read(8))
    with np.load(io.BytesIO(stream.read(length))) as arrays:
        return {name: arrays[name] for name in arrays.files}


def write(stream, arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(struct.pack(">Q", buffer.tell()) + buffer.getvalue())
    stream.flush()


def native(array):
    """Strings, flags and numbers as a robot's code has them; arrays as they are."""
    return array.item() if array.ndim == 0 else array


def main():
    port, key_file, horizon = sys.argv[1:]
    ours = sys.stdout.buffer
    policy = Timed(WebsocketClientPolicy("127.0.0.1", int(port), Path(key_file).read_text().strip()))
    broker = ActionChunkBroker(policy, int(horizon))
    observation = {}
    while True:
        try:
            given = read(sys.stdin.buffer)
        except struct.error:  # the end of the input
            return
        if given:
            observation = {name: native(array) for name, array in given.items()}
            if observation.get("reset"):
                broker.reset()
        asked = len(policy.seconds)
        answer = broker.infer(observation)
        seconds = policy.seconds[-1] if len(policy.seconds) > asked else np.nan
        timing = answer["server_timing"]
        write(ours, {"action": answer["actions"], "seconds": seconds, "infer_ms": timing["infer_ms"]})


if __name__ == "__main__":
    main()
