"""How a server is reached: through which proxy, whose certificates are believed, which one is shown."""

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
"""The environment's names for a file of authorities."""


@dataclass(frozen=True)
class Transport:
    """As requests take it: `verify` is a file or folder of authorities, True for those that requests bring along, False
    for any certificate; `cert` is this side's own certificate and its key; `proxy` an address, empty without one."""

    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str = ""
    proxy_basic: str = field(default="", repr=False)
    """The proxy's user and password, as basic authentication has them."""
    upstream: tuple[tuple[str, int], ...] = ()
    """What connections are opened to, in turn; empty: the server's own address."""

    def of_client(self, client: Session, url: str) -> Transport:
        """It with what a locustfile says of its own client, which stands."""
        if client.verify is True and client.cert is None and not client.proxies:
            return self
        verify = self.verify if client.verify is True or client.verify is None else client.verify
        proxy, basic = self.proxy, self.proxy_basic
        if own := select_proxy(url, client.proxies):
            user, password = get_auth_from_url(own)
            proxy, basic = urldefragauth(own), b64encode(f"{user}:{password}".encode()).decode() if user else ""
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
    """What --ca, --cert and --insecure, or the environment, ask for, through a proxy that was found. Raises
    InputError."""
    if insecure and ca:
        raise InputError("--insecure trusts any certificate, --ca those of an authority: give one of the two")
    verify: bool | str = not insecure
    # What the environment names is nothing to those who do not need it.
    environment = [(name, os.environ.get(name, "")) for name in BUNDLES if host.startswith("https:")]
    for what, file in (("--ca", ca), *environment):
        if file and verify is True:
            verify = _authorities(what, file)
    return Transport(verify, _own(cert) if cert else None, proxy, proxy_basic, upstream)


def proxy_of_environment(host: str) -> str:
    """The proxy that HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY name for a server; empty where it is this machine,
    whatever they say."""
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
        if not path.is_dir():  # one is looked into with the first connection
            context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise InputError(f"{what} {file} holds no certificate (PEM)") from None
    except OSError as error:
        raise InputError(f"{what} {file} cannot be read: {error.strerror}") from None
    return str(path)


def _own(word: str) -> str | tuple[str, str]:
    """A file with both, or two with a comma between."""
    cert, comma, key = word.partition(",")
    files = [str(Path(file.strip()).expanduser()) for file in (cert, key) if file.strip()]

    def passphrase() -> str:
        raise InputError(f"--cert {word}: its key needs a passphrase: give one that does not")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(files[0], files[1] if comma else None, passphrase)
    except ssl.SSLError:
        raise InputError(f"--cert {word} takes a certificate and its key (PEM), as FILE or CERT,KEY") from None
    except OSError as error:
        raise InputError(f"--cert {word} cannot be read: {error.strerror}") from None
    return (files[0], files[1]) if comma else files[0]
