"""Every code block of README.md and docs/tutorial.md is right.

A `console` block runs, in the order of the page: a line `$ ...` is a command; the lines below it up to the end of the block
are what it prints, both streams together. `...` stands for the rest of a line, alone on a line for any lines. A `python`
block runs where the page began. A `yaml` block is part of a shipped spec. Of an `sh` block, the commands are ones that exist,
with their options. `python tests/docs/test_tutorial.py` writes what the commands print into the pages.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from compiler.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "docs" / "tutorial.md", ROOT / "README.md")
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
ANY_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Shell:
    """Runs commands, each in the folder where the one before ended."""

    def __init__(self, place: Path) -> None:
        self.place, self.folder = place, place

    def said(self, command: str) -> str:
        """What a command prints."""
        if command.startswith("cd "):
            self.folder = self.folder / command.removeprefix("cd ")
            return ""
        words = re.sub(r"^(mapspec|compile) ", f"{sys.executable} -m compiler ", command)
        words = re.sub(r"^python ", f"{sys.executable} ", words)
        env = os.environ | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "TQDM_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }
        run = ["bash", "-c", f"{words} 2>&1"]
        text = subprocess.run(run, cwd=self.folder, env=env, capture_output=True, text=True, check=False).stdout
        return text.replace(f"{ROOT}/", "").replace(f"{self.folder}/", "")


def told(text: str, place: Path) -> str:
    """The page with what its commands print now; a block whose output is cut stays cut."""
    shell = Shell(place)

    def block(match: re.Match[str]) -> str:
        lines = []
        for part in re.split(r"^(?=\$ )", match[1], flags=re.MULTILINE):
            if not part:
                continue
            command, _, shown = part.partition("\n")
            found = shell.said(command.removeprefix("$ "))
            lines.append(f"{command}\n{shown if fits(shown, found) else found}")
        return f"```console\n{''.join(lines)}```"

    return BLOCK.sub(block, text)


def fits(shown: str, found: str) -> bool:
    """Whether an output is as it is shown, but for what `...` stands for."""
    lines = ["(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
             for line in shown.splitlines()]  # fmt: skip
    return re.fullmatch("".join(lines), found) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert BLOCK.search(text)
    assert told(text, tmp_path) == text
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        command = [sys.executable, "-c", code]
        subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True
        )


def test_a_page_that_says_otherwise_is_found(tmp_path: Path) -> None:
    wrong = "```console\n$ echo one\ntwo\n```"
    assert told(wrong, tmp_path) == "```console\n$ echo one\none\n```"
    (tmp_path / "here").mkdir()
    assert told("```console\n$ cd here\n$ basename $PWD\nthere\n```", tmp_path).endswith("PWD\nhere\n```")
    assert fits("a\n...\nd\n", "a\nb\nc\nd\n")
    assert not fits("a\n...\nd\n", "a\nb\nc\n")
    assert fits("KL ... nats\n", "KL 1e-9 nats\n")
    assert not fits("KL ... nats\n", "KL 1e-9\n")


# ---------------------------------------------------------------------------------------------------------------------
# Blocks that are not run


def wrong_command(line: str) -> str:
    """Why a command of an `sh` block does not exist; nothing if it does. Its files need not exist."""
    words = shlex.split(line, comments=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if words[1] in targets else f"no target {words[1]}"
    if words[:2] == ["pip", "install"]:
        named = re.fullmatch(r"([\w-]+)(?:\[(\w+)\])?", words[2])
        known = named and named[1] == project["name"] and named[2] in (None, *project["optional-dependencies"])
        return "" if known else f"not this package: {words[2]}"
    if words[:1] != ["mapspec"]:
        return f"unknown program {words[0]}"
    command = words[1] if words[1] in COMMANDS else "compile"
    parser = getattr(import_module(f"compiler.cli.{COMMANDS[command]}"), f"{command}_parser")()
    try:
        parser.parse(words[2:] if words[1] == command else words[1:])
    except (SystemExit, Exception) as error:
        return f"wrong usage: {error}"
    specs = [word for word in words[2:3] if command in ("run", "plan", "verify", "adapter") and word[0] != "-"]
    return next(
        (
            f"no spec {s}"
            for s in specs
            if s not in ("auto", "hf") and s[-5:] != ".yaml" and not (ROOT / f"specs/{s}.yaml").exists()
        ),
        "",
    )


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "index.md"], ids=lambda page: page.stem
)
def test_what_is_not_run_exists(page: Path) -> None:
    for language, code in ANY_BLOCK.findall(page.read_text()):
        if language == "sh":
            assert [(line, why) for line in code.splitlines() if line and (why := wrong_command(line))] == []
        elif language == "yaml":
            assert any(code in spec.read_text() for spec in (ROOT / "specs").glob("*.yaml")), code
        elif language in ("json", "lua"):  # settings of an editor that starts the language server
            started = re.search(r'"mapspec".*?"(\w+)" ?[\]}]', code, re.DOTALL)
            assert started is not None
            assert started[1] in COMMANDS
        else:
            assert language in ("console", "python"), "a block of a language that no test knows"


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in (
        "make nothing",
        "pip install other",
        "pip install 'mapspec[no]'",
        "ls",
        "mapspec run",
        "mapspec plan no x",
    ):
        assert wrong_command(line), line
    assert wrong_command("mapspec run --no-such-option qwen3 a b")
    assert not wrong_command("mapspec run qwen3 a b --dtype bfloat16  # a comment")


def test_links_work_from_anywhere() -> None:
    """PyPI shows README.md without the repository: links are absolute, and those to its own files exist."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    own = re.compile(
        r"https://(?:github\.com/mapspec/mapspec/(?:blob|tree)|raw\.githubusercontent\.com/mapspec/mapspec)/main/(.+)"
    )
    found = [one or other for one, other in links]
    assert len(found) > 10
    assert [link for link in found if not link.startswith("https://")] == []
    assert [link for link in found if (m := own.match(link)) and not (ROOT / m[1]).exists()] == []


if __name__ == "__main__":
    for one in PAGES:
        with tempfile.TemporaryDirectory() as name:
            one.write_text(told(one.read_text(), Path(name)))
