"""SLURM: a batch script on the standard input of `sbatch`.

The run saves and is put back into the queue before its time limit and when it is preempted: the batch shell hears the
signal and passes it to all tasks, these save and end with `STOPPED`, and the script requeues its own job. Nodes that
fail or are taken at once are covered by `--requeue`. All nodes must share the file system of the checkout and workdir.
"""

from __future__ import annotations

import shlex

from experiments.launch.options import Options
from experiments.launch.runs import Run
from experiments.launch.submission import STOPPED, Submission, exports


def render(run: Run, options: Options) -> Submission:
    tasks = options.processes_per_node
    asked = {
        "job-name": run.name,
        "nodes": options.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_node // tasks,
        "mem": options.memory,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "output": str(run.workdir).replace("%", "%%") + "/slurm-%j.out",
        "open-mode": "append",
        "signal": f"B:USR1@{options.grace}",
    }
    environment = {**options.environment, "WAM_STOPPED_EXIT_CODE": str(STOPPED)}
    if tasks == 1 and options.gpus_per_node:
        # jax gives every SLURM task one GPU unless it is told otherwise.
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(options.gpus_per_node)))
    elif options.gpus_per_node and tasks != options.gpus_per_node:
        raise ValueError(
            f"--backend=slurm wants one process a node or one a GPU, not {tasks} for {options.gpus_per_node} GPUs"
        )
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={_value(name, value)}" for name, value in asked.items() if value),
        "#SBATCH --requeue",
        "",
        *([options.setup] if options.setup else []),
        "set -eo pipefail",
        f"cd {shlex.quote(options.code_dir)}",
        *exports(environment),
        "",
        "# The signal comes here, from the time limit (USR1) or from preemption (TERM), and goes on to all tasks.",
        f"srun --kill-on-bad-exit=1 {shlex.join(run.command)} &",
        "tasks=$! told=0",
        "trap 'told=$((told + 1)); kill -TERM \"$tasks\" 2>/dev/null' USR1 TERM",
        "while true; do  # a signal ends the wait, not the tasks",
        '  before=$told code=0; wait "$tasks" || code=$?',
        '  if [ "$before" -eq "$told" ]; then break; fi',
        "done",
        "# Saved, or told to stop before there was anything to save.",
        f'if [ "$code" -eq {STOPPED} ] || {{ [ "$told" -gt 0 ] && [ "$code" -eq 143 ]; }}; then',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
    return Submission(("sbatch", "--parsable"), "\n".join(lines) + "\n")


def _value(name: str, value: object) -> str:
    """A value as sbatch reads it in a script: shell-like quotes, but a backslash escapes within them too."""
    text = str(value)
    if not text.isprintable() or "\\" in text:
        raise ValueError(f"sbatch cannot read the value {text!r} of --{name}: leave out line breaks and backslashes")
    return shlex.quote(text)
