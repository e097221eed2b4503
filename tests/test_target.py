"""What each user class sends: its options, data, API and host."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

import asr_load
from asr_load.audio.shard import Shards
from asr_load.errors import InputError
from asr_load.options.parser import for_class
from conftest import prepare_clips
from harness.checks import error_of
from harness.fleets import info, nothing_is_lost, processes
from harness.options import parse
from harness.patience import PATIENCE_S
from harness.ports import free_port
from harness.runs import FAST, POST, Run, locust, run
from harness.serving import serve, wait_until
from harness.ui import ui

CHAT, TRANSCRIPTIONS = ("POST", "/v1/chat/completions (Short)"), ("POST", "/v1/audio/transcriptions (Long)")

TWO = """
import asr_load
from locust import task


class Short(asr_load.SpeechUser):
    weight = 3


class Long(asr_load.SpeechUser):
    options = {{"data": {data!r}, "api": "transcriptions", "max_tokens": 7}}
"""


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Clips of another data set, with other ids than `clips`."""
    return prepare_clips(tmp_path / "others", {f"long{number}": 0.4 for number in range(3)})


def two(host: str, clips: Path, others: Path, folder: Path, *words: str | Path) -> Run:
    (folder / "two.py").write_text(TWO.format(data=str(others)))
    return run(host, clips, folder / "r", "-f", folder / "two.py", *words)


@pytest.mark.parametrize("fleet", [False, True], ids=["one process", "two workers"])
@pytest.mark.parametrize("loop", [(), ("--request-rate", "40")], ids=["closed", "open"])
def test_each_user_class_has_its_data_api_and_rows(
    clips: Path, others: Path, tmp_path: Path, fleet: bool, loop: tuple[str, ...]
) -> None:
    words = [*loop, "-u", "8", "--requests", "48", *(processes(2) if fleet else ())]
    with serve(*FAST) as host:
        done = two(host, clips, others, tmp_path, *words)
    assert done.code == 0, done.err
    own = {"Short": Shards(clips).ids(), "Long": Shards(others).ids()}
    counts = Counter(record["user_class"] for record in done.records)
    assert counts.total() == 48
    assert counts["Short"]
    assert counts["Long"]
    assert all(record["clip"] in own[record["user_class"]] for record in done.records)
    assert done.rows[CHAT]["num_requests"] == counts["Short"]
    assert done.rows[TRANSCRIPTIONS]["num_requests"] == counts["Long"]
    assert {(row["name"], row["n"], row["fail"]) for row in done.summary["by_user_class"]} == {
        (name, count, 0) for name, count in counts.items()
    }
    assert "By user class" in done.out
    said = {each["name"]: each for each in info(done)["user_classes"]}
    assert said["Short"]["api"] == "chat"
    assert said["Long"] == said["Long"] | {"api": "transcriptions", "endpoint": "/v1/audio/transcriptions"}
    assert said["Long"]["data_clips"] == 3
    if not fleet and not loop:
        # Each class sends its own clips in order, whatever numbers the other class takes in between.
        for name, ids in own.items():
            sent = Counter(record["clip"] for record in done.records if record["user_class"] == name)
            assert max(sent.values()) - min(sent[clip] for clip in ids) <= 1
    assert done.summary["coverage"]["clips"] == len(own["Short"]) + 3


