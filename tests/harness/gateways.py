"""Real gateways in front of a server, each in a separate process for the duration of a block."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness.peer import server_pem
from harness.ports import free_port
from harness.serving import wait_until

NGINX = """
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_max_body_size 64m;
    client_body_buffer_size 8m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream app {{ {servers} keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {pem};
        ssl_certificate_key {pem};
        keepalive_timeout {idle_s}s;
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering {buffering};
        }}
    }}
}}
"""

HAPROXY = """
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    timeout http-keep-alive {idle_s}s
frontend front
    bind 127.0.0.1:{port} ssl crt {pem} alpn h2,http/1.1
    default_backend app
backend app
    balance roundrobin
    {servers}
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            alpn_protocols: [h2, http/1.1]
            tls_certificates:
            - {{certificate_chain: {{filename: {pem}}}, private_key: {{filename: {pem}}}}}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          common_http_protocol_options: {{idle_timeout: {idle_s}s}}
          stream_idle_timeout: 60s
          route_config:
            virtual_hosts:
            - name: app
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: app, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: app
    type: STATIC
    lb_policy: ROUND_ROBIN
    connect_timeout: 2s
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
{servers}
"""


class Gateway:
    """A running gateway with a URL over TLS."""

    def __init__(self, kind: str, folder: Path, servers: Sequence[str], idle_s: int, buffering: bool) -> None:
        self._kind, self._port = kind, free_port()
        self.url = f"https://127.0.0.1:{self._port}"
        self._file = folder / f"{kind}.yaml"  # Envoy requires this suffix
        text, each = {
            "nginx": (NGINX, "server {place};"),
            "haproxy": (HAPROXY, "server s{number} {place}\n   "),
            "envoy": (
                ENVOY,
                "        - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}\n",
            ),
        }[kind]
        places = [urlsplit(url) for url in servers]
        listed = "".join(
            each.format(place=place.netloc, number=number, host=place.hostname, port=place.port)
            for number, place in enumerate(places)
        )
        self._file.write_text(
            text.format(
                folder=folder, port=self._port, pem=server_pem(), servers=listed, idle_s=idle_s,
                buffering="on" if buffering else "off",
            )
        )  # fmt: skip
        self._log = folder / f"{kind}.log"
        self.start()

    def start(self) -> None:
        options = {
            "nginx": ["-p", str(self._file.parent), "-c", str(self._file), "-g", "daemon off;"],
            "haproxy": ["-db", "-f", str(self._file)],
            "envoy": ["-c", str(self._file), "--concurrency", "1",
                      "--use-dynamic-base-id", "--log-level", "error"],
        }[self._kind]  # fmt: skip
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [program(self._kind) or self._kind, *options], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: self._answers() or self._process.poll() is not None, self._kind)
        assert self._process.poll() is None, self._log.read_text()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def stop(self) -> None:
        """End it immediately, including the streams through it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def program(kind: str) -> str | None:
    return shutil.which(kind, path=f"{os.environ['PATH']}:/usr/sbin:{Path(sys.executable).parent}")


@contextmanager
def gateway(kind: str, folder: Path, *servers: str, idle_s: int = 60, buffering: bool = False) -> Iterator[Gateway]:
    """Run nginx, haproxy or envoy in front of servers, which it uses in turn. Skip the test if it is not installed."""
    if program(kind) is None:
        pytest.skip(f"no {kind} here")
    folder.mkdir(exist_ok=True)
    running = Gateway(kind, folder, servers, idle_s, buffering)
    try:
        yield running
    finally:
        running.stop()
