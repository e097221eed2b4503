"""Access to connections and the listening socket, below HTTP.

uvicorn gives an application no access to its connection, which some faults need. Its protocol class is public
configuration, so a subclass puts the connection's transport into the extensions of the request's ASGI scope.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_EXTENSION = "asr_server.transport"
_BACKLOG = 2048


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with the transport in the scope."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvloop delays small writes until the end of the loop's iteration, so chunks would leave later than their
        # stamps. Without a buffer it writes immediately. (For asyncio's TLS, a buffer is full when it reaches its
        # limit, so the limit must be 1.)
        transport.set_write_buffer_limits(high=0 if encryption_of(transport) is None else 1, low=0)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {_EXTENSION: {"transport": self.transport}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope["extensions"][_EXTENSION]["cycle"] = self.cycle


def transport_of(scope: Scope) -> asyncio.Transport:
    """The transport of a request's connection."""
    transport: asyncio.Transport = scope["extensions"][_EXTENSION]["transport"]
    return transport


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with itself and its transport in the scope."""

    async def run_asgi(self) -> None:
        extensions: Any = self.scope["extensions"]
        extensions[_EXTENSION] = {"transport": self.transport, "protocol": self}
        await super().run_asgi()


def ping_often(scope: Scope, interval_s: float, patience_s: float) -> None:
    """Ping a client every `interval_s` from now on, and close its session if a pong takes longer than `patience_s`."""
    protocol: WebSocketProtocol = scope["extensions"][_EXTENSION]["protocol"]
    protocol.stop_keepalive()
    protocol.ping_interval, protocol.ping_timeout = interval_s, patience_s
    protocol.schedule_ping()


class _Notepad:
    """A minimal transport that collects the head of a response."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


async def begin_unwritten(scope: Scope, send: Send, start: Message) -> bytes:
    """Let uvicorn begin a response without writing its head.

    Returns the head; empty if the client has disconnected. Everything that uvicorn wrote to the connection before has
    been sent by then.
    """
    cycle = scope["extensions"][_EXTENSION]["cycle"]
    notepad = _Notepad()
    transport, cycle.transport = cycle.transport, notepad
    try:
        await send(start)  # waits until the transport's buffer is empty, because Protocol limits it to 0
    finally:
        cycle.transport = transport
    return notepad.written


class TlsProtocol(SSLProtocol):
    """TLS below a Protocol. Uses asyncio's, because uvloop's does not let the chunk sender encrypt."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=0)  # see Protocol
        super().connection_made(transport)


def over_tls(context: ssl.SSLContext) -> Callable[..., asyncio.BaseProtocol]:
    """A factory of uvicorn's protocols over TLS."""

    def protocol(**words: Any) -> asyncio.BaseProtocol:
        loop = asyncio.get_running_loop()
        return TlsProtocol(loop, Protocol(**words), context, loop.create_future(), server_side=True)

    return protocol


def encryption_of(transport: asyncio.Transport) -> Callable[[bytes], bytes] | None:
    """A function that encrypts data to be sent without the connection's transport, in order of sending; None without
    TLS."""
    tls = getattr(transport, "_ssl_protocol", None)
    if tls is None:
        return None

    def encrypt(data: bytes) -> bytes:
        tls._sslobj.write(data)
        encrypted: bytes = tls._outgoing.read()
        return encrypted

    return encrypt


def descriptor_of(transport: asyncio.Transport) -> int:
    """The connection's file descriptor; -1 if it is closed."""
    return -1 if transport.is_closing() else int(transport.get_extra_info("socket").fileno())


def reset(transport: asyncio.Transport) -> None:
    """Close with RST instead of FIN: the peer sees "connection reset"."""
    handle = transport.get_extra_info("socket")
    with socket.socket(fileno=os.dup(handle.fileno())) as raw:  # uvloop's handle does not support options
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """Create a listening socket.

    Raises:
        OSError: the address is in use, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


class Server(uvicorn.Server):
    """A uvicorn server that reports when it is ready and can refuse connections for some time."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._reopening: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._address: tuple[str, int] = ("", 0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        assert sockets
        self._address = sockets[0].getsockname()[:2]
        await super().startup(sockets)
        self._on_ready()

    def refuse(self, seconds: float) -> None:
        """Stop listening for `seconds`, so that the system refuses new connections. Open ones stay."""
        if self._reopening is not None:
            self._reopening.cancel()
        for listener in self.servers:
            listener.close()
        self.servers = []
        self._reopening = asyncio.get_running_loop().call_later(seconds, self._begin_reopening)

    def _begin_reopening(self) -> None:
        self._reopening = None
        task = asyncio.get_running_loop().create_task(self._reopen())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reopen(self) -> None:
        while not self.should_exit:
            with contextlib.suppress(OSError):  # another process took the port meanwhile: wait for it
                sock = listen(*self._address)
                break
            await asyncio.sleep(0.1)
        else:
            return
        loop = asyncio.get_running_loop()
        self.servers = [await loop.create_server(self._protocol, sock=sock, backlog=_BACKLOG)]

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made
