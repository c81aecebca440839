"""What the parity tests of the encoders share: random weights, files as released, our module filled from them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wam.encoders.transformer import structure
from wam.pretrained import mapping
from wam.pretrained.mapping import Entry


def randomise(model: Any, seed: int, scale: float = 0.2) -> Any:
    """Every parameter away from zero and one, so that each of them shows in the output."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def released_tensors(model: Any) -> dict[str, np.ndarray]:
    """The tensors of the file that the reference writes."""
    from safetensors.numpy import load_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return load_file(Path(directory) / "model.safetensors")


def released_gradients(model: Any) -> dict[str, np.ndarray]:
    """Gradients under the names of the file; zero where there is none."""
    import torch

    shown = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, (_, own) in zip(shown.parameters(), model.named_parameters(), strict=True):
            parameter.copy_(torch.zeros_like(own) if own.grad is None else own.grad)
    return released_tensors(shown)


def fill(kind: Any, config: Any, entries: Sequence[Entry], tensors: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """(graph, params) of our module with the released tensors; nothing is missing and nothing is left over."""
    graph, tree = structure(kind, config)
    shapes = mapping.flatten(tree)
    mapping.check_complete(entries, tensors, shapes)
    params = mapping.to_ours(entries, tensors)
    assert {n: x.shape for n, x in mapping.flatten(params).items()} == {n: x.shape for n, x in shapes.items()}
    back = mapping.to_theirs(entries, params)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    return graph, params


def worst(pairs: dict[str, tuple[Any, Any]]) -> float:
    """The largest absolute difference; shapes must be equal."""
    found = 0.0
    for name, (ours, theirs) in pairs.items():
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} and {theirs.shape}"
        assert np.abs(theirs).max() > 0, f"{name} is zero"
        found = max(found, float(np.abs(ours - theirs).max()))
    return found


def gradient_pairs(gradients: Any, entries: Sequence[Entry], model: Any) -> dict[str, tuple[Any, Any]]:
    """Our gradients beside the reference's, by our names."""
    theirs = mapping.flatten(mapping.to_ours(entries, released_gradients(model)))
    ours = mapping.flatten(jax.device_get(gradients))
    return {name: (ours[name], theirs[name]) for name in theirs}
