"""Decide which server gets which secret. Secrets from the command line and the environment go only where intended.

A web form may name any server, and the master of a fleet names one to its workers. Neither may receive a key that was
given for another server, or send the key over a route that somebody else chose.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from asr_load.errors import InputError
from asr_load.settings.settings import Secrets, check_host, split_host, split_proxy

KEY = "OPENAI_API_KEY"

TOKEN, SHORTEST = "ASR_LOAD_FLEET_TOKEN", 16

ROUTE = ("proxy", "upstream", "ca", "cert", "insecure")
"""Options that decide which machine a request reaches, and which certificate that machine must show."""


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

    def of(self, host: str | None, form_key: str = "") -> Secrets:
        """The secrets for a server. Raises InputError if it would get secrets that were given for another."""
        address = _address(host or "")
        key = form_key or self._form_keys.get(address, "")
        own = address in self._own
        if not own and (self._headers or (self._key and not key)):
            what = "--header is" if self._headers else "the API key is"
            where = f"only sent to {' and '.join(self._own) or 'the --host it was given for'}"
            instead = "" if self._headers else "enter its own key, or "
            raise InputError(f"{what} {where}: for {address}, {instead}start this process with --allow-host {address}")
        return Secrets(
            key or (self._key if own else ""),
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
        for name, own in self._route.items():
            if (asked := getattr(options, name)) != own:
                raise InputError(
                    f"this worker has an API key or headers and was started {_named(name, own)}, but the master's test"
                    f" runs {_named(name, asked)}: start both with the same --{name}"
                )


def _named(option: str, value: str | bool) -> str:
    if not value:
        return f"without --{option}"
    return f"with --{option}" if value is True else f"with --{option} {value}"


def _address(host: str) -> str:
    """The address of a host as in Settings; an invalid host unchanged, since its error is raised where it is used."""
    try:
        return check_host(host)
    except InputError:
        return host
