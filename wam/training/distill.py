"""Consistency distillation: a student that takes in one or two sampler steps the way its teacher takes in many.

Noise levels 1 = L_N > ... > L_0 = 0 are those of a sampler program of N = `teacher_steps` steps. Every (N / steps)-th
of them is an edge: between two edges lies one step of the student, so that the edges are the program it will be sampled
with. At x_sigma of level sigma, with sigma' the level below it and e the edge below it,

    x'  = the teacher's Euler step from (x_sigma, sigma) to sigma'
    x_e = the target network's step from (x', sigma') to e; x' itself where sigma' = e

and the student's one step from (x_sigma, sigma) to e must end in x_e: the loss is the squared distance of the two ends.
The target network is the moving average of the student; no gradient passes through it or the teacher.

With one step e is always 0 and the ends are clean samples, x_sigma - sigma v or the predicted x: consistency
distillation (Song et al. 2023, arXiv:2303.01469, algorithm 2; on latents LCM, Luo et al. 2023, arXiv:2310.04378). Their
boundary condition f(x, 0) = x needs no skip connections here: a step of no length ends where it began, whatever the
network says. Next to the data the target is the teacher's own clean sample. With more steps these are multistep
consistency models (Heek et al. 2024, arXiv:2403.06807) or phased ones (Wang et al. 2024, arXiv:2405.18407).

Streams move on levels of their own, all at once, as in the programs of the modes; what is given (sigma 0) stays. So
every mode is distilled under the visibility bits and the context it is used with, the further draws of the policy too,
and losses are masked and normalised as in training. What is regressed (the direct inverse head) goes on as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from wam.batch import Batch
from wam.checkpoint import read_inference
from wam.config import ModelConfig, ObjectiveConfig, build
from wam.diffusion import flow, losses, sampler
from wam.diffusion.inpainting import frozen_steps
from wam.diffusion.losses import Term
from wam.diffusion.modes import Draws
from wam.fingerprint import fingerprints, json_digest
from wam.models.joint_dit import JointDiT
from wam.models.streams import Noisy
from wam.pretrained.mapping import flatten
from wam.training.distill_config import DistillConfig
from wam.training.finetune import complete
from wam.training.finetune_config import FinetuneConfig
from wam.training.state import Networks, Terms


class Teacher(NamedTuple):
    """A checkpoint that is distilled."""

    config: DistillConfig
    params: Any
    """The moving average, with frozen parts and merged adapters: all of the network. numpy"""
    constants: Any
    tokenizer: dict[str, np.ndarray]
    assets: dict[str, Any]
    about: dict[str, Any]
    """What a student's checkpoints say of it: run, step, digest of its parameters."""


def read_teacher(config: DistillConfig) -> Teacher:
    """The teacher that `config` names.

    Raises:
      FileNotFoundError, ValueError: there is no such checkpoint, or it is damaged.
    """
    try:
        saved = read_inference(config.teacher, config.checkpoint or None)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"distill.teacher: {error}; train the teacher first, or name its run") from None
    params = complete(saved.params, build(FinetuneConfig, saved.assets.get("finetune", {})))
    about = {
        "run": Path(config.teacher).name,
        "step": saved.step,
        "digest": json_digest(fingerprints(params)),
        "git": saved.assets.get("git"),
    }
    params, constants, tokenizer = jax.device_get((params, saved.constants, saved.tokenizer))
    return Teacher(config, params, constants, tokenizer, saved.assets, about)


def check_teacher(teacher: Teacher, shapes: Mapping[str, tuple[int, ...]], finetune: FinetuneConfig) -> None:
    """ValueError unless the teacher's parameters are those of the student's network, which starts from them."""
    if finetune.trunk:
        raise ValueError("distill.teacher and finetune.trunk both say what the parameters start from: leave one out")
    there = {path: x.shape for path, x in flatten(teacher.params).items()}
    for path in sorted({*there, *shapes}):
        if there.get(path) != shapes.get(path):
            shown = [str(list(of[path])) if path in of else "missing" for of in (there, shapes)]
            raise ValueError(
                f"distill.teacher {teacher.config.teacher} is a network of another shape: {path} is {shown[0]} there "
                f"and {shown[1]} here; give the student the teacher's `model`"
            )


