"""What all commands share: flags that fail with one sentence instead of a traceback."""

from __future__ import annotations

import difflib
import re
import runpy
import sys
from collections.abc import Callable
from logging import getLogger
from pathlib import Path

from absl import app, flags, logging


def _keys(config, prefix: str = "config") -> list[str]:
    found = []
    for name, value in config.items():
        found.append(f"{prefix}.{name}")
        if hasattr(value, "items"):
            found += _keys(value, f"{prefix}.{name}")
    return found


def parse_flags(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """absl's parser; a wrong key, type or file under `--config` is named in one sentence, with the nearest key."""
    name = argv[0].rsplit("/", 1)[-1].removesuffix(".py")
    for argument in argv:
        if (found := re.fullmatch(r"--?config=([^:]+).*", argument)) and not Path(found.group(1)).is_file():
            sys.exit(f"{name}: there is no recipe {found.group(1)}; see experiments/configs")
    try:
        return flag_values(argv)
    except (AttributeError, KeyError) as error:
        # The innermost quoted word: ml_collections quotes its messages, sometimes twice, and adds hints of its own.
        named = re.search(r"[\w-]+", str(error.args[0]).replace("\\n", " "))
        key = named.group(0) if named else str(error)
        asked = next((a.lstrip("-").split("=")[0] for a in argv if re.search(rf"\.{re.escape(key)}(=|\.|$)", a)), key)
        recipe = next(a.split("=", 1)[1].partition(":")[0] for a in argv if re.match(r"--?config=", a))
        near = difflib.get_close_matches(asked, _keys(runpy.run_path(recipe)["get_config"]()), n=1, cutoff=0.4)
        sys.exit(f"{name}: there is no config key {asked!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    except (flags.Error, OSError, TypeError, ValueError) as error:
        sys.exit(f"{name}: {str(error).splitlines()[0]}")


def run(main: Callable[[list[str]], None]) -> None:
    """`app.run` with these errors, and with libraries other than ours silent below warnings."""
    logging.set_verbosity(logging.WARNING)
    getLogger("wam").setLevel("INFO")
    app.run(main, flags_parser=parse_flags)
