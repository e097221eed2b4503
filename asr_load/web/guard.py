"""Who may use Locust's web UI: its own pages, and programs that are no browser; never the page of a stranger.

A browser sends a request to whatever address a page names, and tells in `Origin` and `Sec-Fetch-Site` whose page that
is. A page can also have its own name point at this machine (DNS rebinding), which only `Host` tells. Locust itself
answers anyone, and lets any page read the answer (CORS).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from asr_load.errors import InputError

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

PAGES = ("", "/", "/login")
"""Paths that a link on another page may lead to: they change nothing, and no other page can read them."""

HEADERS = [
    # No page may put this one into a frame and have its buttons clicked.
    ("Content-Security-Policy", "frame-ancestors 'self'"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]


def guarded(app: Wsgi, web_host: str, names: Iterable[str], base: str = "") -> Wsgi:
    """An application that answers 403, in a line, to requests that a stranger's page makes.

    `web_host` is where it listens: it is called by that, by a name of the loopback or, where it listens on all of the
    machine's addresses, by any address or the machine's name. `names` are others that it may be called by, and whose
    pages may use it. `base` is the path that its own pages are under. Raises InputError where one of
    them is no host's name.
    """
    names = list(names)
    _check_names(names)
    allowed = {_name(name) for name in names}
    pages = {base.rstrip("/") + path for path in PAGES}

    def guarded_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if why := _refusal(environ, web_host, allowed, pages):
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8"), ("Connection", "close")])
            return [f"{why}\n".encode()]

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            kept = [pair for pair in headers if not pair[0].lower().startswith("access-control-")]
            return start_response(status, kept + HEADERS, *rest)

        return app(environ, start)

    return guarded_app


def _check_names(names: Iterable[str]) -> None:
    """Raise InputError where a word of --web-allow-host is no name of a host."""
    for name in names:
        if not name or set(name) & set("/@?#* ") or _name(name) == "":
            raise InputError(f"--web-allow-host takes a host's name, like loadtest.example.com, not {name[:80]!r}")


def _refusal(environ: dict[str, Any], web_host: str, allowed: set[str], pages: set[str]) -> str:
    """Why a request is refused; empty where it is not."""
    host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
    if _name(host) not in allowed and not _is_ours(_name(host), web_host):
        return f"this web UI is not called {host[:80]!r}: --web-allow-host NAME lets it answer to a name"
    site, method = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("REQUEST_METHOD")
    if origin is not None:
        if _place(origin) != _place(f"//{host}", origin) and _place(origin)[0] not in allowed:
            return f"a page of {origin[:80]!r} may not use this web UI"
    elif site not in (None, "same-origin", "none"):
        is_link = method == "GET" and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        is_whole = environ.get("HTTP_SEC_FETCH_DEST") == "document"
        if not (is_link and is_whole and environ.get("PATH_INFO", "") in pages):
            return "a page of another site may not use this web UI"
    return ""


def _is_ours(name: str, web_host: str) -> bool:
    everywhere = web_host in ("", "*", "0.0.0.0", "::")
    machine = [socket.gethostname().lower()] if everywhere else []
    if name and name in ("localhost", web_host.lower(), *machine):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return everywhere or address.is_loopback  # an address is no name that somebody has pointed here


def _name(host: str) -> str:
    """A host without its port, its brackets and the dot that may end it; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _place(origin: str, like: str = "") -> tuple[str, int | None]:
    """Host and port of an origin; its usual port where it has none, of `like`'s scheme where it has no scheme."""
    usual = {"http": 80, "https": 443}
    try:
        parts = urlsplit(origin)
        return (parts.hostname or "").rstrip("."), parts.port or usual.get(parts.scheme or urlsplit(like).scheme)
    except ValueError:
        return "", None
