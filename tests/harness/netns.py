"""Hosts on a private network: Linux network namespaces connected by a switch.

A test may add delay and loss between hosts. `tc netem` does this if the kernel has it. Otherwise this file, run as a
program, is a switch that forwards frames late and drops some.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

SWITCH = "sw"
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING, ETH_P_ALL = 263, 15, 4, 3
VNET_HDR = 10
"""Size of the header before a frame, which has the checksums and segments that a network card would provide."""


class Network:
    """Hosts by name, with their addresses; created by `network`."""

    def __init__(self, prefix: str, hosts: tuple[str, ...]) -> None:
        self._prefix = prefix
        self.addresses = {host: f"10.77.0.{number}" for number, host in enumerate(hosts, 1)}

    def on(self, host: str) -> list[str]:
        """The command prefix that runs a command on a host, in the same process."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host]
        return ["ip", "netns", "exec", self.space(host), *named]

    def space(self, host: str) -> str:
        """The name of a host's namespace."""
        return self._prefix + host

    def cut(self, host: str) -> None:
        """Unplug a host: frames to and from it are lost, without an error."""
        _run(*self.on(SWITCH), "ip", "link", "set", f"to-{host}", "down")

    def mend(self, host: str) -> None:
        """Plug a host in again."""
        _run(*self.on(SWITCH), "ip", "link", "set", f"to-{host}", "up")


@contextlib.contextmanager
def network(*hosts: str, delay_ms: float = 0, loss: float = 0) -> Iterator[Network]:
    """Create a network of these hosts. Each frame takes `delay_ms`, and the share `loss` of them is dropped.

    Skip the test if namespaces are not permitted.
    """
    if not sys.platform.startswith("linux") or shutil.which("ip") is None:
        pytest.skip("network namespaces need Linux and iproute2")
    made = Network(f"asr{os.getpid()}-", hosts)
    spaces = [made.space(name) for name in (*hosts, SWITCH)]
    with contextlib.ExitStack() as undo:
        for space in spaces:
            tried = subprocess.run(["ip", "netns", "add", space], capture_output=True, text=True, check=False)
            if tried.returncode != 0:
                pytest.skip(f"network namespaces are not permitted here: {tried.stderr.strip()}")
            undo.callback(_run, "ip", "netns", "del", space)
        for host, address in made.addresses.items():
            ends = ("netns", made.space(SWITCH), "type", "veth", "peer", "eth0", "netns", made.space(host))
            _run("ip", "link", "add", f"to-{host}", *ends)
            _run(*made.on(host), "ip", "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run(*made.on(host), "ip", "link", "set", device, "up")
            _run(*made.on(SWITCH), "ip", "link", "set", f"to-{host}", "up")
        undo.enter_context(_switched(made, delay_ms, loss))
        yield made


@contextlib.contextmanager
def _switched(made: Network, delay_ms: float, loss: float) -> Iterator[None]:
    ports = [f"to-{host}" for host in made.addresses]
    on = made.on(SWITCH)
    harm = ["netem", "delay", f"{delay_ms:g}ms", "loss", f"{loss:.2%}"]
    if not (delay_ms or loss) or _has_netem(on):
        _run(*on, "ip", "link", "add", "bridge", "type", "bridge")
        _run(*on, "ip", "link", "set", "bridge", "up")
        for port in ports:
            _run(*on, "ip", "link", "set", port, "master", "bridge")
            if delay_ms or loss:
                _run(*on, "tc", "qdisc", "add", "dev", port, "root", *harm)
        yield
        return
    command = [*on, sys.executable, __file__, str(delay_ms / 1e3), str(loss), *ports]
    switch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert switch.stdout is not None
    try:
        assert switch.stdout.readline() == "forwarding\n"
        yield
    finally:
        switch.kill()
        switch.wait()
        switch.stdout.close()


def _has_netem(on: list[str]) -> bool:
    tried = [*on, "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms"]
    return shutil.which("tc") is not None and subprocess.run(tried, capture_output=True, check=False).returncode == 0


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


def forward(delay: float, loss: float, ports: list[str]) -> None:
    """Forward frames between ports by address, `delay` seconds late, and drop the share `loss` of them."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with the test that started it
    sockets = []
    for port in ports:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        # Frames between namespaces lack checksums and may exceed a card's size. A header describes this.
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        raw.bind((port, ETH_P_ALL))
        sockets.append(raw)
    chance = random.Random(0)
    known: dict[bytes, socket.socket] = {}
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    print("forwarding", flush=True)
    number = 0
    while True:
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for ready in select.select(sockets, [], [], wait)[0]:
            try:
                frame, address = ready.recvfrom(1 << 17)
            except OSError:
                continue  # its link is down
            if address[2] == PACKET_OUTGOING or chance.random() < loss:
                continue
            to, by = frame[VNET_HDR : VNET_HDR + 6], frame[VNET_HDR + 6 : VNET_HDR + 12]
            known[by] = ready
            for out in [known[to]] if to in known else [other for other in sockets if other is not ready]:
                number += 1
                heapq.heappush(waiting, (time.monotonic() + delay, number, out, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            *_, out, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # its link is down
                out.send(frame)


if __name__ == "__main__":
    forward(float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
