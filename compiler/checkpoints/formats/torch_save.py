"""Files of torch.save, read without torch: their object, and the byte ranges of its tensors.

Takes a path; returns the pickled object, its tensors as `View`s, and a `Places` that locates a view. Two formats: the
zip of torch >= 1.6 (a `data.pkl` and one record per storage) and the older stream (magic number, pickle, storages).
Refuses big-endian files, TorchScript and other zip files, storages whose size contradicts the pickle, views that leave
their storage.
Source: torch/serialization.py, `_save`, `_load`, `_legacy_save`, `_legacy_load`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from compiler.checkpoints.formats.pickle_globals import STORAGE_TYPES, STORED_SIZES, Global, Storage, Unfit, View
from compiler.checkpoints.formats.pickle_machine import MAX_BYTES, load
from compiler.checkpoints.formats.stored_tensor import Tensor, span
from compiler.checkpoints.formats.zip_directory import Archive, Slice
from compiler.diagnostics import listed, refuse
from compiler.dtypes import ITEM_SIZES

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_BYTES = 1 << 46  # of one logical tensor; an expanded view costs its maker nothing


@dataclass
class Places:
    """The byte extents of one file's storages, filled in as storages are located, and their checksums."""

    path: Path
    extents: dict[str, tuple[int, int]] = field(default_factory=dict)
    checksums: dict[tuple[Path, int, int], int] = field(default_factory=dict)

    def locate(self, name: str, view: View) -> Tensor:
        """The tensor that a view describes. Refused where the view leaves its storage."""
        storage, item = view.storage, ITEM_SIZES[view.dtype]
        start, end = self.extents[storage.key]
        if storage.part is not None:
            first, count = (n * STORED_SIZES[storage.dtype] for n in storage.part)
            if first + count > end - start:
                self.refuse(name, "its storage view exceeds the storage")
            start, end = start + first, start + first + count
        shape, strides, offset = view.shape, view.strides, view.offset
        if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 64):
            self.refuse(name, "its shape and strides do not fit each other")
        if not all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *shape, *strides)):
            self.refuse(name, "its shape, strides or offset are not sizes")
        length = span(shape, strides)
        if length and (offset + length) * item > end - start:
            self.refuse(name, f"it reaches byte {(offset + length) * item:,} of a storage of {end - start:,}")
        tensor = Tensor(
            name, view.dtype, shape, strides, self.path, start + offset * item if length else start, (start, end)
        )
        if tensor.nbytes > _MOST_BYTES:
            self.refuse(name, f"it expands {end - start:,} stored bytes to {tensor.nbytes:,}")
        return tensor

    def refuse(self, name: str, problem: str) -> NoReturn:
        refuse(
            str(self.path), f"the tensor {name!r} is damaged: {problem}", "damaged-file", "download or copy it again"
        )


def open_zip(path: Path, locating: Callable[[Any], Any], part: tuple[int, int] | None = None) -> tuple[Any, Places]:
    """Open a zip of torch.save. `locating` picks, from the object, the views whose places are wanted.

    `part` is its (first byte, length) where it is one of several in a file.
    """
    with path.open("rb", buffering=0) as file:
        base = part[0] if part else 0
        archive = Archive(Slice(file, *part) if part else file, str(path))
        root = _root(archive)
        order = archive.records.get(f"{root}/byteorder")
        if order is not None and (byte_order := archive.read(order) if order.size < 16 else b"") != b"little":
            what = "it was written on a big-endian machine" if byte_order == b"big" else "its byte order is unknown"
            refuse(str(path), what, "unknown-format", "save it again on a little-endian machine")
        pickled = archive.records[f"{root}/data.pkl"]
        if pickled.size > MAX_BYTES:
            refuse(
                str(path), f"its data.pkl has {pickled.size:,} bytes", "unsupported-pickle", "no state dict needs that"
            )
        storages: dict[str, Storage] = {}
        tree, _ = load(archive.read(pickled), str(path), lambda saved: _storage(saved, storages, str(path)))
        places = Places(path)
        for view in locating(tree):
            key, size = view.storage.key, STORED_SIZES[view.storage.dtype]
            if key in places.extents:
                continue
            record = archive.records.get(f"{root}/data/{key}")
            if record is None:
                refuse(
                    str(path), f"the record of storage {key!r} is missing", "damaged-file", "download or copy it again"
                )
            # A view of odd bytes under a wider type rounds the claim down.
            if record.size // size != view.storage.numel:
                message = f"storage {key!r} has {record.size:,} bytes, but {view.storage.numel:,} elements of {size}"
                refuse(str(path), message, "damaged-file", "download or copy it again")
            start = base + archive.locate(record)
            places.extents[key] = start, start + record.size
            if record.crc:
                places.checksums[path, start, start + record.size] = record.crc
    return tree, places


