"""Computes the layout of a folder of torch.distributed.checkpoint, before any tensor is written.

Format: each tensor is an item of a `.distcp` file, written as torch.save writes a tensor; `.metadata` is a pickle that says
where each item is (torch/distributed/checkpoint/filesystem.py and metadata.py). torch's own classes make the pickle, so that
it is what the installed torch reads. Every tensor is one chunk: a job of any size loads it, each rank the part it needs.
Takes targets; returns files.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compiler.checkpoints.folder import METADATA
from compiler.output import pth_layout
from compiler.output.pth_layout import PthFile
from compiler.output.safetensors_layout import OutFile, in_parts
from compiler.plan.plan import TargetTensor


@dataclass(frozen=True)
class Item:
    """One tensor: a zip that starts at byte `start` of the file `file`."""

    target: TargetTensor
    file: str
    start: int
    content: PthFile


def lay_out(targets: Sequence[TargetTensor], limit: int, keys: Sequence[str] = ()) -> list[OutFile]:
    """Files of at most `limit` data bytes each, and the metadata. The state dict has the targets under `keys`, the outermost
    first. Imports torch."""
    files: list[OutFile] = []
    items: list[Item] = []
    for n, part in enumerate(in_parts(targets, limit)):
        name, end = f"__{n}_0.distcp", 0
        stored: list[Item] = []
        for target in part:
            start = -(-end // pth_layout.ALIGNMENT) * pth_layout.ALIGNMENT
            stored.append(Item(target, name, start, pth_layout.lay_out_tensor(target)))
            end = start + stored[-1].content.size
        offsets = {item.target.name: item.start + item.content.offsets[item.target.name] for item in stored}
        files.append(OutFile(name, b"", offsets, end, _gaps(offsets, part, end), partial(_finish, stored)))
        items += stored
    content = _metadata(items, tuple(keys))
    return [*files, OutFile(METADATA, content, {}, len(content))]


def _gaps(offsets: Mapping[str, int], targets: Sequence[TargetTensor], size: int) -> tuple[tuple[int, int], ...]:
    """(start, length) of what is no tensor."""
    ends = [0, *(offsets[target.name] + target.nbytes for target in targets)]
    starts = [*(offsets[target.name] for target in targets), size]
    return tuple((end, start - end) for end, start in zip(ends, starts, strict=True))


def _finish(items: Sequence[Item], path: Path) -> None:
    """Write what surrounds the tensors, once they are written. Raises OSError."""
    for item in items:
        item.content.finish(path, item.start)


def _metadata(items: Sequence[Item], keys: tuple[str, ...]) -> bytes:
    """The pickle that tells a reader where every tensor is."""
    import torch
    from torch.distributed.checkpoint import filesystem, metadata

    tensors: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    paths: dict[str, tuple[str, ...]] = {}
    for item in items:
        target = item.target
        name, size, zeros = (
            ".".join((*keys, target.name)),
            torch.Size(target.shape),
            torch.Size([0] * len(target.shape)),
        )
        properties = metadata.TensorProperties(dtype=getattr(torch, target.dtype))
        chunk = metadata.ChunkStorageMetadata(offsets=zeros, sizes=size)
        tensors[name] = metadata.TensorStorageMetadata(properties, size, [chunk])
        index = metadata.MetadataIndex(name, zeros, 0)
        places[index] = filesystem._StorageInfo(item.file, item.start, item.content.size)
        paths[name] = (*keys, target.name)
    return pickle.dumps(metadata.Metadata(tensors, paths, places), protocol=4)
