#!/usr/bin/env bash
# The tests with the oldest, or the newest, packages that pyproject.toml allows.
#
#   release/versions.sh oldest [PYTEST ARGUMENTS]     what its lower bounds say, the rest newest
#   release/versions.sh newest [PYTEST ARGUMENTS]
#
# Makes .venv-oldest or .venv-newest with uv (which `make oldest` and `make newest` install first), and
# prints what it holds.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    oldest) resolution=lowest-direct ;;
    newest) resolution=highest ;;
    *) sed -n '2,8s/^# \?//p' "$0"; exit 2 ;;
esac
venv=".venv-$1"
uv venv --quiet --clear "$venv"
uv pip install --quiet --python "$venv/bin/python" --resolution "$resolution" -e ".[test]"
uv pip freeze --python "$venv/bin/python"
exec "$venv/bin/python" -m pytest "${@:2}"
