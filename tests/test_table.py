"""An option that is added to the table reaches everything that derives from the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.fleets import info
from harness.runs import FAST, Run, check_in_new_process, locust
from harness.serving import serve

ADD = """
from dataclasses import replace

from asr_load.options import table
from asr_load.options.option import Option, at_least

added = Option(
    "--beams", help="Beams of the decoder", explanation="More are slower.", type=int, default=1, metavar="N",
    check=at_least(1), in_form=True, per_user_class=True, in_run_json="beams", json_type=int, comparable=True,
)
target, *others = table.GROUPS
table.GROUPS = (replace(target, options=(*target.options, added)), *others)
table.OPTIONS = (*table.OPTIONS, added)
table.PER_USER_CLASS = (*table.PER_USER_CLASS, added)
"""

DERIVED = """
import sys
from argparse import Namespace

import pytest
from locust.argument_parser import get_parser

import asr_load.load.startup
from asr_load.errors import InputError
from asr_load.cli.options_page import markdown
from asr_load.load.search import _comparable
from asr_load.options.form import Form, form_groups, read_form
from asr_load.results.compare import FIELDS
from asr_load.results.schemas import schema
from asr_load.options.parser import for_class
from harness.options import settings

parsed = get_parser(default_config_files=[]).parse_args(["--beams", "3"])
assert parsed.beams == 3
with pytest.raises(InputError, match="--beams must be 1 or more, not 0"):
    settings("--beams", "0")
assert "beams" in form_groups()["Target"]
assert read_form(Form({"beams": "4"}), parsed).beams == 4
assert for_class(parsed, "User", {"beams": 5}).beams == 5
assert schema("run")["$defs"]["RunInfo"]["properties"]["beams"] == {
    "description": "Beams of the decoder", "type": "integer", "default": 1
}
assert _comparable(settings("--beams", "6"))["--beams"] == 6
assert FIELDS["beams"] == "--beams"
assert "- **`--beams N`** (default: `1`): Beams of the decoder. More are slower." in markdown()
"""


def test_added_option_is_in_everything_that_derives_from_the_table() -> None:
    check_in_new_process(ADD + DERIVED)


@pytest.mark.parametrize(("own", "words", "value"), [("{}", ["--beams", "2"], 2), ("{'beams': 3}", [], 3)])
def test_added_option_is_in_run_json(own: str, words: list[str], value: int, clips: Path, tmp_path: Path) -> None:
    locustfile, results = tmp_path / "locustfile.py", tmp_path / "run"
    locustfile.write_text(f"{ADD}\nfrom asr_load import SpeechUser\n\n\nclass Own(SpeechUser):\n    options = {own}\n")
    with serve(*FAST) as host:
        files = ("-f", locustfile, "--data", clips, "--results", results)
        done = Run(locust("--host", host, *files, "-u", "1", "--requests", "1", *words), results)
    assert done.code == 0, done.out + done.err
    assert info(done)["beams"] == value
