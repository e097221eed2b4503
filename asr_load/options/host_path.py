"""Paths in --host and --endpoint: accept the one that requests go to, and give the command to type for any other."""

from __future__ import annotations

import re
import shlex
from urllib.parse import unquote_plus, urlsplit

from asr_load.audio.payload import APIS, REALTIME
from asr_load.errors import InputError
from asr_load.http.server_info import MODELS, SECRET
from asr_load.text import STRUCK

VERSION = "/v1"
"""What OpenAI's clients want at the end of their base URL."""

NEUTRAL = ("", VERSION, MODELS)
"""Paths that say which server is meant, and nothing of the API."""

_OWN = re.compile(rf"({VERSION}(/.*)?|/(models|docs|redoc|openapi\.json|health|metrics|version))$")
"""The end of a path that is a server's, behind a prefix that a gateway may have put before it."""

INTENT = "intent=transcription"
"""The query of a realtime session, which session_url adds by itself."""


def check_host_path(host: str, address: str, endpoint: str, api: str) -> None:
    """Raise InputError if `host` names another place than requests go to: the `endpoint` of `api` on the server at
    `address`. The line says what to type instead."""
    parts = urlsplit(host)
    path = parts.path.rstrip("/")
    query = f"?{parts.query}" if parts.query and not (api == REALTIME and parts.query == INTENT) else ""
    if parts.scheme in ("ws", "wss") and api != REALTIME:
        raise InputError(
            f"--host {parts.scheme}://{parts.netloc} is an address of realtime sessions, but this test uses --api"
            f" {api}: add --api {REALTIME}, or give --host {address}"
        )
    if path + query in (*NEUTRAL, endpoint.rstrip("/")):
        return
    named = api_of_path(path)
    if path in APIS.values() and not query:
        if named != api and APIS[api] != path:
            raise InputError(
                f"--host {address}{path} is the path of --api {named}, but this test uses --api {api}: add --api"
                f" {named}, or give --host {address}"
            )
        raise InputError(f"--host {address}{path} and --endpoint {endpoint} differ: give --host {address}")
    prefix = _OWN.sub("", path)
    if not (named or prefix or query):
        raise InputError(f"--host carries no path: give --host {address}")
    if named:
        whole, option = path, f" --api {named}" if APIS[named] != APIS[api] else ""
    else:
        whole, option = f"{prefix}{APIS[api]}", ""
    typed = shlex.quote(whole + without_secrets(query))
    raise InputError(f"--host carries no path: give --host {address} --endpoint {typed}{option}")


def check_endpoint(path: str, api: str) -> str:
    """The path of --endpoint, which may be empty. Raises InputError if it is none, or that of another API."""
    if not path:
        return path
    shown = without_secrets(path)
    if "://" in path.partition("?")[0]:
        inner = shown.partition("://")[2].partition("/")[2]
        # A slash may be part of a password.
        cure = f"/{inner}" if inner and "@" not in inner else APIS[api]
        raise InputError(f"--endpoint takes a path, not an address: give --endpoint {shlex.quote(cure)}")
    if not (path.startswith("/") and path.isascii() and path.isprintable() and not set(path) & set(" #")):
        raise InputError(f"--endpoint {shown} is no path like /openai/v1/chat/completions")
    named = api_of_path(path.partition("?")[0].rstrip("/"))
    if named and APIS[named] != APIS[api]:
        raise InputError(
            f"--endpoint {shown} is the path of --api {named}, but this test uses --api {api}: add --api {named}"
        )
    return path


def api_of_path(path: str) -> str:
    """The API whose path this is, under any prefix; empty for a path of none."""
    return next((api for api, own in APIS.items() if path.endswith(own.removeprefix(VERSION))), "")


_FIELD = re.compile(r"(?P<name>[?&#][^=&#]*)=(?P<value>[^&#]*)")
"""A field of a query or a fragment."""


def without_secrets(path: str) -> str:
    """An address or a path in whose query or fragment the values of keys and tokens are struck out."""
    return _FIELD.sub(lambda field: f"{field['name']}={STRUCK}" if _is_secret(field) else field[0], path)


def secrets_in(path: str) -> list[str]:
    """The values of keys and tokens in the query of a path, as they stand there and as the server reads them."""
    found = [field["value"] for field in _FIELD.finditer(path) if _is_secret(field)]
    return [form for value in found for form in (value, unquote_plus(value))]


def _is_secret(field: re.Match[str]) -> bool:
    return bool(field["value"] and SECRET.search(field["name"].lstrip("?&#").replace("-", "_")))
