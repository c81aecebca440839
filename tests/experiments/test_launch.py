"""Launching: what every backend would submit, and processes really started on this machine."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from experiments.launch import gke, launcher, local, runs, slurm, sweep, tpu_vm, xpk
from experiments.launch.options import Options
from experiments.launch.submission import Submission

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = "--config=experiments/configs/debug.py"
HOSTILE = "a b'c\"d$(touch pwned)`touch pwned`; touch pwned #\n&|<>*?~!{x}"


def plan(*arguments, points=(), workdir="/data/run", extra=(), **options):
    return runs.plan([RECIPE, *arguments], list(points), pathlib.PurePosixPath(workdir), Options(**options), extra)


def launch(*arguments, check=True, **env):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.launch", *arguments], cwd=ROOT, env={**os.environ, **env},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture
def tools(tmp_path):
    """tools(NAME=script): a PATH with these commands before all others."""

    def make(**scripts):
        folder = tmp_path / "tools"
        folder.mkdir()
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)
        return f"{folder}:{os.environ['PATH']}"

    return make


def test_every_run_has_its_own_workdir_and_effective_config():
    points = sweep.parse("train.seed=0,1 * optimizer.learning_rate=1e-3,3e-4")
    planned = plan("--config.train.steps=7", points=points, extra=("--budget_minutes=2",))
    assert len({run.workdir for run in planned}) == len({run.name for run in planned}) == 4
    run = planned[1]
    assert run.name == "debug-001"
    assert str(run.workdir) == "/data/run/001-seed=0,learning_rate=3e-4"
    assert run.config["train"]["steps"] == 7
    assert run.config["train"]["seed"] == 0 and run.config["optimizer"]["learning_rate"] == 3e-4
    assert run.command == (
        "python", "-m", "experiments.train", RECIPE, "--config.train.steps=7", "--config.train.seed=0",
        "--config.optimizer.learning_rate=3e-4", f"--workdir={run.workdir}", "--noprogress", "--budget_minutes=2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.sed=1", "launch: there is no config key 'config.train.sed'; did you mean 'config.train.seed'?"),
        ("train.steps=many", "many"),
    ],
)
def test_bad_keys_and_values_are_refused_before_anything_is_submitted(key, said):
    with pytest.raises((SystemExit, ValueError)) as raised:
        plan(points=sweep.parse(key))
    assert said in str(raised.value)


def test_slurm_script_is_a_shell_script_with_directives():
    [run] = plan(workdir="/data/my run", name="two words")
    options = Options(nodes=4, gpus_per_node=8, account="it's", setup="module load cuda", code_dir="/code",
                      env=(f"EVIL={HOSTILE}",), grace=60)  # fmt: skip
    submission = slurm.render(run, options)
    assert submission.command == ("sbatch", "--parsable")
    assert subprocess.run(["bash", "-n"], input=submission.text, text=True, check=False).returncode == 0
    directives = dict(
        shlex.split(line.removeprefix("#SBATCH --"))[0].partition("=")[::2]
        for line in submission.text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert directives == {
        "job-name": "two words", "nodes": "4", "ntasks-per-node": "1", "gpus-per-node": "8", "time": "24:00:00",
        "account": "it's", "output": "/data/my run/slurm-%j.out", "open-mode": "append", "signal": "B:USR1@60",
        "requeue": "",
    }  # fmt: skip
    assert submission.text.index("#SBATCH --requeue") < submission.text.index("module load cuda")
    with pytest.raises(ValueError, match="sbatch cannot read the value"):
        slurm.render(run, Options(account="a\nb"))
    with pytest.raises(ValueError, match="one process a node or one a GPU"):
        slurm.render(run, Options(gpus_per_node=8, processes_per_node=2))


TASK = "import signal, sys, time, os\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n"
TASK += 'open("started", "w").write(os.environ["EVIL"] + os.environ["JAX_LOCAL_DEVICE_IDS"])\ntime.sleep({seconds})\n'


@pytest.mark.parametrize(
    ("code", "seconds", "number", "ends"),
    [
        (75, 60, signal.SIGUSR1, 75),
        (75, 60, signal.SIGTERM, 75),
        (143, 60, signal.SIGTERM, 143),
        (1, 60, signal.SIGTERM, 1),
        (143, 0, None, 0),
        (0, 0, None, 0),
    ],
)
def test_slurm_script_passes_signals_on_and_requeues(tmp_path, tools, code, seconds, number, ends):
    """The script itself, with stand-ins for srun and scontrol: a stopped run is requeued, others are not."""
    path = tools(srun='shift; exec "$@"', scontrol='echo "$@" > requeued')
    (tmp_path / "task.py").write_text(TASK.format(code=code, seconds=seconds))
    [run] = plan(module="task", python=sys.executable)
    options = Options(module="task", gpus_per_node=2, env=(f"EVIL={HOSTILE}",), code_dir=str(tmp_path))
    text = slurm.render(run, options).text
    job = subprocess.Popen(["bash"], stdin=subprocess.PIPE, text=True, cwd=tmp_path,
                           env={**os.environ, "PATH": path, "SLURM_JOB_ID": "17"})  # fmt: skip
    job.stdin.write(text)
    job.stdin.close()
    if number is not None:
        for _ in range(200):
            if (tmp_path / "started").exists():
                break
            time.sleep(0.05)
        time.sleep(0.1)
        job.send_signal(number)
    assert job.wait(timeout=20) == ends, text
    assert (tmp_path / "started").read_text() == HOSTILE + "0,1"
    assert (tmp_path / "requeued").exists() == (ends in (75, 143))
    if ends in (75, 143):
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert not (tmp_path / "pwned").exists()


def test_jobset_manifest():
    [run] = plan("--config.train.seed=3", name="a-run")
    options = Options(name="a-run", image="registry/image:1", nodes=3, gpus_per_node=8, gpu_type="nvidia-h100-80gb",
                      volume=("claim:/data", "other:/models"), env=(f"EVIL={HOSTILE}",), queue="lab",
                      cpus_per_node=64, memory="512Gi", port=1234, code_dir="/code")  # fmt: skip
    submission = gke.render(run, options)
    assert submission.command == ("kubectl", "apply", "-f", "-")
    found = yaml.safe_load(submission.text)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["metadata"]["name"] == "a-run"
    assert found["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "lab"}
    assert found["spec"]["failurePolicy"] == {"maxRestarts": 100}
    [workers] = found["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (3, 3, "Indexed", 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 120
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    [container] = pod["containers"]
    assert container["command"] == list(run.command) and container["workingDir"] == "/code"
    limits = {"nvidia.com/gpu": 8}
    assert container["resources"] == {"limits": limits, "requests": {"cpu": "64", "memory": "512Gi", **limits}}
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["EVIL"] == HOSTILE.replace("$(", "$$(")  # Kubernetes reads $$( as $(
    assert environment["WAM_COORDINATOR"] == "a-run-workers-0-0.a-run:1234"
    assert environment["WAM_NUM_PROCESSES"] == "3" and environment["WAM_STOPPED_EXIT_CODE"] == "75"
    index = next(entry for entry in container["env"] if entry["name"] == "WAM_PROCESS_ID")["valueFrom"]
    assert index == {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    assert {claims[name]: path for name, path in mounts.items()} == {"claim": "/data", "other": "/models"}


def test_jobset_manifest_on_tpus():
    [run] = plan()
    options = Options(image="i", nodes=4, slices=2, tpu_type="tpu-v5p-slice", tpu_topology="2x2x4",
                      volume=("claim:/data",), setup=". venv/bin/activate")  # fmt: skip
    found = yaml.safe_load(gke.render(run, options).text)
    [workers] = found["spec"]["replicatedJobs"]
    pod = workers["template"]["spec"]["template"]["spec"]
    assert workers["replicas"] == 2
    assert set(pod["nodeSelector"].values()) == {"tpu-v5p-slice", "2x2x4"}
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {entry["name"] for entry in container["env"]} == {"WAM_STOPPED_EXIT_CODE"}  # jax finds the others itself
    shell, flag, script = container["command"]
    assert (shell, flag) == ("/bin/bash", "-c")
    assert script.splitlines() == [". venv/bin/activate", "exec " + shlex.join(run.command)]


def test_xpk_and_tpu_vm_commands():
    [run] = plan(f"--config.data.root={HOSTILE}")
    options = Options(cluster="c", tpu_type="v5p-128", image="i", tpu_name="vm", zone="z", project="p", slices=2,
                      env=(f"EVIL={HOSTILE}",), setup="true", code_dir="my code")  # fmt: skip
    command = xpk.render(run, options).command
    assert command[:3] == ("xpk", "workload", "create")
    given = [argument.removeprefix("--").partition("=")[::2] for argument in command[3:]]
    assert ("tpu-type", "v5p-128") in given and ("num-slices", "2") in given and ("workload", "debug") in given
    assert ("restart-on-exit-codes", "75") in given and ("env", f"EVIL={HOSTILE}") in given
    steps = dict(given)["command"].split(" && ")
    assert steps[:2] == ["cd 'my code'", "true"]
    assert shlex.split(" && ".join(steps[2:])) == ["exec", *run.command]

    command = tpu_vm.render(run, options).command
    assert command[:6] == ("gcloud", "compute", "tpus", "tpu-vm", "ssh", "vm") and "--worker=all" in command
    script = command[-1].removeprefix("--command=")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    words = shlex.split(script.splitlines()[-1] if "\n" not in HOSTILE else script)
    assert [word for word in run.command if word not in words] == []


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        (gke, {}, "--backend=gke needs --image"),
        (gke, {"image": "i", "volume": ("claim:/elsewhere",)}, "lies on no --volume"),
        (gke, {"image": "i", "volume": ("claim",)}, "is not CLAIM:/mount/point"),
        (gke, {"image": "i", "volume": ("c:/data",), "slices": 2}, "--slices belongs to TPUs"),
        (gke, {"image": "i", "volume": ("c:/data",), "name": "Not OK"}, "is no name for Kubernetes"),
        (xpk, {"cluster": "c"}, "--backend=xpk needs --tpu_type"),
        (tpu_vm, {}, "--backend=tpu_vm needs --tpu_name"),
        (local, {"nodes": 2}, "--processes_per_node instead of --nodes"),
    ],
)
def test_missing_and_clashing_options_are_named(backend, options, said):
    [run] = plan(name=options.get("name", ""))
    with pytest.raises(ValueError, match=said):
        backend.render(run, Options(**options))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"nodes": 0}, "--nodes must be at least 1"), ({"grace": -1}, "must not be negative"),
     ({"gpus_per_node": 8, "processes_per_node": 3}, "cannot be shared out"), ({"env": ("1=2",)}, "is not NAME=VALUE"),
     ({"module": "a; b"}, "is not the name of a module")],
)  # fmt: skip
def test_options_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        Options(**options)


def test_dry_run_shows_what_would_be_submitted_and_does_nothing(tmp_path, tools):
    """What a stand-in for sbatch gets is what the dry run printed; the record holds it as well."""
    path = tools(sbatch=f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/script; echo 4711')
    arguments = ["--backend", "slurm", "--config", "experiments/configs/debug.py", "--config.train.seed", "3",
                 "--workdir", str(tmp_path / "run"), "--nodes=2"]  # fmt: skip
    shown = launch(*arguments, "--dry_run", PATH=path).stdout
    assert not (tmp_path / "run").exists() and not (tmp_path / "script").exists()
    done = launch(*arguments, PATH=path)
    assert done.stdout == "launch: debug: 4711\n"
    submission = Submission(
        ("sbatch", *(tmp_path / "arguments").read_text().split()), (tmp_path / "script").read_text()
    )
    assert shown == f"# debug: {tmp_path}/run\n{submission.show()}\n"
    record = json.loads((tmp_path / "run" / "launch.json").read_text())
    assert record["config"]["train"]["seed"] == 3
    [entry] = record["launches"]
    assert entry["submitted"] == submission.show() and entry["backend"] == "slurm"
    assert "jax" in entry["versions"] and any(p.startswith("jax==") for p in entry["packages"]) and entry["git"]

    launch(*arguments, PATH=path)  # the same again resumes
    assert len(json.loads((tmp_path / "run" / "launch.json").read_text())["launches"]) == 2
    (tmp_path / "script").unlink()
    done = launch(*arguments, "--config.train.seed=4", PATH=path, check=False)
    assert done.returncode == 1 and "holds a run with another config (config.train.seed: 3 -> 4)" in done.stderr
    assert not (tmp_path / "script").exists()


def test_what_is_shown_is_shell_that_passes_the_same():
    text = "line\nEND\n'quotes' $x\n"
    shown = Submission(("cat", "-"), text).show()
    assert subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True).stdout == text


def test_a_missing_tool_and_a_refused_submission_get_one_sentence(tmp_path, tools):
    arguments = ["--backend=slurm", RECIPE, f"--workdir={tmp_path / 'run'}"]
    done = launch(*arguments, check=False, PATH=str(tmp_path))
    assert done.returncode == 1 and done.stderr.startswith("launch: sbatch is not installed here")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()
    done = launch(*arguments, check=False, PATH=tools(sbatch="echo no such partition >&2; exit 3"))
    assert done.returncode == 1
    assert done.stderr == "launch: sbatch refused it with exit code 3: no such partition\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which recipe?"),
        ([RECIPE, "--workdir=gs://bucket/run"], "is a URL"),
        ([RECIPE, "--backend=gke", "--workdir=run"], "must be an absolute path"),
        (["--config=none.py"], "there is no recipe none.py"),
        ([RECIPE, "surplus"], "unknown argument 'surplus'"),
        ([RECIPE, "--nodes=x"], "nodes"),
        ([RECIPE, "--config.train.sed=1"], "did you mean 'config.train.seed'?"),
    ],
)
def test_bad_command_lines_get_one_sentence(arguments, said, tmp_path):
    done = launch("--backend=local", f"--workdir={tmp_path / 'run'}", *arguments, "--dry_run", check=False)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


def test_local_processes_run_together(tmp_path):
    """Two real processes: their environment, their prefixed output, their record."""
    (tmp_path / "hello.py").write_text("import os, sys\nprint('I am', os.environ['WAM_PROCESS_ID'], sys.argv[-1])\n")
    done = launch("--backend=local", RECIPE, f"--workdir={tmp_path / 'run'}", "--module=hello",
                  f"--code_dir={tmp_path}", "--processes_per_node=2", "--", "--last")  # fmt: skip
    assert sorted(done.stdout.splitlines()) == ["[0] I am 0 --last", "[1] I am 1 --last", "launch: debug: finished"]
    assert (tmp_path / "run" / "launch.json").exists()


def processes(tmp_path, program, *, grace=20.0, count=2):
    (tmp_path / "program.py").write_text(program)
    environments = tuple({"WAM_PROCESS_ID": str(i), "PYTHONUNBUFFERED": "1"} for i in range(count))
    return local.Processes((sys.executable, "program.py"), environments, str(tmp_path), None, grace)


def test_local_processes_stop_together_when_one_fails(tmp_path, capfd):
    program = "import os, sys, time\nif os.environ['WAM_PROCESS_ID'] == '1': sys.exit(3)\ntime.sleep(60)\n"
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="process 1 of 2 ended with exit code 3"):
        processes(tmp_path, program).submit()
    assert time.monotonic() - start < 20
    program = program.replace("time.sleep(60)", "import signal; signal.signal(15, lambda *_: None); time.sleep(60)")
    program = program.replace("sys.exit(3)", "time.sleep(1); sys.exit(3)")  # the other is ready to ignore the signal
    with pytest.raises(RuntimeError, match="process 1 of 2 ended with exit code 3"):
        processes(tmp_path, program, grace=0.5).submit()


def test_local_processes_get_the_signal(tmp_path, capfd):
    """SIGTERM to the launcher reaches both, which save; it waits for them and ends well."""
    program = (
        "import os, pathlib, signal, sys, time\n"
        "name = os.environ['WAM_PROCESS_ID']\n"
        "def stop(*_):\n    time.sleep(0.5); pathlib.Path('saved' + name).touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\npathlib.Path('ready' + name).touch()\ntime.sleep(60)\n"
    )
    both = processes(tmp_path, program)
    code = (
        "import sys; from experiments.launch import local\n"
        f"print(local.Processes({both.command!r}, {both.environments!r}, {both.directory!r}, None, 20.0).submit())"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for _ in range(400):
        if all((tmp_path / f"ready{i}").exists() for i in range(2)):
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=20)[0] == "stopped\n"
    assert child.returncode == 0 and all((tmp_path / f"saved{i}").exists() for i in range(2))


def test_a_taken_port_is_refused(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} is taken on this machine: choose another with --port"):
            local.Processes((), (), ".", port, 1.0).check()


def test_help_names_every_option():
    shown = launch("--help", check=False).stdout
    for name in ("backend", "sweep", "dry_run", "nodes", "gpus_per_node", "partition", "tpu_type", "volume"):
        assert f"--{name}:" in shown or f"--[no]{name}:" in shown
    assert set(launcher.BACKENDS) == {"slurm", "gke", "xpk", "tpu_vm", "local"}
