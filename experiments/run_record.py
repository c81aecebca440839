"""A run's record, `config.json`: what was asked for and what was settled, written before step 0, compared ever after.

`data.weights` is the one part whose values may change when a run goes on. The record lists all that ever held:
`"weights": [{"step": 0, "weights": {...}}, ...]`, each from its step onwards.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.differences import differences


def check_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any], workdir: Path) -> None:
    """ValueError unless two configs are those of one run: equal but for the values of data.weights."""
    if changed := differences({"config": _fixed(found)}, {"config": _fixed(wanted)}):
        raise ValueError(
            f"{workdir} holds a run with another config ({changed}); use a new --workdir (a run may change the values "
            "of data.weights, and nothing else)"
        )


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with a mark in place of every weight."""
    fixed = copy.deepcopy(dict(config))
    if isinstance(data := fixed.get("data"), dict):
        data["weights"] = dict.fromkeys(data.get("weights", {}), "a weight")
    return fixed


def settle_config(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The record of the run in `workdir`, with the weights that are asked for now; a fresh one where there is none.

    Raises ValueError naming the differences to the run found in `workdir`.
    """
    wanted = json.loads(config.to_json_best_effort())
    path = workdir / "config.json"
    if not path.exists():
        from experiments.provenance import provenance

        return {"asked": wanted, "config": wanted, **provenance()}
    record = json.loads(path.read_text())
    check_same_run(record["asked"], wanted, workdir)
    for part in ("asked", "config"):
        record[part]["data"]["weights"] = wanted["data"]["weights"]
    return record


def settle_weights(record: dict[str, Any], weights: Mapping[str, float], step: int) -> bool:
    """Notes in the record that these weights hold from `step`, where the run starts now; True if that is news.

    What was noted for later steps is dropped: those steps are taken again.
    """
    history = [entry for entry in record.get("weights", []) if entry["step"] < step]
    if not history or history[-1]["weights"] != weights:
        history.append({"step": step, "weights": dict(weights)})
    changed = history != record.get("weights")
    record["weights"] = history
    return changed


def shares_asked(history: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """The share of each source asked for in the first `steps` steps, over all weights that held in them."""
    shares = dict.fromkeys(history[0]["weights"], 0.0)
    ends = [*(entry["step"] for entry in history[1:]), steps]
    for entry, end in zip(history, ends, strict=True):
        for name, weight in entry["weights"].items():
            shares[name] += (end - entry["step"]) / steps * weight / sum(entry["weights"].values())
    return shares


def write_record(workdir: Path, record: Mapping[str, Any]) -> None:
    """Writes `config.json`."""
    write_json(workdir / "config.json", record)


def write_json(path: Path, value: Any) -> None:
    """Writes a file of a run, whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
