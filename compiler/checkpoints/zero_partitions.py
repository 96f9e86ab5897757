"""Reads the folder of a DeepSpeed ZeRO step: the float32 master weights, which every rank's optimizer file has a part of.

Stages 1 and 2 flatten the parameters of a group one behind the other and cut the whole; stage 3 cuts each parameter. Names
and shapes are in the files of model states, together with frozen parameters, buffers, and names of shared parameters.
Every tensor becomes byte ranges of the optimizer files; no file is loaded. Refuses a step without all ranks, ranks of
different steps or stages, sizes that do not add up, model parallelism, and experts in files of their own.
Source: deepspeed/utils/zero_to_fp32.py, runtime/zero/stage_1_and_2.py, stage3.py and runtime/engine.py of 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from compiler.checkpoints.folder import OPTIMIZER_FILE
from compiler.checkpoints.formats.boxes import Untiled, flat_boxes, flat_range, tiled
from compiler.checkpoints.formats.pickle_globals import Inert, View
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.stored_tensor import Joined, Tensor, read_bytes
from compiler.checkpoints.formats.torch_save import Places, open_zip
from compiler.checkpoints.opened import Opened
from compiler.diagnostics import listed, refuse

_MODEL_STATES = "*_model_states.pt"
_COPY_AGAIN = "copy all files of one step again"
_SHAPES = ("param_shapes", "frozen_param_shapes")
Shapes = dict[str, tuple[int, ...]]


def open_zero(folder: Path) -> Opened:
    """Open the folder of one step. Raises Refusal."""
    ranks = [_Optimizer(path, rank) for rank, path in enumerate(_optimizer_files(folder))]
    step = _Step(folder, ranks)
    opened = Opened(files=[rank.path for rank in ranks])
    opened.notes.append(
        f"joined the float32 weights of ZeRO-{step.stage} from the files of {len(ranks)} rank{'s' * (len(ranks) != 1)}"
    )
    opened.tensors |= dict(step.trained())
    opened.tensors |= dict(step.frozen())
    opened.tensors |= dict(step.others())
    for alias, owner in step.shared.items():
        if owner in opened.tensors and alias not in opened.tensors:
            opened.tensors[alias] = opened.tensors[owner]
    used = {part.path for tensor in opened.tensors.values() for part in tensor.parts}
    for state in step.models:
        if state.path in used:
            opened.files.append(state.path)
        else:
            opened.indexes.append(state.path)
    for file in (*ranks, *step.models):
        opened.checksums |= file.places.checksums
    return opened


class _File:
    """One file of a step: its object, and where the bytes of some of its tensors are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: Places
        self.tree: dict[Any, Any]
        self.tree, self.places = open_zip(path, self._views)

    def _views(self, tree: object) -> list[View]:
        self.tree = tree if isinstance(tree, dict) else {}
        return self.views()

    def views(self) -> list[View]:
        raise NotImplementedError

    def flat(self, what: str, view: Any) -> Tensor:
        """A one-dimensional tensor of the file."""
        if not isinstance(view, View):
            self.refuse(f"{shown(what)} is not a tensor")
        tensor = self.places.locate(what, view)
        if len(tensor.shape) != 1 or not tensor.contiguous:
            self.refuse(f"{shown(what)} is not flat")
        return tensor

    def refuse(self, message: str, kind: str = "damaged-file", hint: str = _COPY_AGAIN) -> NoReturn:
        refuse(str(self.path), message, kind, hint)


