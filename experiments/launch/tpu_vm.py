"""A TPU VM that exists already: `gcloud` starts the run on every worker, where it goes on without the connection.

The workdir lies on a file system that all workers mount, and holds what each prints as `worker-HOSTNAME.log`. jax finds
the other workers itself. The same command again resumes a run that was stopped.
"""

from __future__ import annotations

import shlex

from experiments.launch.options import Options
from experiments.launch.runs import Run
from experiments.launch.submission import Submission, exports


def render(run: Run, options: Options) -> Submission:
    options.need("tpu_vm", "tpu_name", "zone")
    workdir = shlex.quote(str(run.workdir))
    start = f"nohup setsid {shlex.join(run.command)} > {workdir}/worker-$(hostname).log 2>&1 < /dev/null &"
    steps = [
        "set -e",
        *([f"cd {shlex.quote(options.code_dir)}"] if options.code_dir else []),
        *([options.setup] if options.setup else []),
        *exports(options.environment),
        f"mkdir -p {workdir}",
        start,
    ]
    command = [
        "gcloud", "compute", "tpus", "tpu-vm", "ssh", options.tpu_name,
        f"--zone={options.zone}",
        *([f"--project={options.project}"] if options.project else []),
        "--worker=all",
        "--command=" + "\n".join(steps),
    ]  # fmt: skip
    return Submission(tuple(command))
