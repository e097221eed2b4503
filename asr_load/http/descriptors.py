"""Raise the limit of file descriptors, because each user's connection takes two."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

DESCRIPTORS_PER_USER = 2
"""Descriptors of a user: the connection, and the reader's duplicate of it."""

OTHER_DESCRIPTORS = 64
"""Descriptors of the process: files, libraries, Locust's connections, and short-lived ones."""


def allow(users: int) -> None:
    """Raise this process's limit of file descriptors for `users`, and log a warning if the hard limit is too low."""
    needed = DESCRIPTORS_PER_USER * users + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < needed:
        logger.warning(
            "%d users need up to %d file descriptors, but this process may open only %d: raise ulimit -n, or lower -u. "
            "Requests that cannot be sent will fail with the outcome `client`",
            users,
            needed,
            soft,
        )
