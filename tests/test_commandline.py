"""The command line of a run: its locustfiles, and how it is shown without secrets."""

from __future__ import annotations

import pytest

from asr_load.errors import InputError
from asr_load.settings.commandline import check_locustfiles, shown_command
from asr_load.settings.host import check_host
from conftest import CHECKOUT


def test_command_line_is_shown_without_secrets() -> None:
    words = [
        "locust",
        "--api-key",
        "sk-1",
        "--header=X: sk-2",
        "--extra-body",
        '{"a": "sk-3"}',
        "-H",
        "http://me:sk-4@h:1",
    ]
    shown = shown_command([*words, "--prompt", "say sk-5 twice"], ["sk-5"])
    assert "sk-" not in " ".join(shown)
    assert shown[-1] == "say *** twice"
    assert shown[-3] == "http://***@h:1"


@pytest.mark.parametrize("password", ["p@ss", "p/ss", "p@s/s"])
def test_password_with_special_characters_is_not_printed(password: str) -> None:
    host = f"http://me:{password}@h:1"
    assert password[2:] not in " ".join(
        shown_command(["locust", "--host", host, "--api-k", "sk-1", "--extra-b={}"], [])
    )
    with pytest.raises(InputError) as caught:
        check_host(host if "/" in password else f"{host}:no-port")
    assert password not in str(caught.value)
    assert f"{password[2:]}@" not in str(caught.value)


def test_password_is_not_printed_if_the_scheme_is_missing() -> None:
    with pytest.raises(InputError) as caught:
        check_host("me:sk-1@h:1")
    assert "sk-1" not in str(caught.value)
    assert "use --host http://***@h:1" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("locustfiles/transcribe.py,nosuch.py", "-f nosuch.py does not exist"),
        ("README.md", "-f README.md is not a Python file"),
    ],
)
def test_locustfiles_that_are_missing_or_no_python_are_refused(
    names: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CHECKOUT)
    with pytest.raises(InputError, match=said):
        check_locustfiles(names)
