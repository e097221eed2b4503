"""Commands that messages propose, for a checkout and for an installed package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asr_load import shipped
from asr_load.cli.main import VERBS
from conftest import CHECKOUT

WITHOUT_SCRIPT = ("demo", "list", "compare", "options")


@pytest.mark.parametrize("verb", VERBS)
def test_command_for_a_verb_fits_the_folder(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["locust"])
    monkeypatch.chdir(CHECKOUT)
    first, *rest = shipped.command(verb).split()
    expected = "locust" if verb in ("run", "capacity") else "asr-load" if verb in WITHOUT_SCRIPT else "python"
    assert first == expected
    assert first == "asr-load" or all((CHECKOUT / word).is_file() for word in rest if word.endswith(".py"))
    monkeypatch.chdir(tmp_path)
    assert shipped.command(verb) == f"asr-load {verb}"
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.setattr(sys, "argv", ["asr-load prepare"])
    assert shipped.command(verb) == f"asr-load {verb}"
    monkeypatch.setattr(sys, "argv", ["locust"])
    monkeypatch.setattr(shipped, "CHECKOUT", None)
    assert shipped.command(verb) == f"asr-load {verb}"


def test_command_for_another_process_has_its_locustfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, run, capacity in (
        (CHECKOUT, "locust", "locust -f locustfiles/capacity.py"),
        (tmp_path, "asr-load run", "asr-load capacity"),
    ):
        monkeypatch.chdir(folder)
        files = [str(CHECKOUT / "locustfiles" / name) for name in ("transcribe.py", "shapes.py", "capacity.py")]
        assert shipped.locust_command(files[0]) == run
        assert shipped.locust_command(",".join(files[:2])) == run
        assert shipped.locust_command(files[2]) == capacity
        assert shipped.locust_command("my file.py") == "locust -f 'my file.py'"
