"""What a terminal can show: colours, links, the width, and a progress bar. Nothing of it goes into a pipe.

NO_COLOR and TERM=dumb turn colours off, FORCE_COLOR turns them on (no-color.org, force-color.org). Links are OSC 8
sequences, which terminals without them ignore.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from compiler.progress import Progress

# Role of a part of a message -> SGR parameters. Only the eight basic colours, which every theme defines.
STYLES = {
    "error": "1;31", "warning": "1;33", "note": "36", "place": "1", "caret": "1;31", "hint": "32",
    "heading": "1", "good": "32", "bad": "31", "doubt": "33", "dim": "2", "command": "1;36",
}  # fmt: skip
DELAY = 0.4  # seconds before a bar appears


def coloured(stream: TextIO) -> bool:
    """Whether to write colours to a stream."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0", "false"):
        return True
    return is_terminal(stream)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that understands control sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width(stream: TextIO) -> int | None:
    """The columns of a terminal; None for a pipe or a file."""
    return max(20, shutil.get_terminal_size().columns) if stream.isatty() else None


def painter(stream: TextIO) -> Callable[[str, str], str]:
    """A function of a role and a text that returns the text in the colour of the role, or as it is."""
    if not coloured(stream):
        return plain
    return lambda role, text: f"\033[{STYLES[role]}m{text}\033[0m" if text and role in STYLES else text


def plain(role: str, text: str) -> str:
    """The text without a colour."""
    return text


def linked(stream: TextIO, path: str, text: str) -> str:
    """The text as a link to an existing file, if the stream is a terminal."""
    if not is_terminal(stream) or os.environ.get("NO_COLOR") or not os.path.isfile(path):
        return text
    address = Path(path).resolve().as_uri().replace("file://", f"file://{socket.gethostname()}", 1)
    return f"\033]8;;{address}\033\\{text}\033]8;;\033\\"


class Meter(Progress):
    """One progress bar on stderr: percent, bytes, rate and the time that is left; nothing unless stderr is a terminal.

    A phase that takes less than `DELAY` shows no bar.
    """

    def __init__(self, silent: bool = False) -> None:
        self.shown = not silent and is_terminal(sys.stderr)
        self.bar: Any = None
        self.lock = threading.Lock()

    def begin(self, what: str, total: int) -> Callable[[int], None]:
        self.end()
        if not self.shown:
            return super().begin(what, total)
        from tqdm import tqdm  # type: ignore[import-untyped]

        self.bar = tqdm(
            desc=what,
            total=total,
            unit="B",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            delay=DELAY,
            file=sys.stderr,
        )
        return self.advance

    def advance(self, size: int) -> None:
        """Called with the number of bytes that are done, from any thread."""
        with self.lock:
            if self.bar is not None:
                self.bar.update(size)

    def end(self) -> None:
        """Remove the bar."""
        with self.lock:
            if self.bar is not None:
                self.bar.close()
                self.bar = None

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
