"""Paths in --host and --endpoint: accept the path that requests use, and for any other suggest what to type."""

from __future__ import annotations

import re
import shlex
from urllib.parse import unquote_plus, urlsplit

from asr_load.apis import APIS
from asr_load.apis.api import Api
from asr_load.apis.realtime import Realtime
from asr_load.errors import InputError
from asr_load.http.server_info import MODELS, SECRET
from asr_load.text import STRUCK

VERSION = "/v1"
"""Last path component of the base URL that OpenAI's clients take."""

NEUTRAL = ("", VERSION, MODELS)
"""Paths that identify a server but no API."""

_OWN = re.compile(rf"({VERSION}(/.*)?|/(models|docs|redoc|openapi\.json|health|metrics|version))$")
"""A path that belongs to a server, at the end of a path to which a gateway may have added a prefix."""


def check_host_path(host: str, address: str, endpoint: str, api: type[Api]) -> None:
    """Raise InputError if `host` has another path than requests use, which is `endpoint` of `api` on the server at
    `address`. The message says what to type instead."""
    parts = urlsplit(host)
    path = parts.path.rstrip("/")
    query = f"?{parts.query}" if parts.query not in ("", api.query) else ""
    if parts.scheme in ("ws", "wss") and not api.is_websocket:
        raise InputError(
            f"--host {parts.scheme}://{parts.netloc} is an address for realtime sessions, but this test uses --api"
            f" {api.name}: add --api {Realtime.name}, or use --host {address}"
        )
    if path + query in (*NEUTRAL, endpoint.rstrip("/")):
        return
    other = api_of_path(path)
    if other is not None and other.path == path and not query:
        if other.path != api.path:
            raise InputError(
                f"--host {address}{path} is the path of --api {other.name}, but this test uses --api {api.name}: add"
                f" --api {other.name}, or use --host {address}"
            )
        raise InputError(f"--host {address}{path} and --endpoint {endpoint} differ: use --host {address}")
    prefix = _OWN.sub("", path)
    if other is None and not (prefix or query):
        raise InputError(f"--host cannot have this path: use --host {address}")
    if other is not None:
        whole, option = path, f" --api {other.name}" if other.path != api.path else ""
    else:
        whole, option = f"{prefix}{api.path}", ""
    typed = shlex.quote(whole + without_secrets(query))
    raise InputError(f"--host cannot have this path: use --host {address} --endpoint {typed}{option}")


def check_endpoint(path: str, api: type[Api]) -> str:
    """Return the path of --endpoint, which may be empty. Raises InputError if it is invalid or of another API."""
    if not path:
        return path
    shown = without_secrets(path)
    if "://" in path.partition("?")[0]:
        inner = shown.partition("://")[2].partition("/")[2]
        # A slash may belong to a password.
        cure = f"/{inner}" if inner and "@" not in inner else api.path
        raise InputError(f"--endpoint needs a path, not an address: use --endpoint {shlex.quote(cure)}")
    if not (path.startswith("/") and path.isascii() and path.isprintable() and not set(path) & set(" #")):
        raise InputError(f"--endpoint {shown} is not a path such as /openai/v1/chat/completions")
    other = api_of_path(path.partition("?")[0].rstrip("/"))
    if other is not None and other.path != api.path:
        raise InputError(
            f"--endpoint {shown} is the path of --api {other.name}, but this test uses --api {api.name}: add --api"
            f" {other.name}"
        )
    return path


def api_of_path(path: str) -> type[Api] | None:
    """The first API with a path, under any prefix; None if the path belongs to none."""
    return next((api for api in APIS.values() if path.endswith(api.path.removeprefix(VERSION))), None)


_FIELD = re.compile(r"(?P<name>[?&#][^=&#]*)=(?P<value>[^&#]*)")
"""A field in a query or fragment."""


def without_secrets(path: str) -> str:
    """An address or path with the values of keys and tokens in its query or fragment replaced by ***."""
    return _FIELD.sub(lambda field: f"{field['name']}={STRUCK}" if _is_secret(field) else field[0], path)


def secrets_in(path: str) -> list[str]:
    """Values of keys and tokens in the query of a path, both as written and as the server decodes them."""
    found = [field["value"] for field in _FIELD.finditer(path) if _is_secret(field)]
    return [form for value in found for form in (value, unquote_plus(value))]


def _is_secret(field: re.Match[str]) -> bool:
    return bool(field["value"] and SECRET.search(field["name"].lstrip("?&#").replace("-", "_")))
