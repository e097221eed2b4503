"""--sample and --mix: a sample of a data set, and clip lengths by weight."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from asr_load.errors import InputError
from asr_load.results.runfile import UserClassInfo
from asr_load.results.summary import summarise
from asr_load.schedule.mix import parse_mix
from asr_load.schedule.mixed_order import MixedOrder, sample_of
from conftest import prepare_clips
from harness.fleets import processes
from harness.records import record, run_info
from harness.runs import FAST, run
from harness.serving import serve


def user_class(name: str, clips: int) -> UserClassInfo:
    asked = {"endpoint": "/", "api": "chat", "model": "m", "prompt": "", "max_tokens": 9, "unique": "dither"}
    return UserClassInfo(name=name, **asked, data=name, data_sha256="0", data_clips=clips)


def test_mix_gives_each_length_its_share_of_every_ten_requests() -> None:
    lengths = [1.0, 2.0, 8.0, 20.0, 4.9, 5.0]
    order = MixedOrder(lengths, parse_mix("0-5:7,5-15:2,15-:1"), shuffle=False, seed=0)
    sent = [order.clip(position) for position in range(1000)]
    for first in range(0, 1000, 10):
        kinds = Counter(np.searchsorted([5, 15], lengths[clip], side="right") for clip in sent[first : first + 10])
        assert kinds == {0: 7, 1: 2, 2: 1}
    counts = Counter(sent)
    assert max(counts[clip] for clip in (0, 1, 4)) - min(counts[clip] for clip in (0, 1, 4)) <= 1
    assert counts[2] == counts[5] == counts[3] == 100
    # Clips of one length class do not come in a block.
    assert "3" * 2 not in "".join(map(str, sent))


def test_shuffled_mix_is_reproducible_by_seed() -> None:
    lengths, classes = np.linspace(1, 30, 40), parse_mix("0-10:1,10-:1")
    one, same, other = (
        [MixedOrder(lengths, classes, shuffle=True, seed=seed).clip(n) for n in range(60)] for seed in (1, 1, 2)
    )
    assert one == same != other


def test_sample_is_random_sorted_and_reproducible() -> None:
    assert list(sample_of(5, 0, 7)) == [0, 1, 2, 3, 4]
    one, same, other = (list(sample_of(1000, 50, seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 50
    assert one == sorted(one)
    drawn = Counter(int(clip) for seed in range(2000) for clip in sample_of(10, 3, seed))
    assert all(abs(drawn[clip] - 600) < 100 for clip in range(10))  # 5 standard deviations


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0-5", "--mix must be ranges of seconds with weights, such as 0-5:70,5-15:25,15-:5, not '0-5'"),
        ("5-5:1", "not '5-5:1'"),
        ("0-5:0", "not '0-5:0'"),
        ("0-5:1,x", "not 'x'"),
        ("0-5:1,4-:2", "--mix: 0-5 and 4- overlap"),
        ("0-5:9000,5-:9000", "the sum of the weights must be at most 10000"),
    ],
)
def test_malformed_mix_is_rejected(text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parse_mix(text)
    assert said in str(error.value)


def test_mix_class_without_a_clip_is_rejected() -> None:
    with pytest.raises(InputError, match="no clip of --data is 5-15 seconds long"):
        MixedOrder([1.0], parse_mix("0-5:1,5-15:1"), shuffle=False, seed=0)


@pytest.mark.long
def test_mix_and_sample_end_to_end(tmp_path: Path) -> None:
    lengths = {**{f"short{n}": 0.3 for n in range(6)}, **{f"long{n}": 1.5 for n in range(3)}}
    clips = prepare_clips(tmp_path, lengths)
    with serve(*FAST) as host:
        words = ("-u", "2", "--requests", "20", "--mix", "0-1:4,1-:1")
        alone = run(host, clips, tmp_path / "alone", *words)
        fleet = run(host, clips, tmp_path / "fleet", *words, *processes(2))
        sample = run(host, clips, tmp_path / "sample", "-u", "1", "--requests", "8", "--sample", "4", "--seed", "3")
    for done in (alone, fleet):
        assert done.code == 0, done.err
        assert Counter(record["clip"].rstrip("0123456789") for record in done.records) == {"short": 16, "long": 4}
        assert done.summary["coverage"]["repeated"] == 0
    assert sorted(Counter(record["clip"] for record in sample.records).values()) == [2] * 4
    assert sample.summary["coverage"]["clips"] == 4
    assert "Clips: 4 of 4 sent, 2.00 passes" in sample.out
    refused = run("http://127.0.0.1:9", clips, tmp_path / "none", "-u", "1", "-t", "1", "--mix", "5-:1")
    assert (refused.code, "--mix: no clip of --data is 5- seconds long" in refused.err) == (2, True)
    refused = run("http://127.0.0.1:9", clips, tmp_path / "none", "-u", "1", "-t", "1", "--sample", "10")
    assert (refused.code, "--sample 10: --data has only 9 clips" in refused.err) == (2, True)


def test_mix_makes_uneven_coverage_of_user_classes_intended() -> None:
    classes = [user_class("Short", 3), user_class("Long", 2)]
    records = [record(n, clip=f"s{n % 3}", user_class="Short") for n in range(9)]
    records += [record(9 + n, clip="l0", user_class="Long") for n in range(4)]
    for mix, uneven in (("", True), ("0-5:1,5-:1", False)):
        found = summarise(records, run_info(user_classes=classes, mix=mix)).coverage
        assert (found.clips, found.sent, bool(found.repeated)) == (5, 4, uneven)
