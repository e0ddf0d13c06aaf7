#!/bin/sh
# An export and a query, end to end: check-deployment.sh OTLP_URL HTTP_URL...
# Exports a span of its own to OTLP_URL (port 4318) and asks for it at every HTTP_URL (port 3000), before and after a flush.
# Needs a POSIX shell and curl. Exits with 1 at the first answer that is not the expected one. READY_SECONDS (120) is how
# long a node may take to be ready.
set -eu

[ $# -ge 2 ] || { echo "usage: $0 OTLP_URL HTTP_URL..." >&2; exit 2; }
otlp=$1
shift
fail() { echo "FAILED: $*" >&2; exit 1; }

wait_ready() {
  tries=0
  until curl -sf -m 2 -o /dev/null "$1/ready"; do
    tries=$((tries + 1))
    [ "$tries" -lt $((2 * ${READY_SECONDS:-120})) ] || fail "$1 is not ready: $(curl -s -m 2 "$1/ready" || echo 'no answer')"
    sleep 0.5
  done
}

count() {
  query="{\"query\": \"SELECT count(*) FROM traces WHERE trace_id = '$trace'\"}"
  curl -sS -m 60 -H 'content-type: application/json' -d "$query" "$1/api/v1/sql?format=csv" | tail -n 1 | tr -d '\r'
}

expect_one() {
  for http in "$@"; do
    found=$(count "$http")
    [ "$found" = 1 ] || fail "$http counts '$found' of one span $when"
  done
}

for http in "$@"; do wait_ready "$http"; done

id() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
trace=$(id 16)
now=$(date +%s)
export_request="{\"resourceSpans\": [{
  \"resource\": {\"attributes\": [{\"key\": \"service.name\", \"value\": {\"stringValue\": \"check-deployment\"}}]},
  \"scopeSpans\": [{\"spans\": [{\"traceId\": \"$trace\", \"spanId\": \"$(id 8)\", \"name\": \"check\", \"kind\": 2,
    \"startTimeUnixNano\": \"${now}000000000\", \"endTimeUnixNano\": \"${now}000001000\"}]}]}]}"
# The same bytes again, until they are acknowledged: whatever happens, they are stored once.
tries=0
until answer=$(curl -sS -m 30 --fail-with-body -H 'content-type: application/json' -d "$export_request" "$otlp/v1/traces" 2>&1); do
  tries=$((tries + 1))
  [ "$tries" -lt 60 ] || fail "$otlp does not take the span: $answer"
  sleep 1
done

when="before a flush" expect_one "$@"
flushed=$(curl -sS -m 120 --fail-with-body -X POST "$1/api/v1/admin/flush") || fail "the flush: $flushed"
when="after a flush" expect_one "$@"
echo "an export and a query: $otlp -> $*"
