#!/usr/bin/env bash
# Looks up which digest each image's tag has in its registry now, and writes it behind the tag in Dockerfile and
# docker-compose.yml: NAME:TAG@sha256:…. Run it again to renew them. Needs skopeo.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v skopeo >/dev/null || { echo "error: skopeo is not installed (on Debian: apt-get install skopeo)" >&2; exit 2; }
images=$(grep -ohE '(^FROM |IMAGE:-)[a-z0-9./-]+:[A-Za-z0-9._-]+' Dockerfile docker-compose.yml | sed -E 's/^(FROM |IMAGE:-)//' | sort -u)
for image in $images; do
  digest=$(skopeo inspect --no-tags --format '{{.Digest}}' "docker://docker.io/$([[ $image == */* ]] || echo library/)$image") ||
    { echo "error: $image cannot be looked up: nothing of it is changed" >&2; exit 2; }
  sed -i -E "s#(FROM |IMAGE:-)${image}(@sha256:[0-9a-f]+)?#\1${image}@${digest}#" Dockerfile docker-compose.yml
  echo "$image is $digest"
done
