"""Recreate asr_data/sample: sentences written for this project, spoken by flite (Debian's package `flite`).

    python scripts/make_sample.py

The clips are FLAC at 16 kHz, with a manifest.jsonl. One is longer than 30 s, so that prepare skips it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

from asr_load.errors import OneLineParser

SAMPLE = Path(__file__).resolve().parent.parent / "asr_data" / "sample"
VOICES = ("slt", "rms")

SENTENCES = (
    "The server answered before the kettle had boiled.",
    "Please send the report to the people on the second floor.",
    "We counted every stream that opened and every stream that closed.",
    "A slow morning can hide a very busy afternoon.",
    "The train to the harbour leaves in twenty minutes.",
    "Nobody noticed the queue until it reached the door.",
    "She measured the distance twice and wrote down both answers.",
    "Turn left at the bridge and follow the river to the mill.",
    "The first word arrived quickly, but the last one took its time.",
    "Rain is expected in the north, with clear skies by the evening.",
    "Keep the window closed when the wind comes from the sea.",
    "They tested the engine with one passenger, then with forty.",
    "My neighbour grows tomatoes and gives most of them away.",
    "If the line is long, open another counter.",
    "The old clock in the hall is always five minutes late.",
)

LONG = (
    "This recording is longer than thirty seconds on purpose. A load test that sends clips to a speech model has to "
    "decide what to do with long ones, and the usual choice is to leave them out and to say so. When the sample is "
    "prepared, you will see that one clip was skipped because it is too long. If you would rather keep it, ask for "
    "long clips to be kept, and the server will be given the whole story. It tells of a quiet town by a lake, where "
    "the ferry crosses twice a day and the baker knows every customer by name. In the winter the lake freezes, it "
    "rests, and people walk across the ice to visit their friends on the other side."
)


def main() -> int:
    """Write the clips and the manifest."""
    OneLineParser("Recreate asr_data/sample, replacing the existing files.").parse_args()
    if shutil.which("flite") is None:
        print("error: flite is not installed (on Debian: apt-get install flite)", file=sys.stderr)
        return 2
    for old in SAMPLE.glob("*.flac"):
        old.unlink()
    spoken = [(f"{VOICES[number % len(VOICES)]}-{number:02d}", text) for number, text in enumerate((*SENTENCES, LONG))]
    with (SAMPLE / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for name, text in spoken:
            speak(name.split("-")[0], text, SAMPLE / f"{name}.flac")
            manifest.write(json.dumps({"id": name, "file": f"{name}.flac", "text": text}) + "\n")
    return 0


def speak(voice: str, text: str, out: Path) -> None:
    """Speak a text into a FLAC file, at the sample rate of the voice (16 kHz)."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(wav)], check=True)
        samples, rate = soundfile.read(wav, dtype="int16")
    soundfile.write(out, samples, rate, format="FLAC", subtype="PCM_16")


if __name__ == "__main__":
    sys.exit(main())
