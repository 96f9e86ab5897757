"""Open a checkpoint from its metadata alone: the name, type, shape and byte range of every tensor.

Takes a file, a folder, an index of shards, or several files; returns a `Checkpoint`. Nothing in a file is executed and
torch is not imported. `verify` reads the stored bytes and compares their checksums where the format has them.
Refuses what cannot be read safely or is ambiguous, with a hint.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from compiler.checkpoints.array_files.flax_msgpack import open_flax
from compiler.checkpoints.exchanged_files import refuse_exchanged
from compiler.checkpoints.file_format import sniff
from compiler.checkpoints.folder import COMMON, METADATA, find, read_index
from compiler.checkpoints.formats.gguf_header import open_gguf
from compiler.checkpoints.formats.numpy_archive import open_npz
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.safetensors_header import open_safetensors
from compiler.checkpoints.formats.stored_tensor import AnyTensor, dequantized
from compiler.checkpoints.formats.torch_distributed import Distributed
from compiler.checkpoints.formats.torch_save import open_legacy, open_zip
from compiler.checkpoints.layer_files import open_layers, open_layers_of_ranks
from compiler.checkpoints.opened import Opened, Replica
from compiler.checkpoints.packed_folder import open_packed
from compiler.checkpoints.rank_files import open_ranks
from compiler.checkpoints.sliced_files import open_slices
from compiler.checkpoints.state_dict_search import Contents, open_contents, unwrapped
from compiler.checkpoints.zero_partitions import open_zero
from compiler.diagnostics import Refusal, Report, Span, listed, refuse
from compiler.process import uncollected

LONGEST_NAME = 20_000
FLAX_INDEX = ".msgpack.index.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint. `files` hold its tensors, `indexes` (also `.metadata`) say which file holds which.
    `checksums`: the CRC-32 of byte ranges (file, start, end), where the format has them. `replicas`: pairs of tensors that
    two ranks hold and that must be equal. `sources`: of several joined checkpoints, each by its name."""

    path: Path
    tensors: Mapping[str, AnyTensor]
    objects: Mapping[str, object]
    notes: tuple[str, ...]
    files: tuple[Path, ...]
    checksums: Mapping[tuple[Path, int, int], int] = field(default_factory=dict, repr=False)
    indexes: tuple[Path, ...] = ()
    replicas: tuple[Replica, ...] = ()
    sources: Mapping[str, Checkpoint] = field(default_factory=dict, repr=False)

    @staticmethod
    def of_parts(parts: Sequence[Checkpoint], tensors: Mapping[str, AnyTensor], notes: Sequence[str]) -> Checkpoint:
        """The checkpoint of these tensors, whose bytes are in the files of all parts; without `objects` and `replicas`."""
        return Checkpoint(
            parts[0].path,
            MappingProxyType(tensors),
            MappingProxyType({}),
            tuple(notes),
            tuple(file for part in parts for file in part.files),
            MappingProxyType({place: crc for part in parts for place, crc in part.checksums.items()}),
            tuple(file for part in parts for file in part.indexes),
        )


