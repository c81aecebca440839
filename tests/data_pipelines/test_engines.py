import operator
import os
import sys

import pytest

from data_pipelines.engines import EngineError, run


def test_every_job_once_on_any_number_of_processes():
    jobs = [-3, 5, -8]
    assert list(run(abs, jobs)) == [3, 5, 8]
    assert sorted(run(abs, jobs, processes=2)) == [3, 5, 8]
    assert list(run(abs, [], "beam")) == []


def test_what_goes_wrong_is_said(monkeypatch):
    with pytest.raises(TypeError):
        list(run(operator.index, ["x", "y"], processes=2))
    with pytest.raises(EngineError, match="a worker process died"):
        list(run(os._exit, [3, 3], processes=2))
    with pytest.raises(EngineError, match="unknown engine 'dask': choose from local, beam, ray"):
        run(abs, [1], "dask")
    with pytest.raises(EngineError, match="the local engine takes no options"):
        run(abs, [1], options="--fast")
    for engine, package in (("beam", "apache_beam"), ("ray", "ray")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(EngineError, match=r"is not installed: install .*, or use --engine=local"):
            list(run(abs, [1], engine))
