"""Languages: every common spelling means one code, wherever a language is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from asr_load.audio.dither import NO_DITHER
from asr_load.audio.prepared import MANIFEST
from asr_load.audio.shard import Shards
from asr_load.errors import InputError
from asr_load.languages import find_language, is_unspaced, language_name, parse_language
from asr_load.load.search import _comparable, resumed
from asr_load.report.comparison import comparison_view
from asr_load.results.accuracy import rate_for
from asr_load.results.capacity import write_capacity
from asr_load.results.normalizers import Scoring
from asr_load.results.runfile import read_run, write_run
from asr_load.results.summary import Finished
from conftest import CHECKOUT, prepare_clips, write_folder
from harness.audio import clip
from harness.options import request, settings
from harness.records import record, run_info
from harness.searches import search_of

SPELLINGS = {
    "en": ["en", "EN", "eng", "English", "ENGLISH", " english ", "en-US", "en_us", "English-US", "US English"],
    "de": ["de", "deu", "ger", "German", "Deutsch", "de-AT", "de_de"],
    "zh": ["zh", "zho", "chi", "cmn", "Chinese", "Mandarin", "zh-CN", "zh_Hant", "cmn_hans_cn", "中文"],
    "yue": ["yue", "Cantonese", "yue_hant_hk"],
    "ja": ["ja", "jpn", "Japanese", "ja-JP", "ja_jp", "日本語"],
    "th": ["th", "tha", "Thai", "th_th"],
    "ml": ["ml", "mal", "Malayalam", "ml_in"],
    "ar": ["ar", "ara", "arb", "Arabic", "ar_eg"],
    "he": ["he", "iw", "heb", "Hebrew", "he_il"],
    "no": ["no", "nb", "nob", "nb_no", "Norwegian", "Norwegian Bokmål"],
    "tl": ["tl", "fil", "fil_ph", "Filipino", "Tagalog"],
    "es": ["es", "spa", "es_419", "Spanish", "español", "Castilian"],
    "or": ["or", "ori", "ory", "or_in", "Odia", "Oriya"],
    "my": ["my", "mya", "bur", "Burmese", "my_mm"],
}  # fmt: skip
UNSPACED = ["zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "dz", "shn"]
SPACED = ["en", "de", "ko", "vi", "hi", "ml", "ar", "he", "mn", "id", "foo"]
UNKNOWN = [
    "xx",
    "foo",
    "Elvish",
    "auto",
    "none",
    "und",
    "mul",
    "zxx",
    "qaa",
    "a",
    "0",
    "de en",
    "de,en",
    "en.UTF-8",
    "en\0",
    "x" * 300,
]


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SPELLINGS.items() for text in texts])
def test_every_spelling_of_a_language_gives_its_code(code: str, text: str) -> None:
    assert parse_language(text) == code
    assert Scoring(text) == Scoring(code)


@pytest.mark.parametrize("text", [*UNKNOWN, ""])
def test_unknown_language_is_refused(text: str) -> None:
    assert find_language(text) is None
    with pytest.raises(InputError, match=r"unknown language\. Give its name \(German\), its ISO 639 code"):
        parse_language(text)


def test_every_fleurs_language_is_known() -> None:
    """The configs of google/fleurs whose names do not start with an ISO 639-1 code, and a few others."""
    codes = (
        "af_za ast_es ceb_ph ckb_iq cmn_hans_cn ff_sn fil_ph kam_ke kea_cv luo_ke nb_no nso_za umb_ao yue_hant_hk zu_za"
    )
    found = " ".join(find_language(code) or "?" for code in codes.split())
    assert found == "af ast ceb ckb zh ff tl kam kea luo no nso umb yue zu"


@pytest.mark.parametrize(
    ("text", "name"),
    [("de-AT", "German"), ("zh-CN", "Chinese"), ("Mandarin", "Chinese"), ("yue", "Cantonese"), ("nb", "Norwegian")],
)
def test_prompts_use_english_language_names(text: str, name: str) -> None:
    assert language_name(text) == name


def test_languages_without_spaces_are_known_by_their_script() -> None:
    assert [code for code in UNSPACED if not is_unspaced(code)] == []
    assert [code for code in SPACED if is_unspaced(code)] == []
    assert [rate_for(text) for text in ("Chinese", "cmn_hans_cn", "jpn", "Korean")] == ["cer", "cer", "cer", "wer"]


def prepared(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [
        sys.executable,
        "scripts/prepare.py",
        "--dataset",
        folder / "set",
        "--out",
        folder / "out",
        *words,
    ]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("text", "code"), [("English", "en"), ("cmn_hans_cn", "zh"), ("", "en")])
def test_prepare_stores_the_language_code(tmp_path: Path, text: str, code: str) -> None:
    write_folder(tmp_path / "set", {"a": 0.2})
    assert prepared(tmp_path, *(["--language", text] if text else [])).returncode == 0
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["options"]["language"] == code


def test_prepare_refuses_an_unknown_language_before_it_reads(tmp_path: Path) -> None:
    done = prepared(tmp_path, "--language", "Elvish")  # there is no data set either
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --language Elvish: unknown language")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("text", "code"), [("English", "en"), ("zh_CN", "zh"), ("Elvish", "elvish")])
def test_manifest_of_an_earlier_version_is_read(tmp_path: Path, text: str, code: str) -> None:
    folder = prepare_clips(tmp_path, {"a": 0.2})
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["options"]["language"] = text
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert Shards(folder).manifest.options.language == code


def test_folder_prepared_with_another_spelling_is_not_prepared_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"a": 0.2})
    assert prepared(tmp_path, "--language", "en").returncode == 0
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"en"', '"English"'))
    before = manifest.read_bytes()
    assert prepared(tmp_path, "--language", "en-US").returncode == 0
    assert manifest.read_bytes() == before


def test_runs_of_an_earlier_version_are_scored_and_compared_by_language(tmp_path: Path) -> None:
    pair = {"reference": "twenty two colours", "text": "22 colors"}
    records = [record(n, **pair) for n in range(3)]
    for name, text in (("one", "English"), ("two", "en-US")):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, run_info())
        kept = json.loads((tmp_path / name / "run.json").read_text()) | {"language": text, "asked_language": text}
        (tmp_path / name / "run.json").write_text(json.dumps(kept))
    infos = [read_run(tmp_path / name) for name in ("one", "two")]
    runs = [Finished(info, records, folder=tmp_path) for info in infos]
    assert [run.summary.wer for run in runs] == [0, 0]
    assert not [line for line in comparison_view(runs[:1], runs[1:]).comparison.warnings if "language" in line]
    german = run_info(language="German", asked_language="de")
    other = Finished(german, records, folder=tmp_path)
    said = [line for line in comparison_view(runs[:1], [other]).comparison.warnings if "language" in line]
    assert said == [
        'different --language: "en" here, "de" in the baseline',
        'different language of the references: "en" here, "de" in the baseline',
    ]


@pytest.mark.parametrize(
    ("then", "now", "same"), [("English", "en", True), ("en-US", "eng", True), ("de", "en", False)]
)
def test_search_is_resumed_with_another_spelling(tmp_path: Path, then: str, now: str, same: bool) -> None:
    words = ("--api", "transcriptions", "--language")
    begun = _comparable(settings(*words, now)) | {"--language": then}
    common: dict[str, Any] = {"host": "http://127.0.0.1:30000", "model": "default", "slos": [], "data_sha256": "0"}
    write_capacity(tmp_path, search_of({8: 8}, answer=None, asked=begun, **common))
    if same:
        assert resumed(tmp_path, settings(*words, now), "0")
    else:
        with pytest.raises(InputError, match="--language differs from that search: de then, en now"):
            resumed(tmp_path, settings(*words, now), "0")


@pytest.mark.parametrize("text", ["German", "de", "deu", "de-AT", "Deutsch"])
def test_each_api_gets_the_language_in_its_form(text: str) -> None:
    upload = request("openai/whisper-large-v3", language=text)
    assert (upload.fields.language, upload.language) == ("de", "de")
    form = b"".join(upload.in_format().body(clip(), NO_DITHER))
    assert b'name="language"\r\n\r\nde\r\n' in form
    assert request("any", api="realtime", language=text).fields.language == "de"
    for api in ("chat", "chat-input-audio"):
        chat = request("google/gemma-3n-E4B-it", api=api, language=text).fields
        assert (chat.prompt, chat.language) == ("Transcribe this audio into German:", "")
    sessions = settings("--api", "realtime", "--language", text).realtime
    assert sessions is not None
    assert sessions.language == "de"


def test_locust_refuses_an_unknown_language(clips: Path) -> None:
    words: list[str | Path] = [
        "--headless",
        "-u",
        "1",
        "--requests",
        "1",
        "--host",
        "http://127.0.0.1:9",
        "--data",
        clips,
    ]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "locust",
        *words,
        "--api",
        "transcriptions",
        "--language",
        "Elvish",
    ]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --language Elvish: unknown language")


def test_shard_options_compare_by_language_code() -> None:
    from asr_load.audio.clip import Rules
    from asr_load.audio.prepared import Options

    assert Options(Rules(), 0, "English") == Options(Rules(), 0, "en")
    assert msgspec.json.decode(msgspec.json.encode(Options(Rules(), 0, "Thai")), type=Options).language == "th"
