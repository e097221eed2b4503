#!/usr/bin/env bash
# Builds the images, starts docker-compose.yml with the embedded server and two workers, runs two tests over REST, and
# compares their records with the requests that the server counted. Takes about five minutes, mostly for the images.
#
#   scripts/container-test.sh                    with Docker
#   ENGINE=podman scripts/container-test.sh      with podman and podman-compose (BUILD: more options for podman build)
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${ENGINE:-docker}
case $engine in
  docker) compose=(docker compose) ;;
  podman)
    export HOST_GATEWAY=${HOST_GATEWAY:-127.0.0.1} # no server on the host is used, but podman needs an address
    export WEB_BIND=${WEB_BIND:-0.0.0.0} # podman publishes ports on any of a container's networks
    # podman-compose 1.6 fails on a dependency whose profile is not active, even if it is not required.
    only_demo=$(mktemp --suffix=.yml)
    cat >"$only_demo" <<'END'
services:
  master:
    depends_on: !override [server]
  worker:
    depends_on: !override [server, master]
END
    compose=(podman-compose -f docker-compose.yml -f "$only_demo")
    ;;
  *) echo "error: ENGINE must be docker or podman, not $engine" >&2; exit 2 ;;
esac
command -v "$engine" >/dev/null || { echo "error: $engine is not installed" >&2; exit 2; }
read -ra build <<<"${BUILD:-}"

export COMPOSE_PROJECT_NAME=asr-load-test RUN_AS="$(id -u):$(id -g)" CALIBRATE=0
export WEB_PORT=${WEB_PORT:-18089} MASTER_PORT=${MASTER_PORT:-15557}
ui=http://127.0.0.1:$WEB_PORT

say() { echo "== $*"; }
down() { "${compose[@]}" --profile demo down --volumes >/dev/null 2>&1 || true; }
trap 'down; rm -f "${only_demo:-}"' EXIT
down

say "build"
"$engine" build "${build[@]}" --target harness -t asr-load:0.1.0 .
"$engine" build "${build[@]}" --target server -t asr-load-server:0.1.0 .
"$engine" image inspect asr-load:0.1.0 --format 'harness: {{.Size}} bytes'
"$engine" run --rm asr-load:0.1.0 python -c \
  "import asr_load.http._socket_reader, asr_load.stream._events, asr_server._chunk_sender, os; assert os.getuid() == 1000"

before=$(ls results)
say "start"
"${compose[@]}" --profile demo up -d --scale worker=2
ready() { curl -fs "$ui/stats/requests" | python3 -c 'import json,sys; sys.exit(len(json.load(sys.stdin)["workers"]) != 2)'; }
for _ in $(seq 60); do ready 2>/dev/null && break; sleep 1; done
ready || { "${compose[@]}" --profile demo logs | tail -40; echo "error: two workers did not join within a minute" >&2; exit 1; }

for number in 1 2; do
  say "test $number"
  answer=$(curl -fs "$ui/swarm" -d user_count=4 -d spawn_rate=4 -d host=http://server:30000)
  python3 -c 'import json,sys; sys.exit(not json.loads(sys.argv[1])["success"])' "$answer" ||
    { echo "error: test $number did not start: $answer" >&2; exit 1; }
  sleep 8
  curl -fs -X POST "$ui/stop" >/dev/null
done
served=$("${compose[@]}" --profile demo exec -T server python -c \
  'import urllib.request as r; print(r.urlopen("http://127.0.0.1:30000/metrics").read().decode())' | tr -d '\r' |
  sed -n 's/^sglang:e2e_request_latency_seconds_count{[^}]*} //p')
down

say "compare"
python3 - "$served" "$before" <<'END'
import json, pathlib, sys
served, before = float(sys.argv[1]), set(sys.argv[2].split())
folders = (path for path in sorted(pathlib.Path("results").iterdir()) if path.is_dir())
runs = [folder for folder in folders if folder.name not in before]
assert len(runs) == 2, f"two tests wrote {[run.name for run in runs]}"
records = [json.loads(line) for run in runs for line in (run / "records.jsonl").read_text().splitlines()]
asked = served - len(runs)  # without each test's trial request, which has no record
assert len(records) > 20 and len(records) == asked, f"{len(records)} records, but the server received {asked} requests"
for run in runs:
    workers = json.loads((run / "run.json").read_text())["workers"]
    assert [worker["reader"] for worker in workers] == ["compiled"] * 2, workers
    summary = json.loads((run / "summary.json").read_text())
    assert summary["requests"]["fail"] == 0 and not summary["lost_workers"], summary["requests"]
    print(f"{run}: {summary['requests']['success']} successful requests, WER {summary['wer']:.1%}")
print(f"{len(records)} records, equal to the number of requests that the server received")
END
