# The harness and its embedded server in one image; docker-compose.yml says which part runs.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
# By their hashes: `make lock` makes the file of requirements.txt and requirements-server.txt.
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
# An extension that does not compile is left out without a word, so it is asked for.
RUN pip install --no-cache-dir --no-deps --editable . \
 && python -c "import asr_load.http._socket_reader, asr_load.stream._events, asr_server._chunk_sender" \
 && python -m compileall -q asr_load asr_server locustfiles \
 && python scripts/prepare.py --dataset asr_data/sample --out asr_data/sample

FROM python:3.11-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH XDG_CACHE_HOME=/cache
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
# A new volume takes the owner and the mode of the folder that it is mounted on: whoever runs here may write, root too,
# which has no more rights than others where it has no capabilities.
RUN mkdir -p results /cache /fleet && chown 1000:1000 results && chmod 1777 /cache /fleet
# By its number: Kubernetes cannot tell that a name is not root's.
USER 1000:1000
# Locust writes complete files on SIGINT.
STOPSIGNAL SIGINT
EXPOSE 8089 5557 30000
ENTRYPOINT ["/app/scripts/container-start.sh"]
CMD ["locust", "--web-host", "0.0.0.0"]