class _Optimizer(_File):
    """The optimizer file of one rank: `flats`, its part of each group of parameters."""

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(path)
        self.rank = rank
        self.flats = [self.flat(f"group {n}", view) for n, view in enumerate(self.views_of_groups())]

    @property
    def state(self) -> dict[Any, Any]:
        state = self.tree.get("optimizer_state_dict")
        if not isinstance(state, dict) or "zero_stage" not in state:
            self.refuse("it has no state of ZeRO", "unknown-format", "is it an optimizer file of DeepSpeed's ZeRO?")
        return state

    @property
    def stage(self) -> int:
        """An IntEnum, pickled as a class and its value."""
        stage = self.state["zero_stage"]
        stage = stage.args[0] if isinstance(stage, Inert) and isinstance(stage.args, tuple) and stage.args else stage
        if type(stage) is not int or stage not in (1, 2, 3):
            self.refuse(f"its ZeRO stage is {shown(stage)}, and 1, 2 and 3 are known", "unknown-format")
        return int(stage)

    @property
    def count(self) -> int:
        """The number of ranks that hold the partitions."""
        count = self.state.get("partition_count")
        count = max(count, default=0) if isinstance(count, list) and all(type(n) is int for n in count) else count
        if type(count) is not int:
            self.refuse("its number of partitions is malformed")
        return count

    def views_of_groups(self) -> list[Any]:
        groups = self.state.get("fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups")
        if not isinstance(groups, list) or not groups:
            hint = "ZeRO with offloading to NVMe keeps them elsewhere; save with zero_to_fp32 where it was trained"
            self.refuse("it has no float32 weights", "missing-weights", hint)
        return groups

    def views(self) -> list[View]:
        steps = [view for view in self.steps() if isinstance(view, View)]
        return [*(view for view in self.views_of_groups() if isinstance(view, View)), *steps]

    def steps(self) -> list[Any]:
        """The counters of steps of the optimizer, one for each group that has one."""
        inner = self.state.get("base_optimizer_state", self.state.get("optimizer_state_dict"))
        groups = inner.get("state") if isinstance(inner, dict) else None
        states = groups.values() if isinstance(groups, dict) else ()
        return [state["step"] for state in states if isinstance(state, dict) and "step" in state]

    @property
    def sums(self) -> tuple[int, ...]:
        """The checksums of the partitions; empty if one has none, as parts of a larger record."""
        found = [self.places.checksums.get((self.path, *flat.extent)) for flat in self.flats]
        return tuple(crc for crc in found if crc is not None) if None not in found else ()

    def counted_steps(self) -> list[Any]:
        """The same as values that can be compared."""
        found = [step for step in self.steps() if isinstance(step, View | int | float)]
        return [bytes(read_bytes(self.places.locate("step", s))) if isinstance(s, View) else s for s in found]

    def slices(self) -> list[Mapping[Any, Any]]:
        """Name -> {start, numel} of this rank's part of each group, where stages 1 and 2 say so."""
        found = self.state.get("param_slice_mappings")
        return [group for group in found if isinstance(group, dict)] if isinstance(found, list) else []


class _Model(_File):
    """A file of model states: one for all ranks in stages 1 and 2, one for each rank in stage 3."""

    def shapes(self, key: str) -> list[Shapes]:
        found = self.tree.get(key)
        groups = [found] if isinstance(found, dict) else found if isinstance(found, list) else []
        for group in groups:
            if not isinstance(group, dict) or not all(
                isinstance(name, str) and isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
                for name, shape in group.items()
            ):
                self.refuse(f"its {key} are malformed")
        return groups

    @property
    def fragments(self) -> dict[Any, Any]:
        found = self.tree.get("frozen_param_fragments")
        return found if isinstance(found, dict) else {}

    @property
    def others(self) -> dict[str, View]:
        """What the module has besides the trained and frozen parameters that are listed: buffers, and parameters that the
        optimizer never saw. Stage 3 leaves empty tensors in the places of partitioned parameters."""
        module, shared = self.tree.get("module"), self.tree.get("shared_params")
        if not isinstance(module, dict) or "param_shapes" not in self.tree:
            self.refuse("it is not a file of model states of ZeRO", "unknown-format", "is it of another DeepSpeed?")
        listed_names = {name for key in _SHAPES for group in self.shapes(key) for name in group}
        listed_names |= shared.keys() if isinstance(shared, dict) else set()
        return {
            name: view
            for name, view in module.items()
            if isinstance(name, str) and isinstance(view, View) and name not in listed_names and not _is_empty(view)
        }

    def views(self) -> list[View]:
        return [*(view for view in self.fragments.values() if isinstance(view, View)), *self.others.values()]


