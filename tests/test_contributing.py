"""What contributors rely on: CONTRIBUTING.md, the requirements files, workflows and templates agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from conftest import CHECKOUT

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
