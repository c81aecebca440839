"""Small stores, as the tests of the data pipelines make them."""

from tests.data_pipelines.conftest import config, episode, write_store

__all__ = ["config", "episode", "write_store"]
