"""The options page is generated from the options, and `asr-load` has a verb for each task."""

from __future__ import annotations

from locust.argument_parser import LocustArgumentParser

from asr_load.cli.options_page import explanation, groups
from asr_load.options.parser import add_options
from asr_load.options.table import GROUPS
from conftest import CHECKOUT
from harness.runs import asr_load


def test_options_page_is_up_to_date() -> None:
    done = asr_load("options", "--markdown")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (CHECKOUT / "docs" / "options.md").read_text(), (
        "asr-load options --markdown > docs/options.md"
    )


def test_every_option_is_in_a_group_with_its_default() -> None:
    done = asr_load("options")
    assert done.returncode == 0, done.stderr
    for heading, _ in groups():
        assert f"\n{heading}\n" in done.stdout
    for line in (
        "--requests, --num-prompts N",
        "--data, --dataset-path DIR",
        "--results, --result-dir DIR",
        "--extra-body, --extra-request-body JSON",
        "--warmup-requests, --num-warmups N",
        "--shape none|ramp|steps|spike",
        "--trim-start S",
        "--stall-timeout S\n      Time limit without a byte from the server, in seconds (default: 120.0)",
    ):
        assert f"\n  {line}" in done.stdout, line
    parser = LocustArgumentParser()
    add_options(parser)
    ours = [action for action in parser._actions if hasattr(action, "include_in_web_ui") and action.dest != "help"]
    assert all(f"  {action.option_strings[0]}" in done.stdout and action.help for action in ours)


def test_each_explanation_is_in_the_entry_of_its_option() -> None:
    page = " ".join((CHECKOUT / "docs" / "options.md").read_text().split())
    for option in (option for _, options in groups() for option in options):
        entry = page.partition(f"- **`{option.name}")[2].partition(" - **`")[0]
        assert " ".join(explanation(option).split()) in entry, option.name


def test_form_shows_options_in_the_order_of_the_groups() -> None:
    parser = LocustArgumentParser()
    add_options(parser)
    titles = [group.title for group in GROUPS]
    order = [action for group in parser._action_groups if group.title in titles for action in group._group_actions]
    shown = [name for name in parser.args_included_in_web_ui if name != "help"]
    assert shown == [action.dest for action in order if action.dest in shown]
