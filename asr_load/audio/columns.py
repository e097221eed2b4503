"""Recognize the columns of a table of recordings by their names: audio, text, and times within a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from asr_load.audio.clip import SHORTEST_S
from asr_load.errors import InputError

TEXT_COLUMNS = (
    *("text", "transcription", "sentence", "transcript", "normalized_text", "raw_transcription", "txt"),
    *("raw_text", "transcripts", "reference", "reference_text", "target_text", "tgt_text"),
)
AUDIO_COLUMNS = (
    *("audio", "file", "file_name", "filename", "path", "file_path", "filepath", "wav", "flac", "mp3"),
    *("audio_filepath", "audio_file_path", "audio_path", "audio_file", "audio_filename", "audio_file_name"),
    *("wav_path", "wav_file", "wav_filename", "wav_file_name", "wav_filepath", "wav_file_path"),
    *("audio_url", "audio_uri", "url", "uri"),
)
"""Column names in the form of `normal`, in order of preference."""

_ROLES = {
    "begin": ("start", "begin", "beg", "tstart", "tbegin", "xmin", "tmin", "onset", "offset"),
    "end": ("end", "stop", "tend", "xmax", "tmax"),
    "length": ("duration", "dur", "length"),
}
"""What a time column states about a row's segment of its file, by the main word of its name, in order of preference.
NeMo has offset and duration; xmin and xmax are Praat's."""

_WORDS = {word: (role, rank) for role, words in _ROLES.items() for rank, word in enumerate(words)}
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"), 1e-3),
}
_TIMES = {"time", "times", "timestamp", "timestamps", "ts"}
_FILLERS = _TIMES | {"t", "in", "audio", "segment", "seg", "clip", "utterance", "utt", "speech"}
"""Words that do not change a name's meaning: `segment_start_time` is `start`."""

_LIKE_TIMES = {*_TIMES, *_ROLES["begin"], *_ROLES["end"], "from", "to", "starts", "ends", "t0", "t1"}
_JOINED = re.compile(rf"({'|'.join(_WORDS)})({'|'.join((*_TIMES, *_UNITS))})")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d{1,2}(?:[.,]\d+)?)")
_DATE = re.compile(r"(\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4})(?!\d)")
_EPOCH_S = 1e9
"""Numbers from here on are dates in seconds since the epoch, not times within a file."""


def normal(name: str) -> str:
    """A column's name in snake case: `File Name`, `fileName` and `file-name` become `file_name`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", spaced.lower()).strip("_")


def names_audio(columns: Iterable[str]) -> bool:
    """Whether any of the names is that of an audio column."""
    return any(normal(name) in AUDIO_COLUMNS for name in columns)


def no_text(columns: list[str]) -> str:
    """The note on a data set without a known text column."""
    return f"no text column among {', '.join(columns)}, so no WER; set --text-column to change this"


def pick_column(wanted: str | None, known: tuple[str, ...], present: list[str], what: str) -> str | None:
    """The wanted column, else the first known one that is present. Raises InputError if the wanted one is missing."""
    if wanted is not None:
        if wanted not in present:
            raise InputError(f"there is no {what} column {wanted!r}; the columns are {', '.join(present)}")
        return wanted
    there = {normal(name): name for name in reversed(present)}
    return next((there[name] for name in known if name in there), None)


@dataclass(frozen=True)
class _TimeColumn:
    """A time column: its role, the rank of its name (0: preferred), and its unit in seconds."""

    name: str
    role: str
    rank: int
    unit_s: float

    def seconds(self, row: Mapping[str, Any]) -> float | None:
        """The time of a row, in seconds; None for an empty cell. Raises InputError for a malformed time."""
        value = row.get(self.name)
        if _is_missing(value):
            return None
        seconds = _seconds(value, self.unit_s)
        if seconds is None:
            raise InputError(f"{self.name} {value!r} is not a time: use seconds or hours:minutes:seconds")
        return seconds


@dataclass(frozen=True)
class SegmentColumns:
    """The columns that define a row's segment of its file. Without `end` and `length`, it extends to the file's end."""

    begin: _TimeColumn
    end: _TimeColumn | None
    length: _TimeColumn | None

    @property
    def names(self) -> list[str]:
        return [column.name for column in (self.begin, self.end, self.length) if column]

    def cut(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is a segment of its file. A date in `begin` is the time of recording, not an offset."""
        value = row.get(self.begin.name)
        return not _is_missing(value) and not _is_date(value)

    def segment(self, row: Mapping[str, Any]) -> tuple[float, float | None]:
        """Offset and length of the row's segment, in seconds (length None: to the end). Raises InputError."""
        begin_s = self.begin.seconds(row) if self.cut(row) else None
        if begin_s is None:
            return 0.0, None
        length_s = self.length.seconds(row) if self.length else None
        if self.end is not None and (end_s := self.end.seconds(row)) is not None:
            length_s = round(end_s - begin_s, 9)
        if length_s is not None and length_s < SHORTEST_S:
            times = " and ".join(f"{name} {row.get(name)!r}" for name in self.names)
            raise InputError(f"{times}: a segment must be at least {SHORTEST_S:g} s long")
        return begin_s, length_s


