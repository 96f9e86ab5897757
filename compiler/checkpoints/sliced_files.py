"""Reads the folder of a step that has one safetensors file for each parameter and rank: the path below `model` is the name,
and the header states which slices of the complete tensor the file holds.

No table of parallel layers is needed, and the numbers in file names decide nothing but which files there must be.
Refuses a parameter without the files of all ranks, slices that overlap or leave a hole, and files of two runs.
Source: huggingface, serialize/weights.py, serialize/utils.py (get_path) and parallel/parameters.py (SlicesPair), release 0.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from compiler import strict_json
from compiler.checkpoints.folder import STEP_METADATA
from compiler.checkpoints.formats.boxes import Box, Sizes, Untiled, tiled
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.safetensors_header import open_safetensors
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor
from compiler.checkpoints.opened import Opened
from compiler.diagnostics import listed, refuse

MODEL = "model"  # the subfolder of the weights
_FILE = re.compile(
    r"model_(?P<name>\w+?)"
    r"(_pp-rank-(?P<stage>\d{1,6})-of-\d{1,6}_tp-rank-(?P<rank>\d{1,6})-of-(?P<ranks>\d{1,6})(?P<experts>_exp-rank-.+)?)?"
    r"\.safetensors"
)
_SLICE = re.compile(r"(\d{1,18}|None),(\d{1,18}|None),(?:None|1)")  # start, stop, step
_SIZE = re.compile(r"(?:np\.int\d+\()?(\d{1,18})\)?")  # numpy 2 shows the type of a number
_DATA = "data"  # the name of a parameter in its file
_CONFIG = "model_config.json"
_MOST_BYTES = 1 << 24  # of a JSON file
_COPY_AGAIN = "copy all files of one step again"


def open_slices(folder: Path) -> Opened:
    """Open the folder of one step. Raises Refusal."""
    files = [_File(path, folder / MODEL) for path in sorted((folder / MODEL).rglob("*.safetensors"))]
    if not files:
        refuse(str(folder / MODEL), "no parameter is in this folder", "missing-weights")
    counts = {file.ranks for file in files if file.ranks}
    if len(counts) > 1:
        message = f"files of runs with {listed(sorted(counts))} tensor-parallel ranks are in one folder"
        refuse(str(folder), message, "ambiguous-container", "keep the files of one run")
    metadata = folder / STEP_METADATA
    if counts and (stated := _json(metadata).get("tp")) not in (None, *counts):
        message = f"it states {stated!r} tensor-parallel ranks, and the files are of {max(counts)}"
        refuse(str(metadata), message, "unfit-parts", "the folder mixes two runs")
    parameters: dict[str, list[_File]] = {}
    for file in files:
        parameters.setdefault(file.name, []).append(file)
    opened = Opened(files=[file.path for file in files], indexes=[metadata])
    opened.objects[_CONFIG.removesuffix(".json")] = _json(folder / _CONFIG)
    opened.notes.append(f"joined the {len(files)} files of {len(parameters)} parameters")
    for name, parts in parameters.items():
        opened.tensors[name] = _joined(name, parts)
    return opened


class _File:
    """One file: a parameter, or a tensor-parallel rank's part of it if `ranks` is not 0."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path
        match = _FILE.fullmatch(path.name)
        if match is None:
            self.refuse("its name is not that of a parameter and a rank", hint="move it elsewhere")
        if match["experts"]:
            hint = "gather the experts where it was trained"
            self.refuse("experts that are divided among ranks have no reader", "unsupported-tensor", hint)
        self.name = ".".join((*path.parent.relative_to(root).parts, match["name"]))
        self.stage, self.rank, self.ranks = (int(match[key] or 0) for key in ("stage", "rank", "ranks"))
        tensors, self.metadata = open_safetensors(path)
        if _DATA not in tensors:
            self.refuse(f"it has no tensor {_DATA!r}, but {listed(tensors)}", "missing-weights")
        self.tensor = replace(tensors[_DATA], name=self.name)

    def refuse(self, message: str, kind: str = "unfit-parts", hint: str = _COPY_AGAIN) -> NoReturn:
        refuse(str(self.path), message, kind, hint)

    @property
    def shape(self) -> Sizes:
        """Of the complete tensor."""
        text = self.metadata.get("unsharded_shape", "")
        parts = [_SIZE.fullmatch(part.strip()) for part in text.strip("()").split(",") if part.strip()]
        if not parts or not all(parts):
            self.refuse("it does not state the shape of the complete tensor; checkpoints before version 1.2 do not")
        return tuple(int(part[1]) for part in parts if part)

    def boxes(self) -> Iterator[Box]:
        """The slices that it holds. Raises Refusal for those that do not fit the tensor or the complete one."""
        for pair in self.metadata.get("local_global_slices_pairs", "").split(";"):
            local, _, whole = pair.partition("#")
            here, there = self.ranges(local, self.tensor.shape), self.ranges(whole, self.shape)
            sizes = tuple(stop - start for start, stop in here)
            if sizes != tuple(stop - start for start, stop in there):
                self.refuse(f"a slice of it has another size than its place: {shown(pair)}")
            part = self.tensor
            for axis, ((start, _), size) in enumerate(zip(here, sizes, strict=True)):
                part = part.narrow(axis, start, size)
            yield Box(tuple(start for start, _ in there), sizes, part)

    def ranges(self, text: str, shape: Sizes) -> list[tuple[int, int]]:
        """The first and the last position of a slice along each axis: `0,10,None|None,None,None`."""
        axes = [_SLICE.fullmatch(axis) for axis in text.split("|")]
        if len(axes) != len(shape) or not all(axes):
            self.refuse(f"a slice of it is malformed: {shown(text)}")
        found = [
            tuple(int(axis[n]) if axis[n] != "None" else other for n, other in ((1, 0), (2, size)))
            for axis, size in zip(axes, shape, strict=True) if axis
        ]  # fmt: skip
        if any(not start < stop <= size for (start, stop), size in zip(found, shape, strict=True)):
            self.refuse(f"a slice of it is outside of {list(shape)}: {shown(text)}")
        return [(start, stop) for start, stop in found]


