#!/usr/bin/env bash
# The whole path on this machine alone: the sample, the embedded recogniser, Locust, the summary.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
python scripts/serve.py --port 0 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$log"' EXIT

# The server takes a free port and says which in its first line.
for _ in $(seq 300); do
  host=$(sed -n 's/^asr_server: .* on \(http.*\)$/\1/p' "$log")
  [ -n "$host" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; echo "error: the embedded server did not start" >&2; exit 1; }
  sleep 0.2
done
[ -n "$host" ] || { cat "$log" >&2; echo "error: the embedded server was not ready within 60 s" >&2; exit 1; }
cat "$log"

# Four passes over the sample's 15 clips: enough for the verdict to have something to judge.
locust --headless -u 4 -r 4 --requests 60 --host "$host" --only-summary --loglevel WARNING
