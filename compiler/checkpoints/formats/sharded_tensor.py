"""Which part of a global tensor one rank's file holds: DTensor (FSDP2, tensor parallelism) and ShardedTensor (FSDP1).

Takes the stand-in that the reader of pickles makes; returns the offsets and sizes of each local part, and the View of its
bytes. A DTensor is placed by its mesh, the rank's coordinate in it and one placement for each axis of the mesh; a
ShardedTensor states the offsets of its shards. Raises Misplaced for what contradicts itself, for pending sums, and for
meshes without a coordinate.
Source: torch/distributed/tensor/placement_types.py, _dtensor_spec.py, torch/distributed/device_mesh.py,
torch/distributed/_shard/sharded_tensor/api.py of torch 2.5 to 2.13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, TypeGuard

from compiler.checkpoints.formats.boxes import Sizes
from compiler.checkpoints.formats.pickle_globals import Inert, Sharded, View

_MOST_AXES = 64


class Misplaced(Exception):
    """Why the place of a rank's part is unknown."""


def local_parts(part: Sharded, rank: int) -> list[tuple[Sizes, Sizes, View]]:
    """(offsets, sizes, bytes) of what the file of a rank holds of a tensor; empty if nothing. Raises Misplaced."""
    if not are_sizes(part.shape):
        raise Misplaced("its shape is malformed")
    if attributes := _attributes(part.state):
        return list(_of_dtensor(part, attributes, rank))
    if isinstance(part.state, tuple) and len(part.state) >= 2 and isinstance(part.state[0], list):
        return [_shard(part, shard, rank) for shard in part.state[0]]
    raise Misplaced("its state has an unknown form")


def _of_dtensor(part: Sharded, state: dict[Any, Any], rank: int) -> Iterator[tuple[Sizes, Sizes, View]]:
    local, spec = state.get("_local_tensor"), _fields(state.get("_spec"))
    mesh, placements = _fields(spec.get("mesh")), spec.get("placements")
    if not isinstance(local, View) or not are_sizes(local.shape) or not isinstance(placements, tuple | list):
        raise Misplaced("its local tensor or its placements are missing")
    coordinate = mesh.get("_coordinate_on_dim")
    sizes = _mesh_sizes(mesh)
    if (own := mesh.get("_rank")) is not None and own != rank:
        raise Misplaced(f"rank {own} saved it, and the file is named as that of rank {rank}")
    if coordinate is None:  # a rank that is not in this mesh
        return
    if not are_sizes(coordinate) or not len(coordinate) == len(sizes) == len(placements):
        raise Misplaced("its mesh does not fit its placements")
    if prod(sizes) and own is None and _position(coordinate, sizes) != rank % prod(sizes):
        raise Misplaced(f"its coordinate {list(coordinate)} is not that of rank {rank}")
    offsets, lengths = _region(tuple(part.shape), placements, sizes, coordinate)
    if tuple(local.shape) != lengths:
        raise Misplaced(f"its local part has the shape {list(local.shape)}, and its placements give {list(lengths)}")
    yield offsets, lengths, local


def _region(
    shape: Sizes, placements: Sequence[Any], sizes: Sequence[int], coordinate: Sequence[int]
) -> tuple[Sizes, Sizes]:
    """The offsets and sizes of the part at a coordinate: each axis of the mesh cuts as torch.chunk does. A strided shard
    was cut after those to its right (FSDP2 of tensor-parallel parameters)."""
    offsets, lengths = [0] * len(shape), list(shape)
    cuts: list[tuple[bool, int, int, int]] = []
    for axis, placement in enumerate(placements):
        kind = placement.cls.name if isinstance(placement, Inert) else ""
        fields = _fields(placement)
        if kind == "Replicate":
            continue
        dim = fields.get("dim")
        if kind not in ("Shard", "_StridedShard") or type(dim) is not int or not -len(shape) <= dim < len(shape):
            raise Misplaced(f"its placement {kind or placement!r} is no part of the tensor, such as a pending sum")
        strided = kind == "_StridedShard" and fields.get("split_factor") != 1
        cuts.append((strided, axis, dim % len(shape), fields.get("split_factor", 1)))
    for strided, axis, dim, factor in sorted(cuts, key=lambda cut: cut[0]):
        inner = prod(sizes[other] for _, other, d, _ in cuts if d == dim and other > axis)
        if strided and factor != inner:
            raise Misplaced(f"its strided placement interleaves {factor} parts, and the mesh has {inner} of them")
        step = -(-lengths[dim] // sizes[axis])
        start = min(coordinate[axis] * step, lengths[dim])
        offsets[dim] += start
        lengths[dim] = min(step, lengths[dim] - start)
    return tuple(offsets), tuple(lengths)


def _mesh_sizes(mesh: dict[Any, Any]) -> tuple[int, ...]:
    """The size of each axis of a mesh: of its tensor of ranks, or of the layout that newer releases store instead."""
    ranks = mesh.get("mesh")
    if isinstance(ranks, View) and are_sizes(ranks.shape):
        return tuple(ranks.shape)
    layout = _fields(mesh.get("_layout"))
    axes = layout.get("axes")
    if isinstance(axes, tuple | list):
        shapes = [_fields(axis).get("shape") for axis in axes]
    else:
        shape = layout.get("shape")
        shapes = list(shape) if isinstance(shape, tuple | list) else [shape]
    found = tuple([prod(s) if are_sizes(s) else s for s in shapes])
    if not are_sizes(found) or 0 in found:
        raise Misplaced("the sizes of its mesh are unknown")
    return tuple(found)


def _position(coordinate: Sequence[int], sizes: Sequence[int]) -> int:
    position = 0
    for place, size in zip(coordinate, sizes, strict=True):
        position = position * size + place
    return position


def _shard(part: Sharded, shard: Any, rank: int) -> tuple[Sizes, Sizes, View]:
    fields = _fields(shard)
    view, metadata = fields.get("tensor"), _fields(fields.get("metadata"))
    offsets, sizes = metadata.get("shard_offsets"), metadata.get("shard_sizes")
    own = _fields(metadata.get("placement")).get("_rank")
    if not isinstance(view, View) or not are_sizes(view.shape) or not are_sizes(offsets) or not are_sizes(sizes):
        raise Misplaced("one of its shards is malformed")
    if own is not None and own != rank:
        raise Misplaced(f"rank {own} saved it, and the file is named as that of rank {rank}")
    if tuple(view.shape) != tuple(sizes) or not len(offsets) == len(sizes) == len(part.shape):
        raise Misplaced("one of its shards has another shape than it states")
    return tuple(offsets), tuple(sizes), view


def _fields(value: Any) -> dict[Any, Any]:
    """The attributes of an instance."""
    return _attributes(value.state) if isinstance(value, Inert) else {}


def _attributes(state: Any) -> dict[Any, Any]:
    """A pickled state as attributes; a class with slots has (None, attributes)."""
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state = state[1]
    return state if isinstance(state, dict) else {}


def are_sizes(values: Any) -> TypeGuard[tuple[int, ...] | list[int]]:
    """Whether it is a shape, or another list of sizes."""
    plain = isinstance(values, tuple | list) and len(values) <= _MOST_AXES
    return plain and all(type(n) is int and 0 <= n < 1 << 62 for n in values)
