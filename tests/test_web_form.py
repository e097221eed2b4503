"""The form of the web UI, as its page requests it: fields, lists to choose from, picture of the load, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.models import STREAM, answering
from harness.ports import free_port
from harness.ui import Ui, ui

SHAPES = ("-f", "locustfiles/transcribe.py,locustfiles/shapes.py")


@pytest.fixture(scope="module")
def form(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """A web UI whose server lists two models."""
    folder = tmp_path_factory.mktemp("form")
    with (
        answering((200, STREAM), models=["one", "two"]) as host,
        ui("one process", host, clips, folder, files=SHAPES) as ui_,
    ):
        yield ui_


def test_form_lists_prepared_folders(form: Ui, clips: Path) -> None:
    known = form.get("/streaming/form")
    assert {str(clips), "asr_data/sample"} <= set(known["data"])
    assert known["fields"][0] == {
        "name": "data",
        "label": "Data (prepared folder)",
        "help": "Folder of prepared clips",
        "group": "",
    }
    assert known["starting"] == "Starting …"  # without a trial request


def test_form_lists_the_servers_models(form: Ui) -> None:
    assert form.post("/streaming/models", host="") == {"models": ["one", "two"]}


def test_wrong_server_is_an_error_of_its_field(form: Ui) -> None:
    for host in (f"http://127.0.0.1:{free_port()}", "ftp://x", "http://127.0.0.1:1/some/path"):
        answer = form.post("/streaming/models", host=host)
        assert (answer["models"], answer["field"]) == ([], "host"), answer
        assert answer["message"]


def test_picture_of_a_shape_is_drawn_from_its_plan(form: Ui) -> None:
    load: dict[str, str | int] = {"user_count": 12, "shape": "steps", "stages": 3, "stage_time": 20}
    assert form.post("/streaming/load", **load) == {
        "corners": [[0, 0], [0, 4], [20, 4], [20, 8], [40, 8], [40, 12], [60, 12]],
        "words": "up to 12 users, for 60 s",
    }
    spike = form.post("/streaming/load", **load | {"shape": "spike"})
    assert [users for _, users in spike["corners"]] == [0, 1, 1, 12, 12, 1, 1]


@pytest.mark.parametrize(
    ("run_time", "corners", "words"),
    [
        ("", [[0, 0], [3, 12], [3.75, 12]], "12 users after 3 s, until stopped"),
        ("1m", [[0, 0], [3, 12], [60, 12]], "12 users after 3 s, for 60 s"),
        ("2", [[0, 0], [2, 8]], "8 users at the end"),
    ],
)
def test_picture_without_a_shape_shows_the_ramp(
    form: Ui, run_time: str, corners: list[list[float]], words: str
) -> None:
    load = form.post("/streaming/load", user_count=12, spawn_rate=4, run_time=run_time)
    assert load == {"corners": corners, "words": words}


@pytest.mark.parametrize(
    "fields", [{"user_count": "0"}, {"shape": "steps", "stages": 10**9}, {"shape": "steps", "stages": -1}]
)
def test_half_typed_load_has_no_picture(form: Ui, fields: dict[str, str | int]) -> None:
    assert form.post("/streaming/load", **fields) == {"corners": [], "words": ""}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("data", "/nowhere"),
        ("slo", "ttft"),
        ("host", "http://h/some/path"),
        ("user_count", "0"),
        ("packet_ms", "1"),
        ("request_rate", "fast"),
        ("stages", "0"),
        ("run_time", "soon"),
        ("max_tokens", "0"),
        ("goodput", "ttft"),
    ],
)
def test_error_names_its_field(form: Ui, name: str, word: str) -> None:
    fields = {
        "user_count": "1",
        "spawn_rate": "1",
        "api": "realtime" if name == "packet_ms" else "chat",
        "shape": "steps",
    }
    answer = form.post("/swarm", **fields | {name: word})
    assert (answer["success"], answer["field"]) == (False, name), answer
