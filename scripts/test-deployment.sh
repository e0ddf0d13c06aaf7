#!/usr/bin/env bash
# Both deployments without Docker: one node on its embedded defaults, and three nodes with a private PostgreSQL and an S3
# server (moto). Each takes an export and answers a query on every node, flushes, and does so again after a restart.
#   scripts/test-deployment.sh [monolith|cluster]     exits with 1 when anything is not as expected
# SIGNALDB_BIN names the binary (else a release build is made), SIGNALDB_PYTHON a Python with moto (else .venv).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

case "${1:-both}" in both | monolith | cluster) which=${1:-both} ;; *) echo "usage: $0 [monolith|cluster]" >&2; exit 2 ;; esac

dir=$(mktemp -d)
declare -A pids=()
end() {
  local status=$?
  trap - EXIT
  for name in "${!pids[@]}"; do stop "$name" 2>/dev/null || true; done
  if [ "$status" != 0 ]; then
    for log in "$dir"/*.log "$dir"/cluster/node-*/*.log; do
      if [ -s "$log" ]; then echo "--- $log"; tail -n 15 "$log"; fi
    done
    echo "FAILED; the files are in $dir" >&2
  else
    rm -rf "$dir"
  fi
  exit "$status"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Starts a process that this script ends; its output goes to NAME.log.
start() {
  local name=$1
  shift
  "$@" >>"$dir/$name.log" 2>&1 &
  pids[$name]=$!
}

# SIGTERM, and waits; the exit code is the process's.
stop() {
  local name=$1 pid=${pids[$1]}
  unset "pids[$name]"
  kill -TERM "$pid"
  wait "$pid"
}

# The first of six ports in a row that are free, on three nodes that are 100 apart.
free_ports() {
  local base offset
  while true; do
    base=$((12000 + RANDOM % 16000))
    for offset in {0..5} {100..105} {200..205}; do
      if (exec 3<>"/dev/tcp/127.0.0.1/$((base + offset))") 2>/dev/null; then continue 2; fi
    done
    echo "$base"
    return
  done
}

binary() {
  if [ -n "${SIGNALDB_BIN:-}" ]; then
    echo "$SIGNALDB_BIN"
    return
  fi
  scripts/install-deps.sh >&2
  cargo build --locked --release -p signaldb-node >&2
  echo "${CARGO_TARGET_DIR:-target}/release/signaldb"
}

monolith() {
  local p sets=()
  p=$(free_ports)
  for listen in "otlp_grpc=$p" "otlp_http=$((p + 1))" "http=$((p + 2))" "flight=$((p + 3))"; do
    sets+=(--set "listen.${listen%=*}=127.0.0.1:${listen#*=}")
  done
  for _ in first again; do
    start monolith "$bin" server --data-dir "$dir/monolith" "${sets[@]}"
    scripts/check-deployment.sh "http://127.0.0.1:$((p + 1))" "http://127.0.0.1:$((p + 2))"
    stop monolith || { echo "the node did not stop cleanly" >&2; return 1; }
  done
  [ -f "$dir/monolith/catalog.db" ] || { echo "there is no catalog" >&2; return 1; }
  echo "monolith: passed"
}

# A private PostgreSQL on port $1; it does not run as root.
postgres() {
  local found=(/usr/lib/postgresql/*/bin/initdb) as=()
  local home=${found[-1]%/initdb} data=$dir/postgres
  [ -x "$home/initdb" ] || { echo "PostgreSQL is not installed: run scripts/install-deps.sh tests" >&2; return 1; }
  mkdir "$data"
  if [ "$(id -u)" = 0 ]; then
    chmod 711 "$dir"
    chown postgres "$data"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
  fi
  "${as[@]}" "$home/initdb" -D "$data/data" -A trust -U postgres --no-sync >"$dir/initdb.log" 2>&1
  # SIGINT would be its fast shutdown; SIGTERM waits for clients, which are gone by then.
  start postgres "${as[@]}" "$home/postgres" -D "$data/data" -h 127.0.0.1 -p "$1" -c "unix_socket_directories=$data"
  for _ in {1..120}; do
    if "$home/pg_isready" -q -h 127.0.0.1 -p "$1"; then return; fi
    sleep 0.5
  done
  echo "PostgreSQL does not answer" >&2
  return 1
}

# An S3 server on port $1 with the bucket `tables`.
bucket() {
  local python=${SIGNALDB_PYTHON:-}
  [ -n "$python" ] || python=$(scripts/venv.sh)
  start s3 "$python" -m moto.server -H 127.0.0.1 -p "$1"
  for _ in {1..120}; do
    if curl -sf -m 5 -o /dev/null -X PUT "http://127.0.0.1:$1/tables"; then return; fi
    sleep 0.5
  done
  echo "moto does not answer" >&2
  return 1
}

cluster() {
  local p services sets=() setting
  p=$(free_ports) services=$(free_ports)
  postgres "$services"
  bucket "$((services + 1))"
  for setting in "schema.catalog_uri=postgres://postgres@127.0.0.1:$services/postgres" \
    "database.dsn=postgres://postgres@127.0.0.1:$services/postgres" \
    storage.adapters.local.type=s3 storage.adapters.local.url=s3://tables \
    "storage.adapters.local.options.endpoint=http://127.0.0.1:$((services + 1))" \
    storage.adapters.local.options.allow_http=true storage.adapters.local.options.region=us-east-1 \
    storage.adapters.local.options.access_key_id=test storage.adapters.local.options.secret_access_key=test; do
    sets+=(--set "$setting")
  done
  local nodes=("http://127.0.0.1:$((p + 2))" "http://127.0.0.1:$((p + 102))" "http://127.0.0.1:$((p + 202))")
  local at
  for at in 0 1; do
    start cluster "$bin" cluster dev --nodes 3 --data-dir "$dir/cluster" --base-port "$p" "${sets[@]}"
    # Another node takes the export after the restart.
    scripts/check-deployment.sh "http://127.0.0.1:$((p + 1 + 100 * at))" "${nodes[@]}"
    stop cluster || { echo "the nodes did not stop cleanly" >&2; return 1; }
  done
  if [ -d "$dir/cluster/shared/storage" ]; then
    echo "the tables are not in the bucket" >&2
    return 1
  fi
  stop s3 || true
  stop postgres || true
  echo "three nodes with PostgreSQL and S3: passed"
}

bin=$(binary)
[ -x "$bin" ] || { echo "$bin is not there" >&2; exit 1; }
if [ "$which" != cluster ]; then monolith; fi
if [ "$which" != monolith ]; then cluster; fi
