"""What `--reverse` writes into a folder: the source as its trainer keeps it, which converts again without any argument.

Every spec, on a made-up source of its first example: forward, reversed into a folder, forward again from that folder.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.synthetic import folder_image, synthetic

from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program

SPECS = sorted(path.stem for path in (Path(__file__).parents[2] / "specs").glob("*.yaml"))
LOSSY = [name for name in SPECS if any(rule.loss for rule in load_program(name).rules)]
OWN_CODE = [name for name in SPECS if load_program(name).spec.target.model is None]
EXACT = [name for name in SPECS if name not in (*LOSSY, *OWN_CODE)]


def settled(out: Path) -> dict[str, str]:
    names = ("config.json", "generation_config.json")
    return {name: (out / name).read_text() for name in names if (out / name).exists()}


CASES = [(name, n) for name in EXACT for n in range(len(load_program(name).spec.examples))]


@pytest.mark.parametrize(("name", "example"), CASES)
def test_the_folder_converts_again_by_itself(tmp_path: Path, name: str, example: int) -> None:
    program = load_program(name)
    made = synthetic(program, example, finite=True)
    source = made.save(tmp_path, program.spec.weights)
    quick = {"check": False, "checksums": False}
    convert(program, Request([source], assigned=made.arguments, **quick), tmp_path / "one")
    convert(program, Request([tmp_path / "one"], reverse=True, **quick), tmp_path / "back")
    convert(program, Request([tmp_path / "back"], **quick), tmp_path / "two")
    assert folder_image(tmp_path / "two") == folder_image(tmp_path / "one")
    assert settled(tmp_path / "two") == settled(tmp_path / "one")
