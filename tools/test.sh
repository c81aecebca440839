#!/usr/bin/env bash
# Style, types, rendered tables, then the whole test suite. Arguments go to pytest: tools/test.sh tests/test_batch.py -k fake
# WAM_PYTHON and WAM_VENV choose another interpreter (see tools/setup.sh --help); WAM_LINT=0 leaves out all but pytest.
# Parity tests run on Python 3.11, against the reference implementations, which are installed there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh --parity
. tools/env.sh
export JAX_PLATFORMS=cpu
python="${WAM_VENV:-.venv}/bin/python"

failed=()
check() {
  local name="$1"
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}
if [ "${WAM_LINT:-1}" != 0 ]; then
  check "ruff check" "$python" -m ruff check .
  check "ruff format" "$python" -m ruff format --check .
  check "mypy" "$python" -m mypy
  check "README tables" "$python" tools/render_readme.py --check
fi
left_out=()
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
  echo "== parity tests (*_parity.py) are left out: the reference implementations are installed on Python 3.11 only"
  left_out=("--ignore-glob=*_parity.py")
fi
check "pytest" "$python" -m pytest -n 2 --dist loadfile -rs --durations=10 ${left_out[@]+"${left_out[@]}"} "$@"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'test: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
