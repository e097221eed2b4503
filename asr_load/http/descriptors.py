"""File descriptors: a user's connection takes two, and a process may have few."""

from __future__ import annotations

import logging
import resource

logger = logging.getLogger(__name__)

OF_A_USER = 2
"""The connection, and the reader's own copy of it."""

OF_THE_PROCESS = 64
"""Files, libraries, Locust's own connections, and what is open for a moment."""


def allow(users: int) -> None:
    """Let this process have as many descriptors as so many users take, as far as it may; say so where it may not."""
    needed = OF_A_USER * users + OF_THE_PROCESS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if unlimited else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < needed:
        logger.warning(
            "%d users take up to %d file descriptors, and this process may have %d: raise ulimit -n, or lower -u; what "
            "cannot be sent fails as `client`",
            users,
            needed,
            soft,
        )
