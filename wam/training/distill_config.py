"""`DistillConfig`: which teacher a student learns from, and in how many steps it is to sample."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """Consistency distillation (`wam.training.distill`); off without a teacher.

    How much each stream counts, and which modes are distilled how often, the objective says: `video_weight`,
    `action_weight`, `policy_weight` and `modes`.
    """

    teacher: str = ""
    """Run directory of the teacher; empty: no distillation."""
    checkpoint: int = 0
    """Step of its checkpoint; 0: the newest."""
    teacher_steps: int = 8
    """Levels from noise to data: a target lies one step of the teacher nearer to the data."""
    video_steps: int = 1
    """Sampler steps of the student in which the video goes from noise to data."""
    action_steps: int = 1
    """The same of the actions, in policy, joint and inverse mode."""

    def __post_init__(self):
        for name in ("teacher_steps", "video_steps", "action_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"distill.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("video_steps", "action_steps"):
            if self.teacher_steps % getattr(self, name):
                raise ValueError(
                    f"distill.teacher_steps {self.teacher_steps} is not a multiple of distill.{name} "
                    f"{getattr(self, name)}: every step of the student is a whole number of the teacher's"
                )
        if self.checkpoint < 0:
            raise ValueError(f"distill.checkpoint is {self.checkpoint}; name a step, or 0 for the newest")
