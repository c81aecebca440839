"""Simulators, one adapter a file. A simulator's package is imported only when an environment is built."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from wam.embodiment import EmbodimentSpec
from wam.envs import metaworld


def embodiment_of(name: str) -> EmbodimentSpec:
    """The robot of the simulator `name`; ValueError if there is no such simulator."""
    if name != "metaworld":
        raise ValueError(f"unknown simulator {name!r}; there is: metaworld")
    return metaworld.SPEC


def env_factory(
    name: str, render: Mapping[str, Any], max_steps: int = 500
) -> functools.partial[metaworld.MetaWorldEnv]:
    """`make_env(task, cameras)` of the simulator `name`, picklable, so that worker processes can be given it.

    `render` holds the simulator's render settings. Raises ValueError for an unknown simulator or setting.
    """
    embodiment_of(name)
    try:
        config = metaworld.RenderConfig(**render)
    except TypeError as error:
        raise ValueError(f"render settings of {name!r}: {error}") from None
    return functools.partial(metaworld.MetaWorldEnv, render=config, max_steps=max_steps)
