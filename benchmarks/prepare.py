"""How fast data sets are prepared, held against what bare decoding of the same files costs."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import soundfile

from asr_load.audio.clip import Recording, Rules
from asr_load.audio.prepare import convert_block
from benchmarks import CHECKOUT, Row, ratio, seconds

ROUNDS = 9


def flac_files() -> list[Path]:
    """FLAC files at 16 kHz: real speech where it is at hand, else the sample."""
    real = CHECKOUT.parent / "shared" / "speech" / "audio"
    folder = real if real.is_dir() else CHECKOUT / "asr_data" / "sample"
    found = []
    for file in sorted(folder.glob("*.flac")):
        info = soundfile.info(file)
        if (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16") and info.duration <= 30:
            found.append(file)
    return found


def measure() -> Iterator[Row]:
    """One process, files in memory: from FLAC files to a shard, and bare soundfile.read."""
    files = flac_files()
    recordings = [Recording(file.stem, "", file) for file in files]
    hours = sum(soundfile.info(file).duration for file in files) / 3600

    def bare() -> None:
        for file in files:
            soundfile.read(file)

    # Shards go to memory where there is a file system in it, as the files come from it: a disk's pace is its own.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:

        def prepare(number: int) -> None:
            convert_block(recordings, {}, Rules(), Path(folder) / f"block-{number}.arrow")

        seconds(bare)
        seconds(partial(prepare, -1))
        times = [(seconds(bare), seconds(partial(prepare, number))) for number in range(ROUNDS)]
    theirs, ours = ([pair[which] for pair in times] for which in (0, 1))
    yield Row(
        f"prepare, {len(files)} FLAC files of 16 kHz, one core",
        f"{hours / statistics.median(ours):.2f} h of audio per s",
        f"bare soundfile.read: {hours / statistics.median(theirs):.2f} h/s",
        **ratio(ours, theirs),  # type: ignore[arg-type]
        aim="at most 1.3",
    )
