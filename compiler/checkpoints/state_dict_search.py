"""Find the weights in a checkpoint's object: open the dictionaries around them, remove wrappers' prefixes.

Takes the object of a torch file; returns the name and value of every tensor, the other objects as plain data, and
notes of everything done. Takes names; returns them without the prefixes that DDP, FSDP and torch.compile add.
Refuses an object without names, a choice between several dictionaries of weights, and prefixes that only some names
carry. Optimizer state is never taken for weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from compiler.checkpoints.formats.pickle_globals import Global, Inert, Sharded, Unreadable, View
from compiler.checkpoints.formats.pickle_plain import LeftOut, Plain, shown
from compiler.checkpoints.formats.torch_save import Places, open_zip
from compiler.diagnostics import listed, nearest, refuse

WEIGHTS = ("model", "state_dict", "model_state_dict", "module", "weights", "net", "params")
AVERAGES = ("ema", "model_ema", "ema_model", "ema_state_dict", "model_ema_state_dict")
TRAINING = ("optim", "sched", "scaler", "rng", "callbacks", "loops", "loss")  # how keys of training state begin or end
MAX_DEPTH = 16  # of dictionaries in dictionaries
MAX_LOOKS = 5_000_000  # at values, to find out where tensors are
NAME_ROOT = "name the one with the weights with --weights"
RUN = re.compile(
    r"model\d{1,4}"
)  # of layers: what one stage of an interleaved pipeline has (NVIDIA: generate_state_dict)
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
_TENSORS, _HOLDERS = (View, Unreadable), (dict, list, tuple, Inert)


class Contents:
    """The weights in one object: `named` (name to View), the other `objects`, `notes`.

    `nested`: the weights are dictionaries in dictionaries, whose keys are joined by dots. `sharded`: one rank's parts of
    tensors are named as well.
    """

    def __init__(
        self, tree: Any, path: str, root: str | None = None, nested: bool = False, sharded: bool = False
    ) -> None:
        self.path = path
        self.sharded = sharded
        self.objects: dict[str, object] = {}
        self.notes: list[str] = []
        self.trail: list[str] = []
        self.plain = Plain()
        self.looks = MAX_LOOKS
        self.root = root
        choice = self._known if nested else self._choice
        node = self._search(self._descend(tree, root) if root else self._joined_runs(tree), choice)
        self.named: dict[str, Any] = self._names(dict(self._flat(node)) if nested else node)

    def _descend(self, tree: Any, root: str) -> dict[Any, Any]:
        """Follow a dotted path; a key may itself hold dots."""
        node, rest = _mapping(tree), root
        if root == AVERAGES[0]:
            rest = next((key for key in AVERAGES if key in (node or ())), root)
        while rest:
            keys = [k for k in node or () if isinstance(k, str) and (rest == k or rest.startswith(k + "."))]
            if node is None or not keys:
                texts = [k for k in node or () if isinstance(k, str)]
                hint = nearest(rest, texts) or f"there is: {listed(map(shown, texts))}"
                refuse(self.path, f"--weights {root!r}: there is no {rest!r}", "missing-weights", hint)
            key = max(keys, key=len)
            self._enter(node, key)
            node, rest = _mapping(node[key]), rest[len(key) + 1 :]
        if node is None:
            refuse(self.path, f"--weights {root!r} is not a dictionary of tensors", "missing-weights")
        return node

    def _joined_runs(self, tree: Any) -> Any:
        """The object with the dictionaries `model0`, `model1` ... as one, whose names begin with `model0.` and so on."""
        node = _mapping(tree) or {}
        runs = {key: held for key, value in node.items() if isinstance(key, str) and RUN.fullmatch(key)
                and (held := _mapping(value)) is not None and self._holds_tensors(held)}  # fmt: skip
        if len(runs) < 2 or any(f"model{n}" not in runs for n in range(len(runs))) or WEIGHTS[0] in node:
            return tree
        joined = {f"{run}.{name}": value for run, held in runs.items() for name, value in held.items()}
        return {key: value for key, value in node.items() if key not in runs} | {WEIGHTS[0]: joined}

    def _search(self, tree: Any, choose: Callable[[dict[Any, Any]], Any]) -> dict[Any, Any]:
        node = _mapping(tree)
        if node is None:
            self._refuse_nameless(tree)
        while (key := choose(node)) is not None:
            self._enter(node, key)
            node = _mapping(node[key]) or {}
        return node

    def _choice(self, node: dict[Any, Any]) -> Any:
        """The key to open next; None where this node holds the weights themselves."""
        nested = [k for k, v in node.items() if _mapping(v) is not None and self._holds_tensors(v)]
        tensors = any(isinstance(v, _TENSORS) and not (nested and _aside(k, v)) for k, v in node.items())
        known = [k for k in nested if k in WEIGHTS]
        others = known or [k for k in nested if not _of_training(k)]
        if not tensors and not others:
            others = [k for k in nested if k in AVERAGES]
        if len(others) > 1 or (others and tensors):
            what = "its own tensors and" if tensors else "more than one dictionary of tensors:"
            self._refuse(f"it holds {what} {listed(map(repr, others))}", "ambiguous-container", NAME_ROOT)
        if not others and not tensors:
            self._refuse_empty(node, bool(nested))
        return others[0] if others else None

    def _known(self, node: dict[Any, Any]) -> Any:
        """The one key that trainers use for all weights; None if there is not exactly one."""
        known = [k for k, v in node.items() if k in WEIGHTS and _mapping(v) is not None and self._holds_tensors(v)]
        return known[0] if len(known) == 1 and not any(isinstance(v, _TENSORS) for v in node.values()) else None

    def _enter(self, node: Mapping[Any, Any], key: str) -> None:
        other_keys = [shown(k) for k in node if k != key]
        left_out = [reason for k, v in node.items() if k != key and (reason := self._keep(k, v))]
        note = f"opened {key!r}" + (f" (beside: {listed(other_keys)})" if other_keys else "")
        self.notes.append(note + (f"; not kept: {listed(left_out)}" if left_out else ""))
        if not self.root and key not in AVERAGES and any(k in AVERAGES for k in node):
            self.notes.append("the file also holds averaged weights; --weights ema reads those")
        self.trail.append(key)
        if len(self.trail) > MAX_DEPTH:
            self._refuse(f"it holds dictionaries more than {MAX_DEPTH} deep", "ambiguous-container", NAME_ROOT)

    def _holds_tensors(self, value: Any) -> bool:
        """Whether it contains a tensor at any depth; cycles are handled. Shared parts are searched each time."""
        seen: set[int] = set()
        pending = [value]
        while pending:
            node = pending.pop()
            if isinstance(node, _TENSORS):
                return True
            if isinstance(node, _HOLDERS) and id(node) not in seen:
                seen.add(id(node))
                before = len(pending)
                pending.extend(_children(node))
                self.looks -= 1 + len(pending) - before
                if self.looks < 0:
                    self._refuse("its dictionaries refer to each other too often", "ambiguous-container", NAME_ROOT)
        return False

    def _flat(self, node: dict[Any, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[Any, Any]]:
        """The items of dictionaries in dictionaries, their keys joined by dots."""
        for key, value in node.items():
            fits = depth < MAX_DEPTH and isinstance(key, str) and self._holds_tensors(value)
            inner = _mapping(value) if fits else None
            if inner is None:
                yield (prefix + key if isinstance(key, str) else key), value
            else:
                yield from self._flat(inner, f"{prefix}{key}.", depth + 1)

    def _keep(self, key: Any, value: Any) -> str:
        """Keep an object that is not a tensor; returns the key and the reason if it cannot be kept."""
        try:
            self.objects.setdefault(key if isinstance(key, str) else shown(key), self.plain.of(value))
        except LeftOut as reason:
            return f"{shown(key)} ({reason})"
        return ""

    def _names(self, node: dict[Any, Any]) -> dict[str, View | Sharded]:
        named: dict[str, View | Sharded] = {}
        skipped: list[str] = []
        for name, value in node.items():
            if (isinstance(value, View) and type(name) is str) or (
                isinstance(value, Sharded) and self.sharded and type(name) is str
            ):
                named[name] = value
            elif isinstance(value, Sharded):
                hint = "give the folder with the files of all ranks, named model_world_size_N_rank_R.pt"
                self._refuse(f"{name!r} is {value.what}: one rank's part of it", "missing-part", hint)
            elif isinstance(value, Unreadable):
                hint = "convert it to a dense tensor where it was made and save again"
                self._refuse(f"{name!r} is {value.what}", "unsupported-tensor", hint)
            elif isinstance(value, Inert) and value.cls.path == "numpy.ndarray":
                hint = "save it as torch.from_numpy(array)"
                self._refuse(f"{name!r} is a numpy array, not a tensor", "unsupported-tensor", hint)
            elif self._holds_tensors(value) and not _of_training(name):
                self._refuse(f"{name!r} is not a tensor but {_kind(value)} that holds tensors", "ambiguous-container")
            else:
                skipped.append(f"{shown(name)} ({_kind(value)})")
                self._keep(name, value)
        if skipped:
            self.notes.append(f"skipped entries that are not tensors: {listed(skipped)}")
        if not named:
            self._refuse("there are no named tensors in it", "missing-weights")
        if "ds_version" in self.objects and all(0 in view.shape for view in named.values()):
            hint = (
                "the weights are in the optimizer files of all ranks (zero_pp_rank_*_optim_states.pt); give the folder"
            )
            self._refuse("every tensor in it is empty", "missing-weights", hint)
        if "__metadata__" in named:
            self.notes.append("a tensor is called '__metadata__', a name that safetensors files reserve")
        return named

    def _refuse_nameless(self, tree: Any) -> NoReturn:
        if _is_module(tree):
            self._refuse_module(tree)
        hint = "save a dictionary of names and tensors: torch.save(model.state_dict(), path)"
        if isinstance(tree, _TENSORS):
            self._refuse("it holds one tensor without a name", "missing-weights", hint)
        what = "tensors without names" if self._holds_tensors(tree) else "no tensor"
        self._refuse(f"it holds {_kind(tree)} with {what}", "missing-weights", hint)

    def _refuse_empty(self, node: dict[Any, Any], nested: bool) -> NoReturn:
        if module := next((v for v in node.values() if _is_module(v)), None):
            self._refuse_module(module)
        where = f"under {'.'.join(self.trail)!r}" if self.trail else "in it"
        outside = " outside the training state" if nested else ""
        hint = f"there is: {listed(map(shown, node))}" if node else ""
        self._refuse(f"there are no named tensors {where}{outside}", "missing-weights", hint)

    def _refuse_module(self, module: Inert) -> NoReturn:
        hint = "where its code is installed: torch.save(model.state_dict(), path)"
        self._refuse(f"it holds a whole pickled model ({module.cls.path}), not its weights", "missing-weights", hint)

    def _refuse(self, message: str, kind: str, hint: str = "") -> NoReturn:
        refuse(self.path, message, kind, hint)


def open_contents(
    path: Path, root: str | None = None, nested: bool = False, part: tuple[int, int] | None = None
) -> tuple[Contents, Places]:
    """The weights in a zip of torch.save, and where their bytes are; arguments as of `Contents` and `open_zip`. Raises
    Refusal."""
    searched: list[Contents] = []

    def views(tree: object) -> Iterable[View]:
        searched.append(Contents(tree, str(path), root, nested))
        return searched[0].named.values()

    _, places = open_zip(path, views, part)
    return searched[0], places


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, Inert):
        yield from (*node.args, node.state, *node.items.values(), *node.values)
    else:
        yield from node.values() if isinstance(node, dict) else node


def _mapping(value: Any) -> dict[Any, Any] | None:
    """A dictionary, or the items of an instance of some class of dictionaries."""
    if isinstance(value, Inert):
        return value.items or None
    return value if isinstance(value, dict) else None


def _is_module(value: Any) -> bool:
    state = value.state if isinstance(value, Inert) else None
    return isinstance(state, dict) and "_modules" in state and "_parameters" in state


def _aside(key: Any, value: Any) -> bool:
    """Whether a tensor among dictionaries is a counter or a state of training rather than a weight."""
    return _of_training(key) or (isinstance(value, View) and value.shape == ())


def _of_training(key: Any) -> bool:
    return isinstance(key, str) and any(word in key.lower() for word in (*TRAINING, *AVERAGES))


def _kind(value: Any) -> str:
    if isinstance(value, Inert | Global):
        return value.cls.path if isinstance(value, Inert) else value.path
    return "None" if value is None else f"a {type(value).__name__}"


def unwrapped(names: list[str], path: str) -> tuple[dict[str, str], list[str]]:
    """Each name without the wrappers' components, and notes of what was removed."""
    bare, notes, prefix = list(names), list[str](), ""
    while True:
        leading = {name.partition(".")[0] for name in bare if "." in name} & WRAPPERS
        if not leading:
            break
        first = next(iter(leading)) + "."
        if not all(name.startswith(first) for name in bare):
            with_it = [n for n, b in zip(names, bare, strict=True) if b.partition(".")[0] in leading and "." in b]
            without = [n for n in names if n not in set(with_it)] or with_it[1:]
            message = (
                f"some names begin with a wrapper's prefix ({listed(with_it, 3)}), others not ({listed(without, 3)})"
            )
            hint = "two models are in one dictionary, or only a part was wrapped; save each unwrapped"
            refuse(path, message, "mixed-prefix", hint)
        bare = [name.removeprefix(first) for name in bare]
        prefix += first
    if prefix:
        notes.append(f"stripped the prefix {prefix!r} from {len(bare)} names")
    changed = 0
    for i, name in enumerate(bare):
        first, *middle = name.split(".")
        if not WRAPPERS.isdisjoint(middle[:-1]):
            bare[i] = ".".join((first, *(part for part in middle[:-1] if part not in WRAPPERS), middle[-1]))
            changed += 1
    if changed:
        notes.append(f"removed wrapper components from {changed} names")
    return dict(zip(names, bare, strict=True)), notes
