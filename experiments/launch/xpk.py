"""TPU slices by `xpk workload create`, which makes a JobSet of its own. GPUs: use the gke backend."""

from __future__ import annotations

import shlex

from experiments.launch.options import Options
from experiments.launch.runs import Run
from experiments.launch.submission import STOPPED, Submission, check_name


def render(run: Run, options: Options) -> Submission:
    options.need("xpk", "cluster", "tpu_type", "image")
    check_name(run.name, 40)
    if options.gpus_per_node:
        raise ValueError("--backend=xpk is for TPUs: use --backend=gke for GPUs")
    steps = [f"cd {shlex.quote(options.code_dir)}"] if options.code_dir else []
    steps += [options.setup] if options.setup else []
    steps.append(f"exec {shlex.join(run.command)}")  # exec: the signal must reach the run, not a shell
    command = [
        "xpk", "workload", "create",
        f"--cluster={options.cluster}",
        f"--workload={run.name}",
        f"--tpu-type={options.tpu_type}",
        f"--num-slices={options.slices}",
        f"--docker-image={options.image}",
        f"--max-restarts={options.max_restarts}",
        f"--restart-on-exit-codes={STOPPED}",
        f"--termination-grace-period-seconds={options.grace}",
        *([f"--project={options.project}"] if options.project else []),
        *([f"--zone={options.zone}"] if options.zone else []),
        *(f"--env={pair}" for pair in options.env),
        f"--env=WAM_STOPPED_EXIT_CODE={STOPPED}",
        f"--command={' && '.join(steps)}",
    ]  # fmt: skip
    return Submission(tuple(command))