@lru_cache
def segment_columns(columns: tuple[str, ...]) -> SegmentColumns | None:
    """The columns that define a row's segment of its file; None if no column holds its start. A duration without a
    start is the length of the file."""
    times = [parsed for name in columns if (parsed := _parse(name))]

    def first(role: str, but: _TimeColumn | None = None) -> _TimeColumn | None:
        found = [column for column in times if column.role == role and column != but]
        return min(found, key=lambda column: (column.rank, -column.unit_s), default=None)

    begin, end, length = first("begin"), first("end"), first("length")
    if begin is None:
        return None
    word = _ROLES["begin"][begin.rank]
    if word == "onset" and end is None:  # next to an onset, the offset is the end
        end = first("begin", but=begin)
    if end is not None and word != "offset":
        length = None
    return SegmentColumns(begin, None if length else end, length)


def unused_times(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that look like times within a file, by name and value, but that `segment_columns` does not
    recognize."""
    understood = segment_columns(tuple(row)) is not None

    def looks_like_one(name: str) -> bool:
        parsed = _parse(name)
        return not understood and parsed.role == "end" if parsed else bool(_LIKE_TIMES & set(normal(name).split("_")))

    return [name for name, value in row.items() if looks_like_one(name) and _seconds(value, 1.0) is not None]


def warning_of(unused: Iterable[str]) -> list[str]:
    """The warning about unused time columns, if there are any, as a list."""
    names = ", ".join(map(repr, dict.fromkeys(unused)))
    if not names:
        return []
    return [
        f"these columns look like times but are not used: {names}. Each row is sent as its whole file. If rows are"
        " segments of files, name the columns start and end, or offset and duration (seconds; start_ms: milliseconds)"
    ]


@lru_cache(4096)
def _parse(name: str) -> _TimeColumn | None:
    """The time column that a name describes; None if its main word is not in _ROLES."""
    words = normal(_JOINED.sub(r"\1_\2", normal(name))).split("_")
    units = [_UNITS[word] for word in words if word in _UNITS]
    rest = [word for word in words if word not in _UNITS and word not in _FILLERS]
    if len(rest) != 1 or rest[0] not in _WORDS:
        return None
    return _TimeColumn(name, *_WORDS[rest[0]], units[-1] if units else 1.0)


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty; pandas writes NaN for that."""
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


def _is_date(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) or str(value).isdecimal()
    return float(value) >= _EPOCH_S if is_number else bool(_DATE.match(str(value).strip()))


def _seconds(value: Any, unit_s: float) -> float | None:
    """Parse a non-negative number in units of `unit_s`, or h:m:s, to seconds; None for anything else."""
    if isinstance(value, bool):
        return None
    text = str(value).strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = clock.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    try:
        number = float(re.sub(r"^(\d+),(\d+)$", r"\1.\2", text))
    except ValueError:
        return None
    return number * unit_s if 0 <= number < _EPOCH_S else None
