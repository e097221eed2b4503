"""What stands for a recording in a row: the name of a file, an address, bytes, samples, or an object of these."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import requests
import soundfile

from asr_load.audio.access import CURE, is_refused
from asr_load.audio.clip import is_file
from asr_load.audio.columns import segment_columns
from asr_load.errors import InputError

NAMES = ("path", "file", "file_name", "filename", "url", "src")
BESIDE = ("clips", "wavs", "wav", "audio")
"""Folders that a table's files are kept in and named without: Common Voice's, LJSpeech's, and others like them."""

SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64", ".caf", ".sph"),
    *(".m4a", ".aac", ".mp4", ".webm", ".amr", ".wma", ".mka", ".3gp"),
)
"""Of files of audio. Those of the second line cannot be read, and are named as undecodable rather than overlooked."""


HUB_SCHEME = "hf"
"""Of addresses that the Hugging Face hub's own files have."""

MAX_CELL_BYTES = 768 << 20
"""Of a recording in a row, which is in memory as a whole."""

PATIENCE_S = 60.0
"""Without a byte of a recording that is fetched."""

NOTHING_THERE = (404, 410)


class Url(str):
    """An address that audio is fetched from when its turn comes."""


def file_name(cell: Any) -> str | None:
    """The name or address of the file that a cell is or was; None where it has none."""
    names = [cell.get(key) for key in NAMES] if isinstance(cell, dict) else [cell]
    return next((name for name in names if isinstance(name, str) and name), None)


def is_inside(cell: Any) -> bool:
    """Whether the audio is in the cell itself, as bytes or as samples."""
    if isinstance(cell, dict):
        return cell.get("array") is not None or cell.get("bytes") is not None
    return isinstance(cell, (bytes, list, np.ndarray))


def text_of(row: dict[str, Any], column: str | None) -> str:
    """The transcript of a row; empty where it has none. Raises InputError on what is no text."""
    text = row.get(column) if column else None
    if isinstance(text, (list, dict)):
        raise InputError(f"{column!r} is no text: name another with --text-column")
    return "" if text is None else str(text)


def segment_of(row: dict[str, Any], cell: Any) -> tuple[float, float | None]:
    """Which part of its file a row is, in seconds: where it begins, and how long it is (None: to the end). Audio in the
    row itself has been cut. Raises InputError."""
    times = None if is_inside(cell) else segment_columns(tuple(row))
    return times.of(row) if times else (0.0, None)


def find_audio(cell: Any, row: dict[str, Any], base: Path | None) -> bytes | Path | Url | None:
    """The audio of a cell. `row` has the sample rate of bare samples; `base` is where relative names begin. Raises
    InputError on what is no audio."""
    if isinstance(cell, dict) and is_inside(cell):
        return _wav(cell["array"], cell) if cell.get("array") is not None else _bytes(cell["bytes"])
    if is_inside(cell):
        return cell if isinstance(cell, bytes) else _wav(cell, row)
    name = file_name(cell)
    if name is None and not (cell is None or cell == "" or isinstance(cell, dict)):
        raise InputError(f"{str(cell)[:40]!r} is no audio: a file's name, bytes, or samples with a sampling_rate are")
    return _locate(name, base) if name else None


def check_place(audio: bytes | Path | Url | None, roots: Sequence[Path]) -> None:
    """Raise InputError where a data set names what is in none of these folders, whatever links say, nor on the hub: it
    could have read what is nobody's business, or asked any server."""
    outside = "a data set may name what is elsewhere with --allow-outside alone"
    if isinstance(audio, Url) and urlsplit(audio).scheme != HUB_SCHEME:
        raise InputError(f"{shown_url(audio)} is an address: {outside}")
    if isinstance(audio, Path) and not any(audio.resolve().is_relative_to(root.resolve()) for root in roots):
        raise InputError(f"{audio} is outside of {roots[0] if roots else 'the data set'}: {outside}")
    if isinstance(audio, bytes) and len(audio) > MAX_CELL_BYTES:
        size, most = f"{len(audio) / 1e6:.0f} MB", f"{MAX_CELL_BYTES / 1e6:.0f} MB"
        raise InputError(f"{size} of audio in a row: more than {most} must be in a file of its own")