def _joined(name: str, parts: Sequence[_File]) -> Tensor | Joined:
    """The complete tensor. Raises Refusal where a rank is missing or the slices do not fill it."""
    first = parts[0]
    if len({(part.stage, part.ranks > 0) for part in parts}) > 1 or (not first.ranks and len(parts) > 1):
        first.refuse(f"{parts[-1].path.name} is of the same parameter and another run", "ambiguous-container")
    if not first.ranks:
        return first.tensor
    if missing := sorted({*range(first.ranks)} - {part.rank for part in parts}):
        message = f"the file of tensor-parallel rank {missing[0]} is missing; there are {len(parts)} of {first.ranks}"
        refuse(str(first.path.parent), f"{shown(name)}: {message}", "missing-part", "copy the files of all ranks")
    for part in parts:
        if (part.shape, part.tensor.dtype) != (first.shape, first.tensor.dtype):
            part.refuse(f"it is of a {part.tensor.dtype} of {list(part.shape)}, {first.path.name} of a "
                        f"{first.tensor.dtype} of {list(first.shape)}")  # fmt: skip
    boxes = [box for part in parts for box in part.boxes()]
    if len({(box.offsets, box.sizes) for box in boxes}) < len(boxes):
        first.refuse(f"two files hold the same slice of {shown(name)}")
    try:
        return tiled(name, boxes, first.shape)
    except Untiled as problem:
        first.refuse(f"the slices of {shown(name)} {problem}")


def _json(path: Path) -> dict[str, Any]:
    """The object of a small JSON file; empty where there is none."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return {}
    try:
        found = strict_json.parse(path.read_bytes())
    except ValueError as error:
        refuse(str(path), f"not valid JSON: {str(error)[:120]}", "damaged-file", _COPY_AGAIN)
    return found if isinstance(found, dict) else {}
