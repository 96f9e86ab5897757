"""Which files of an existing output an earlier run wrote: only these may be replaced or removed by `--force`.

A folder's manifest (`mapspec.json`) lists the files that its run wrote, with their sizes; a listed file that has another
size, or is newer than the manifest, has been changed since and is the user's. A folder's own index
(`model.safetensors.index.json`) lists its shards. A `.pth` of mapspec ends with a mark, the comment of its zip.
A name alone never makes a file mapspec's: `model_ema.safetensors` stays. Raises OSError.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from compiler import strict_json

MANIFEST, INDEX = "mapspec.json", "model.safetensors.index.json"
MARK = b"mapspec"  # the comment of a zip
_MOST_BYTES = 200_000_000  # of a manifest or an index


def written_by_mapspec(path: Path, parts: str = "") -> set[Path]:
    """The files at `path`, a folder or one file, that an earlier run wrote or that the folder's own index names. `parts`
    is the glob of the parts of a state dict that a run writes into the folder."""
    if not is_folder(path):
        return {path} if is_file(path) and has_mark(path) else set()
    listed, changed = _of_manifest(path)
    marked = {file for file in path.glob(parts) if is_file(file) and has_mark(file)} if parts else set()
    return listed | (_of_index(path) - changed) | marked


def _of_manifest(folder: Path) -> tuple[set[Path], set[Path]]:
    """The files that a manifest lists: those as they were written, with the manifest, and those changed since."""
    content = _read(folder / MANIFEST)
    sizes = content.get("files") if "mapspec" in content else None
    if not isinstance(sizes, dict):
        return set(), set()
    newest = (folder / MANIFEST).lstat().st_mtime_ns
    same, changed = {folder / MANIFEST}, set[Path]()
    for name, size in sizes.items():
        if os.path.basename(name) != name or not is_file(folder / name):
            continue
        status = (folder / name).lstat()
        unchanged = status.st_size == size and status.st_mtime_ns <= newest
        (same if unchanged else changed).add(folder / name)
    return same, changed


def _of_index(folder: Path) -> set[Path]:
    """The index and the shards that it names."""
    weight_map = _read(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        return set()
    names = {name for name in weight_map.values() if isinstance(name, str) and name.endswith(".safetensors")}
    shards = {folder / name for name in names if os.path.basename(name) == name and is_file(folder / name)}
    return shards | {folder / INDEX}


def has_mark(path: Path) -> bool:
    """Whether a file ends with the mark."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(MARK) - 2))
        return file.read() == len(MARK).to_bytes(2, "little") + MARK


def add_mark(path: Path) -> None:
    """Give a zip without a comment the mark. Raises OSError."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        if file.read() != bytes(2):
            raise OSError(f"{path} is not a zip without a comment")
        file.seek(-2, os.SEEK_END)
        file.write(len(MARK).to_bytes(2, "little") + MARK)


def is_file(path: Path) -> bool:
    """Whether it is a regular file; a link is not."""
    return _mode(path, stat.S_ISREG)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; a link to one is not."""
    return _mode(path, stat.S_ISDIR)


def _mode(path: Path, test: Any) -> bool:
    try:
        return bool(test(path.lstat().st_mode))
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a regular file; empty for anything else."""
    if not is_file(path) or path.lstat().st_size > _MOST_BYTES:
        return {}
    try:
        content = strict_json.parse(path.read_bytes())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
