#!/usr/bin/env bash
# Style, types, rendered tables, then the whole test suite. Arguments go to pytest: tools/test.sh tests/test_batch.py -k fake
# WAM_PYTHON and WAM_VENV choose another interpreter (see tools/setup.sh --help); WAM_LINT=0 leaves out all but pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools/setup.sh
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
check "pytest" "$python" -m pytest -n 2 --dist loadfile -rs --durations=10 "$@"
if [ ${#failed[@]} -gt 0 ]; then
  printf 'test: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
