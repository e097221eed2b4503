"""Command line of prepare: which data set, which clips of it, and in which format."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from asr_load import signals
from asr_load.audio.clip import AUDIO_FORMATS, Rules
from asr_load.audio.encode import OPUS_RATES
from asr_load.audio.named import resolve
from asr_load.audio.open import open_source
from asr_load.audio.prepare import describe, prepare, refuse_another
from asr_load.audio.prepared import Manifest, Options
from asr_load.audio.source import DatasetSpec
from asr_load.errors import InputError, OneLineParser, exits_on_bad_input
from asr_load.languages import parse_language
from asr_load.text import visible

LEAST_CHUNK_S = 1.0
"""Minimum of --chunk-long, in seconds."""

MOST_DURATION_S = 86400
"""Maximum of --max-duration, in seconds; --no-skip-long removes the limit."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select and convert clips, shared by prepare.py and bench.py."""
    add = parser.add_argument
    # fmt: off
    add("--dataset", required=True,
        help="Hugging Face id, preset:NAME, or a local folder, parquet file or manifest")
    add("--subset", metavar="NAME",
        help="configuration of a Hugging Face data set (default: the one that has the split)")
    add("--split", metavar="NAME", help="split of the data set (default for folders: all)")
    add("--revision", metavar="NAME", help="branch, tag or commit of a Hugging Face data set")
    add("--limit", type=_count, default=0, metavar="N", help="number of clips to keep (default: 0, all of them)")
    add("--skip-long", action=argparse.BooleanOptionalAction, default=True,
        help="skip clips longer than --max-duration (default)")
    add("--chunk-long", type=_seconds, metavar="S",
        help="cut longer recordings at quiet places into parts of at most S seconds")
    add("--max-duration", type=_seconds, default=30.0, metavar="S",
        help="longest clip to keep, in seconds (default: 30)")
    add("--min-duration", type=_seconds, default=0.0, metavar="S",
        help="shortest clip to keep, in seconds (default: 0)")
    add("--sample-rate", type=_rate, default=16000, metavar="HZ",
        help="sample rate of the prepared clips in Hz, or 'keep' (default: 16000)")
    add("--audio-format", choices=AUDIO_FORMATS, default="wav",
        help="audio format of the prepared clips (default: wav)")
    add("--text-column", metavar="NAME", help="column of the transcripts (default: found by its name)")
    add("--audio-column", metavar="NAME", help="column of the audio (default: found by its name)")
    add("--allow-outside", action="store_true", help="let the data set name files outside its folder, and URLs")
    add("--language",
        help="language of the transcripts, by name or code (default: that of the preset, else English)")
    add("--processes", type=_count, default=os.cpu_count(), metavar="N",
        help="number of processes that prepare clips (default: one per core)")
    # fmt: on


def prepare_from_arguments(args: argparse.Namespace, out: Path, overwrite: bool = False) -> Manifest:
    """Run prepare with the options of `add_source_arguments`, and print notes about the source. Raises InputError."""
    language = parse_language(args.language) if args.language else ""
    spec, usual_language = resolve(
        DatasetSpec(
            args.dataset,
            args.subset or None,
            args.split or None,
            args.text_column,
            args.audio_column,
            args.allow_outside,
            args.revision,
        )
    )
    source = open_source(spec)
    if not overwrite:
        refuse_another(out, source)
    for note in source.notes:
        print(f"note: {visible(note)}", file=sys.stderr)
    for warning in source.warnings:
        print(f"warning: {visible(warning)}", file=sys.stderr)
    options = Options(_rules(args), args.limit, language or usual_language)
    try:
        with signals.raising():  # so that running blocks are finished
            return prepare(source, options, out, args.processes)
    except signals.Interrupted:
        signals.say(f"stopped: {out} is not complete; run the same command again to continue")
        raise
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _rules(args: argparse.Namespace) -> Rules:
    if args.chunk_long is not None and args.chunk_long < LEAST_CHUNK_S:
        raise InputError(f"--chunk-long must be at least {LEAST_CHUNK_S:g} s, not {args.chunk_long:g}")
    if args.audio_format == "opus" and args.sample_rate not in OPUS_RATES:
        rates = ", ".join(map(str, OPUS_RATES))
        raise InputError(f"--audio-format opus supports only {rates} Hz: set --sample-rate to one of them")
    longest = args.max_duration if args.skip_long and args.chunk_long is None else None
    return Rules(longest, args.min_duration, args.sample_rate, args.audio_format, args.chunk_long)


def _count(word: str) -> int:
    try:
        number = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError(f"{word} is negative")
    return number


def _seconds(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MOST_DURATION_S:
        raise argparse.ArgumentTypeError(f"{word} is not a number of seconds from 0 to {MOST_DURATION_S}")
    return number


def _rate(word: str) -> int | None:
    if word == "keep":
        return None
    if not word.isdigit() or not 4000 <= int(word) <= 192000:
        raise argparse.ArgumentTypeError(f"{word} is neither 'keep' nor a sample rate from 4000 to 192000 Hz")
    return int(word)


@exits_on_bad_input
def main() -> int:
    """Command line of scripts/prepare.py."""
    parser = OneLineParser("Prepare a speech data set for load tests: convert its clips and write them to a folder.")
    add_source_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write, for example asr_data/NAME"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a different data set in that folder")
    args = parser.parse_args()
    manifest = prepare_from_arguments(args, args.out, args.overwrite)
    print(f"{args.out}: {describe(manifest)}")
    return 0
