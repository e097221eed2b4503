"""A server's certificate for a benchmark, and whom its client trusts."""

from __future__ import annotations

from pathlib import Path

import trustme


def certified(folder: Path) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Options of the embedded server on this machine, which so serves HTTPS, and of its client. Files go into a
    folder."""
    authority, certificate = folder / "authority.pem", folder / "certificate.pem"
    if not authority.exists():
        made = trustme.CA()
        made.cert_pem.write_to_path(authority)
        made.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    return ("--ssl-certfile", certificate), ("--ca", authority)