@uncollected()
def open_checkpoint(path: Path | Sequence[Path], root: str | None = None, nested: bool = False) -> Checkpoint:
    """Open one checkpoint. `root` is the dotted path of the weights inside a torch file, if it is ambiguous;
    `nested`: the weights are dictionaries in dictionaries.

    Several files are united; no tensor may be in two of them. Raises Refusal.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    if not paths:
        refuse("", "no checkpoint was given", "missing-weights")
    opened = [_open(p, root, nested) for p in paths]
    _refuse_shared_names(opened, str(paths[0]))
    united = Opened()
    for part in opened:
        united.absorb(part)
    return _unwrap(paths[0], united)


def open_parts(paths: Iterable[Path], root: str | None = None, nested: bool = False) -> list[Checkpoint]:
    """Open each file on its own: the shards of a tensor-parallel model, which share their names. Of the folder of a pipeline,
    the files of each rank."""
    each = list(paths)
    if len(each) == 1 and (found := find(each[0])).kind == "layers":
        parts = [_unwrap(found.path, rank) for rank in open_layers_of_ranks(found.path)]
    else:
        parts = [open_checkpoint(path, root, nested) for path in each]
    refuse_exchanged([file for part in parts for file in part.files])
    return parts


def verify(checkpoint: Checkpoint) -> int:
    """Read every checked byte range that holds a tensor; the number of bytes checked. Raises Refusal."""
    from concurrent.futures import ThreadPoolExecutor

    report, total, thread_buffers = Report(), 0, threading.local()

    def checksum(place: tuple[Path, int, int]) -> int | None:
        path, start, end = place
        buffer = thread_buffers.__dict__.setdefault("buffer", memoryview(bytearray(_CHUNK)))
        crc, left = 0, end - start
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while left and (got := file.readinto(buffer[: min(left, _CHUNK)])):
                crc, left = zlib.crc32(buffer[:got], crc), left - got
        return None if left else crc

    places = sorted(checkpoint.checksums)
    with ThreadPoolExecutor(2) as pool:
        checksums = list(pool.map(checksum, places))
    for (path, start, end), crc in zip(places, checksums, strict=True):
        total += end - start
        if crc != checkpoint.checksums[path, start, end]:
            held = [
                t.name
                for tensor in checkpoint.tensors.values()
                for t in tensor.parts
                if t.path == path and t.extent[0] >= start and t.extent[1] <= end
            ]
            message = f"the bytes of {listed(map(shown, held))} do not match their checksum"
            report.add(Span(str(path)), message, "damaged-file", "download or copy it again")
    report.settle()
    return total


def _open(path: Path, root: str | None, nested: bool) -> Opened:
    try:
        file = find(path)
        if file.kind == "ranks":
            opened = open_ranks(file.path, root, nested)
        elif file.kind == "zero":
            opened = open_zero(file.path)
        elif file.kind == "layers":
            opened = open_layers(file.path)
        elif file.kind == "slices":
            opened = open_slices(file.path)
        elif file.path.name == METADATA:
            opened = _open_distributed(file.path, root, nested)
        else:
            kind = sniff(file.path)
            opened = _open_index(file.path) if kind == "index" else _open_file(file.path, kind, root, nested)
        if file.kind:
            refuse_exchanged([*opened.files, *opened.indexes])
        opened.notes[:0] = file.notes
        return opened
    except OSError as error:
        refuse(str(path), f"cannot be read: {error.strerror or error}", "unreadable-file")


def _open_file(path: Path, kind: str, root: str | None = None, nested: bool = False) -> Opened:
    if kind == "safetensors":
        header, _ = open_safetensors(path)
        if not header:
            refuse(str(path), "a safetensors file without tensors", "missing-weights")
        return Opened(dict(header), files=[path])
    if kind == "gguf":
        stored, values = open_gguf(path)
        if not stored:
            refuse(str(path), "a GGUF file without tensors", "missing-weights", "it may be a vocabulary-only file")
        return Opened(dict(stored), {"config": values}, dequantized(stored.values()), [path])
    if kind == "npz":
        arrays, checksums = open_npz(path)
        return Opened(dict(arrays), files=[path], checksums=checksums)
    if kind == "tar":
        return open_packed(path, root, nested)
    if kind == "flax":
        arrays_of = open_flax(path, root)
        return Opened(dict(arrays_of.tensors), arrays_of.objects, arrays_of.notes, [path])
    if kind == "zip":
        inside, places = open_contents(path, root, nested)
    else:
        tree, places = open_legacy(path)
        inside = Contents(tree, str(path), root, nested)
    tensors: dict[str, AnyTensor] = {n: places.locate(n, view) for n, view in inside.named.items()}
    return Opened(tensors, inside.objects, inside.notes, [path], places.checksums)


def _open_distributed(path: Path, root: str | None, nested: bool) -> Opened:
    source, common = Distributed(path), path.with_name(COMMON)
    shared = open_zip(common, lambda tree: ())[0] if common.is_file() and sniff(common) == "zip" else None
    tree = (shared if isinstance(shared, dict) else {}) | source.tree
    inside = Contents(tree, str(path), root, nested)
    tensors: dict[str, AnyTensor] = {name: source.locate(name, view) for name, view in inside.named.items()}
    indexes = [path, common] if shared is not None else [path]
    return Opened(tensors, inside.objects, inside.notes, source.files, source.checksums, indexes)


def _open_index(path: Path) -> Opened:
    """Open every shard that an index names. All problems with names are reported at once."""
    united, report, span = Opened(), Report(), Span(str(path))
    claimed = read_index(path)
    if path.name.endswith(FLAX_INDEX):  # its names have slashes between keys
        claimed = {name.replace("/", "."): shard for name, shard in claimed.items()}
    shards: dict[Path, set[str]] = {}
    for name, shard in claimed.items():
        shards.setdefault(shard, set()).add(name)
    for shard, wanted in sorted(shards.items()):
        try:
            part = _open_file(shard, sniff(shard))
        except Refusal as refusal:
            report.absorb(refusal)
            continue
        if missing := sorted(wanted - part.tensors.keys()):
            report.add(span, f"{shard.name} does not hold {listed(map(shown, missing))}", "bad-index")
        if twice := sorted(part.tensors.keys() & united.tensors.keys()):
            report.add(span, f"{shard.name} and another shard both hold {listed(map(shown, twice))}", "bad-index")
        if unknown := sorted(n for n in part.tensors if n not in claimed):
            report.add(span, f"it lacks tensors that {shard.name} holds: {listed(map(shown, unknown))}", "bad-index")
        united.absorb(part)
    report.settle()
    united.indexes.append(path)
    return united


def _refuse_shared_names(parts: Sequence[Opened], path: str) -> None:
    seen: set[str] = set()
    for part in parts:
        if twice := sorted(part.tensors.keys() & seen):
            message = f"{part.files[0]} and another of the files both hold {listed(map(shown, twice), 3)}"
            hint = "parts of a tensor-parallel model need a spec that merges them"
            refuse(path, message, "colliding-names", hint)
        seen |= part.tensors.keys()


def _unwrap(path: Path, united: Opened) -> Checkpoint:
    """Remove wrappers' prefixes. Two names may become one only if they are the same bytes of a file."""
    if odd := [name for name in united.tensors if not name or not name.isprintable()]:
        message = f"tensors with empty or unprintable names: {listed(map(ascii, odd))}"
        refuse(str(path), message, "damaged-file", "download or copy it again; if they are real, rename them first")
    if long := next((name for name in united.tensors if len(name) > LONGEST_NAME), None):
        refuse(
            str(path),
            f"a tensor's name has {len(long):,} characters: {long[:60]}...",
            "damaged-file",
            "rename it first",
        )
    names, notes = unwrapped(list(united.tensors), str(path))
    tensors: dict[str, AnyTensor] = {}
    for name, bare in names.items():
        tensor = united.tensors[name]
        if bare in tensors and tensors[bare].region != tensor.region:
            other = next(n for n, b in names.items() if b == bare)
            message = f"{other!r} and {name!r} both become {bare!r} without their wrappers' prefixes"
            refuse(str(path), message, "colliding-names", "their tensors differ; remove the wrong one")
        if name != bare:
            tensor = replace(tensor, name=bare)
        tensors[bare] = tensor
    return Checkpoint(
        path,
        MappingProxyType(tensors),
        MappingProxyType(united.objects),
        (*united.notes, *notes),
        tuple(united.files),
        MappingProxyType(united.checksums),
        tuple(united.indexes),
        tuple(united.replicas),
    )
