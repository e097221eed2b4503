"""The documentation and the files that contributors rely on: they agree with each other and with the code."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from locust.argument_parser import get_empty_argument_parser, setup_parser_arguments
from packaging.specifiers import SpecifierSet

from asr_load.load.shapes import add_search_options, add_shape_options
from asr_load.options.parser import add_options
from asr_load.results.record_file import RECORDS, RecordFile
from asr_load.results.runfile import write_run
from asr_load.results.summary import summarise_folder
from asr_load.settings.request import read_request
from conftest import CHECKOUT
from harness.patience import PATIENCE_S
from harness.records import failure, record, run_info

FRONT = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(CHECKOUT / name for name in FRONT), *sorted((CHECKOUT / "docs").rglob("*.md"))]
ROOMS = (
    "audio", "stream", "schedule", "apis", "options", "http", "realtime", "engine", "results", "report", "settings",
    "web", "load", "selftest", "cli",
)  # fmt: skip


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def shown() -> list[tuple[str, str]]:
    """The Locust command lines that pages show: the page's name, and the line."""
    found = []
    for page in PAGES:
        text = page.read_text()
        lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
        lines += re.findall(r"`(locust [^`]*)`", text)
        found += [
            (page.stem, line)
            for line in lines
            if line.startswith("locust -") and not set(line.split()) & {"…", "--help"}
        ]
    return found


@pytest.mark.parametrize(("page", "line"), shown())
def test_documented_command_lines_are_valid(page: str, line: str) -> None:
    parser = get_empty_argument_parser()
    setup_parser_arguments(parser)
    for add in (add_options, add_search_options, add_shape_options):
        add(parser)
    options, unknown = parser.parse_known_args(shlex.split(line, comments=True)[1:])
    assert not [word for word in unknown if word.startswith("-")], page
    read_request(options, options.model, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        name, _, place = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if place:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), target


def test_readme_fits_a_page_and_leads_to_all_pages() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert text.count("\n") <= 150
    reached = set(re.findall(r"docs/([\w/-]+\.md)", text))
    pages = {str(page.relative_to(CHECKOUT / "docs")) for page in PAGES if "docs" in page.parts}
    for page in sorted(reached & pages):
        folder = Path(page).parent
        linked = re.findall(r"\]\(([\w/-]+\.md)", (CHECKOUT / "docs" / page).read_text())
        reached |= {str(folder / name) for name in linked}
    assert pages <= reached


