"""What others meet first: workflows, issue forms and package metadata agree with each other and with the repository."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from compiler.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path: Path) -> dict[str, Any]:
    """A YAML file; YAML 1.1 reads the key `on` as true."""
    content = yaml.safe_load(path.read_text())
    return {("on" if key is True else key): value for key, value in content.items()}


def jobs() -> list[tuple[str, dict[str, Any]]]:
    """Every job of every workflow."""
    return [(f"{path.stem}.{name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def test_the_matrix_has_every_supported_python() -> None:
    supported = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    matrix = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) == supported
    assert PROJECT["requires-python"] == f">={min(supported, key=lambda v: int(v[2:]))}"
    releases = {entry["transformers"] for entry in matrix["include"]}
    assert {"4.57.6", "5.0.0", "newest"} == releases
    assert "transformers>=4.57" in PROJECT["optional-dependencies"]["proof"]


@pytest.mark.parametrize(("name", "job"), jobs(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_job_is_bounded_and_runs_what_exists(name: str, job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 60
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for step in job["steps"]:
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
        for line in step.get("run", "").splitlines():
            if target := re.match(r"make (\S+)", line):
                assert target[1] in targets
            if command := re.search(r"bin/mapspec ([^)]+)", line):
                words = command[1].split()
                known = words[0] if words[0] in COMMANDS else "compile"
                parser = getattr(import_module(f"compiler.cli.{COMMANDS[known]}"), f"{known}_parser")()
                flags = {flag for action in parser._actions for flag in action.option_strings}
                assert {word for word in words if word.startswith("--") and "=" not in word} <= flags | {"--version"}


def test_only_the_jobs_that_publish_may_write() -> None:
    for path in WORKFLOWS:
        assert read(path)["permissions"] == {"contents": "read"}
    writing = {name for name, job in jobs() if "write" in str(job.get("permissions", ""))}
    assert writing == {"docs.deploy", "release.publish"}
    assert not any("secrets." in path.read_text() for path in WORKFLOWS)


def test_a_release_is_made_of_the_tag_alone() -> None:
    assert read(ROOT / ".github/workflows/release.yml")["on"] == {"push": {"tags": ["v*"]}}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_something(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    ids = [entry["id"] for entry in form["body"]]
    assert len(set(ids)) == len(ids)
    assert any(entry.get("validations", {}).get("required") for entry in form["body"])
    for command in re.findall(r"`mapspec (\w+)", path.read_text()):
        assert command in COMMANDS


def test_a_checkpoint_that_no_spec_fits_comes_with_what_detect_prints() -> None:
    text = (ROOT / ".github/ISSUE_TEMPLATE/no-spec-fits.yml").read_text()
    assert "mapspec detect --json" in text


def test_the_core_needs_neither_torch_nor_transformers() -> None:
    names = {re.split(r"[><=\[ ]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert names == {"safetensors", "pyyaml", "jsonschema", "jinja2", "numpy", "ruff", "tqdm"}
    extras = PROJECT["optional-dependencies"]
    assert {re.split(r"[><=]", requirement)[0] for requirement in extras["proof"]} == {"torch", "transformers"}
    assert "mapspec[proof]" in extras["test"]
