"""Columns of tables of recordings, by the names that people give them: audio, text, and times within a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from asr_load.audio.convert import SHORTEST_S
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
"""As `normal` has them, in the order of preference."""

_ROLES = {
    "begin": ("start", "begin", "beg", "tstart", "tbegin", "xmin", "tmin", "onset", "offset"),
    "end": ("end", "stop", "tend", "xmax", "tmax"),
    "length": ("duration", "dur", "length"),
}
"""What a column of times tells of a row's part of its file, by the word that its name is built on, in the order of
preference. NeMo has offset and duration; xmin and xmax are Praat's."""

_WORDS = {word: (role, rank) for role, words in _ROLES.items() for rank, word in enumerate(words)}
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"), 1e-3),
}
_TIMES = {"time", "times", "timestamp", "timestamps", "ts"}
_FILLERS = _TIMES | {"t", "in", "audio", "segment", "seg", "clip", "utterance", "utt", "speech"}
"""Words that change nothing of what a name means: `segment_start_time` is `start`."""

_LIKE_TIMES = {*_TIMES, *_ROLES["begin"], *_ROLES["end"], "from", "to", "starts", "ends", "t0", "t1"}
_JOINED = re.compile(rf"({'|'.join(_WORDS)})({'|'.join((*_TIMES, *_UNITS))})")
_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d{1,2}(?:[.,]\d+)?)")
_DATE = re.compile(r"(\d{4}-\d\d?-\d\d?|\d\d?[./-]\d\d?[./-]\d{2,4})(?!\d)")
_EPOCH_S = 1e9
"""From here on a number is a date, in seconds since the epoch, and no time within a file."""


def normal(name: str) -> str:
    """A column's name as the tables here have it: `File Name`, `fileName` and `file-name` are `file_name`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", spaced.lower()).strip("_")


def names_audio(columns: Iterable[str]) -> bool:
    """Whether any of the columns is known to hold audio."""
    return any(normal(name) in AUDIO_COLUMNS for name in columns)


def no_text(columns: list[str]) -> str:
    """The note on a data set in which no column is known to hold transcripts."""
    return f"no column of text among {', '.join(columns)}: no WER (--text-column)"


def pick_column(wanted: str | None, known: tuple[str, ...], present: list[str], what: str) -> str | None:
    """The column that was named, else the first of the known ones that is there. Raises InputError on a wrong name."""
    if wanted is not None:
        if wanted not in present:
            raise InputError(f"there is no column {wanted!r} for the {what}; there are: {', '.join(present)}")
        return wanted
    there = {normal(name): name for name in reversed(present)}
    return next((there[name] for name in known if name in there), None)


@dataclass(frozen=True)
class _Times:
    """A column of times: what it tells, how usual its name is (0: most), and how many seconds its unit has."""

    name: str
    role: str
    rank: int
    unit_s: float

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The seconds of a row; None where it says nothing. Raises InputError on what is no time."""
        value = row.get(self.name)
        if _is_missing(value):
            return None
        seconds = _seconds(value, self.unit_s)
        if seconds is None:
            raise InputError(f"{self.name} {value!r} is not a time: it takes seconds, or hours:minutes:seconds")
        return seconds


@dataclass(frozen=True)
class SegmentColumns:
    """The columns that say which part of its file a row is. Without `end` and `length`, it goes to the file's end."""

    begin: _Times
    end: _Times | None
    length: _Times | None

    @property
    def names(self) -> list[str]:
        return [column.name for column in (self.begin, self.end, self.length) if column]

    def cut(self, row: Mapping[str, Any]) -> bool:
        """Whether the row is a part of its file: a date tells when it was recorded."""
        value = row.get(self.begin.name)
        return not _is_missing(value) and not _is_date(value)

    def of(self, row: Mapping[str, Any]) -> tuple[float, float | None]:
        """Where the row's part begins and how long it is, in seconds; None: to the end. Raises InputError."""
        begin_s = self.begin.of(row) if self.cut(row) else None
        if begin_s is None:
            return 0.0, None
        length_s = self.length.of(row) if self.length else None
        if self.end is not None and (end_s := self.end.of(row)) is not None:
            length_s = round(end_s - begin_s, 9)
        if length_s is not None and length_s < SHORTEST_S:
            said = " and ".join(f"{name} {row.get(name)!r}" for name in self.names)
            raise InputError(f"{said}: a part of a file has at least {SHORTEST_S:g} s")
        return begin_s, length_s


@lru_cache
def segment_columns(columns: tuple[str, ...]) -> SegmentColumns | None:
    """Of these columns, those that say which part of its file a row is; None where none says where it begins. A
    duration alone states how long the file is."""
    times = [parsed for name in columns if (parsed := _parse(name))]

    def first(role: str, but: _Times | None = None) -> _Times | None:
        found = [each for each in times if each.role == role and each != but]
        return min(found, key=lambda each: (each.rank, -each.unit_s), default=None)

    begin, end, length = first("begin"), first("end"), first("length")
    if begin is None:
        return None
    word = _ROLES["begin"][begin.rank]
    if word == "onset" and end is None:  # it comes with an offset that is the end
        end = first("begin", but=begin)
    if end is not None and word != "offset":
        length = None
    return SegmentColumns(begin, None if length else end, length)


def unused_times(row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that look like times within a file by name and value, and that `segment_columns` does not
    understand."""
    understood = segment_columns(tuple(row)) is not None

    def looks_like_one(name: str) -> bool:
        parsed = _parse(name)
        return not understood and parsed.role == "end" if parsed else bool(_LIKE_TIMES & set(normal(name).split("_")))

    return [name for name, value in row.items() if looks_like_one(name) and _seconds(value, 1.0) is not None]


def warning_of(unused: Iterable[str]) -> list[str]:
    """The warning that names these columns; none for none."""
    names = ", ".join(map(repr, dict.fromkeys(unused)))
    if not names:
        return []
    return [
        f"columns that look like times are not used: {names}. Each row is its whole file. If rows are parts of files,"
        " name the columns start and end, or offset and duration (in seconds; start_ms is in milliseconds)"
    ]


@lru_cache(4096)
def _parse(name: str) -> _Times | None:
    """What a column's name tells; None for one that is not built on a word of _ROLES."""
    words = normal(_JOINED.sub(r"\1_\2", normal(name))).split("_")
    units = [_UNITS[word] for word in words if word in _UNITS]
    rest = [word for word in words if word not in _UNITS and word not in _FILLERS]
    if len(rest) != 1 or rest[0] not in _WORDS:
        return None
    return _Times(name, *_WORDS[rest[0]], units[-1] if units else 1.0)


def _is_missing(value: Any) -> bool:
    """Whether a cell says nothing; pandas writes NaN there."""
    return value in (None, "") or (isinstance(value, float) and math.isnan(value))


def _is_date(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) or str(value).isdecimal()
    return float(value) >= _EPOCH_S if is_number else bool(_DATE.match(str(value).strip()))


def _seconds(value: Any, unit_s: float) -> float | None:
    """A number from 0 up in a unit, or hours, minutes and seconds between colons, in seconds; None for all else."""
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