class Level(NamedTuple):
    """Where a stream is and where it goes; arrays of one shape."""

    sigma: Array
    below: Array
    """The next level, where the teacher's step ends."""
    edge: Array
    """Where the student's step ends."""


def level_of(sigma: Array, teacher_steps: int, steps: int, shift: float = 1.0) -> Level:
    """The level at or above `sigma`, which is 0 for 0 alone, so that levels are as likely as the sigmas up to them."""
    levels = np.array(sampler.grid(teacher_steps, shift)[::-1], np.float32)
    each, n = teacher_steps // steps, jnp.searchsorted(jnp.asarray(levels), sigma)
    below = jnp.maximum(0, n - 1)
    return Level(*(jnp.asarray(levels)[i] for i in (n, below, below // each * each)))


STREAMS = {"video": "video", "action": "action", "policy": "draws"}
"""Loss term -> field of `Noisy` of all that is denoised."""


class Course(NamedTuple):
    """The levels of all noisy streams of a batch, in the order of `STREAMS`."""

    video: Level  # [B, M, f]
    action: Level  # [B, M]
    draws: Level  # [B, M, R]


def course(draws: Draws, config: DistillConfig, objective: ObjectiveConfig) -> Course:
    """Levels in place of the noise levels drawn."""
    actions = (config.teacher_steps, config.action_steps, objective.action_shift)
    return Course(
        level_of(draws.sigma_video, config.teacher_steps, config.video_steps, objective.video_shift),
        level_of(draws.sigma_action, *actions),
        level_of(draws.policy_sigma, *actions),
    )


def distilling(config: DistillConfig, objective: ObjectiveConfig) -> Terms:
    """The loss terms of a student, in place of `step.denoising`; `networks.teacher` is what it learns from."""

    def terms(networks: Networks, batch: Batch, latents: Array, draws: Draws) -> dict[str, Term]:
        assert networks.teacher is not None, "a student needs its teacher in `Fixed`"
        cfg = networks.trained.config
        at = course(draws, config, objective)
        sigmas = {"sigma_video": at.video.sigma, "sigma_action": at.action.sigma, "policy_sigma": at.draws.sigma}
        draws = draws._replace(**sigmas)
        noisy = losses.noisy_inputs(batch, latents, draws, cfg, objective.with_video)
        targets = losses.targets(batch, latents, draws, cfg, with_video=objective.with_video)

        def predictions(network: JointDiT, start: Noisy) -> dict[str, Array]:
            return losses.predictions(network, batch, latents, draws, start)

        nearer = moved(noisy, predictions(networks.teacher, noisy), at, "below", cfg)
        rest = Course(*(Level(of.below, of.below, of.edge) for of in at))
        ends = moved(nearer, predictions(networks.average, nearer), rest, "edge", cfg)
        said = predictions(networks.trained, noisy)
        own = moved(noisy, said, at, "edge", cfg)
        for term, name in STREAMS.items():
            if term in targets:
                wanted = jax.lax.stop_gradient(getattr(ends, name))
                targets[term], said[term] = losses.Target(wanted, targets[term].mask), getattr(own, name)
        return losses.compared(targets, said)

    return terms


def moved(start: Noisy, said: dict[str, Array], at: Course, to: str, model: ModelConfig) -> Noisy:
    """All streams after one step with the outputs `said`, from `at.*.sigma` to their levels `at.*.{to}`."""
    changes: dict[str, Array] = {}
    for (term, name), level in zip(STREAMS.items(), at, strict=True):
        if (x := getattr(start, name)) is not None:
            kind = model.video_prediction if term == "video" else "velocity"
            end = flow.step(x, said[term], level.sigma, getattr(level, to), kind)
            if (prefix := {"action": start.prefix, "draws": start.prefix_draws}.get(name)) is not None:
                end = jnp.where(frozen_steps(prefix, model)[..., None], x, end)  # given, like all that is clean
            changes |= {f"sigma_{name}": getattr(level, to), name: end}
    return start._replace(**changes)
