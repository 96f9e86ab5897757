"""Reads the rank files that FSDP trainers write: `model_world_size_N_rank_R.pt`, each one rank's state dict of DTensors or
ShardedTensors (verl, and any `torch.save(model.state_dict())` under these names).

Every rank's parts become one tensor per name, whose pieces are byte ranges of the files. What several ranks hold alike is
a replica, to be compared before it is used. Refuses a folder without all ranks, ranks of different models or sizes, and a
file whose content is another rank's.
"""

from __future__ import annotations

from pathlib import Path

from compiler import strict_json
from compiler.checkpoints.folder import RANK_FILE
from compiler.checkpoints.formats.boxes import Box, Untiled, tiled
from compiler.checkpoints.formats.pickle_globals import Sharded, View
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.sharded_tensor import Misplaced, are_sizes, local_parts
from compiler.checkpoints.formats.torch_save import Places, open_zip
from compiler.checkpoints.opened import Opened
from compiler.checkpoints.state_dict_search import Contents
from compiler.diagnostics import Report, Span, listed, refuse

_FSDP_CONFIG = "fsdp_config.json"  # verl's: the version of FSDP and the number of ranks


def open_ranks(folder: Path, root: str | None = None, nested: bool = False) -> Opened:
    """Open the rank files of a folder as one checkpoint. Raises Refusal."""
    files = _files(folder)
    ranks = [_Rank(file, number, root, nested) for number, file in enumerate(files)]
    opened = Opened(objects=ranks[0].contents.objects, notes=list(ranks[0].contents.notes), files=files)
    opened.notes.insert(0, f"joined the files of {len(files)} rank{'s' * (len(files) != 1)}")
    report = Report()
    for rank in ranks:
        opened.checksums |= rank.places.checksums
        if differing := sorted(ranks[0].contents.named.keys() ^ rank.contents.named.keys()):
            message = f"only one of it and {files[0].name} has {listed(map(shown, differing))}"
            report.add(Span(str(rank.path)), message, "unfit-parts", "it is a rank of another model or step")
    report.settle()
    for name, first in ranks[0].contents.named.items():
        try:
            _join(name, first, ranks, opened)
        except (Misplaced, Untiled) as problem:
            text = "the parts of" if isinstance(problem, Untiled) else ""
            message = f"{text} {shown(name)} {problem}" if text else f"{shown(name)}: {problem}"
            report.add(Span(str(folder)), message, "unfit-parts", "copy all files of one step again")
    report.settle()
    return opened


class _Rank:
    """One rank's file: its tensors, and where their bytes are."""

    def __init__(self, path: Path, number: int, root: str | None, nested: bool) -> None:
        self.path, self.number = path, number
        self.parts: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], View]]] = {}
        searched: list[Contents] = []

        def locating(tree: object) -> list[View]:
            searched.append(Contents(tree, str(path), root, nested, sharded=True))
            for name, value in searched[0].named.items():
                try:
                    self.parts[name] = _parts(value, number)
                except Misplaced as problem:
                    refuse(str(path), f"{shown(name)}: {problem}", "unfit-parts", "copy the files of one step again")
            return [view for parts in self.parts.values() for _, _, view in parts]

        self.places: Places
        _, self.places = open_zip(path, locating)
        self.contents = searched[0]

    def boxes(self, name: str) -> list[Box]:
        return [Box(offsets, sizes, self.places.locate(name, view)) for offsets, sizes, view in self.parts[name]]


def _parts(value: View | Sharded, rank: int) -> list[tuple[tuple[int, ...], tuple[int, ...], View]]:
    if isinstance(value, Sharded):
        return local_parts(value, rank)
    if not are_sizes(value.shape):
        raise Misplaced("its shape is malformed")
    return [((0,) * len(value.shape), tuple(value.shape), value)]


def _join(name: str, first: View | Sharded, ranks: list[_Rank], opened: Opened) -> None:
    """The tensor of all ranks' parts, and its replicas. Raises Untiled, Misplaced."""
    shape = tuple(first.shape)
    unique: dict[tuple[tuple[int, ...], tuple[int, ...]], Box] = {}
    for rank in ranks:
        other = rank.contents.named[name]
        if (type(other), tuple(other.shape), other.dtype) != (type(first), shape, first.dtype):
            raise Misplaced(
                f"{rank.path.name} has a {other.dtype} of {list(other.shape)}, not a {first.dtype} of {list(shape)}"
            )
        for box in rank.boxes(name):
            if 0 in box.sizes and 0 not in shape:
                continue
            known = unique.setdefault((box.offsets, box.sizes), box)
            if known is not box:
                opened.replicas.append((known.tensor, box.tensor))
    opened.tensors[name] = tiled(name, list(unique.values()), shape)


def _files(folder: Path) -> list[Path]:
    """The files of a folder, by rank. Refuses a missing rank and two numbers of ranks."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.iterdir():
        if match := RANK_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2])] = path
    if len(found) > 1:
        message = f"files of runs with {listed(sorted(found))} ranks are in one folder"
        refuse(str(folder), message, "ambiguous-container", "keep the files of one run")
    ((world, files),) = found.items()
    config = folder / _FSDP_CONFIG
    if config.is_file() and config.stat().st_size < 1 << 16:
        try:
            stated = strict_json.parse(config.read_bytes())
        except ValueError:
            stated = None
        if isinstance(stated, dict) and stated.get("world_size", world) != world:
            message = f"it states {stated['world_size']!r} ranks, and the files are of {world}"
            refuse(str(config), message, "unfit-parts", "the folder mixes two runs")
    if missing := [rank for rank in range(world) if rank not in files]:
        message = f"the file of rank {missing[0]} is missing; there are {len(files)} of {world}"
        refuse(str(folder), message, "missing-part", "copy the files of all ranks into one folder")
    if extra := [rank for rank in files if rank >= world]:
        refuse(str(files[extra[0]]), f"rank {extra[0]} of {world} does not exist", "unfit-parts", "rename or remove it")
    return [files[rank] for rank in range(world)]
