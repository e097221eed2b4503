"""The tests also pass on a busy machine: a limit on a wait must only bound a hang."""

from __future__ import annotations

import ast
from pathlib import Path

from harness.patience import PATIENCE_S

TESTS = Path(__file__).parent


def short_limits(code: str) -> list[tuple[int, float]]:
    """The line and value of each literal `timeout=` below PATIENCE_S."""
    return [
        (keyword.value.lineno, keyword.value.value)
        for call in ast.walk(ast.parse(code))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "timeout"
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, int | float)
        and keyword.value.value < PATIENCE_S
    ]


def test_short_limits_are_found() -> None:
    code = (
        "run(x, timeout=20)\nrun(x, timeout=PATIENCE_S)\nrun(x, timeout=600)\nTimeouts(connect=5)\nrun(timeout=0.5)\n"
    )
    assert short_limits(code) == [(1, 20), (5, 0.5)]


def test_no_timeout_of_a_test_is_below_the_patience() -> None:
    found = {
        f"{file.relative_to(TESTS.parent)}:{line}: timeout={limit:g}"
        for file in TESTS.rglob("*.py")
        for line, limit in short_limits(file.read_text())
    }
    assert not found, "a busy machine takes longer: use harness.patience.PATIENCE_S"