def shown_url(url: str) -> str:
    """An address without its query and its user, which may be secrets."""
    place = urlsplit(url)
    return f"{place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}"


def fetch(url: Url) -> bytes | None:
    """What is at an address; None where nothing is. Raises InputError where it cannot be reached."""
    try:
        if urlsplit(url).scheme in ("http", "https"):
            answer = requests.get(url, timeout=PATIENCE_S)
            if answer.status_code in NOTHING_THERE:
                return None
            answer.raise_for_status()
            return answer.content
        # Late: `datasets` takes a second to import. It knows hf://, s3://, archives, and the person's token.
        from datasets.utils.file_utils import xopen

        with xopen(url, "rb") as remote:
            data: bytes = remote.read()
            return data
    except Exception as error:  # of requests, fsspec, httpx, OpenSSL: each has its own
        if is_refused(error):
            cure = f": {CURE}" if urlsplit(url).scheme == HUB_SCHEME else ""
            raise InputError(f"{shown_url(url)} cannot be fetched: access is refused{cure}") from None
        if isinstance(error, FileNotFoundError):
            return None
        why = type(error).__name__  # its text repeats the address
        raise InputError(f"{shown_url(url)} cannot be fetched ({why}); run the same command again to go on") from None


def _locate(name: str, base: Path | None) -> Path | Url:
    parts = urlsplit(name) if "://" in name else None
    if parts is not None and parts.scheme != "file":
        return Url(name)
    file = Path(unquote(parts.path) if parts is not None else name).expanduser()
    if base is None:
        return file
    for tried in _spellings(file, base):
        if is_file(tried):
            return tried
    return base / file


def _spellings(file: Path, base: Path) -> list[Path]:
    """Where a file may lie that a table names: as it is said; with Windows' bars; beside; without its suffix."""
    names = [file, *([Path(str(file).replace("\\", "/"))] if "\\" in str(file) else [])]
    names += [Path(folder) / name for name in names for folder in BESIDE if not name.is_absolute()]
    if file.suffix.lower() not in SUFFIXES:
        names += [name.with_name(name.name + suffix) for name in names if name.name for suffix in SUFFIXES]
    return [base / name for name in names]


def _wav(samples: Any, beside: dict[str, Any]) -> bytes:
    """A WAV of samples that were decoded before: shape (n,) or (n, channels) in either order, and their rate beside."""
    rate: Any = beside.get("sampling_rate", beside.get("sample_rate"))
    try:
        array = np.asarray(samples)
        if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
            raise ValueError("no list of numbers")
        if array.ndim == 2 and array.shape[0] < array.shape[1]:
            array = array.T
        rate = int(rate)
    except (TypeError, ValueError, OverflowError) as error:
        what = "samples without a sampling_rate" if rate is None else f"samples that are none ({error})"
        raise InputError(f"the column of audio has {what}") from None
    subtype = "FLOAT"
    if array.dtype.kind in "iu":  # as decoders give them that give whole numbers: of 16 bits, unless one is larger
        subtype = "PCM_16" if np.abs(array, dtype=np.float64).max(initial=0) <= 1 << 15 else "PCM_32"
        bits = 16 if subtype == "PCM_16" else 32
        array = np.clip(array, -(1 << bits - 1), (1 << bits - 1) - 1).astype(f"i{bits // 8}")
    file = io.BytesIO()
    try:
        soundfile.write(file, array if subtype != "FLOAT" else array.astype("f4"), rate, format="WAV", subtype=subtype)
    except (soundfile.SoundFileError, ValueError, OverflowError):
        return b"\0"  # of a rate or a number of channels that no file has: undecodable
    return file.getvalue()


def _bytes(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode(data.partition("base64,")[2] or data, validate=True)
    except (AttributeError, ValueError):
        raise InputError("the column of audio has bytes that are not base64") from None
