"""A report's section on transcripts: errors by kind, repetition loops, and the worst transcripts word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from asr_load.results.accuracy import Edits, counts, loops, recordings_of, reference_pairs, total
from asr_load.results.normalizers import Scoring, characters, normalise
from asr_load.stream.record import Record

WORST, WORDS = 20, 150
"""Number of clips shown, and of words from each."""


class Piece(NamedTuple):
    """A piece of an alignment: equal, substitute, delete (missing in the transcript) or insert (not in the
    reference)."""

    kind: str
    reference: str
    transcript: str


class Worst(NamedTuple):
    """A clip whose transcript has many errors."""

    clip: str
    rate: float
    edits: Edits
    pieces: list[Piece]
    cut: bool
    """Whether only the beginning is shown."""


class TranscriptErrors(NamedTuple):
    """Errors in a run's transcripts, in words and in characters."""

    words: Edits
    characters: Edits
    capped: float | None
    """Word error rate if a transcript with a repetition loop counts as at most all wrong; None without such a loop."""


def errors_of(good: Sequence[Record], scoring: Scoring) -> TranscriptErrors:
    """Sum the errors over successful requests with a reference."""
    pairs = Counter(reference_pairs(good, scoring))
    words, characters = total((counts(*pair, scoring), times) for pair, times in pairs.items())
    looping = [(counts(*pair, scoring).wer, times) for pair, times in pairs.items() if loops(*pair, scoring)]
    capped = None
    if looping and words.units:
        beyond = sum(times * max(each.errors - each.units, 0) for each, times in looping)
        capped = (words.errors - beyond) / words.units
    return TranscriptErrors(words, characters, capped)


def worst(good: Sequence[Record], scoring: Scoring, rate: str) -> list[Worst]:
    """The clips with the most errors, each with its worst transcript."""
    found: dict[str, tuple[Edits, str, str]] = {}
    for whole in recordings_of(good, scoring):
        edits: Edits = getattr(counts(whole.reference, whole.text, scoring), rate) if whole.reference else Edits()
        if edits.errors and (whole.clip not in found or found[whole.clip][0].errors < edits.errors):
            found[whole.clip] = edits, whole.reference, whole.text
    order = sorted(found.items(), key=lambda item: (-item[1][0].errors, item[0]))
    return [
        Worst(clip, edits.errors / edits.units, edits, *_aligned(reference, text, scoring, rate))
        for clip, (edits, reference, text) in order[:WORST]
    ]


def _aligned(reference: str, text: str, scoring: Scoring, rate: str) -> tuple[list[Piece], bool]:
    import jiwer  # imported late because it is slow to import

    both = [normalise(each, reference, scoring) for each in (reference, text[: 10 * WORDS * 10])]
    joint = "" if rate == "cer" else " "
    one, other = (list(characters(each, reference, scoring)) if rate == "cer" else each.split() for each in both)
    cut = max(len(one), len(other)) > WORDS
    one, other = one[:WORDS], other[:WORDS]
    pieces = []
    for part in jiwer.process_words(" ".join(one), " ".join(other)).alignments[0]:
        words = one[part.ref_start_idx : part.ref_end_idx], other[part.hyp_start_idx : part.hyp_end_idx]
        pieces.append(Piece(part.type, *(joint.join(each) for each in words)))
    return pieces, cut
