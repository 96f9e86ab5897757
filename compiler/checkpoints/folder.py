"""Find the file to open in a folder, and read the index that spreads a checkpoint over several files.

Takes a path; returns a file or, for an index, the shard of every name. Refuses a folder without weights or with several
checkpoints, and an index that is malformed or that points out of its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compiler import strict_json
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.checkpoints.formats.shard_path import shard_fault
from compiler.diagnostics import Report, Span, listed, refuse

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".gguf", ".npz", ".nemo")
_FOREIGN = (".msgpack",)  # of other frameworks, which hubs have beside the files of torch
_PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NO_WEIGHTS = re.compile(
    r"training_args\.bin|optimizer.*|scheduler.*|scaler.*|rng_state.*|random_states.*|.*optim_states\.pt"
)
_LATEST = "latest"  # DeepSpeed: the name of the subfolder of the last step
_ITERATION = "latest_checkpointed_iteration.txt"  # NVIDIA: the number of the last step, in the subfolder iter_0000010
_STEP = re.compile(r"iter_\d{7,}")
STEP_METADATA = "checkpoint_metadata.json"  # huggingface: in the folder of a step that has one file for each parameter
_LATEST_NUMBER = "latest.txt"  # the same: the number of the last step, which is the name of its subfolder
_RELEASE = "release"  # in place of a number: a subfolder without one
# Folders of shards inside the folder of a step: accelerate's and Trainer's, DeepSpeed's, verl's, NeMo 2's.
RANK_FILE = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt")  # FSDP: verl
OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,6})_optim_states\.pt")  # ZeRO
LAYER_FILE = re.compile(r"layer_(\d{1,6})(?:-model_(\d{1,6}))?-model_states\.pt")  # a pipeline of DeepSpeed
_SHARDS = re.compile(r"pytorch_model_fsdp_\d+|global_step\d+|dist_cp|actor|critic|weights")
METADATA = ".metadata"  # the index of a distributed checkpoint
COMMON = "common.pt"  # in the same folder, what all ranks share (NVIDIA: core/dist_checkpointing/strategies/common.py)
_MOST_INDEX_BYTES = 200_000_000
_MOST_APART = 8  # shards with the same problem that get a message each


@dataclass
class Found:
    """The file or folder to open, and notes about files that were ignored."""

    path: Path
    notes: list[str]
    kind: str = ""  # `ranks`, `layers`, `zero` or `slices` for a folder whose files are one checkpoint together


def find(path: Path) -> Found:
    """The file to open for a path: itself, or the one checkpoint of a folder."""
    if path.is_file() and path.suffix == ".distcp":
        hint = f"give the folder: {path.parent}"
        refuse(str(path), "one file of a distributed checkpoint", "missing-part", hint)
    if path.is_file() and (match := RANK_FILE.fullmatch(path.name)) and match[1] == "1":
        return Found(path.parent, [], "ranks")
    if path.is_file() and _is_of_ranks([path.name]):
        hint = f"give the folder: {path.parent}"
        what = (
            "the file of one layer"
            if LAYER_FILE.fullmatch(path.name)
            else "the file of one rank, which has a part of each tensor"
        )
        refuse(str(path), what, "missing-part", hint)
    if path.is_file():
        return Found(path, [])
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = f"in {path.parent} there is: {listed(near)}" if near else "check the path"
        refuse(str(path), "there is no such file", "unreadable-file", hint)
    if not path.is_dir():
        refuse(str(path), "neither a file nor a folder", "unreadable-file")
    if (path / STEP_METADATA).is_file() and (path / "model").is_dir():
        return Found(path, [], "slices")
    names = sorted(p.name for p in path.iterdir() if p.is_file())
    if (kind := _is_of_ranks(names)) and not any(n in names for n in _PREFERRED):
        return Found(path, [], kind)
    indexes = [n for n in names if n.endswith(".index.json")]
    weights = [n for n in names if n.endswith(_SUFFIXES) and not _NO_WEIGHTS.fullmatch(n)]
    weights = [n for n in weights if n != COMMON or METADATA not in names]
    weights = weights or [n for n in names if n.endswith(_FOREIGN) and METADATA not in names]
    choices = [n for n in _PREFERRED if n in names] or (indexes if len(indexes) == 1 else weights)
    if not choices and METADATA in names:
        return Found(path / METADATA, [])
    if not choices and (step := last_step(path)) is not None:
        found = find(step)
        return Found(found.path, [f"the last step is in the folder {step.name}", *found.notes], found.kind)
    if not choices and (inner := _inner(path)) is not None:
        found = find(inner)
        return Found(found.path, [f"the shards are in the folder {inner.name}", *found.notes], found.kind)
    if not choices:
        inside = names or sorted(f"{p.name}/" for p in path.iterdir())
        hint = f"it holds {listed(inside)}" if inside else "it is empty"
        refuse(str(path), f"no checkpoint ({', '.join(_SUFFIXES + _FOREIGN)}) in this folder", "missing-weights", hint)
    if len(choices) > 1 and choices[0] not in _PREFERRED:
        hint = "name one file, or all of them if together they are one checkpoint"
        if all(re.search(r"\d+\.\w+$", n) for n in choices):
            hint = "parts of a tensor-parallel model need a spec that merges them; else name one file"
        refuse(str(path), f"several checkpoints in this folder: {listed(choices)}", "ambiguous-container", hint)
    rest = choices[1:] if choices[0].endswith(".index.json") else [n for n in (*indexes, *weights) if n != choices[0]]
    note = f"took {choices[0]} of this folder" + (f" (beside: {listed(rest)})" if rest else "")
    return Found(path / choices[0], [note])


def _is_of_ranks(names: Iterable[str]) -> str:
    """Whether files of ranks or layers are among the names: `ranks`, `layers`, `zero` or empty."""
    if any(RANK_FILE.fullmatch(name) for name in names):
        return "ranks"
    if any(LAYER_FILE.fullmatch(name) for name in names):
        return "layers"
    return "zero" if any(OPTIMIZER_FILE.fullmatch(name) for name in names) else ""


def _inner(path: Path) -> Path | None:
    """The one folder of shards inside the folder of a step. Raises Refusal where there are several."""
    inside = sorted(p for p in path.iterdir() if p.is_dir() and _SHARDS.fullmatch(p.name))
    inside = [p for p in inside if p.name != "critic"] or inside  # of a policy and its critic, the policy
    if len(inside) > 1:
        hint = "give one of them; the file `latest` would name the last step"
        refuse(str(path), f"several folders of shards: {listed(p.name for p in inside)}", "ambiguous-container", hint)
    return inside[0] if inside else None


def companions(source: Path) -> list[Path]:
    """The folders that may hold the config and the tokenizer of a checkpoint, the nearest first: its own, the one that
    verl makes inside of it, those of the shards inside of it, and those around it where it is a folder of shards."""
    folder = source if source.is_dir() else source.parent
    inside = (
        [p for p in sorted(folder.iterdir()) if p.is_dir() and _SHARDS.fullmatch(p.name)] if folder.is_dir() else []
    )
    around = [folder.parent, folder.parent.parent] if _SHARDS.fullmatch(folder.absolute().name) else []
    return [place for near in (folder, *inside) for place in (near, near / "huggingface")] + around


def last_step(path: Path) -> Path | None:
    """The subfolder that a file `latest` names, or the number of a step; without such a file, the only step. Raises Refusal
    where there are several."""
    file = next((path / name for name in (_LATEST, _ITERATION, _LATEST_NUMBER) if (path / name).is_file()), None)
    if file is None or file.stat().st_size > 255:
        steps = sorted(p for p in path.iterdir() if _is_step(p))
        if len(steps) > 1:
            file_name = _ITERATION if _STEP.fullmatch(steps[0].name) else _LATEST_NUMBER
            hint = f"give one of them; the file {file_name} would name the last one"
            message = f"several steps in one folder: {listed(p.name for p in steps)}"
            refuse(str(path), message, "ambiguous-container", hint)
        return steps[0] if steps else None
    name = file.read_text(encoding="utf-8", errors="replace").strip()
    if file.name == _ITERATION and name.isdecimal() and not (path / f"iter_{name:>07}").is_dir():
        there = sorted(p.name for p in path.iterdir() if p.is_dir() and _STEP.fullmatch(p.name))
        hint = f"give the folder of a step: {listed(there)}" if there else "copy its folder"
        refuse(str(file), f"the folder of step {name} is missing", "missing-part", hint)
    if file.name == _ITERATION and name != _RELEASE:
        name = f"iter_{name:>07}"
    return path / name if name and Path(name).name == name and (path / name).is_dir() else None


def _is_step(path: Path) -> bool:
    """Whether it is the folder of a step, by the names that trainers give it."""
    by_number = path.name.isdecimal() and (path / STEP_METADATA).is_file()
    return by_number or (bool(_STEP.fullmatch(path.name)) and path.is_dir())


def read_index(path: Path) -> dict[str, Path]:
    """The shard of each tensor name. Shards must be in the folder of the index."""
    if path.stat().st_size > _MOST_INDEX_BYTES:
        refuse(str(path), "an index of more than 200 MB", "bad-index")
    try:
        index = strict_json.parse(path.read_bytes())
    except ValueError as error:
        refuse(str(path), f"not valid JSON: {str(error)[:120]}", "bad-index")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if weight_map is None and not path.name.endswith(".index.json"):
        hint = "a checkpoint is .pth, .pt, .bin, .ckpt, .safetensors or an index of shards"
        refuse(str(path), "not a checkpoint but a JSON file", "unknown-format", hint)
    if not isinstance(weight_map, dict) or not weight_map:
        what = "missing" if weight_map is None else "empty" if weight_map == {} else f"a {type(weight_map).__name__}"
        refuse(str(path), f"its weight_map is {what}; it must name a file for every tensor", "bad-index")
    report, shards = Report(), dict[str, Path]()
    if wrong := [name for name, file in weight_map.items() if not isinstance(file, str)]:
        refuse(str(path), f"its weight_map names no file for {listed(map(shown, wrong))}", "bad-index")
    problems: dict[str, list[str]] = {}
    for file in dict.fromkeys(weight_map.values()):
        if problem := shard_fault(path.parent, file):
            problems.setdefault(problem, []).append(repr(file[:200]))
        shards[file] = path.parent / file
    for problem, files in problems.items():
        each = [f"its shard {file}" for file in files]
        for those in each if len(files) <= _MOST_APART else [f"each of its shards {listed(files)}"]:
            report.add(Span(str(path)), f"{those} {problem}", "bad-index")
    report.settle()
    return {name: shards[file] for name, file in weight_map.items()}
