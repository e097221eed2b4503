"""A table cell that holds or names a recording: a file name, URL, bytes, samples, or an object with one of these."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import soundfile

from asr_load.audio.clip import is_file
from asr_load.audio.columns import segment_columns
from asr_load.audio.download import HUB_SCHEME, Url, shown_url
from asr_load.errors import InputError

NAMES = ("path", "file", "file_name", "filename", "url", "src")
BESIDE = ("clips", "wavs", "wav", "audio")
"""Folders that tables omit from file names, such as those of Common Voice and LJSpeech."""

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".aiff", ".aif", ".au", ".w64", ".caf", ".sph"),
    *(".m4a", ".aac", ".mp4", ".webm", ".amr", ".wma", ".mka", ".3gp"),
)
"""Suffixes of audio files. Formats of the second line cannot be decoded; prepare reports them as undecodable instead of
overlooking them."""


MAX_CELL_BYTES = 768 << 20
"""Maximum size of a recording in a row, which is held in memory."""


def is_audio(file: str | Path) -> bool:
    """Whether a file's suffix is one of audio."""
    return Path(file).suffix.lower() in AUDIO_SUFFIXES


def file_name(cell: Any) -> str | None:
    """The name or URL of a cell's file; None if it has none."""
    names = [cell.get(key) for key in NAMES] if isinstance(cell, dict) else [cell]
    return next((name for name in names if isinstance(name, str) and name), None)


def is_inside(cell: Any) -> bool:
    """Whether the cell contains the audio, as bytes or samples."""
    if isinstance(cell, dict):
        return cell.get("array") is not None or cell.get("bytes") is not None
    return isinstance(cell, (bytes, list, np.ndarray))


def text_of(row: dict[str, Any], column: str | None) -> str:
    """The transcript of a row, possibly empty. Raises InputError if the column does not hold text."""
    text = row.get(column) if column else None
    if isinstance(text, (list, dict)):
        raise InputError(f"the column {column!r} does not hold text: choose another with --text-column")
    return "" if text is None else str(text)


def segment_of(row: dict[str, Any], cell: Any) -> tuple[float, float | None]:
    """Offset and length of a row's segment in its file, in seconds (length None: to the end). Audio inside a row is
    already cut. Raises InputError."""
    times = None if is_inside(cell) else segment_columns(tuple(row))
    return times.segment(row) if times else (0.0, None)


def find_audio(cell: Any, row: dict[str, Any], base: Path | None) -> bytes | Path | Url | None:
    """The audio of a cell. `row` holds the sample rate of bare samples; `base` is the folder of relative names. Raises
    InputError if the cell is not audio."""
    if isinstance(cell, dict) and is_inside(cell):
        return _wav(cell["array"], cell) if cell.get("array") is not None else _bytes(cell["bytes"])
    if is_inside(cell):
        return cell if isinstance(cell, bytes) else _wav(cell, row)
    name = file_name(cell)
    if name is None and not (cell is None or cell == "" or isinstance(cell, dict)):
        raise InputError(f"{str(cell)[:40]!r} is not audio: expected a file name, bytes, or samples and sampling_rate")
    return _locate(name, base) if name else None


def check_place(audio: bytes | Path | Url | None, roots: Sequence[Path]) -> None:
    """Raise InputError if a data set names a file outside of these folders (after following links) or a URL not on the
    hub: a data set from elsewhere must not read private files or contact other servers."""
    outside = "to allow this, add --allow-outside"
    if isinstance(audio, Url) and urlsplit(audio).scheme != HUB_SCHEME:
        raise InputError(f"{shown_url(audio)} is a URL outside of the data set; {outside}")
    if isinstance(audio, Path) and not any(audio.resolve().is_relative_to(root.resolve()) for root in roots):
        raise InputError(f"{audio} is outside of {roots[0] if roots else 'the data set'}; {outside}")
    if isinstance(audio, bytes) and len(audio) > MAX_CELL_BYTES:
        size, most = f"{len(audio) / 1e6:.0f} MB", f"{MAX_CELL_BYTES / 1e6:.0f} MB"
        raise InputError(f"{size} of audio in a row: store recordings over {most} in separate files")


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
    """The paths to try for a file name: unchanged, with Windows separators, in the BESIDE folders, with a suffix."""
    names = [file, *([Path(str(file).replace("\\", "/"))] if "\\" in str(file) else [])]
    names += [Path(folder) / name for name in names for folder in BESIDE if not name.is_absolute()]
    if not is_audio(file):
        names += [name.with_name(name.name + suffix) for name in names if name.name for suffix in AUDIO_SUFFIXES]
    return [base / name for name in names]


def _wav(samples: Any, beside: dict[str, Any]) -> bytes:
    """Write decoded samples, shape (n,) or (n, channels) in either order, as a WAV. `beside` holds their rate."""
    rate: Any = beside.get("sampling_rate", beside.get("sample_rate"))
    try:
        array = np.asarray(samples)
        if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
            raise ValueError("not a list of numbers")
        if array.ndim == 2 and array.shape[0] < array.shape[1]:
            array = array.T
        rate = int(rate)
    except (TypeError, ValueError, OverflowError) as error:
        what = "samples without a sampling_rate" if rate is None else f"malformed samples ({error})"
        raise InputError(f"the audio column has {what}") from None
    subtype = "FLOAT"
    if array.dtype.kind in "iu":  # decoders that return integers use 16 bits, unless a sample is larger
        subtype = "PCM_16" if np.abs(array, dtype=np.float64).max(initial=0) <= 1 << 15 else "PCM_32"
        bits = 16 if subtype == "PCM_16" else 32
        array = np.clip(array, -(1 << bits - 1), (1 << bits - 1) - 1).astype(f"i{bits // 8}")
    file = io.BytesIO()
    try:
        soundfile.write(file, array if subtype != "FLOAT" else array.astype("f4"), rate, format="WAV", subtype=subtype)
    except (soundfile.SoundFileError, ValueError, OverflowError):
        return b"\0"  # an impossible rate or number of channels: undecodable
    return file.getvalue()


def _bytes(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode(data.partition("base64,")[2] or data, validate=True)
    except (AttributeError, ValueError):
        raise InputError("the audio column has bytes that are not base64") from None
