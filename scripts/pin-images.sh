#!/usr/bin/env bash
# Looks up the current digest of each image's tag in its registry, and writes it after the tag in Dockerfile and
# docker-compose.yml: NAME:TAG@sha256:…. Run it again to update the digests. Needs skopeo.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v skopeo >/dev/null || { echo "error: skopeo is not installed (on Debian: apt-get install skopeo)" >&2; exit 2; }
images=$(grep -ohE '(^FROM |IMAGE:-)[a-z0-9./-]+:[A-Za-z0-9._-]+' Dockerfile docker-compose.yml | sed -E 's/^(FROM |IMAGE:-)//' | sort -u)
for image in $images; do
  digest=$(skopeo inspect --no-tags --format '{{.Digest}}' "docker://docker.io/$([[ $image == */* ]] || echo library/)$image") ||
    { echo "error: $image cannot be looked up, so it was not changed" >&2; exit 2; }
  sed -i -E "s#(FROM |IMAGE:-)${image}(@sha256:[0-9a-f]+)?#\1${image}@${digest}#" Dockerfile docker-compose.yml
  echo "$image is $digest"
done
