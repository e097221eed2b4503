"""What a user class sets for its own requests: options, and the server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from asr_load.errors import InputError
from asr_load.settings.host import without_credentials


class OwnOptions:
    """A user class that may override the test's options."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Options that differ for this class, such as {"data": "long-clips", "api": "transcriptions"}: any that
    options/table.py marks `per_user_class`."""


def host_of_classes(classes: Iterable[type]) -> str | None:
    """The `host` attribute of user classes, for a test without --host; None if no class has one. Raises InputError for
    different hosts, because a test has one server."""
    named = {getattr(user_class, "host", None) for user_class in classes if issubclass(user_class, OwnOptions)}
    hosts = [str(host) for host in named if host]
    if len(hosts) > 1:
        shown = " and ".join(sorted(map(without_credentials, hosts)))
        raise InputError(f"the user classes have the hosts {shown}, but a test has one server: set --host")
    return hosts[0] if hosts else None
