"""Word and character error rates of transcripts, and common problems in transcripts."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from asr_load.apis.envelopes import unwrap
from asr_load.audio.clip import parent_of
from asr_load.languages import UNSPACED, joined
from asr_load.results.normalizers import NORMALIZERS, Scoring, characters, normalise, variant
from asr_load.stream.record import Record


def prepare() -> None:
    """Import and build everything needed for scoring, since a process may run out of file descriptors by the end of a
    run."""
    for normalizer in NORMALIZERS:
        for language in ("en", "de"):
            counts("words", "other words", Scoring(language, normalizer))


class Accuracy(msgspec.Struct):
    """Error rates over all pairs with a reference; None without any."""

    wer: float | None = None
    cer: float | None = None
    references: int = 0


class Edits(NamedTuple):
    """Edits that turn a reference into a transcript, and the length of the reference: S, D, I and N."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    units: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


class Counts(NamedTuple):
    """Edits of a transcript in words (wer) and in characters (cer)."""

    wer: Edits = Edits()
    cer: Edits = Edits()


LONGEST_RATIO = 10
"""Maximum ratio of a transcript's length to its reference's, in words or characters, both normalized. A longer
transcript is all wrong."""

LONG_TEXT = 50_000
"""Characters that the normalizer handles in a tenth of a second."""


@functools.lru_cache(maxsize=1 << 16)
def counts(reference: str, hypothesis: str, scoring: Scoring) -> Counts:
    """Count the edits of one transcript; all zero without a reference."""
    expected = normalise(reference, reference, scoring)
    if not expected:
        return Counts()
    transcript = _bounded(hypothesis, reference, scoring)
    align_words = _align_compounds if scoring.normalizer == "open-asr" else _align_words
    chars, transcript_chars = (characters(text, reference, scoring) for text in (expected, transcript))
    return Counts(
        _edits(expected.split(), transcript.split(), align_words), _edits(chars, transcript_chars, _align_characters)
    )


def _bounded(hypothesis: str, reference: str, scoring: Scoring) -> str:
    """Normalize the hypothesis. If it is too long to normalize quickly, and its beginning is already more than
    LONGEST_RATIO times as long as the reference, return it as it is, since all of it is wrong."""
    if len(hypothesis) > max(LONG_TEXT, LONGEST_RATIO * len(reference)):
        beginning = normalise(hypothesis[:LONG_TEXT], reference, scoring)
        if len(beginning) > LONGEST_RATIO * len(reference):
            return " ".join(hypothesis.split())
    return normalise(hypothesis, reference, scoring)


T = TypeVar("T", str, list[str])


def _edits(expected: T, transcript: T, align: Callable[[T, T], tuple[int, int, int]]) -> Edits:
    """The edits between two texts, in the units of their sequences. A transcript more than LONGEST_RATIO times as long
    as its reference is all wrong: aligning it takes minutes and shows nothing."""
    units = len(expected)
    if len(transcript) > LONGEST_RATIO * units:
        return Edits(units, 0, len(transcript) - units, units)
    return Edits(*align(expected, transcript), units)


def _align_words(words: list[str], transcript: list[str]) -> tuple[int, int, int]:
    import jiwer  # imported late because it is slow to import

    aligned = jiwer.process_words(" ".join(words), " ".join(transcript))
    return aligned.substitutions, aligned.deletions, aligned.insertions


def _align_characters(expected: str, transcript: str) -> tuple[int, int, int]:
    import jiwer

    aligned = jiwer.process_characters(expected, transcript)
    return aligned.substitutions, aligned.deletions, aligned.insertions


def _align_compounds(words: list[str], transcript: list[str]) -> tuple[int, int, int]:
    """Align words with the leaderboard's aligner, which accepts `white paper` for `whitepaper`."""
    import kaldialign

    pieces = _pieces(words, transcript) if len(words) > LONG_WORDS else [(words, transcript)]
    found = [kaldialign.edit_distance(*piece, merge_compounds=True) for piece in pieces]
    substitutions, deletions, insertions = (sum(each[kind] for each in found) for kind in ("sub", "del", "ins"))
    return substitutions, deletions, insertions


LONG_WORDS, ANCHOR_WORDS = 1000, 8
"""Longer references are aligned in pieces, because kaldialign takes ten seconds for 10,000 words with compounds. Pieces
are cut within runs of at least ANCHOR_WORDS correct words."""


