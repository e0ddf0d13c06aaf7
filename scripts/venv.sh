#!/usr/bin/env bash
# Makes the virtual environment with the Python clients that tests use; prints its interpreter.
set -euo pipefail
dir=${1:-.venv}
if ! "$dir/bin/python" -c 'import adbc_driver_flightsql, duckdb_extension_iceberg, moto.server, pyiceberg, opentelemetry.sdk' 2>/dev/null; then
  python3 -m venv "$dir" >&2
  "$dir/bin/pip" install -q -r "$(dirname "$0")/../cluster-tests/python/requirements.txt" >&2
fi
echo "$(cd "$dir" && pwd)/bin/python"
