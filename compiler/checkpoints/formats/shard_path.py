"""Whether the file that an index names is a plain file of the index's own folder. Returns what is wrong; opens nothing."""

from __future__ import annotations

import re
from pathlib import Path


def shard_fault(folder: Path, file: str) -> str:
    """What is wrong with a shard's name, or nothing."""
    if file in ("", ".", "..") or re.search(r"[/\\:\0]", file) or not file.isprintable():
        return "is not the plain name of a file beside the index; it was not opened"
    shard = folder / file
    if not shard.is_file():
        return "is missing; download it too"
    inside, target = folder.resolve(), shard.resolve()
    # The Hugging Face cache keeps files in models--x/blobs and links to them from models--x/snapshots/REVISION.
    cached = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
    return "" if target.parent == inside or cached else "is a link that leaves the folder; it was not opened"
