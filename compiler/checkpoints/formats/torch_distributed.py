"""A folder of torch.distributed.checkpoint: its `.metadata`, read without torch, and where the bytes of its tensors lie.

The metadata is a pickle that says, of every tensor, its chunks (offsets and sizes), and of every chunk, which bytes of
which `*.distcp` file hold it as torch.save writes it. What the trainer had nested is nested again in `tree`; a tensor of
several chunks is a `Joined`. Nothing is executed. Refuses chunks that do not tile their tensor, files that are missing
or outside of the folder, and compressed items.
Source: torch/distributed/checkpoint/metadata.py, filesystem.py (`_StorageInfo`, `_write_item`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from compiler.checkpoints.formats.boxes import Box, Untiled, tiled
from compiler.checkpoints.formats.pickle_globals import Global, Inert, Storage, Unreadable, View
from compiler.checkpoints.formats.pickle_machine import MAX_BYTES, load
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.shard_path import shard_fault
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, dense_strides
from compiler.checkpoints.formats.torch_save import Places, open_zip
from compiler.diagnostics import refuse
from compiler.dtypes import ITEM_SIZES

_MOST_OBJECT, _MOST_OBJECTS = 8 << 20, 16 << 20  # bytes of an object that is no tensor, and of all of them
Sizes = tuple[int, ...]
Chunk = tuple[Sizes, Sizes]  # offsets and sizes


class Distributed:
    """One checkpoint: `tree` holds a View for every tensor, which `locate` finds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checksums: dict[tuple[Path, int, int], int] = {}
        self.used: dict[Path, int] = {}  # the files, and their sizes
        self.items: dict[tuple[Path, int, int], tuple[Any, Places]] = {}  # what lies where, once it was read
        self.left = _MOST_OBJECTS
        if path.stat().st_size > MAX_BYTES:
            self.refuse(f"a pickle of more than {MAX_BYTES >> 20} MiB", "unsupported-pickle", "no metadata needs that")
        metadata, _ = load(path.read_bytes(), str(path))
        known = _fields(metadata, "Metadata")
        entries, stored, paths = (known.get(n) for n in ("state_dict_metadata", "storage_data", "planner_data"))
        if not isinstance(entries, dict) or not isinstance(stored, dict):
            hint = "is it the `.metadata` of torch.distributed.checkpoint?"
            self.refuse("not the metadata of a distributed checkpoint", "unknown-format", hint)
        self.stored = {self.key(index): info for index, info in stored.items()}
        self.chunks: dict[str, list[Chunk]] = {}
        self.tree: dict[str, Any] = {}
        for name, entry in entries.items():
            self.put(paths.get(name) if isinstance(paths, dict) else None, name, self.entry(name, entry))

    @property
    def files(self) -> list[Path]:
        return sorted(self.used)

    def entry(self, name: str, entry: Any) -> Any:
        """A tensor as a View whose storage carries its name, anything else as the object it is."""
        if isinstance(entry, Inert) and entry.cls.name == "BytesStorageMetadata":
            return self.object(name)
        fields = _fields(entry, "TensorStorageMetadata")
        properties, shape, chunks = (fields.get(key) for key in ("properties", "size", "chunks"))
        given = properties.state if isinstance(properties, Inert) else None
        dtype = (
            given[0] if isinstance(given, tuple) and given else given.get("dtype") if isinstance(given, dict) else None
        )
        if not isinstance(dtype, Global) or not _sizes(shape) or not isinstance(chunks, list):
            self.refuse(f"the entry of {shown(name)} makes no sense")
        if dtype.name not in ITEM_SIZES:
            return Unreadable(f"a tensor of the element type {dtype.name}")
        boxes = []
        for chunk in chunks:
            box = _fields(chunk, "ChunkStorageMetadata")
            offsets, sizes = box.get("offsets"), box.get("sizes")
            if not _sizes(offsets) or not _sizes(sizes) or not len(offsets) == len(sizes) == len(shape):
                self.refuse(f"a chunk of {shown(name)} makes no sense")
            boxes.append((offsets, sizes))
        self.chunks[name] = boxes
        return View(Storage(name, dtype.name, 0), dtype.name, 0, shape, dense_strides(shape))

    def object(self, name: str) -> Any:
        """What torch.save wrote for it; None where it is large, or much was read already."""
        path, start, length = place = self.place(name, None)
        if place not in self.items:
            self.left -= length
            if length > _MOST_OBJECT or self.left < 0:
                return None
            self.items[place] = open_zip(path, lambda tree: (), (start, length))
        return self.items[place][0]

    def put(self, path: Any, name: str, value: Any) -> None:
        """At its place in the tree: `path`, where the trainer had it nested, or its plain name."""
        keys = path if isinstance(path, tuple) and path and all(type(w) in (str, int) for w in path) else (name,)
        node = self.tree
        for word in keys[:-1]:
            node = node.setdefault(str(word), {})
            if not isinstance(node, dict):
                self.refuse(f"{shown(name)} is inside something that is not a dictionary")
        if str(keys[-1]) in node:
            self.refuse(f"{shown(name)} is there twice")
        node[str(keys[-1])] = value

    # -----------------------------------------------------------------------------------------------------------------

    def locate(self, name: str, view: View) -> Tensor | Joined:
        """The stored tensor of a View of this tree. Raises Refusal."""
        key, shape = view.storage.key, view.shape
        chunks = [chunk for chunk in self.chunks[key] if 0 not in chunk[1]]
        if not chunks and 0 in shape:
            chunks = self.chunks[key][:1]
            shape = chunks[0][1] if chunks else shape
        parts = [Box(offsets, sizes, self.chunk(name, key, view.dtype, offsets, sizes)) for offsets, sizes in chunks]
        try:
            return tiled(name, parts, shape)
        except Untiled as problem:
            self.refuse(f"the chunks of {shown(name)} {problem}")

    def chunk(self, name: str, key: str, dtype: str, offsets: Sizes, sizes: Sizes) -> Tensor:
        path, start, length = place = self.place(key, offsets)
        if place not in self.items:
            self.items[place] = open_zip(path, lambda tree: [tree] if isinstance(tree, View) else [], (start, length))
        tree, places = self.items[place]
        if not isinstance(tree, View) or (tree.dtype, tree.shape) != (dtype, sizes):
            self.refuse(
                f"what is stored of {shown(key)} at {list(offsets)} is not the {dtype} of {list(sizes)} it says"
            )
        self.checksums |= places.checksums
        return Places(path, places.extents).locate(name, tree)

    def place(self, name: str, offsets: Sizes | None) -> tuple[Path, int, int]:
        """(file, first byte, bytes) of an item."""
        info = self.stored.get((name, offsets))
        if info is None and offsets is not None and not any(offsets):
            info = self.stored.get((name, None))
        fields = _fields(info, "_StorageInfo")
        file, extent = fields.get("relative_path"), (fields.get("offset"), fields.get("length"))
        if not isinstance(file, str) or not _sizes(extent):
            self.refuse(f"the metadata has no location for {shown(name)}")
        if problem := shard_fault(self.path.parent, file):
            refuse(str(self.path), f"its file {file[:200]!r} {problem}", "bad-index")
        if fields.get("transform_descriptors"):
            hint = "save it again without extensions of the storage writer"
            self.refuse(f"{shown(name)} is stored compressed or encrypted", "unsupported-tensor", hint)
        path, (start, length) = self.path.parent / file, extent
        if path not in self.used:
            self.used[path] = path.stat().st_size
        if start + length > self.used[path]:
            refuse(str(path), f"it ends before {shown(name)} does; it was cut short", "damaged-file", "copy it again")
        return path, start, length

    def key(self, index: Any) -> tuple[str, Sizes | None]:
        fields = _fields(index, "MetadataIndex")
        name, offsets = fields.get("fqn"), fields.get("offset")
        if not isinstance(name, str) or not (offsets is None or _sizes(offsets)):
            self.refuse("an entry of its table makes no sense")
        return name, offsets

    def refuse(self, problem: str, kind: str = "damaged-file", hint: str = "copy the folder again") -> NoReturn:
        refuse(str(self.path), problem, kind, hint)


def _fields(value: Any, name: str) -> dict[Any, Any]:
    """The attributes of an instance of a class of that name; empty for anything else."""
    fits = isinstance(value, Inert) and value.cls.name == name and isinstance(value.state, dict)
    return value.state if fits else {}


def _sizes(values: Any) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and len(values) <= 64 and all(type(n) is int and 0 <= n < 1 << 62 for n in values)
