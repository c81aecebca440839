"""What can be asked of a backend: one field an option of the command, with its default and its help."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from absl import flags


def option(default: Any, about: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": about})


@dataclasses.dataclass(frozen=True)
class Options:
    """Empty and 0 leave an option to the cluster."""

    name: str = option("", "Name of the job; by default that of the recipe.")
    module: str = option("experiments.train", "Module that every process runs.")
    python: str = option("", "Interpreter on the machines of the run; by default `python`, on local this one.")
    code_dir: str = option("", "Checkout on the machines of the run; by default this directory (slurm, local), the "
                               "working directory of the image (gke, xpk) or the home directory (tpu_vm).")  # fmt: skip
    setup: str = option("", "Shell line that runs first, for instance '. .venv/bin/activate'; not on local.")
    env: tuple[str, ...] = option((), "NAME=VALUE of the run's environment; may be repeated.")

    nodes: int = option(1, "Machines of a run; on TPUs the hosts of one slice.")
    processes_per_node: int = option(1, "Processes a machine; its GPUs are shared out among them.")
    gpus_per_node: int = option(0, "GPUs a machine.")
    cpus_per_node: int = option(0, "Cores a machine.")
    memory: str = option("", "Memory a machine, in the scheduler's own notation.")
    grace: int = option(120, "Seconds between the signal to save and stop, and the end.")
    port: int = option(0, "Port at which the processes meet; by default one that follows from the workdir.")

    time: str = option("24:00:00", "slurm: time limit; the run is put back into the queue when it is reached.")
    partition: str = option("", "slurm: partition.")
    account: str = option("", "slurm: account.")
    qos: str = option("", "slurm: quality of service.")
    constraint: str = option("", "slurm: constraint on nodes.")

    image: str = option("", "gke, xpk: container image with the code and its packages.")
    namespace: str = option("default", "gke: namespace.")
    queue: str = option("", "gke: Kueue queue.")
    service_account: str = option("", "gke: service account of the pods.")
    volume: tuple[str, ...] = option((), "gke: CLAIM:/mount/point of a persistent volume that all pods share; may be "
                                         "repeated. One of them holds the workdir.")  # fmt: skip
    gpu_type: str = option("", "gke: GPU model as the node label has it, for instance nvidia-h100-80gb.")
    max_restarts: int = option(100, "gke, xpk: how often a stopped or failed run is started again.")

    tpu_type: str = option("", "xpk: for instance v5p-128. gke: node label, for instance tpu-v5p-slice.")
    tpu_topology: str = option("", "gke: for instance 4x4x4.")
    tpus_per_node: int = option(4, "gke: TPU chips a host.")
    slices: int = option(1, "gke, xpk: TPU slices.")
    cluster: str = option("", "xpk: cluster.")
    tpu_name: str = option("", "tpu_vm: name of the TPU VM.")
    project: str = option("", "xpk, tpu_vm: cloud project.")
    zone: str = option("", "xpk, tpu_vm: zone.")

    def __post_init__(self):
        for name in ("nodes", "processes_per_node", "slices", "tpus_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, it is {getattr(self, name)}")
        for name in ("gpus_per_node", "cpus_per_node", "grace", "port", "max_restarts"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, it is {getattr(self, name)}")
        if self.gpus_per_node % self.processes_per_node:
            raise ValueError(
                f"--gpus_per_node {self.gpus_per_node} cannot be shared out to --processes_per_node "
                f"{self.processes_per_node}"
            )
        for pair in self.env:
            if not re.match(r"[A-Za-z_]\w*=", pair):
                raise ValueError(f"--env {pair!r} is not NAME=VALUE")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", self.module):
            raise ValueError(f"--module {self.module!r} is not the name of a module")

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.env)

    def need(self, backend: str, *names: str) -> None:
        """ValueError naming the first of these options that is empty."""
        for name in names:
            if not getattr(self, name):
                raise ValueError(f"--backend={backend} needs --{name}: {_help(name)}")


def _help(name: str) -> str:
    return next(field.metadata["help"] for field in dataclasses.fields(Options) if field.name == name)


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """A flag for every field."""
    kinds: dict[type, Callable] = {
        int: flags.DEFINE_integer,
        str: flags.DEFINE_string,
        tuple: flags.DEFINE_multi_string,
    }
    for field in dataclasses.fields(Options):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        kinds[type(field.default)](field.name, default, field.metadata["help"], flag_values=flag_values)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Options:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        value: Any = flag_values[field.name].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return Options(**values)
