"""How to reach a server: timeouts, the proxy, the trusted authorities, and the client certificate."""

from __future__ import annotations

import ipaddress
import os
import ssl
from base64 import b64encode
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from requests import Session
from requests.utils import get_auth_from_url, select_proxy, urldefragauth

from asr_load.errors import InputError

PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}

BUNDLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
"""Environment variables that name a file of trusted authorities."""


@dataclass(frozen=True)
class Timeouts:
    """Limits in seconds: to connect (including name, proxy and handshakes), without data of the response, and in
    total."""

    connect: float
    stall: float
    total: float


@dataclass(frozen=True)
class Transport:
    """Settings as in requests: `verify` is a file or folder of authorities, True for those of requests, or False to
    accept any certificate; `cert` is the client certificate and key; `proxy` is a URL, or empty."""

    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str = ""
    proxy_basic: str = field(default="", repr=False)
    """The proxy's user and password, encoded for basic authentication."""
    upstream: tuple[tuple[str, int], ...] = ()
    """Addresses to connect to in turn; empty: the server's address."""

    def for_client(self, client: Session, url: str) -> Transport:
        """This transport, overridden by the settings of a locustfile's client."""
        if client.verify is True and client.cert is None and not client.proxies:
            return self
        verify = self.verify if client.verify is True or client.verify is None else client.verify
        proxy, basic = self.proxy, self.proxy_basic
        if client_proxy := select_proxy(url, client.proxies):
            user, password = get_auth_from_url(client_proxy)
            proxy = urldefragauth(client_proxy)
            basic = b64encode(f"{user}:{password}".encode()).decode() if user else ""
        return replace(self, verify=verify, cert=client.cert or self.cert, proxy=proxy, proxy_basic=basic)

    @property
    def proxy_headers(self) -> dict[str, str]:
        return {"Proxy-Authorization": f"Basic {self.proxy_basic}"} if self.proxy_basic else {}


def read_transport(
    host: str,
    ca: str,
    cert: str,
    *,
    insecure: bool,
    proxy: str = "",
    proxy_basic: str = "",
    upstream: tuple[tuple[str, int], ...] = (),
) -> Transport:
    """Make the transport from --ca, --cert, --insecure and the environment. Raises InputError."""
    if insecure and ca:
        raise InputError("--insecure accepts any certificate, so --ca has no effect; remove one of them")
    verify: bool | str = not insecure
    # Ignore the environment's files unless the server uses TLS: they may be missing.
    environment = [(name, os.environ.get(name, "")) for name in BUNDLES if host.startswith("https:")]
    for what, file in (("--ca", ca), *environment):
        if file and verify is True:
            verify = _authorities(what, file)
    return Transport(verify, _client_certificate(cert) if cert else None, proxy, proxy_basic, upstream)


def proxy_of_environment(host: str) -> str:
    """The proxy for a server by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY; always empty for this machine."""
    name = urlsplit(host).hostname or ""
    if name == "localhost" or _is_loopback(name) or proxy_bypass(name):
        return ""
    proxies = getproxies()
    return proxies.get(urlsplit(host).scheme) or proxies.get("all", "")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _authorities(what: str, file: str) -> str:
    path = Path(file).expanduser()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if not path.is_dir():  # a folder is read by the first connection
            context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise InputError(f"{what} {file} contains no certificate (PEM)") from None
    except OSError as error:
        raise InputError(f"{what} {file} cannot be read: {error.strerror}") from None
    return str(path)


def _client_certificate(word: str) -> str | tuple[str, str]:
    """Parse --cert: one file with the certificate and key, or two files separated by a comma."""
    cert, comma, key = word.partition(",")
    files = [str(Path(file.strip()).expanduser()) for file in (cert, key) if file.strip()]

    def passphrase() -> str:
        raise InputError(f"--cert {word}: the key has a passphrase; use a key without one")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files[0], files[1] if comma else None, passphrase)
    except ssl.SSLError:
        raise InputError(f"--cert {word} must be a certificate and its key (PEM), as FILE or CERT,KEY") from None
    except OSError as error:
        raise InputError(f"--cert {word} cannot be read: {error.strerror}") from None
    return (files[0], files[1]) if comma else files[0]
