"""Compare the speed of preparing data sets with bare decoding of the same files, and measure how fast a test verifies a
prepared set."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import soundfile

from asr_load.audio import shard
from asr_load.audio.clip import Recording, Rules
from asr_load.audio.prepare import convert_block
from asr_load.audio.prepared import read_manifest
from asr_load.audio.shard import verify
from benchmarks import CHECKOUT, Row, ratio, seconds
from benchmarks.clips import write_clips

ROUNDS = 9
CLIPS = 500


def flac_files() -> list[Path]:
    """FLAC files of the sample at 16 kHz."""
    found = []
    for file in sorted((CHECKOUT / "asr_data" / "sample").rglob("*.flac")):
        info = soundfile.info(file)
        if (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16") and info.duration <= 30:
            found.append(file)
    return found


def measure() -> Iterator[Row]:
    """Compare, in one process with files in memory, converting FLAC files to a shard and bare soundfile.read."""
    files = flac_files()
    recordings = [Recording(file.stem, "", file) for file in files]
    hours = sum(soundfile.info(file).duration for file in files) / 3600

    def bare() -> None:
        for file in files:
            soundfile.read(file)

    # Write shards to memory if possible, so that the speed of a disk does not matter.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:

        def prepare(number: int) -> None:
            convert_block(recordings, {}, Rules(), Path(folder) / f"block-{number}.arrow")

        seconds(bare)
        seconds(partial(prepare, -1))
        times = [(seconds(bare), seconds(partial(prepare, number))) for number in range(ROUNDS)]
        yield _compare(Path(folder))
    theirs, ours = ([pair[which] for pair in times] for which in (0, 1))
    yield Row(
        f"prepare, {len(files)} FLAC files of 16 kHz, one core",
        f"{hours / statistics.median(ours):.2f} h of audio per s",
        f"bare soundfile.read: {hours / statistics.median(theirs):.2f} h/s",
        **ratio(ours, theirs),  # type: ignore[arg-type]
        aim="at most 1.3",
    )


def _compare(folder: Path) -> Row:
    """Verify shards of 10 s clips, as a process does before its first test."""
    prepared = write_clips(folder / "clips", CLIPS, 10.0)
    manifest = read_manifest(prepared)
    data = b"".join((prepared / one.file).read_bytes() for one in manifest.shards)
    times = []
    for _ in range(ROUNDS):
        shard._verified.clear()
        times.append((seconds(partial(verify, prepared, manifest)), seconds(lambda: hashlib.sha256(data))))
    ours, theirs = ([pair[which] for pair in times] for which in (0, 1))
    return Row(
        f"verifying the hashes of {len(data) / 1e6:.0f} MB of shards, in memory",
        f"{statistics.median(ours) / len(data) * 1e9:.2f} s per GB",
        f"bare SHA-256: {statistics.median(theirs) / len(data) * 1e9:.2f} s per GB",
        **ratio(ours, theirs),  # type: ignore[arg-type]
        aim="at most 1.2",
    )
