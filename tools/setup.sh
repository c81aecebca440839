#!/usr/bin/env bash
# Makes the virtual environment of this checkout, with exact versions, and checks that it can render off screen.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'HELP'
usage: tools/setup.sh [--no-sim | --sim] [--parity] [--python PYTHON] [--venv DIR]

  --no-sim         leave out the simulators (the default on Python 3.12 and later)
  --sim            install the simulators on any Python
  --parity         add the reference implementations that parity tests compare with (Python 3.11 only; large)
  --python PYTHON  interpreter to use (default: $WAM_PYTHON, else 3.11, else the next later one)
  --venv DIR       where the environment goes (default: $WAM_VENV, else .venv)

A second run with nothing changed does nothing, and one without --parity accepts an environment that has it. Versions:
tools/constraints/py3XX.txt.
HELP
}
say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

python="${WAM_PYTHON:-}" venv="${WAM_VENV:-.venv}" sim=auto parity=no
while [ $# -gt 0 ]; do
  case "$1" in
    --no-sim) sim=no ;;
    --sim) sim=yes ;;
    --parity) parity=yes ;;
    --python | --venv) [ $# -ge 2 ] || die "$1 needs a value"
      if [ "$1" = --python ]; then python="$2"; else venv="$2"; fi
      shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown option '$1'" ;;
  esac
  shift
done

# Nothing to do when the same inputs made this environment, here, before. The stamp's second line says what became of
# the reference implementations; an environment that has them keeps them when it is made again.
digest() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
stamp="$({ echo "$PWD $venv $python $sim"; cat pyproject.toml tools/setup.sh tools/constraints/*.txt; } | digest | cut -c1-64)"
made="$(sed -n 1p "$venv/.stamp" 2>/dev/null || true)" answered="$(sed -n 2p "$venv/.stamp" 2>/dev/null || true)"
if [ "$made" = "$stamp" ] && { [ $parity = no ] || [ -n "$answered" ]; } && "$venv/bin/python" -c '' 2>/dev/null; then
  exit 0
fi
if [ "$answered" = parity ]; then parity=yes; fi

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
  local minor candidate pyenv_root
  pyenv_root="${PYENV_ROOT:-$HOME/.pyenv}"
  for minor in 11 12 13 14; do
    for candidate in "python3.$minor" "$pyenv_root"/versions/3."$minor".*/bin/python3; do
      if usable "$candidate"; then echo "$candidate"; return; fi
    done
  done
  if usable python3; then echo python3; fi
}
if [ -n "$python" ]; then
  usable "$python" || die "'$python' is not a Python of at least 3.11 with venv and ensurepip; name another with --python"
else
  python="$(find_python)"
  [ -n "$python" ] || die "found no Python of at least 3.11 (with venv and ensurepip); install one or name it with --python"
fi
minor="$("$python" -c 'import sys; print(sys.version_info.minor)')"
if [ "$sim" = auto ]; then
  if [ "$minor" -eq 11 ]; then sim=yes; else sim=no; fi
fi
extras=test,dev,pretrained,serve
if [ "$sim" = yes ]; then extras="sim,$extras"; fi
answered=""
if [ $parity = yes ] && [ "$minor" -eq 11 ]; then extras="$extras,parity" answered=parity; fi
if [ $parity = yes ] && [ "$minor" -ne 11 ]; then
  answered="no parity"
  say "no reference implementations on Python 3.$minor: their versions are tested on 3.11"
fi
pins="tools/constraints/py3$minor.txt" constraints=()
if [ -f "$pins" ]; then
  constraints=(-c "$pins")
else
  say "no tested versions for Python 3.$minor (tools/constraints/), taking the newest"
fi

say "Python 3.$minor, extras $extras, into $venv"
rm -f "$venv/.stamp"
# An environment of another Python, or one that was moved, cannot be mended.
if [ -e "$venv" ] && ! "$venv/bin/python" -c "import sys; sys.exit(sys.version_info[:2] != (3, $minor))" 2>/dev/null; then
  [ -e "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] || die "$venv exists and is no virtual environment; name another with --venv"
  rm -rf "$venv"
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
log="$venv/setup.log"
# uv installs the same files about seven times faster than pip. It does not read pip's configuration, so where the
# network is set up for pip alone, pip does it.
with_uv() {
  "$venv/bin/python" -m pip install -q ${constraints[@]+"${constraints[@]}"} uv \
    && "$venv/bin/python" -m uv pip install -q --python "$venv/bin/python" ${constraints[@]+"${constraints[@]}"} -e ".[$extras]"
}
with_pip() { "$venv/bin/python" -m pip install -q ${constraints[@]+"${constraints[@]}"} -e ".[$extras]"; }
if ! with_uv >"$log" 2>&1; then
  say "uv could not install (see $log), using pip"
  with_pip >>"$log" 2>&1 || { tail -20 "$log" >&2; die "the installation failed; the whole log is in $log"; }
fi

renders() {
  . tools/env.sh
  "$venv/bin/python" - >>"$log" 2>&1 <<'PYTHON'
import mujoco

scene = "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.3'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 16, 16) as renderer:
    renderer.update_scene(data)
    assert renderer.render().max() > 0, "the rendered image is black"
PYTHON
}
if [ "$sim" = yes ] && ! renders; then
  packages=(libegl1 libgl1-mesa-dri)
  if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    say "off-screen rendering does not work, installing ${packages[*]}"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"; } \
      >>"$log" 2>&1 || die "installing ${packages[*]} failed; the log is in $log"
  else
    die "off-screen rendering does not work; install the system packages ${packages[*]} (log: $log), or use --no-sim"
  fi
  renders || die "off-screen rendering still fails with ${packages[*]} installed; the log is in $log"
fi
printf '%s\n%s\n' "$stamp" "$answered" >"$venv/.stamp"
say "done in $SECONDS s"
