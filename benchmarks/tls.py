"""Certificates for benchmarks over TLS."""

from __future__ import annotations

from pathlib import Path

import trustme


def certified(folder: Path) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Options with which the embedded server serves HTTPS on this machine, and those of its client. Writes the
    certificates into `folder`."""
    authority, certificate = folder / "authority.pem", folder / "certificate.pem"
    if not authority.exists():
        made = trustme.CA()
        made.cert_pem.write_to_path(authority)
        made.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    return ("--ssl-certfile", certificate), ("--ca", authority)
