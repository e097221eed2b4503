"""Presets for common data sets, such as `--dataset preset:fleurs:de`. Their ids, configurations and columns come from
the Open ASR Leaderboard and the data sets' cards (November 2026)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from asr_load.audio.source import DatasetSpec
from asr_load.errors import InputError
from asr_load.languages import find_language

PREFIX = "preset:"
OPEN_ASR = "hf-audio/open-asr-leaderboard"


@dataclass(frozen=True)
class Named:
    """A data set's id, subset, split, text column, and the language of its references."""

    dataset: str
    subset: str | None
    split: str = "test"
    text: str | None = None
    language: str = "en"


FLEURS = {
    "ar": "ar_eg", "de": "de_de", "en": "en_us", "es": "es_419", "fr": "fr_fr", "hi": "hi_in", "it": "it_it",
    "ja": "ja_jp", "ko": "ko_kr", "nl": "nl_nl", "pl": "pl_pl", "pt": "pt_br", "ru": "ru_ru", "sv": "sv_se",
    "tr": "tr_tr", "uk": "uk_ua", "vi": "vi_vn", "zh": "cmn_hans_cn",
}  # fmt: skip
VOXPOPULI = ("en", "de", "fr", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr", "sk", "sl", "et", "lt")

NAMED = {
    "librispeech-clean": Named("openslr/librispeech_asr", "clean", text="text"),
    "librispeech-other": Named("openslr/librispeech_asr", "other", text="text"),
    "open-asr:ami": Named(OPEN_ASR, "ami_cleaned", text="text"),
    "open-asr:earnings22": Named(OPEN_ASR, "earnings22", text="text"),
    "open-asr:gigaspeech": Named(OPEN_ASR, "gigaspeech_cleaned", text="text"),
    "open-asr:librispeech-clean": Named(OPEN_ASR, "librispeech", "test.clean", "text"),
    "open-asr:librispeech-other": Named(OPEN_ASR, "librispeech", "test.other", "text"),
    "open-asr:spgispeech": Named(OPEN_ASR, "spgispeech", text="text"),
    "open-asr:voxpopuli": Named(OPEN_ASR, "voxpopuli", text="text"),
    "longform:earnings21": Named("hf-audio/asr-leaderboard-longform", "earnings21", text="text"),
    "longform:earnings22": Named("hf-audio/asr-leaderboard-longform", "earnings22", text="text"),
    "longform:tedlium": Named("hf-audio/asr-leaderboard-longform", "tedlium", text="text"),
    "earnings22": Named("ArtificialAnalysis/Earnings22-Cleaned-AA", None, text="text"),
    "stt-benchmark": Named("pipecat-ai/stt-benchmark-data", None, "train", "transcription"),
    **{f"voxpopuli:{code}": Named("facebook/voxpopuli", code, text="normalized_text", language=code)
       for code in VOXPOPULI},
    **{f"fleurs:{code}": Named("google/fleurs", config, text="transcription", language=code)
       for code, config in FLEURS.items()},
}  # fmt: skip


def resolve(spec: DatasetSpec) -> tuple[DatasetSpec, str]:
    """Fill in the fields that `spec` leaves open from its preset. Returns the spec and the language of its references
    (English without a preset). Raises InputError for an unknown preset."""
    if not spec.dataset.startswith(PREFIX):
        return spec, "en"
    name = _with_code(spec.dataset.removeprefix(PREFIX))
    if name not in NAMED:
        families = {known.partition(":")[0]: ":…" if ":" in known else "" for known in NAMED}
        family = name.partition(":")[0]
        near = [known for known in NAMED if known.partition(":")[0] == family]
        names = near or [f"{family}{rest}" for family, rest in families.items()]
        raise InputError(
            f"--dataset {spec.dataset}: unknown preset; use {', '.join(PREFIX + known for known in names)}"
        )
    known = NAMED[name]
    resolved = replace(
        spec,
        dataset=known.dataset,
        subset=spec.subset or known.subset,
        split=spec.split or known.split,
        text_column=spec.text_column or known.text,
    )
    return resolved, known.language


def _with_code(name: str) -> str:
    """The name with its language as a code: fleurs:German and fleurs:de_de become fleurs:de."""
    family, colon, word = name.partition(":")
    code = None if name in NAMED else find_language(word)
    return f"{family}{colon}{code}" if code else name
