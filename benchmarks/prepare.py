"""How fast data sets are prepared, held against what bare decoding of the same files costs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import soundfile

from asr_load.audio.clip import Recording, Rules
from asr_load.audio.prepare import convert_block
from benchmarks import Row

CHECKOUT = Path(__file__).resolve().parent.parent
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

        _seconds(bare)
        _seconds(partial(prepare, -1))
        times = [(_seconds(bare), _seconds(partial(prepare, number))) for number in range(ROUNDS)]
    ratios = sorted(ours / theirs for theirs, ours in times)
    ours = statistics.median(ours for _, ours in times)
    theirs = statistics.median(theirs for theirs, _ in times)
    yield (
        f"prepare, {len(files)} FLAC files of 16 kHz, one core",
        f"{hours / ours:.2f} h of audio per s",
        f"bare soundfile.read: {hours / theirs:.2f} h/s",
        f"{statistics.median(ratios):.2f} times its time ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        "at most 1.3",
    )


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
