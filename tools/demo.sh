#!/usr/bin/env bash
# The whole way on one machine: demonstrations from scripted experts, one world-action model, its closed-loop evaluation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'HELP'
usage: tools/demo.sh [--workdir DIR] [--config FILE] [--budget_minutes N]

  --workdir DIR       where everything goes (default: runs/demo)
  --config FILE       the recipe (default: experiments/configs/demo.py)
  --budget_minutes N  how long to train (default: 8); it counts when DIR is new

Finished work found in DIR is reused, so an interrupted demo continues where it stopped. DIR/phases.json holds the
seconds of each phase.
HELP
}
workdir=runs/demo config=experiments/configs/demo.py minutes=8
while [ $# -gt 0 ]; do
  case "$1" in
    --workdir | --config | --budget_minutes)
      [ $# -ge 2 ] || { echo "demo: $1 needs a value" >&2; exit 2; }
      case "$1" in
        --workdir) workdir="$2" ;;
        --config) config="$2" ;;
        --budget_minutes) minutes="$2" ;;
      esac
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; echo "demo: unknown option '$1'" >&2; exit 2 ;;
  esac
  shift
done
[ -f "$config" ] || { echo "demo: no recipe at $config; name one with --config" >&2; exit 2; }
mkdir -p "$workdir"

python="${WAM_VENV:-.venv}/bin/python"
# A phase that finds its work done takes no time; the longer of two calls is what the work took.
record_phase='
import json, pathlib, sys
path, name, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
phases = json.loads(path.read_text()) if path.exists() else {}
phases.pop("total", None)
phases[name] = max(seconds, phases.get(name, 0))
path.write_text(json.dumps({**phases, "total": round(sum(phases.values()), 1)}, indent=1))
'
phase() { # NAME COMMAND...: runs it, times it, and keeps phases.json true after every phase
  local name="$1" start=$SECONDS
  shift
  echo "== $name: $*"
  "$@" || { echo "demo: phase '$name' failed after $((SECONDS - start)) s; mend the cause above and run the same command again, finished work is reused" >&2; exit 1; }
  "$python" -c "$record_phase" "$workdir/phases.json" "$name" $((SECONDS - start))
}

phase setup tools/setup.sh
. tools/env.sh
phase collect "$python" -m experiments.collect --config="$config" --out="$workdir/data"
phase train "$python" -m experiments.train --config="$config" --workdir="$workdir" --budget_minutes="$minutes"
phase evaluate "$python" -m experiments.evaluate --checkpoint "$workdir" --report
# Times itself: adds `report` to phases.json, and all phases to metrics.json.
"$python" -m experiments.report "$workdir"
