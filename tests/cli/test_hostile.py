"""The hostile inputs of `tests/fuzz/cases.py` against the command line; `make fuzz` runs all of them with every command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.portion import ALL

ROOT = Path(__file__).parent.parent.parent
HOSTILE = Path(__file__).parent.parent / "fuzz" / "hostile.py"
PLACES = os.pathsep.join([str(ROOT), str(HOSTILE.parent)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PLACES, "OMP_NUM_THREADS": "1"}


def judged(place: Path, *options: str, program: Path = HOSTILE) -> dict[str, Any]:
    words = [sys.executable, str(program), str(place / "judged"), *options]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_small_one_ends_as_it_should(tmp_path: Path) -> None:
    every = 1 if ALL else 6
    found = judged(tmp_path, "--light", "--commands", "run", "--every", str(every))
    assert found["wrong"] == []
    assert found["cases"] > 400 // every
    assert found["accepted"] > 30 // every


@pytest.mark.parametrize("only", ["doubled", "a name of 10 MB", "weights 100,000 dictionaries deep"])
def test_some_that_swell(tmp_path: Path, only: str) -> None:
    found = judged(tmp_path, "--only", only, "--commands", "run,detect")
    assert found["wrong"] == []


BREAKS = {
    "a path doubled": ("pickle_machine._Machine.count = lambda self, n: None", "status 99|killed|bytes of memory"),
    "a bit of a weight flipped": ("atomic_output.AtomicOutput.discard = lambda self: None", "it left or changed"),
    "acts: GLOBAL": ("pickle_globals.refuse = lambda *words: None", "it should have been refused"),
}


@pytest.mark.parametrize("only", BREAKS)
def test_the_judge_finds_what_it_looks_for(tmp_path: Path, only: str) -> None:
    broken, says = BREAKS[only]
    text = HOSTILE.read_text()
    assert text.count("\nif __name__") == 1
    lines = f"\nfrom compiler.checkpoints.formats import pickle_globals, pickle_machine\nfrom compiler.output import atomic_output\n\n{broken}\n\nif __name__"
    (tmp_path / "broken.py").write_text(text.replace("\nif __name__", lines))
    found = judged(tmp_path, "--only", only, "--commands", "run", program=tmp_path / "broken.py")
    assert any(re.search(says, problem) for problem in found["wrong"])
