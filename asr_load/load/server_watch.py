"""Watch what the server reports about itself during a test."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import gevent

from asr_load.engine.endpoint import Source
from asr_load.engine.metrics_page import POLLS, Poll
from asr_load.engine.poller import Poller, append_polls, scrape_all

logger = logging.getLogger(__name__)


class ServerWatch:
    """Polls metrics pages from now until `stop`, into server.jsonl of a folder. `pages` has the addresses to try for
    each page. The first poll is immediate; the next are those of a separate process, which starts after `interval`
    seconds, so that a short test does not start one."""

    def __init__(self, folder: Path, pages: Sequence[Sequence[Source]], interval: float) -> None:
        self._file = folder / POLLS
        found = [_first_usable(page, polls) for page, polls in zip(pages, _scrape_each(pages), strict=True)]
        self._sources = [source for source, _ in filter(None, found)]
        self._poller: Poller | None = None
        self._append([poll for _, poll in filter(None, found)])
        self._start = gevent.spawn_later(interval, self._start_poller, interval) if self._sources else None

    def _start_poller(self, interval: float) -> None:
        try:
            self._poller = Poller(self._sources, interval, self._file)
        except OSError as error:  # the test may have used up all file descriptors
            logger.warning("the server's metrics are only read at the start and the end: %s", error.strerror)

    def stop(self) -> None:
        """Poll each page for the last time."""
        if self._start is not None:
            self._start.kill()
        if self._poller is not None:
            self._poller.stop()
        self._append(scrape_all(self._sources))

    def _append(self, polls: Sequence[Poll]) -> None:
        if not polls:
            return
        try:
            append_polls(self._file, polls)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._file, error.strerror)


def _scrape_each(pages: Sequence[Sequence[Source]]) -> list[list[Poll]]:
    """The first polls of each page, one for each of its addresses."""
    polls = iter(scrape_all([source for page in pages for source in page]))
    return [[next(polls) for _ in page] for page in pages]


def _first_usable(page: Sequence[Source], polls: Sequence[Poll]) -> tuple[Source, Poll] | None:
    """The first address that has a page, and its poll. An address without alternatives was named in the options,
    so it is polled even if its first poll failed; a guessed page may be missing."""
    for source, poll in zip(page, polls, strict=True):
        if not poll.error:
            return source, poll
    if len(page) > 1:
        return None
    logger.warning("the server's metrics at %s cannot be read: %s", page[0].name, polls[0].error)
    return page[0], polls[0]
