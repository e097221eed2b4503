"""Read Kaldi data folders: `wav.scp` names the recordings, `segments` cuts them, `text` holds the transcripts.

Format: https://kaldi-asr.org/doc/data_prep.html
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

from asr_load.audio.clip import SHORTEST_S, Recording, is_file
from asr_load.audio.manifest import read_text
from asr_load.errors import InputError

SCP, SEGMENTS, TEXT = "wav.scp", "segments", "text"

READERS = ("flac", "cat")
"""Commands in wav.scp that do not change the audio: prepare reads their input file directly."""


def read_folder(folder: Path) -> Iterator[Recording]:
    """Yield the utterances of a folder with a wav.scp. Runs no command from wav.scp. Raises InputError."""
    audio = {name: _file(folder, name, rest) for name, rest in _lines(folder / SCP)}
    text = dict(_lines(folder / TEXT)) if is_file(folder / TEXT) else {}
    if not is_file(folder / SEGMENTS):
        for name, file in audio.items():
            yield Recording(name, text.get(name, ""), file)
        return
    for name, rest in _lines(folder / SEGMENTS):
        words = rest.split()
        try:
            recording, first, last = words[0], float(words[1]), float(words[2])
        except (IndexError, ValueError):
            raise _bad(folder, name, "must have the form RECORDING BEGIN END, in seconds") from None
        to_end = last == -1
        if not (0 <= first < math.inf and (to_end or first + SHORTEST_S <= last < math.inf)):
            raise _bad(folder, name, f"begins at {words[1]} s and ends at {words[2]} s")
        if recording not in audio:
            raise _bad(folder, name, f"refers to {recording!r}, which is not in {SCP}")
        yield Recording(name, text.get(name, ""), audio[recording], first, None if to_end else last - first)


def _bad(folder: Path, name: str, what: str) -> InputError:
    return InputError(f"{folder / SEGMENTS}: {name} {what}")


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for line in read_text(file).split("\n"):
        if line.strip():
            name, *rest = line.strip().split(maxsplit=1)
            yield name, rest[0] if rest else ""


def _file(folder: Path, name: str, entry: str) -> Path:
    if not entry:
        raise InputError(f"{folder / SCP}: {name} has no file")
    if entry.endswith("|"):
        try:
            words = shlex.split(entry[:-1])
        except ValueError:
            words = []
        files = [word for word in words[1:] if not word.startswith("-")]
        if not words or Path(words[0]).name not in READERS or len(files) != 1:
            raise InputError(
                f"{folder / SCP}: {name} is the output of a command, which prepare does not run (it only reads the"
                f" files of {' and '.join(READERS)}): write the output to a WAV file and name that"
            )
        entry = files[0]
    # File names are relative to the folder where the recipe runs, somewhere above the data.
    return next(
        (base / entry for base in (folder, *folder.absolute().parents) if is_file(base / entry)), folder / entry
    )
