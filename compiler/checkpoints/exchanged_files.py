"""Detects files of ranks that were exchanged or copied over each other, where nothing else in them tells their rank.

torch.save names the root folder of its zip after the file that it writes, without the suffix. A renamed file keeps that name.
The name counts only where it is that of another file of the same set, so files that were all renamed, or
written through a buffer (`archive`), are accepted. Streams of torch before 1.6 have no such name.
Source: torch/csrc/jit, caffe2/serialize/inline_container.cc (PyTorchStreamWriter), unchanged from torch 1.6 to 2.13.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compiler.diagnostics import refuse

_HEAD = 30 + 1024  # bytes of the first record's header, and of its name


def refuse_exchanged(files: Sequence[Path]) -> None:
    """Raises Refusal where two files have each other's names inside, or the same one, as far as these are names of `files`."""
    by_stem = {path.stem: path for path in files}
    if len(by_stem) < len(files):  # the folder has the number of the rank
        return
    origins = {path: by_stem[stem] for path in files if (stem := _written_as(path)) in by_stem}
    owners: dict[Path, Path] = {}
    for path, origin in origins.items():
        if (first := owners.setdefault(origin, path)) is not path:
            copy, other = (path, first) if path != origin else (first, path)
            _refuse(copy, f"it was saved as {origin.name}, and so was {other.name}: one is a copy")
    for path, origin in origins.items():
        start = origin
        while start != path and start in origins:
            start = origins[start]
        if start == path != origin:
            _refuse(path, f"it was saved as {origin.name}: files of this folder were exchanged")


def _written_as(path: Path) -> str:
    """The root folder of a zip, which its first record has before its name; empty for other files."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")] if head.startswith(b"PK\3\4") else b""
    return name.decode(errors="replace").partition("/")[0]


def _refuse(path: Path, message: str) -> None:
    refuse(str(path), message, "unfit-parts", "copy the files of all ranks again, under their own names")
