"""The pages: their links lead somewhere, their tables name what there is, and the rooms are as architecture.md says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from asr_load.results.metrics import METRICS
from asr_load.results.runfile import RunInfo
from asr_load.results.summary import Summary
from asr_load.stream.record import Record
from conftest import CHECKOUT

PAGES = [CHECKOUT / "README.md", CHECKOUT / "SECURITY.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
ROOMS = ("audio", "stream", "schedule", "http", "results", "options", "web", "load", "selftest")


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        name, _, place = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), target


def test_the_readme_is_a_page_and_leads_to_all_others() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert text.count("\n") <= 150
    reached = set(re.findall(r"docs/([\w-]+)\.md", text))
    pages = {page.stem for page in PAGES if page.parent.name == "docs"}
    for page in reached & pages:
        reached |= set(re.findall(r"\]\(([\w-]+)\.md", (CHECKOUT / "docs" / f"{page}.md").read_text()))
    assert pages <= reached


@pytest.mark.parametrize("struct", [Record, Summary, RunInfo])
def test_every_field_is_in_the_page_of_files(struct: type[msgspec.Struct]) -> None:
    section = {Record: "records.jsonl", Summary: "summary.json", RunInfo: "run.json"}[struct]
    text = (CHECKOUT / "docs" / "files.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    first = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", first)) == {field.name for field in msgspec.structs.fields(struct)}


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asr_load"):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("asr_load")}
    return {name.split(".")[1] for name in found if "." in name}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_above_it_alone(room: str) -> None:
    later = ROOMS[ROOMS.index(room) + 1 :]
    for file in (CHECKOUT / "asr_load" / room).glob("*.py"):
        assert not imported(file) & set(later), file.name
    pages = (CHECKOUT / "docs" / "architecture.md").read_text()
    assert f"| `{room}/` |" in pages


def test_the_page_of_metrics_has_their_definitions() -> None:
    page = (CHECKOUT / "docs" / "metrics.md").read_text()
    for metric in METRICS.values():
        assert f"| `{metric.name}` | {metric.definition} |\n" in page, metric.name
