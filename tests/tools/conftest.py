"""Small stores, as the tests of the data pipelines make them, and our side of the latency bench."""

import pytest

from tests.data_pipelines.conftest import config, episode, write_store

__all__ = ["config", "dual", "episode", "write_store"]


@pytest.fixture(scope="session")
def dual(tmp_path_factory):
    """A spec of the latency bench and our side of it."""
    from tests.tools.latency_spec import TINY, spec_of
    from tools.bench.latency_ours import OurLatency

    spec = spec_of(TINY, tmp_path_factory.mktemp("dual"))
    return spec, OurLatency(spec)
