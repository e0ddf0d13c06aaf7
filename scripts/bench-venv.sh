#!/usr/bin/env bash
# Makes the virtual environment with the stores that `make bench` compares with (1 GB); prints its interpreter.
set -euo pipefail
dir=${1:-.venv-bench}
if ! "$dir/bin/python" -c 'import chdb, datafusion, duckdb' 2>/dev/null; then
  python3 -m venv "$dir" >&2
  "$dir/bin/pip" install -q -r "$(dirname "$0")/../bench/python/requirements.txt" >&2
fi
echo "$(cd "$dir" && pwd)/bin/python"
