"""A folder or file that appears whole or not at all.

Everything is written to a hidden sibling; only `finish` gives it its name. What a user already keeps in a folder that
is written again (`force`) stays, except weights that would contradict the new ones.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType

from compiler.diagnostics import refuse

_WEIGHTS = (
    "model*.safetensors",
    "model*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
)


class Output:
    """Context manager around a hidden sibling of `path`; `place` is where to write."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.force = force
        self.place = path.parent / f".{path.name}.mapspec-partial"
        self.made: list[Path] = []  # parents that were not there, innermost first

    def check(self) -> None:
        """Refuse, before any work, what could not be finished. Raises Refusal."""
        name = str(self.path)
        if self.path.is_dir() and any(self.path.iterdir()) and not self.force:
            refuse(
                name, "the output folder is not empty", "output-exists", "choose another, or --force to write into it"
            )
        if self.path.is_file() and not self.force:
            refuse(name, "the output file exists", "output-exists", "choose another, or --force to replace it")
        parent = self.path.absolute().parent
        existing = next(p for p in (parent, *parent.parents) if p.exists())
        if not existing.is_dir():
            refuse(name, f"{existing} is a file, not a folder", "output-unwritable")
        if not os.access(existing, os.W_OK):
            refuse(name, f"nothing may be written in {existing}", "output-unwritable", "check its permissions")

    def replaces(self, file: Path) -> bool:
        """Whether `finish` would put something else in the place of this file or folder."""
        inside = file.resolve().parent == self.path.resolve() and any(fnmatch(file.name, p) for p in _WEIGHTS)
        return inside or file.resolve() == self.path.resolve()

    def __enter__(self) -> Output:
        self.check()
        parent = self.path.absolute().parent
        self.made = [p for p in (parent, *parent.parents) if not p.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        self.discard()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()
        for folder in self.made:
            with suppress(OSError):  # the finished output lies in it
                folder.rmdir()

    def discard(self) -> None:
        if self.place.is_dir():
            shutil.rmtree(self.place)
        else:
            self.place.unlink(missing_ok=True)

    def finish(self) -> None:
        """Make what was written durable and give it its name."""
        if self.place.is_dir():
            self._finish_folder()
        else:
            _sync(self.place)
            self.place.replace(self.path)
        _sync(self.path.absolute().parent)

    def _finish_folder(self) -> None:
        for file in self.place.iterdir():
            _sync(file)
        _sync(self.place)
        if not self.path.is_dir():
            self.path.unlink(missing_ok=True)
            self.place.rename(self.path)
            return
        stale = {p.name for pattern in _WEIGHTS for p in self.path.glob(pattern)}
        for old in self.path.iterdir():
            if old.name not in stale and not (self.place / old.name).exists():
                old.rename(self.place / old.name)
        aside = self.path.parent / f".{self.path.name}.mapspec-replaced"
        shutil.rmtree(aside, ignore_errors=True)
        self.path.rename(aside)
        self.place.rename(self.path)
        shutil.rmtree(aside)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
