"""Makes docs/images/terminal-80.svg and terminal-120.svg: what a first conversion prints, and an error, in colours.

The commands run in a temporary folder; the pictures load nothing from elsewhere. Needs the extra `docs`.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "mapspec sample demo",
    "mapspec detect demo/model.pth",
    "mapspec run qwen3 demo/model.pth out",
    "mapspec run qwen3 demo/model.pth other --set num_attention_heads=3",
    "mapspec verify qwen3 demo/model.pth out --source-spec minimind",
)


def said(command: str, columns: int, folder: str) -> str:
    """What a command prints on a terminal of so many columns, with its prompt."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    words = [sys.executable, "-m", "compiler", *command.split()[1:]]
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(words, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        found = b""
        with suppress(OSError):  # the end of a terminal
            while chunk := os.read(ours, 1 << 16):
                found += chunk
    os.close(ours)
    text = re.sub(r"\x1b\]8;.*?\x1b\\", "", found.decode()).replace("\r\n", "\n")
    lines = (line.rpartition("\r")[2] for line in text.splitlines())
    lines = (line for line in lines if line.strip() and "%|" not in line)  # a bar is gone at the end
    return "\n".join([f"\033[1m$ {command}\033[0m", *lines, ""])


def picture(columns: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        texts = [said(command, columns, folder) for command in COMMANDS]
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi("\n".join(texts)), soft_wrap=False)
    svg = console.export_svg(title=f"{columns} columns", unique_id=f"terminal-{columns}")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    return "".join(f"{line.rstrip()}\n" for line in svg.splitlines())


if __name__ == "__main__":
    for width in (80, 120):
        (ROOT / "docs" / "images" / f"terminal-{width}.svg").write_text(picture(width), encoding="utf-8")
