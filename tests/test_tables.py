"""Tables of a run: cells of untrusted text."""

from __future__ import annotations

import sys

import pytest

from asr_load.report.console import console_for, rich_table
from asr_load.report.tables import Table


def test_tables_escape_control_characters_and_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """This includes escapes, text directions and rich's own markup."""
    table = Table("By user class", ("", "n"), [("a\x1b[31m\u202e [/red] :smile:", "1")])
    console_for(sys.stdout).print(rich_table(table))
    assert r"a\x1b[31m\u202e [/red] :smile:" in " ".join(capsys.readouterr().out.split())
