"""Errors of input: one line on standard error, and exit code 2."""

from __future__ import annotations

import pytest

from asr_load.errors import exits_on_bad_input


def test_out_of_memory_gives_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_on_bad_input
    def main() -> int:
        raise MemoryError

    assert main() == 2
    assert capsys.readouterr().err == "error: out of memory\n"