def _pieces(words: list[str], transcript: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    import jiwer

    first, other_first = 0, 0
    for run in jiwer.process_words(" ".join(words), " ".join(transcript)).alignments[0]:
        if run.type == "equal" and run.ref_end_idx - run.ref_start_idx >= ANCHOR_WORDS:
            middle = (run.ref_end_idx - run.ref_start_idx) // 2
            last, other_last = run.ref_start_idx + middle, run.hyp_start_idx + middle
            yield words[first:last], transcript[other_first:other_last]
            first, other_first = last, other_last
    yield words[first:], transcript[other_first:]


def counted(pairs: Iterable[tuple[str, str]], scoring: Scoring) -> list[tuple[Counts, int]]:
    """Count the edits of each distinct (reference, hypothesis) pair, and how often the pair occurs. Servers tend to
    repeat a clip's transcript."""
    return [(counts(*pair, scoring), times) for pair, times in Counter(pairs).items()]


def total(found: Iterable[tuple[Counts, int]]) -> Counts:
    """Sum counts, each multiplied by its number of occurrences."""
    sums = np.zeros((2, 4), int)
    for each, times in found:
        sums += times * np.array(each)
    return Counts(*(Edits(*row) for row in sums.tolist()))


def measure(pairs: Iterable[tuple[str, str]], scoring: Scoring) -> Accuracy:
    """(S + D + I) / N over (reference, hypothesis) pairs, with counts summed first. Skips pairs without a reference."""
    found = [(each, times) for each, times in counted(pairs, scoring) if each.wer.units]
    if not found:
        return Accuracy()
    words, characters = total(found)
    references = sum(times for _, times in found)
    return Accuracy(words.errors / words.units, characters.errors / characters.units, references)


def variants(references: Iterable[str], scoring: Scoring) -> dict[str, int]:
    """Number of references for each variant of the normalizer, most frequent first; empty without any."""
    found = Counter[str]()
    for reference, times in Counter(references).items():
        if (name := variant(reference, scoring)) and normalise(reference, reference, scoring):
            found[name] += times
    return dict(found.most_common())


SCORED_PER_S, LONGEST_SCORED = 10, 2000
"""Number of transcripts scored per second while a test runs, and the maximum length of one. Scoring one takes up to a
millisecond, in which the process does nothing else."""


class Sample:
    """The live error rate of a test, over a sample of its transcripts: the first ones of each second. Parts of a
    recording are not sampled, because they are scored together after the test."""

    def __init__(self, scoring: Scoring) -> None:
        self.name = rate_for(scoring.language)
        self.references = 0
        self._scoring = scoring
        self._waiting: list[tuple[str, str]] = []
        self._errors = self._units = 0

    def add(self, record: Record) -> None:
        """Add a successful request to the sample."""
        if (
            record.reference
            and not self._scoring.in_parts
            and len(self._waiting) < SCORED_PER_S
            and len(record.reference) + len(record.text) < LONGEST_SCORED
        ):
            self._waiting.append((record.reference, record.text))

    def score(self) -> None:
        """Score the transcripts added since the last call. Call this once a second."""
        for found, times in counted(self._waiting, self._scoring):
            edits: Edits = getattr(found, self.name)
            self._errors += times * edits.errors
            self._units += times * edits.units
            self.references += times * bool(edits.units)
        self._waiting.clear()

    @property
    def rate(self) -> float | None:
        """The error rate so far; None before the first transcript."""
        return self._errors / self._units if self._units else None


def rate_for(language: str) -> str:
    """The more meaningful of wer and cer for a language: cer for one without spaces between words, where one wrong
    character makes a whole sentence count as one wrong word."""
    return "cer" if Scoring(language).is_unspaced else "wer"


class Recording(NamedTuple):
    """A recording with its complete transcript."""

    clip: str
    """Id without the number of a part."""
    audio_s: float
    reference: str
    """Empty without a reference."""
    text: str
    last: Record
    """The request that completed the recording."""


def recordings_of(records: Iterable[Record], scoring: Scoring) -> Iterator[Recording]:
    """Yield the recordings of successful requests. Parts of a recording are joined each time all of them were
    transcribed; the first part has the reference of the whole."""
    if not scoring.in_parts:
        for record in records:
            yield Recording(record.clip, record.audio_s, record.reference, record.text, record)
        return
    turns: Counter[str] = Counter()
    open_turns: dict[tuple[str, int], dict[int, Record]] = {}
    for record in sorted(records, key=lambda record: record.started_at):
        parent, number, count = parent_of(record.clip)
        turn = parent, turns[record.clip]
        turns[record.clip] += 1
        parts = open_turns.setdefault(turn, {})
        parts[number] = record
        if len(parts) == count:
            yield _joined_parts([part for _, part in sorted(open_turns.pop(turn).items())], parent)


def _joined_parts(parts: Sequence[Record], parent: str) -> Recording:
    text = joined(part.text for part in parts)
    last = max(parts, key=lambda part: part.started_at)
    return Recording(parent, sum(part.audio_s for part in parts), parts[0].reference, text, last)


def reference_pairs(records: Iterable[Record], scoring: Scoring) -> list[tuple[str, str]]:
    """(reference, transcript) pairs to score: recordings with a reference."""
    return [(whole.reference, whole.text) for whole in recordings_of(records, scoring) if whole.reference]


LOOPS, LOOP_WORDS, LOOP_CHARACTERS = 5, 12, 20_000
"""A repetition loop: minimum number of repetitions in a row, maximum number of words in the phrase, and the number of
characters, from the end of a transcript, to search."""


@functools.lru_cache(maxsize=1 << 16)
def loops(reference: str, hypothesis: str, scoring: Scoring) -> bool:
    """Whether a transcript contains a repetition loop that its reference does not: `thank you thank you thank you
    …`."""
    if len(hypothesis) < LOOPS:
        return False
    texts = [normalise(text, reference, scoring) for text in (hypothesis[-LOOP_CHARACTERS:], reference)]
    if scoring.is_unspaced:
        texts = [" ".join("".join(text.split())) for text in texts]
    rounds, expected = (_rounds(text.split()) for text in texts)
    return rounds >= max(LOOPS, 1 + expected)


def _rounds(words: list[str]) -> int:
    """Highest number of times that a phrase occurs in a row."""
    most = 1
    for length in range(1, min(LOOP_WORDS, len(words) // LOOPS) + 1):
        same = 0
        for one, other in zip(words, words[length:], strict=False):
            same = same + 1 if one == other else 0
            most = max(most, 1 + same // length)
    return most


PREFACE_SHARE, PREFACE_WORDS, PREFACE_CLIPS = 0.5, 2, 6
"""Minimum share of transcripts with a common beginning, its minimum number of words and punctuation marks, and the
minimum number of texts, so that it is not a coincidence."""

_TOKEN = re.compile(rf"{UNSPACED}|[^\W{UNSPACED[1:-1]}]+|[^\w\s]")
"""A word, a character of a script without spaces, or a punctuation mark."""


def common_preface(pairs: Iterable[tuple[str, str]], scoring: Scoring) -> tuple[int, str] | None:
    """The beginning that at least half of the transcripts share and no reference has, after normalization: the number
    of transcripts and the words. None without such a beginning."""
    distinct = set(pairs)
    tokenized = [(_TOKEN.findall(text), text) for _, text in distinct]
    first = Counter(tuple(tokens[:PREFACE_WORDS]) for tokens, _ in tokenized if len(tokens) > PREFACE_WORDS)
    (start, count), *_ = first.most_common(1) or [((), 0)]
    if len({reference for reference, _ in distinct}) < PREFACE_CLIPS or count < PREFACE_SHARE * len(distinct):
        return None
    alike = [(tokens, text) for tokens, text in tokenized if tuple(tokens[:PREFACE_WORDS]) == start]
    length = len(_common([tokens for tokens, _ in alike]))
    if any(len(tokens) == length for tokens, _ in alike):
        return None  # nothing follows: the transcripts are identical, as a scripted server's are
    text = alike[0][1]
    ends = [match.end() for match in _TOKEN.finditer(text)]
    references = [_compared(reference, reference, scoring) for reference, _ in distinct]
    beginning = _compared(text[: ends[PREFACE_WORDS - 1]], "a", scoring)
    if any(reference.startswith(beginning) for reference in references):
        return None
    if not _compared(text[: ends[length - 1]], "a", scoring):
        return None  # the normalizer removes it, for example a note in brackets
    # Drop words with which all references begin.
    common = "".join(_common(references))
    for at in reversed(range(PREFACE_WORDS, length)):
        rest = _compared(text[ends[at - 1] : ends[length - 1]], "a", scoring)
        if rest and common.startswith(rest):
            length = at
            break
    return count, " ".join(text[: ends[length - 1]].split())


def _compared(text: str, reference: str, scoring: Scoring) -> str:
    """Normalize text and remove its spaces, which not all scripts have."""
    return "".join(normalise(text, reference, scoring).split())


def _common(texts: Iterable[Sequence[str]]) -> list[str]:
    """The longest common beginning."""
    columns = zip(*texts, strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def left_envelope(records: Iterable[Record]) -> tuple[int, str] | None:
    """The envelope that is still around at least half of the transcripts: their number, and its name in TEXT_FORMATS.
    None without one."""
    texts = Counter((record.text, record.text_format) for record in records if record.text)
    found = Counter[str]()
    for (text, text_format), times in texts.items():
        if text_format == "raw" and (name := unwrap(text).format) != "raw":
            found[name] += times
    (name, count), *_ = found.most_common(1) or [("", 0)]
    return (count, name) if count and count >= PREFACE_SHARE * texts.total() else None
