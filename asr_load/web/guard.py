"""Protect Locust's web UI: only its own pages and programs other than browsers may use it, not other sites' pages.

A browser sends requests to any address that a page names; `Origin` and `Sec-Fetch-Site` show whose page it is. A page
can also point its own name at this machine (DNS rebinding), which only `Host` shows. Locust itself answers every
request, and lets any page read the response (CORS).
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
"""Paths that other pages may link to: they change nothing, and other pages cannot read them."""

HEADERS = [
    # Other pages must not embed this one in a frame and trick users into clicking its buttons.
    ("Content-Security-Policy", "frame-ancestors 'self'"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
]


def guarded(app: Wsgi, web_host: str, names: Iterable[str], base: str = "") -> Wsgi:
    """Wrap an application so that it answers requests from other sites' pages with 403 and a line of text.

    `web_host` is the address where it listens. It accepts that address as its name, any name of the loopback and, if it
    listens on all of the machine's addresses, any address or the machine's name. `names` are further names that it
    accepts, and whose pages may use it. `base` is the path prefix of the web UI. Raises InputError if an entry of
    `names` is not a host name."""
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
    """Raise InputError if a value of --web-allow-host is not a host name."""
    for name in names:
        if not name or set(name) & set("/@?#* ") or _name(name) == "":
            raise InputError(f"--web-allow-host {name[:80]!r} is not a host name; use one such as loadtest.example.com")


def _refusal(environ: dict[str, Any], web_host: str, allowed: set[str], pages: set[str]) -> str:
    """Why a request is rejected; empty if it is not."""
    host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
    if _name(host) not in allowed and not _is_ours(_name(host), web_host):
        return f"this web UI does not answer to the name {host[:80]!r}: allow it with --web-allow-host NAME"
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
    return everywhere or address.is_loopback  # nobody can point an address here, unlike a name


def _name(host: str) -> str:
    """A host without its port, brackets and final dot; empty if it is not a host."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _place(origin: str, like: str = "") -> tuple[str, int | None]:
    """Host and port of an origin, with the default port of its scheme or else of `like`'s."""
    usual = {"http": 80, "https": 443}
    try:
        parts = urlsplit(origin)
        return (parts.hostname or "").rstrip("."), parts.port or usual.get(parts.scheme or urlsplit(like).scheme)
    except ValueError:
        return "", None
