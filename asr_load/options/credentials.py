"""Which server gets which secret: those of the command line and the environment go only where their owner sends them.

A web form names any server, and the master of a fleet names one to its workers. Neither is a reason to send it a key
that was given for another, nor to send the key by a way that somebody else chose.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from asr_load.errors import InputError
from asr_load.options.settings import Secrets, check_host, split_host, split_proxy

KEY = "OPENAI_API_KEY"

TOKEN, SHORTEST = "ASR_LOAD_FLEET_TOKEN", 16

ROUTE = ("proxy", "upstream", "ca", "cert", "insecure")
"""Options that decide which machine a request reaches, and whose certificate that machine must show."""


def read_token(options: Namespace) -> str:
    """The fleet's token, of --fleet-token-file or the environment; empty where there is none. Raises InputError."""
    token = os.environ.get(TOKEN, "")
    if options.fleet_token_file:
        try:
            token = Path(options.fleet_token_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise InputError(f"--fleet-token-file {options.fleet_token_file} cannot be read: {why}") from None
    if (token or options.fleet_token_file) and len(token) < SHORTEST:
        raise InputError(f"the fleet's token needs {SHORTEST} characters or more: openssl rand -hex 32 makes one")
    return token


class Credentials:
    """The secrets of one process: its own, from the options that it was started with, and those of its web form."""

    def __init__(self, given: Namespace) -> None:
        self._basic: dict[str, str] = {}
        self._form_keys: dict[str, str] = {}
        self._key = given.api_key or os.environ.get(KEY, "")
        self._headers = tuple(given.header or ())
        self.proxy, self._proxy_basic = split_proxy(given.proxy)
        """Without its user and password."""
        self._route = {name: getattr(given, name) for name in ROUTE} | {"proxy": self.proxy}
        host = self.without_credentials(given.host)
        self._own = [*([_address(host)] if host else []), *map(_address, given.allow_host or [])]

    def without_credentials(self, host: str | None) -> str | None:
        """A host as it may be shown; its user and password are kept for it."""
        host, basic = split_host(host)
        if basic and host:
            self._basic[_address(host)] = basic
        return host

    def keep(self, host: str, key: str) -> None:
        """Keep a key that the web form gave for a server."""
        self._form_keys[host] = key

    def of(self, host: str | None, form_key: str = "") -> Secrets:
        """The secrets of a server. Raises InputError where it would get some that were given for another."""
        address = _address(host or "")
        key = form_key or self._form_keys.get(address, "")
        own = address in self._own
        if not own and (self._headers or (self._key and not key)):
            what = "--header goes" if self._headers else "the API key goes"
            where = f"to {' and '.join(self._own)} alone" if self._own else "to no server that was not named with it"
            instead = "" if self._headers else "give it a key of its own, or "
            raise InputError(f"{what} {where}: for {address}, {instead}start this process with --allow-host {address}")
        return Secrets(
            key or (self._key if own else ""),
            self._basic.get(address, ""),
            self._headers,
            self.proxy,
            self._proxy_basic,
        )

    def check_route(self, options: Namespace, secrets: Secrets) -> None:
        """Raise InputError where secrets would take another route than this process was started with: a master names
        the route of its test, and whoever is at its other end reads the key."""
        if not (secrets.key or secrets.basic or secrets.headers):
            return
        for name, own in self._route.items():
            if (asked := getattr(options, name)) != own:
                raise InputError(
                    f"this worker has an API key or headers, and the master's test goes {_named(name, asked)}, but the"
                    f" worker was started {_named(name, own)}: start both with the same --{name}"
                )


def _named(option: str, value: str | bool) -> str:
    if not value:
        return f"without --{option}"
    return f"with --{option}" if value is True else f"with --{option} {value}"


def _address(host: str) -> str:
    """A host as Settings has it; one that is none as it is: that is said where it is used."""
    try:
        return check_host(host)
    except InputError:
        return host
