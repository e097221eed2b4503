"""Decide which server gets which secret. Secrets from the command line and the environment go only where intended.

A web form may name any server, and the master of a fleet names one to its workers. Neither may receive a key that was
given for another server, or send the key over a route that somebody else chose.
"""

from __future__ import annotations

import base64
import os
import re
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

from asr_load.errors import InputError
from asr_load.settings.host import check_host, secrets_in, split_host, split_proxy
from asr_load.text import MIN_SECRET

KEY = "OPENAI_API_KEY"

TOKEN, SHORTEST = "ASR_LOAD_FLEET_TOKEN", 16

ROUTE = ("proxy", "upstream", "ca", "cert", "insecure")
"""Options that decide which machine a request reaches, and which certificate that machine must show."""


@dataclass(frozen=True)
class Secrets:
    """Credentials for one server; `headers` are in the form of --header."""

    key: str = field(default="", repr=False)
    basic: str = field(default="", repr=False)
    """User and password, encoded for basic authentication."""
    headers: tuple[str, ...] = field(default=(), repr=False)
    proxy: str = ""
    proxy_basic: str = field(default="", repr=False)
    """User and password for this proxy, which no other proxy receives."""

    def request_headers(self) -> dict[str, str]:
        """The headers of requests by name. Raises InputError."""
        if self.basic and self.key:
            raise InputError(
                "--host has a user and a password, and there is an API key: a request can carry only one of them"
            )
        headers = dict(map(_parse_header, self.headers))
        if self.basic:
            headers["Authorization"] = f"Basic {self.basic}"
        if self.key:
            headers["Authorization"] = f"Bearer {_check_printable('the API key', self.key)}"
        return headers

    def words(self, headers: dict[str, str], proxy_basic: str, endpoint: str) -> tuple[str, ...]:
        """The words to remove from all text of a server that gets these headers, and of its proxy."""
        # Header values are split, because a server may repeat a token without the "Bearer" before it.
        words = [word for value in headers.values() for word in value.split()]
        return (
            *filter(None, [self.key]),
            *_basic_words(self.basic),
            *_basic_words(proxy_basic),
            *(word for word in (*words, *secrets_in(endpoint)) if len(word) >= MIN_SECRET),
        )


def _basic_words(basic: str) -> list[str]:
    """The secrets in a header of basic authentication: its word, and the password in it."""
    return [basic, base64.b64decode(basic).decode().partition(":")[2]] if basic else []


_HEADER = re.compile(r"\s*([\w-]+)\s*[=:](.*)", re.ASCII | re.DOTALL)


def _parse_header(word: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(word)
    if match is None:
        # Print only the name, because the value may be a secret.
        name = re.split("[=:]", word)[0]
        raise InputError(f"--header needs 'NAME: VALUE' or NAME=VALUE, not {name[:40]!r} …")
    return match[1], _check_printable(f"--header {match[1]}", match[2].strip())


def _check_printable(what: str, value: str) -> str:
    if not (value.isascii() and value.isprintable()):
        raise InputError(f"{what} contains characters that are not allowed in a header")
    return value


def read_token(options: Namespace) -> str:
    """The fleet's token, from --fleet-token-file or the environment; empty without one. Raises InputError."""
    token = os.environ.get(TOKEN, "")
    if options.fleet_token_file:
        try:
            token = Path(options.fleet_token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise InputError(f"--fleet-token-file {options.fleet_token_file} cannot be read: {why}") from None
    if (token or options.fleet_token_file) and len(token) < SHORTEST:
        raise InputError(f"the fleet's token needs {SHORTEST} or more characters: create one with openssl rand -hex 32")
    return token


class Credentials:
    """The secrets of a process, from its command line, its environment and its web form."""

    def __init__(self, given: Namespace) -> None:
        self._basic: dict[str, str] = {}
        self._form_keys: dict[str, str] = {}
        self._key = given.api_key or os.environ.get(KEY, "")
        self._headers = tuple(given.header or ())
        self.proxy, self._proxy_basic = split_proxy(given.proxy)
        """Proxy address without user and password."""
        self._route = {name: getattr(given, name) for name in ROUTE} | {"proxy": self.proxy}
        host = self.without_credentials(given.host)
        self._own = [*([_address(host)] if host else []), *map(_address, given.allow_host or [])]

    def without_credentials(self, host: str | None) -> str | None:
        """The host without user and password, which are stored for requests to it."""
        host, basic = split_host(host)
        if basic and host:
            self._basic[_address(host)] = basic
        return host

    def keep(self, host: str, key: str) -> None:
        """Store a key that the web form gave for a server."""
        self._form_keys[host] = key

    def for_host(self, host: str | None, form_key: str = "") -> Secrets:
        """The secrets for a server. Raises InputError if it would get secrets that were given for another."""
        address = _address(host or "")
        key = form_key or self._form_keys.get(address, "")
        is_own = address in self._own
        if not is_own and (self._headers or (self._key and not key)):
            what = "--header is" if self._headers else "the API key is"
            where = f"only sent to {' and '.join(self._own) or 'the --host it was given for'}"
            instead = "" if self._headers else "enter its own key, or "
            raise InputError(f"{what} {where}: for {address}, {instead}start this process with --allow-host {address}")
        return Secrets(
            key or (self._key if is_own else ""),
            self._basic.get(address, ""),
            self._headers,
            self.proxy,
            self._proxy_basic,
        )

    def check_route(self, options: Namespace, secrets: Secrets) -> None:
        """Raise InputError if secrets would take another route than this process was started with. A master chooses the
        route of its test, and the machine at its end can read the key."""
        if not (secrets.key or secrets.basic or secrets.headers):
            return
        for name, started in self._route.items():
            if (wanted := getattr(options, name)) != started:
                raise InputError(
                    f"this worker has an API key or headers and was started {_with_option(name, started)}, but the"
                    f" master's test runs {_with_option(name, wanted)}: start both with the same --{name}"
                )


def _with_option(option: str, value: str | bool) -> str:
    if not value:
        return f"without --{option}"
    return f"with --{option}" if value is True else f"with --{option} {value}"


def _address(host: str) -> str:
    """The address of a host as in Settings; an invalid host unchanged, since its error is raised where it is used."""
    try:
        return check_host(host)
    except InputError:
        return host
