"""Named data sets: which exist, for which languages, and what they resolve to."""

from __future__ import annotations

import re

import pytest

from asr_load.audio.named import NAMED, PREFIX, resolve
from asr_load.audio.source import DatasetSpec
from asr_load.errors import InputError
from asr_load.languages import parse_language


@pytest.mark.parametrize("name", NAMED)
def test_named_data_sets_resolve(name: str) -> None:
    spec, language = resolve(DatasetSpec(PREFIX + name))
    assert re.fullmatch(r"[\w-]+/[\w-]+", spec.dataset)
    assert spec.split
    assert 2 <= len(language) <= 3
    own, _ = resolve(DatasetSpec(PREFIX + name, subset="mine", split="validation", text_column="words"))
    assert (own.subset, own.split, own.text_column) == ("mine", "validation", "words")


def test_unknown_named_data_set_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown preset; use preset:fleurs:ar, preset:fleurs:de"):
        resolve(DatasetSpec("preset:fleurs:xx"))
    with pytest.raises(InputError, match="unknown preset; use preset:librispeech-clean, "):
        resolve(DatasetSpec("preset:nothing"))
    assert resolve(DatasetSpec("owner/plain")) == (DatasetSpec("owner/plain"), "en")


@pytest.mark.parametrize(
    "name", ["fleurs:German", "fleurs:de_de", "fleurs:cmn_hans_cn", "voxpopuli:en-US", "fleurs:ZH"]
)
def test_named_data_sets_are_found_by_any_spelling(name: str) -> None:
    spec, code = resolve(DatasetSpec(PREFIX + name))
    family, _, text = name.partition(":")
    assert code == parse_language(text)
    assert (spec.dataset, spec.subset) == (NAMED[f"{family}:{code}"].dataset, NAMED[f"{family}:{code}"].subset)
