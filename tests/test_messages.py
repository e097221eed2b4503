"""The messages of a fleet: each survives Locust's encoding, and a malformed one is rejected."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import msgpack  # type: ignore[import-untyped]
import msgspec
import pytest

from asr_load.errors import InputError
from asr_load.load.messages import (
    TEST,
    ArrivalPlan,
    Cut,
    Done,
    FleetTest,
    Refusal,
    Report,
    ShareDone,
    Stop,
    TimeAnswer,
    TimeQuestion,
    decode,
    encode,
    fleet_test,
    id_of_test,
)
from asr_load.schedule.loop import Stage
from harness.records import worker_info

PLAN = ArrivalPlan([(0, [0, 1]), (7, [1])], [Stage(10.0, 1.0, 2.5)])
MADE = FleetTest(
    id="id",
    folder="results/a",
    manifests={"SpeechUser": "00"},
    trace_sha256="",
    workers=2,
    numbers={"host_a": 0},
    begins_ns=1 << 60,
    plan=PLAN,
    headers=["Authorization"],
    model="",
    dialect="",
)


@pytest.mark.parametrize(
    "content",
    [
        MADE,
        PLAN,
        Report(worker_info(), [b'{"a":1}', b"\xff"]),
        TimeQuestion(1 << 60),
        TimeAnswer(1, 2, PLAN),
        Refusal("why"),
        ShareDone(),
        Stop(),
        Cut(),
        Done(),
    ],
)
def test_message_survives_the_encoding_of_locust(content: msgspec.Struct) -> None:
    sent = msgpack.loads(msgpack.dumps(encode(content)), strict_map_key=False)
    assert decode(sent, type(content)) == content


@pytest.mark.parametrize("data", [None, 5, {}, {"sent": "now"}, {"sent": 0.5}])
def test_malformed_message_is_rejected(data: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(data, TimeQuestion)


def test_test_of_another_version_is_refused() -> None:
    assert fleet_test(Namespace()) is None
    assert id_of_test({TEST: encode(MADE)}) == "id"
    assert id_of_test({}) == id_of_test({TEST: None}) == ""
    assert fleet_test(Namespace(**{TEST: encode(MADE)})) == MADE
    with pytest.raises(InputError, match=r"the master sent a malformed test .*: install the same version on both"):
        fleet_test(Namespace(**{TEST: {"id": "id"}}))
