"""Every command of docs/tutorial.md runs, in the order of the page, and says what the page says that it says.

A line `$ ...` is a command; the lines below it up to the end of the block are what it prints, both streams together.
`...` stands for the rest of a line, alone on a line for any lines. `python tests/docs/test_tutorial.py` writes the page anew.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
DATA = ROOT / "tests" / "data"
SOURCE = DATA / "oracles" / "minimind" / "dense_trained" / "source"
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def prepare(place: Path) -> None:
    """What the page starts with: weights, a tokenizer, an adapter."""
    shutil.copyfile(SOURCE / "model.pth", place / "model.pth")
    (place / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DATA / "tokenizer" / name, place / "tokenizer" / name)
    lora = DATA / "oracles" / "minimind_lora" / "lora_identity" / "source" / "lora_identity_64.pth"
    shutil.copyfile(lora, place / "lora.pth")


def said(command: str, place: Path) -> str:
    """What a command prints, in the folder of the page."""
    words = (
        command.replace("compile ", f"{sys.executable} -m compiler ", 1) if command.startswith("compile ") else command
    )
    words = words.replace("python ", f"{sys.executable} ", 1) if words.startswith("python ") else words
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    run = ["bash", "-c", f"{words} 2>&1"]
    text = subprocess.run(run, cwd=place, env=env, capture_output=True, text=True, check=False).stdout
    return text.replace(f"{ROOT}/", "").replace(f"{place}/", "")


def told(text: str, place: Path) -> str:
    """The page with what its commands print now; a block whose output is cut stays cut."""

    def block(match: re.Match[str]) -> str:
        lines = []
        for part in re.split(r"^(?=\$ )", match[1], flags=re.MULTILINE):
            if not part:
                continue
            command, _, shown = part.partition("\n")
            found = said(command.removeprefix("$ "), place)
            lines.append(f"{command}\n{shown if fits(shown, found) else found}")
        return f"```console\n{''.join(lines)}```"

    return BLOCK.sub(block, text)


def fits(shown: str, found: str) -> bool:
    """Whether an output is as it is shown, but for what `...` stands for."""
    lines = ["(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
             for line in shown.splitlines()]  # fmt: skip
    return re.fullmatch("".join(lines), found) is not None


def test_the_tutorial(tmp_path: Path) -> None:
    prepare(tmp_path)
    text = PAGE.read_text()
    assert len(BLOCK.findall(text)) > 5
    assert told(text, tmp_path) == text


def test_a_page_that_says_otherwise_is_found(tmp_path: Path) -> None:
    wrong = "```console\n$ echo one\ntwo\n```"
    assert told(wrong, tmp_path) == "```console\n$ echo one\none\n```"
    assert fits("a\n...\nd\n", "a\nb\nc\nd\n")
    assert not fits("a\n...\nd\n", "a\nb\nc\n")
    assert fits("KL ... nats\n", "KL 1e-9 nats\n")
    assert not fits("KL ... nats\n", "KL 1e-9\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        PAGE.write_text(told(PAGE.read_text(), Path(name)))
