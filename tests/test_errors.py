"""Errors of input: one line on standard error, and exit code 2."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from asr_load.errors import exits_on_bad_input
from conftest import CHECKOUT
from harness.patience import PATIENCE_S


def test_out_of_memory_gives_a_one_line_error(capsys: pytest.CaptureFixture[str]) -> None:
    @exits_on_bad_input
    def main() -> int:
        raise MemoryError

    assert main() == 2
    assert capsys.readouterr().err == "error: out of memory\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["in the buffer", "more than the buffer"])
def test_output_that_nobody_reads_ends_the_command_quietly(lines: int) -> None:
    code = (
        "import sys\n"
        "from asr_load.errors import exits_on_bad_input\n"
        f"sys.exit(exits_on_bad_input(lambda: [print('line', flush=False) for _ in range({lines})] and 0)())\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None
    with command.stderr:
        assert command.stderr.read() == ""
    assert command.wait(PATIENCE_S) == 128 + signal.SIGPIPE