class _Step:
    """All files of one step, which must fit each other."""

    def __init__(self, folder: Path, ranks: Sequence[_Optimizer]) -> None:
        self.ranks, first = ranks, ranks[0]
        self.stage, self.world = first.stage, len(ranks)
        if first.count != self.world:
            message = f"{self.world} of the {first.count} optimizer files are here"
            refuse(str(folder), message, "missing-part", "copy the files of all ranks into one folder")
        for rank in ranks:
            sizes = [flat.shape for flat in rank.flats]
            same = (rank.stage, rank.count, len(rank.flats)) == (self.stage, self.world, len(first.flats))
            if not same or (self.stage == 3 and sizes != [flat.shape for flat in first.flats]):
                rank.refuse(f"it does not fit {first.path.name}: another stage, number of ranks or size", "unfit-parts")
            if rank.counted_steps() != first.counted_steps():
                rank.refuse(
                    f"its optimizer has done another number of steps than that of {first.path.name}", "unfit-parts"
                )
        if self.stage == 3:  # whose files do not name their rank
            self._check_copies()
        paths = sorted(folder.glob(_MODEL_STATES))
        if experts := [path.name for path in paths if "expert" in path.name]:
            hint = "convert with DeepSpeed's own tools first"
            refuse(str(folder), f"experts in files of their own: {listed(experts, 2)}", "unsupported-tensor", hint)
        names = [f"zero_pp_rank_{n}_mp_rank_00_model_states.pt" for n in range(self.world)]
        names = names if self.stage == 3 else ["mp_rank_00_model_states.pt"]
        if missing := [name for name in names if not (folder / name).is_file()]:
            refuse(str(folder), f"{missing[0]} is missing", "missing-part", _COPY_AGAIN)
        if others := [path.name for path in paths if path.name not in names]:
            refuse(
                str(folder), f"model states of another run or of model parallelism: {listed(others, 2)}", "unfit-parts"
            )
        self.models = [_Model(folder / name) for name in names]
        self.groups = self.models[0].shapes("param_shapes")
        for model in self.models[1:]:
            same = model.shapes("param_shapes") == self.groups
            if not same or model.tree.get("global_steps") != self.models[0].tree.get("global_steps"):
                model.refuse(f"it is of another step or model than {self.models[0].path.name}", "unfit-parts")

    def _check_copies(self) -> None:
        """Refuse two files with the same weights: one rank's, copied twice."""
        known: dict[tuple[int, ...], _Optimizer] = {}
        for rank in self.ranks:
            sums = rank.sums
            if sums and (first := known.setdefault(sums, rank)) is not rank:
                rank.refuse(f"it has the weights of {first.path.name}; it is a copy of that file", "unfit-parts")

    @property
    def shared(self) -> dict[str, str]:
        """Alias -> owner of parameters that are one in the model."""
        found = self.models[0].tree.get("shared_params")
        pairs = found.items() if isinstance(found, dict) else ()
        return {alias: owner for alias, owner in pairs if isinstance(alias, str) and isinstance(owner, str)}

    def trained(self) -> Iterator[tuple[str, Tensor | Joined]]:
        """The trained parameters. Raises Refusal where the partitions are longer or shorter than all of them."""
        if self.stage == 3:
            place = 0
            for name, shape in {n: s for group in self.groups for n, s in group.items()}.items():
                yield name, self._cut_each(name, shape, [rank.flats for rank in self.ranks], place)
                place += -(-prod(shape) // self.world)
            self._check_length(place, sum(flat.shape[0] for flat in self.ranks[0].flats), self.world)
            return
        if len(self.groups) != len(self.ranks[0].flats):
            self.ranks[0].refuse(f"{len(self.ranks[0].flats)} groups of weights for {len(self.groups)} of names")
        for n, group in enumerate(self.groups):
            pieces = [rank.flats[n] for rank in self.ranks]
            paddings = self._paddings(n, len(group))
            place = 0
            for (name, shape), padding in zip(group.items(), paddings, strict=True):
                parts = list(flat_range(pieces, place, prod(shape)))
                self._check_slices(n, name, place, prod(shape), pieces)
                yield name, self._tensor(name, shape, parts)
                place += prod(shape) + padding
            self._check_length(place, sum(piece.shape[0] for piece in pieces), 2 * self.world)

    def frozen(self) -> Iterator[tuple[str, Tensor | Joined]]:
        """The parameters that were not trained, in the type of the model."""
        for name, shape in (pair for group in self.models[0].shapes("frozen_param_shapes") for pair in group.items()):
            pieces = [model.fragments.get(name) for model in self.models]
            if self.stage != 3:
                piece = pieces[0]
                if not isinstance(piece, View) or piece.shape != shape:
                    self.models[0].refuse(f"the frozen parameter {shown(name)} is not {list(shape)}")
                yield name, self.models[0].places.locate(name, piece)
                continue
            flats = [[model.flat(name, piece)] for model, piece in zip(self.models, pieces, strict=True)]
            yield name, self._cut_each(name, shape, flats, 0)

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers, and parameters that the optimizer never saw, in the type of the model."""
        first = self.models[0]
        for name, view in first.others.items():
            yield name, first.places.locate(name, view)

    def _cut_each(
        self, name: str, shape: tuple[int, ...], ranks: Sequence[Sequence[Tensor]], place: int
    ) -> Tensor | Joined:
        """A parameter of which each rank holds an equal part at `place`, the last one padded."""
        share = -(-prod(shape) // self.world)
        parts: list[tuple[int, Tensor]] = []
        for n, flats in enumerate(ranks):
            length = min(share, prod(shape) - n * share)
            if length > 0:
                parts += [(n * share + first, piece) for first, piece in flat_range(flats, place, length)]
        return self._tensor(name, shape, parts)

    def _tensor(self, name: str, shape: tuple[int, ...], parts: Sequence[tuple[int, Tensor]]) -> Tensor | Joined:
        boxes = [box for first, piece in parts for box in flat_boxes(piece, first, shape)]
        if not boxes and 0 in shape:
            flat = self.ranks[0].flats[0]
            return Tensor(name, flat.dtype, shape, (0,) * len(shape), flat.path, flat.offset, flat.extent)
        try:
            return tiled(name, boxes, shape)
        except Untiled as problem:
            self.ranks[-1].refuse(f"the parts of {shown(name)} {problem}; a partition is too short")

    def _paddings(self, group: int, count: int) -> list[int]:
        """The elements between the parameters of a group, which newer releases insert."""
        found = self.ranks[0].state.get("param_alignment_paddings")
        paddings = found[group] if isinstance(found, list) and len(found) > group else [0] * count
        if (
            not isinstance(paddings, list)
            or len(paddings) != count
            or not all(type(n) is int and n >= 0 for n in paddings)
        ):
            self.ranks[0].refuse("its paddings are malformed")
        return paddings

    def _check_slices(self, group: int, name: str, first: int, length: int, pieces: Sequence[Tensor]) -> None:
        """What each rank's file says it holds of a parameter, which reveals exchanged files."""
        start = 0
        for rank, piece in zip(self.ranks, pieces, strict=True):
            low, high = max(first, start), min(first + length, start + piece.shape[0])
            stated = rank.slices()[group].get(name) if len(rank.slices()) > group else None
            fields = stated.state if isinstance(stated, Inert) and isinstance(stated.state, dict) else None
            has = rank.slices() and len(rank.slices()) > group
            wanted = {"start": low - start, "numel": high - low} if low < high else None
            if has and (fields and {k: fields.get(k) for k in ("start", "numel")}) != wanted:
                message = (
                    f"it does not hold the part of {shown(name)} that rank {rank.rank} has; is it another rank's file?"
                )
                rank.refuse(message, "unfit-parts")
            start += piece.shape[0]

    def _check_length(self, used: int, there: int, grain: int) -> None:
        if -(-used // grain) != -(-there // grain):
            message = f"the parameters have {used:,} elements, and the partitions {there:,}"
            self.ranks[0].refuse(message, "unfit-parts")


def _is_empty(view: View) -> bool:
    return isinstance(view.shape, tuple) and 0 in view.shape


def _optimizer_files(folder: Path) -> list[Path]:
    """The optimizer file of each rank. Refuses model parallelism and a missing rank."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = OPTIMIZER_FILE.fullmatch(path.name)
        if match and int(match[2]):
            hint = "only data parallelism is read; gather it with DeepSpeed's ds_to_universal first"
            refuse(str(path), "it is of a model-parallel run", "unsupported-tensor", hint)
        if match:
            if int(match[1]) in found:
                message = f"{found[int(match[1])].name} and {path.name} are of the same rank"
                refuse(str(folder), message, "ambiguous-container", "remove the one of the other run")
            found[int(match[1])] = path
    if missing := [rank for rank in range(len(found)) if rank not in found]:
        message = f"the optimizer file of rank {missing[0]} is missing"
        refuse(str(folder), message, "missing-part", "copy the files of all ranks into one folder")
    return [found[rank] for rank in range(len(found))]
