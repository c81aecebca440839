"""Foreign datasets by name: those of `dataset_entries`, and your own in Python files.

The readers in `sources` know how a format lies on disk; a `Dataset` says what it means.
"""

from __future__ import annotations

import importlib.util
import pathlib

from data_pipelines.dataset import Dataset
from data_pipelines.dataset_entries import DATASETS

__all__ = ["DATASETS", "Dataset", "get_dataset"]


def get_dataset(name: str) -> Dataset:
    """A dataset of `dataset_entries` by name, or one of your own as FILE.py:NAME.

    The file is run, so it is trusted as a config file is. ValueError if there is no such dataset.
    """
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(pathlib.Path(path), attribute)
    if name not in DATASETS:
        raise ValueError(
            f"unknown dataset {name!r}: choose from {', '.join(sorted(DATASETS))}, or name your own as FILE.py:NAME"
        )
    return DATASETS[name]


def _from_file(path: pathlib.Path, attribute: str) -> Dataset:
    if not path.is_file():
        raise ValueError(f"there is no file {path} for the dataset {attribute!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    dataset = getattr(module, attribute, None)
    if not isinstance(dataset, Dataset):
        known = sorted(name for name, value in vars(module).items() if isinstance(value, Dataset))
        raise ValueError(f"{path} has no Dataset {attribute!r}, only {', '.join(known) or 'none'}")
    return dataset
