"""Find earlier runs that sent the same bytes to the same server, whose caches may hold them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from asr_load.errors import InputError
from asr_load.files import read_json
from asr_load.results.record_file import RECORDS
from asr_load.results.runfile import RUN


class _SentData(msgspec.Struct):
    unique: str
    data_sha256: str


class _Run(_SentData):
    """The fields of run.json that show which bytes went to which server."""

    host: str
    began_at: float
    user_classes: list[_SentData] = []

    @property
    def plain(self) -> set[str]:
        """Hashes of the sets whose clips were sent unchanged."""
        return {sent.data_sha256 for sent in self.user_classes or [self] if sent.unique == "none"}


def earlier_runs(places: Iterable[Path], host: str, plain: set[str]) -> list[str]:
    """Names of the run folders in these places whose runs sent any of these sets to the server with --unique none, in
    order of time. `plain` has the hashes of the sets' manifests."""
    if not plain:
        return []
    found = []
    for file in sorted(file for place in {place.resolve() for place in places} for file in place.glob(f"*/{RUN}")):
        try:
            run = read_json(file, _Run, "", "a run")
            sent_any = (file.parent / RECORDS).stat().st_size > 0
        except (OSError, InputError):
            continue
        if run.host == host and run.plain & plain and sent_any:
            found.append((run.began_at, file.parent.name))
    return [name for _, name in sorted(found)]