def open_legacy(path: Path) -> tuple[Any, Places]:
    """Open a stream of torch.save before 1.6, or with `_use_new_zipfile_serialization=False`."""
    name = str(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _, position = load(data, name)
        version, position = load(data, name, start=position)
        system, position = load(data, name, start=position)
        if version != 1001:
            refuse(name, "torch.save's old format in an unknown version; only 1001 is known", "unknown-format")
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            refuse(
                name,
                "it was written on a big-endian machine",
                "unknown-format",
                "save it again on a little-endian machine",
            )
        storages: dict[str, Storage] = {}
        tree, position = load(data, name, lambda saved: _storage(saved, storages, name), position)
        keys, position = load(data, name, start=position)
        places = Places(path)
        if (
            not isinstance(keys, list)
            or len(keys) != len(storages)
            or not all(type(k) is str and k in storages for k in keys)
        ):
            refuse(name, "the list of its storages contradicts its pickle", "damaged-file", "download or copy it again")
        for key in keys:
            storage = storages[key]
            start = position + 8
            position = start + storage.numel * STORED_SIZES[storage.dtype]
            claimed = int.from_bytes(data[start - 8 : start], "little")
            if claimed != storage.numel or position > len(data):
                message = (
                    f"storage {key!r} has {claimed:,} elements of {storage.numel:,}, or the file is cut short there"
                )
                refuse(name, message, "damaged-file", "download or copy it again")
            places.extents[key] = start, position
        if position != len(data):
            refuse(name, f"{len(data) - position:,} stray bytes follow its last storage", "damaged-file")
    return tree, places


def _root(archive: Archive) -> str:
    """The folder inside the zip that holds data.pkl. Refused, by its kind, where the zip is something else."""
    roots = [n.removesuffix("/data.pkl") for n in archive.records if n.endswith("/data.pkl") and n.count("/") == 1]
    names = list(archive.records)
    if any(n.endswith("/constants.pkl") or "/code/" in n for n in names):
        hint = "torch.save(torch.jit.load(path).state_dict(), 'weights.pth') gives a checkpoint"
        refuse(archive.path, "a TorchScript archive: a compiled program, not a checkpoint", "unknown-format", hint)
    if any(n.endswith("serialized_exported_program.json") or n.endswith("/archive_format") for n in names):
        hint = "save the state_dict() of the model instead"
        refuse(archive.path, "a package of torch.export: a program, not a checkpoint", "unknown-format", hint)
    if len(roots) != 1:
        hint = "if it packs checkpoints, unpack it first"
        message = f"a zip file, but not one of torch.save; it holds {listed(names, 4) or 'nothing'}"
        refuse(archive.path, message, "unknown-format", hint)
    return roots[0]


def _storage(saved: Any, storages: dict[str, Storage], path: str) -> Any:
    """The storage that a persistent id names: (`storage`, type, key, location, numel) and, formerly, a part of it."""
    if type(saved) is not tuple or len(saved) < 2:
        raise Unfit("a persistent id of an unknown form")
    if saved[0] == "module":  # a class, beside its source
        return saved[1]
    tag, kind, key, _, numel, part = saved if len(saved) == 6 else (*saved, None)
    if tag != "storage" or type(kind) is not Global or type(key) is not str or type(numel) is not int or numel < 0:
        raise Unfit("a persistent id of an unknown form")
    dtype = STORAGE_TYPES.get(kind.name) if kind.module.split(".")[0] == "torch" else None
    if dtype is None:
        raise Unfit(f"a storage of the type {kind.path}")
    known = storages.setdefault(key, Storage(key, dtype, numel))
    if (known.dtype, known.numel) != (dtype, numel):
        refuse(path, f"storage {key!r} is claimed with two types or sizes", "damaged-file", "download or copy it again")
    if part is None:
        return known
    _, first, count = part
    if type(first) is not int or type(count) is not int or first < 0 or count < 0:
        raise Unfit("a malformed part of a storage")
    return Storage(key, dtype, numel, (first, count))
