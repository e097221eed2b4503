# Two images. `harness` (the default) is for masters and workers; `server` adds the embedded server's recogniser.
# docker-compose.yml says which command runs in which.
FROM python:3.11-slim-bookworm AS dependencies
# The system's pip installs into it: it needs none itself.
RUN python -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# By their hashes: `make lock` makes the file of requirements.txt.
COPY requirements.lock ./
# Packages bring their own tests: 60 MB that nothing here runs.
RUN pip --python /opt/venv install --no-cache-dir --require-hashes -r requirements.lock \
 && find /opt/venv -type d -name tests -prune -exec rm -r {} +

FROM dependencies AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY . .
# pip skips an extension that does not compile without an error: importing it does not.
RUN pip --python /opt/venv install --no-cache-dir --no-deps --editable . \
 && python -c "import asr_load.http._socket_reader, asr_load.stream._events, asr_server._chunk_sender" \
 && python -m compileall -q asr_load asr_server locustfiles \
 && python scripts/prepare.py --dataset asr_data/sample --out asr_data/sample

FROM python:3.11-slim-bookworm AS harness
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/app XDG_CACHE_HOME=/cache
WORKDIR /app
# Packages and code are layers of their own: a change of the code moves a few megabytes.
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=build /opt/venv/bin/asr-load /opt/venv/bin/asr-load
COPY --from=build /app /app
# A new volume takes the owner and the mode of the folder that it is mounted on: whoever runs here may write, root too,
# which has no more rights than others where it has no capabilities.
RUN mkdir -p results /cache /fleet && chown 1000:1000 results && chmod 1777 /cache /fleet
# By its number: Kubernetes cannot tell that a name is not root's.
USER 1000:1000
# Locust writes complete files on SIGINT.
STOPSIGNAL SIGINT
EXPOSE 8089 5557
ENTRYPOINT ["/app/scripts/container-start.sh"]
CMD ["locust", "--web-host", "0.0.0.0"]

FROM harness AS server
USER 0:0
RUN pip --python /opt/venv install --no-cache-dir --require-hashes -r requirements-server.lock
USER 1000:1000
EXPOSE 30000
CMD ["python", "scripts/serve.py", "--host", "0.0.0.0", "--port", "30000"]

FROM harness
