# The harness and its embedded server in one image; docker-compose.yml says which part runs.
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY requirements.txt requirements-server.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-server.txt

COPY . .
# The compiler makes the reader and the sender, and goes again. Results and prepared data belong to the user that runs: a
# new volume takes the folder's owner.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
 && pip install --no-cache-dir --no-deps --editable . \
 && python -m compileall -q asr_load asr_server locustfiles \
 && apt-get purge -y --auto-remove gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
 && python scripts/prepare.py --dataset asr_data/sample --out asr_data/sample \
 && useradd --create-home --uid 1000 asr && mkdir results && chown asr results

USER asr
# Locust writes complete files on SIGINT.
STOPSIGNAL SIGINT
EXPOSE 8089 5557 30000
CMD ["locust", "--web-host", "0.0.0.0"]
