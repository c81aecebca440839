"""LeRobot's own dataset class under PyTorch's `DataLoader`, as its training script sets them up.

python -m tools.bench.peers.lerobot_data SPEC.json      # started by the bench, with an interpreter that has lerobot
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from tools.bench.data_side import serve

CAMERA = "observation.images.ego_view"


class LeRobotLoader:
    """A `data_side.Loader`. Frames are float32 in [0, 1], as the class gives them."""

    def __init__(self, spec: dict[str, Any]):
        torch.set_num_threads(1)  # as the DataLoader does in its workers
        steps = {CAMERA: spec["frames"], "action": spec["horizon"], "observation.state": 1}
        self.dataset = LeRobotDataset(
            "bench/gr1",
            root=spec["path"],
            delta_timestamps={key: [i / spec["fps"] for i in range(count)] for key, count in steps.items()},
        )
        self.batch, self.resize = spec["batch"], v2.Resize((spec["size"], spec["size"]), antialias=True)
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torchcodec", "torch"))
        self.note = (
            f"LeRobotDataset ({self.dataset.video_backend}), DataLoader with a worker a core and prefetch_factor 2; "
            f"{versions}"
        )

    @contextlib.contextmanager
    def batches(self, cores: int) -> Iterator[Iterator[Any]]:
        self.dataset.image_transforms = self.resize
        loader = DataLoader(self.dataset, batch_size=self.batch, shuffle=True, drop_last=True, num_workers=cores,
                            prefetch_factor=2)  # fmt: skip
        running = iter(loader)

        def deliver() -> Iterator[Any]:
            nonlocal running
            while True:
                yield from running
                running = iter(loader)

        try:
            yield deliver()
        finally:
            del running

    def clip(self, window: int, resized: bool) -> np.ndarray:
        self.dataset.image_transforms = self.resize if resized else None
        # In a worker: decoders opened in this process would not survive its forks.
        item = next(iter(DataLoader(Subset(self.dataset, [window]), num_workers=1)))
        return (item[CAMERA][0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    serve(LeRobotLoader)
