#!/usr/bin/env bash
# Run the whole path on this machine: the sample, the embedded recognizer, Locust, the summary.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
work=$(mktemp -d)
echo "Starting a speech server on this machine (a small speech recognizer on the CPU) …"
python scripts/serve.py --port 0 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -rf "$log" "$work"' EXIT

# The server picks a free port and prints it in its first line.
for _ in $(seq 300); do
  host=$(sed -n 's/^asr_server: .* on \(http.*\)$/\1/p' "$log")
  [ -n "$host" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$log" >&2; echo "error: the embedded server did not start" >&2; exit 1; }
  sleep 0.2
done
[ -n "$host" ] || { cat "$log" >&2; echo "error: the embedded server was not ready within 60 s" >&2; exit 1; }

echo "Sending the sample's 15 clips four times to $host, with 4 requests in flight …"
# Four passes give the verdict enough requests to judge. Write Locust's tables to a file instead of the terminal.
locust --headless -u 4 -r 4 --requests 60 --host "$host" --only-summary --loglevel WARNING --json-file "$work/locust" |
  tee "$work/summary"

if grep -q '^Figures:' "$work/summary"; then
  echo
  echo "This machine runs the server too and was busy, so these figures are not exact. For a demo this does not matter."
fi

cat <<END

Next, against your own server:

  . .venv/bin/activate
  locust --headless -u 4 -t 1m --host http://ADDRESS:PORT --model NAME   sends the sample (or your clips: --data DIR)
  locust --host http://ADDRESS:PORT                                      the same with a web UI, http://127.0.0.1:8089
END