def imported(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("asr_load"):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("asr_load")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_packages_import_only_from_those_above(room: str) -> None:
    later = ROOMS[ROOMS.index(room) + 1 :]
    for file in (CHECKOUT / "asr_load" / room).glob("*.py"):
        assert not {name.split(".")[1] for name in imported(file) if "." in name} & set(later), file.name
    pages = (CHECKOUT / "docs" / "architecture.md").read_text()
    assert f"| `{room}/` |" in pages


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Not even late, within functions."""
    files = {
        ".".join(file.relative_to(CHECKOUT).with_suffix("").parts): file
        for file in (CHECKOUT / "asr_load").rglob("*.py")
        if file.stem[:2] != "__"
    }
    TopologicalSorter({name: imported(file) & files.keys() for name, file in files.items()}).prepare()


def _blocks_of(page: str, language: str) -> list[str]:
    text = (CHECKOUT / "docs" / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_queries_of_the_analysis_page_run(tmp_path: Path) -> None:
    """Each query runs in a results folder and prints something."""
    records = [record(n) for n in range(30)] + [failure(30, "http_503")]
    records = [msgspec.structs.replace(one, ended_at=one.end) for one in records]
    info = run_info(slos=["ttft:p95:1"])
    file = RecordFile(tmp_path / RECORDS)
    for one in records:
        file.write(one)
    file.close()
    write_run(tmp_path, info)
    summarise_folder(tmp_path)
    (code,) = _blocks_of("analysis.md", "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert code.count("print(") == 5
    assert "http_503" in done.stdout
    (lines,) = _blocks_of("analysis.md", "sh")
    questions = [line for line in lines.splitlines() if line.startswith("jq")]
    assert len(questions) == 5
    for question in questions if shutil.which("jq") else ():
        asked = subprocess.run(["sh", "-c", question], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.strip(), question


def test_tests_named_in_security_md_exist() -> None:
    named = re.findall(r"\]\(tests/(\w+\.py)\): ((?:`\w+`(?:, )?)+)", (CHECKOUT / "SECURITY.md").read_text())
    assert named
    for file, names in named:
        defined = set(re.findall(r"^def (test_\w+)\(", (CHECKOUT / "tests" / file).read_text(), re.MULTILINE))
        assert set(re.findall(r"\w+", names)) <= defined, file


def printed() -> list[str]:
    """The texts in the code that may be printed, with … for each value. Docstrings are excluded."""
    texts = []
    for file in (CHECKOUT / "asr_load").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        documents = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                texts.append(re.sub(r"%[sd]", "…", node.value))
    return texts


def test_symptoms_in_troubleshooting_are_printed_in_these_words() -> None:
    page = " ".join((CHECKOUT / "docs" / "troubleshooting.md").read_text().split())
    symptoms = re.findall(r"\*\*`(.*?)`\*\*", page)
    assert len(symptoms) > 30
    texts = printed()
    assert not [symptom for symptom in symptoms if not any(symptom.strip("… ") in text for text in texts)]


PAGE = (CHECKOUT / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
FORMS = [CHECKOUT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug_report", "feature_request")]


def test_contributing_fits_on_a_page_and_names_real_targets() -> None:
    assert len(PAGE.split()) <= 500
    targets = set(re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", PAGE))
    assert {"setup", "check", "test", "test-long", "bench"} <= named <= targets


def test_contributing_names_real_files() -> None:
    for name in re.findall(r"`((?:asr_load|asr_server|tests)/[\w/.]+)`", PAGE):
        assert (CHECKOUT / name).exists(), name


def test_ci_tests_the_python_versions_of_the_classifiers() -> None:
    prefix = "Programming Language :: Python :: 3."
    named = [one.removeprefix(prefix) for one in PROJECT["project"]["classifiers"] if one.startswith(prefix)]
    (ci,) = (file for file in WORKFLOWS if file.name == "ci.yml")
    tested: list[str] = yaml.safe_load(ci.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert tested == [f"3.{minor}" for minor in named]
    (wheels,) = re.findall(r"cp\{([\d,]+)\}-", PROJECT["tool"]["cibuildwheel"]["build"])
    assert wheels.split(",") == [version.replace(".", "") for version in tested]
    assert all(version in SpecifierSet(PROJECT["project"]["requires-python"]) for version in tested)
    assert "3.10" not in SpecifierSet(PROJECT["project"]["requires-python"])


def test_ci_runs_the_commands_of_a_submission() -> None:
    (ci,) = (file for file in WORKFLOWS if file.name == "ci.yml")
    steps: list[dict[str, Any]] = yaml.safe_load(ci.read_text())["jobs"]["test"]["steps"]
    of_ci = [step["run"] for step in steps if step.get("run", "").startswith("make ")]
    assert of_ci == re.findall(r"^make [\w-]+$", (CHECKOUT / ".ci" / "run").read_text(), re.MULTILINE)


def test_image_tags_are_the_version() -> None:
    version = PROJECT["project"]["version"]
    for name in ("docker-compose.yml", "kubernetes.yaml", "kustomization.yaml", "docs/containers.md"):
        text = (CHECKOUT / name).read_text()
        tags = re.findall(r"\basr-load(?:-server)?:(\d[\w.]*)|\bnewTag: (\d[\w.]*)", text)
        assert tags, name
        assert {"".join(found) for found in tags} == {version}, name


def test_each_package_is_pinned_in_one_file() -> None:
    pinned: dict[str, Path] = {}
    for file in sorted(CHECKOUT.glob("requirements*.txt")):
        for package in re.findall(r"^([\w.-]+)==", file.read_text(), re.MULTILINE):
            assert package not in pinned, (package, pinned.get(package), file)
            pinned[package] = file


def test_bug_reports_and_pull_requests_ask_for_run_json_and_the_verdict() -> None:
    required = [part["id"] for part in yaml.safe_load(FORMS[0].read_text())["body"] if part.get("validations")]
    assert {"run", "verdict", "command", "version"} <= set(required)
    template = (CHECKOUT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text()
    assert "run.json" in template
    assert "verdict" in template


@pytest.mark.long
@pytest.mark.parametrize(("schema", "files"), [("github-workflows", WORKFLOWS), ("github-issue-forms", FORMS)])
def test_github_accepts_workflows_and_issue_forms(schema: str, files: list[Path]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


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


THEMES = {
    "apis", "benchmarks", "capacity", "chunk_sender", "compose", "cut", "docs", "e2e", "fleet", "gateways",
    "kubernetes", "mistakes", "moonshine", "native", "network", "open_loop", "package", "privacy", "realtime",
    "server", "stamps",
}  # fmt: skip
"""Test files of whole programs, whole packages, asr_server, and files outside of the packages."""

TESTED_WITH = {
    "audio_prepare": "cli_prepare", "clip": "convert", "decoder": "convert", "download": "hub", "headline": "view",
    "master": "fleet", "mixed_order": "mix", "option": "table", "parser": "table", "plugin": "lifecycle",
    "prepared": "shard", "publisher": "e2e", "record_file": "record", "reports": "e2e", "schedule_loop": "arrivals",
    "solo": "e2e", "words": "report_summary",
}  # fmt: skip
"""Modules of more than 60 lines whose tests are those of another module or theme."""


def test_each_module_has_a_test_file_and_each_test_file_a_module() -> None:
    files = [file for file in (CHECKOUT / "asr_load").rglob("*.py") if not file.stem.startswith("__")]
    count = Counter(file.stem for file in files)
    modules = {
        f"{file.parent.name}_{file.stem}"
        if count[file.stem] > 1 and file.parent.name != "asr_load"
        else file.stem: file
        for file in files
    }
    tests = {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")}
    assert sorted(tests - modules.keys() - THEMES) == []
    large = {name for name, file in modules.items() if file.read_text().count("\n") > 60}
    assert sorted(large - tests) == sorted(TESTED_WITH)
    assert tests >= THEMES | set(TESTED_WITH.values())


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