def test_single_class_with_options_determines_the_run(clips: Path, others: Path, tmp_path: Path) -> None:
    code = f"import asr_load\nclass Own(asr_load.SpeechUser):\n    options = {{'data': {str(others)!r}}}\n"
    (tmp_path / "own.py").write_text(code)
    with serve(*FAST) as host:
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "own.py", "-u", "2", "--requests", "6")
    assert {record["clip"] for record in done.records} == Shards(others).ids()
    assert info(done)["data"] == str(others)
    assert info(done)["user_classes"] == done.summary["by_user_class"] == []
    assert POST in done.rows
    nothing_is_lost(done)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dta": "x"}, "Long.options: a user class cannot set 'dta'; it can set api, model"),
        ({"api": "chatty"}, "Long.options: --api: invalid choice: 'chatty' (choose from"),
        ({"max_tokens": "many"}, "Long.options: --max-tokens: invalid int value: 'many'"),
        ({"max_tokens": 0}, "user class Long: --max-tokens must be 1 or more, not 0"),
        ({"data": "/nowhere"}, "user class Long: --data /nowhere: there is no such folder"),
        ({"host": "x"}, "Long.options: a user class cannot set 'host'"),
    ],
)
def test_invalid_class_options_give_a_one_line_error(
    clips: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    class Long(asr_load.SpeechUser):
        pass

    Long.options = options
    assert error_of("-u", "1", "--data", clips, "--results", tmp_path / "r", users=[Long]).startswith(said)


def test_user_classes_with_different_languages_are_refused(clips: Path, tmp_path: Path) -> None:
    german = prepare_clips(tmp_path / "others", {"lang": 0.4}, language="de")
    done = two("http://127.0.0.1:9", clips, german, tmp_path, "-u", "2", "--requests", "2")
    assert done.code == 2
    assert "must be in the same language, not en of Short, de of Long" in done.err


def test_class_options_override_the_command_line() -> None:
    given = parse("--endpoint", "/gateway/chat", "--extra-body", '{"top_p": 1}')
    own = for_class(given, "Long", {"api": "transcriptions", "extra_body": {"temperature": 0}, "max_tokens": 9})
    assert (own.api, own.endpoint, json.loads(own.extra_body), own.max_tokens) == (
        "transcriptions", "", {"temperature": 0}, 9,
    )  # fmt: skip
    assert (given.api, given.endpoint, given.max_tokens) == ("auto", "/gateway/chat", 128)
    with pytest.raises(InputError, match="a user class cannot set"):
        for_class(given, "Long", {"requests": 3})


@pytest.mark.long
@pytest.mark.parametrize("kind", ["one process", "master and workers"])
def test_class_picker_selects_classes_for_each_test(clips: Path, others: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "two.py"
    file.write_text(TWO.format(data=str(others)))
    words = ("-f", str(file), "--class-picker")
    with serve(*FAST) as host, ui(kind, host, clips, tmp_path, *words, workers=("-f", str(file))) as page:
        for number, chosen in enumerate([["Short", "Long"], ["Long"], ["Short", "Long"]], 1):
            answer = page.post("/swarm", user_count=4, spawn_rate=100, user_classes=chosen, shape_class="Default")
            assert answer["success"], answer
            wait_until(lambda at=number: page.lines(at) >= 20, "records")  # type: ignore[misc]
            page.post("/stop")
            wait_until(lambda at=number: page.ended(at), "the end")  # type: ignore[misc]
            records = [json.loads(line) for line in (page.folder(number) / "records.jsonl").read_text().splitlines()]
            assert {record["user_class"] for record in records} == set(chosen)
            assert page.summary(number)["requests"]["fail"] == 0
            assert [row["name"] for row in page.summary(number)["by_user_class"]] == (chosen if len(chosen) > 1 else [])
            assert page.asked(number)["api"] == ("transcriptions" if chosen == ["Long"] else "chat")
        refused = page.post("/swarm", user_count=4, spawn_rate=100, user_classes="Nobody", shape_class="Default")
        assert not refused["success"]


def test_realtime_class_and_uploading_class_run_together(clips: Path, tmp_path: Path) -> None:
    options = {"api": "realtime", "realtime_dialect": "vllm", "packet_ms": 50, "pace": 4, "trailing_silence": 0.5}
    (tmp_path / "two.py").write_text(
        "import asr_load\n\nclass Files(asr_load.SpeechUser):\n    pass\n\n"
        f"class Talks(asr_load.SpeechUser):\n    options = {options!r}\n"
    )
    with serve(*FAST, "--realtime", "vllm") as host:
        done = run(host, clips, tmp_path / "r", "-f", tmp_path / "two.py", "-u", "4", "--requests", "24")
    by_class = {name: [each for each in done.records if each["user_class"] == name] for name in ("Files", "Talks")}
    assert all(each["ok"] for each in done.records), done.records
    assert all(by_class.values())
    for record in by_class["Talks"]:
        assert record["api"] == "realtime"
        assert record["packets"] == math.ceil((record["audio_s"] + 0.5) / 0.05 - 1e-6)
    assert not any("api" in record for record in by_class["Files"])
    assert done.summary["dialects"] == {"vllm": len(by_class["Talks"])}
    said = {each["name"]: each["realtime"] for each in info(done)["user_classes"]}
    assert said["Files"] == {}
    assert (said["Talks"]["pace"], said["Talks"]["packet_s"]) == (4, 0.05)
    assert any("speech was sent at 4 times its speed" in reason for reason in done.summary["validity"]["reasons"])
    assert (
        "these figures mix realtime sessions and uploads; see the table by user class"
        in done.summary["validity"]["reasons"]
    )


HOSTS = """
import asr_load

class One(asr_load.SpeechUser):
    host = {!r}

class Other(asr_load.SpeechUser):
    host = {!r}
"""


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_host_of_the_user_classes_is_the_default(clips: Path, tmp_path: Path, workers: int) -> None:
    """Locust's users work this way. The test runs in another folder, as the checkout's locust.conf sets a host."""
    fleet = processes(workers) if workers else []
    with serve(*FAST) as host:
        (tmp_path / "mine.py").write_text(HOSTS.format(host, host))
        words = ("-f", "mine.py", "-u", "2", "--requests", "4", "--results", "r", *fleet)
        process = locust(*words, "--data", clips, cwd=tmp_path, env={"OPENAI_API_KEY": "sk-mine-alone"})
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert json.loads((tmp_path / "r" / "run.json").read_text())["host"] == host


@pytest.mark.long
def test_host_of_the_master_applies_to_classes_with_other_hosts(clips: Path, tmp_path: Path) -> None:
    with serve(*FAST) as host:
        (tmp_path / "mine.py").write_text(HOSTS.format("http://a:1", "http://b:1"))
        words = ("-f", "mine.py", "-u", "2", "--requests", "4", "--results", "r", "--host", host)
        ports = ("--master-port", str(free_port()))
        master = locust(
            *words, "--data", clips, "--master", "--expect-workers", "1", "--master-bind-port", ports[1], cwd=tmp_path
        )
        worker = locust("-f", "mine.py", "--worker", *ports, cwd=tmp_path)
        _, err = master.communicate(timeout=PATIENCE_S)
        worker.communicate(timeout=PATIENCE_S)
    assert (master.returncode, worker.returncode) == (0, 0), err


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (("", ""), "--host is missing: give the address of the server, for example --host http://127.0.0.1:30000"),
        (
            ("http://a:1", "http://me:hush@b:1"),
            "the user classes have the hosts http://***@b:1 and http://a:1, but a test has one server: set --host",
        ),
    ],
)
def test_missing_or_ambiguous_host_is_refused(tmp_path: Path, hosts: tuple[str, str], said: str) -> None:
    (tmp_path / "mine.py").write_text(HOSTS.format(*hosts))
    process = locust("-f", "mine.py", "-u", "1", "--loglevel", "ERROR", cwd=tmp_path)
    assert process.communicate(timeout=PATIENCE_S) == ("", f"error: {said}\n")
    assert process.returncode == 2
