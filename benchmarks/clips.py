"""Generate prepared sets of noise, for benchmarks in which only the size and number of clips matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asr_load.audio.clip import Clip, Recording, Rules
from asr_load.audio.convert import convert
from asr_load.audio.prepared import FORMAT, MANIFEST, Manifest, Options, ShardInfo
from asr_load.audio.shard import write_shard
from asr_load.files import encode_json

RATE = 16_000
SHARD_CLIPS = 5_000


def write_clips(folder: Path, count: int, seconds: float = 0.1) -> Path:
    """Write a prepared folder of `count` clips with the same noise, each `seconds` long."""
    folder.mkdir(parents=True)
    clip = _noise(folder, seconds)
    shards: list[ShardInfo] = []
    of = -(-count // SHARD_CLIPS)
    for first in range(0, count, SHARD_CLIPS):
        name = f"shard-{len(shards):05d}-of-{of:05d}.arrow"
        numbers = range(first, min(first + SHARD_CLIPS, count))
        rows, digest = write_shard(
            folder / name,
            (replace(clip, id=f"clip{number}", text="") for number in numbers),
        )
        shards.append(ShardInfo(name, rows, digest))
    options = Options(Rules(), 0, "en")
    manifest = Manifest(FORMAT, {"made": "noise"}, options, count, 0, count * seconds, {}, shards)
    (folder / MANIFEST).write_bytes(encode_json(manifest))
    return folder


def _noise(folder: Path, seconds: float) -> Clip:
    file = folder / "noise.wav"
    soundfile.write(file, np.random.default_rng(0).uniform(-0.1, 0.1, int(seconds * RATE)), RATE, subtype="PCM_16")
    clip = next(convert(Recording("noise", "", file), Rules()))
    file.unlink()
    return clip
