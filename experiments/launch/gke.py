"""Kubernetes and GKE: a JobSet for `kubectl apply`, one pod a machine.

A pod that is evicted saves and ends with `STOPPED`, which fails its job, and the JobSet starts all pods again; a pod
that ended with 0 would count as finished. Pods with GPUs are told how to meet; on TPUs jax finds the others itself.
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from experiments.launch.options import Options
from experiments.launch.runs import Run
from experiments.launch.submission import STOPPED, Submission, check_name

GROUP = "workers"


def render(run: Run, options: Options) -> Submission:
    return Submission(("kubectl", "apply", "-f", "-"), yaml.safe_dump(manifest(run, options), sort_keys=False))


def manifest(run: Run, options: Options) -> dict[str, Any]:
    """The JobSet. ValueError: an option is missing, or the workdir would be lost with its pod."""
    options.need("gke", "image", "volume")
    check_name(run.name, 40)
    if options.processes_per_node != 1:
        raise ValueError("--backend=gke runs one process a pod: leave --processes_per_node at 1")
    on_tpu = bool(options.tpu_type)
    if on_tpu:
        options.need("gke", "tpu_topology")
        if options.gpus_per_node:
            raise ValueError("--tpu_type and --gpus_per_node exclude each other")
    elif options.slices > 1:
        raise ValueError("--slices belongs to TPUs: give --tpu_type as well, or more --nodes")
    mounts = dict(_volume(volume) for volume in options.volume)
    if not any(run.workdir.is_relative_to(mount) for mount in mounts.values()):
        raise ValueError(
            f"--workdir {run.workdir} lies on no --volume ({', '.join(mounts.values())}): it would be lost with its pod"
        )

    limits: dict[str, Any] = {}
    selector = {}
    annotations = {}
    if on_tpu:
        limits["google.com/tpu"] = options.tpus_per_node
        selector["cloud.google.com/gke-tpu-accelerator"] = options.tpu_type
        selector["cloud.google.com/gke-tpu-topology"] = options.tpu_topology
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    elif options.gpus_per_node:
        limits["nvidia.com/gpu"] = options.gpus_per_node
        if options.gpu_type:
            selector["cloud.google.com/gke-accelerator"] = options.gpu_type
    requests = {"cpu": str(options.cpus_per_node or ""), "memory": options.memory}
    resources = {"limits": limits, "requests": {name: value for name, value in requests.items() if value} | limits}

    environment: list[dict[str, Any]] = [
        {"name": name, "value": _literal(value)}
        for name, value in {**options.environment, "WAM_STOPPED_EXIT_CODE": str(STOPPED)}.items()
    ]
    if not on_tpu and options.nodes > 1:
        index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
        port = run.port(options)
        environment += [
            {"name": "WAM_COORDINATOR", "value": f"{run.name}-{GROUP}-0-0.{run.name}:{port}"},
            {"name": "WAM_NUM_PROCESSES", "value": str(options.nodes)},
            {"name": "WAM_PROCESS_ID", "valueFrom": index},
        ]

    container: dict[str, Any] = {"name": "run", "image": options.image, "command": [*map(_literal, run.command)]}
    if options.setup:  # exec: the signal must reach the run, not a shell
        script = f"{options.setup}\nexec {shlex.join(run.command)}"
        container["command"] = ["/bin/bash", "-c", _literal(script)]
    if options.code_dir:
        container["workingDir"] = options.code_dir
    container["env"] = environment
    container["resources"] = {name: value for name, value in resources.items() if value}
    container["volumeMounts"] = [{"name": f"volume-{i}", "mountPath": m} for i, m in enumerate(mounts.values())]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "serviceAccountName": options.service_account,
        "nodeSelector": selector,
        "containers": [container],
        "volumes": [
            {"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}} for i, claim in enumerate(mounts)
        ],
    }
    job = {
        "completionMode": "Indexed",
        "parallelism": options.nodes,
        "completions": options.nodes,
        "backoffLimit": 0,
        "template": {"spec": {name: value for name, value in pod.items() if value != "" and value != {}}},
    }
    metadata = {
        "name": run.name,
        "namespace": options.namespace,
        "labels": {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {},
        "annotations": annotations,
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {name: value for name, value in metadata.items() if value},
        "spec": {
            "failurePolicy": {"maxRestarts": options.max_restarts},
            "replicatedJobs": [{"name": GROUP, "replicas": options.slices, "template": {"spec": job}}],
        },
    }


def _literal(text: str) -> str:
    """Kubernetes would replace $(NAME) in commands and values."""
    return text.replace("$(", "$$(")


def _volume(text: str) -> tuple[str, str]:
    claim, _, mount = text.partition(":")
    if not claim or not mount.startswith("/"):
        raise ValueError(f"--volume {text!r} is not CLAIM:/mount/point")
    return claim, mount
