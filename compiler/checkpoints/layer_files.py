"""Reads the folder of a DeepSpeed pipeline: one file for each layer of the pipeline and each model-parallel rank, whatever
the number of stages was.

A file has the names of its own layer; `sequential.N.` before them makes them those of the model, as DeepSpeed's modules without
a pipeline have them. What several model-parallel ranks hold of one tensor is a part, a copy or a summand, and neither the files
nor the shapes say which: each rank is a checkpoint of its own, and a spec joins them. Refuses a layer without the files of
all ranks.
Source: deepspeed/runtime/pipe/module.py (ckpt_layer_path, save_state_dict) of 0.19.8.
"""

from __future__ import annotations

from pathlib import Path

from compiler.checkpoints.folder import LAYER_FILE
from compiler.checkpoints.opened import Opened
from compiler.checkpoints.state_dict_search import open_contents
from compiler.diagnostics import refuse

PREFIX = "sequential"


def open_layers(folder: Path) -> Opened:
    """Open all layer files of a folder as one checkpoint. Raises Refusal, also for several model-parallel ranks."""
    ranks = open_layers_of_ranks(folder)
    if len(ranks) > 1:
        hint = "a spec with `merge` joins them; else gather them with the trainer's own tools first"
        message = f"files of {len(ranks)} model-parallel ranks, which this spec does not join"
        refuse(str(folder), message, "unsupported-tensor", hint)
    return ranks[0]


def open_layers_of_ranks(folder: Path) -> list[Opened]:
    """Open the layer files of each model-parallel rank. Raises Refusal."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := LAYER_FILE.fullmatch(path.name):
            found.setdefault(int(match[2] or 0), {})[int(match[1])] = path
    layers = sorted({number for files in found.values() for number in files})
    count = 1 + max(found)
    for rank in range(min(count, len(found) + 1)):
        if missing := [number for number in layers if number not in found.get(rank, {})]:
            message = f"the file of layer {missing[0]} and model-parallel rank {rank} is missing; others are of rank {count - 1}"
            refuse(str(folder), message, "missing-part", "copy the files of all ranks into one folder")
    return [_open(found[rank]) for rank in sorted(found)]


def _open(files: dict[int, Path]) -> Opened:
    opened = Opened(notes=[f"joined the files of {len(files)} layers"])
    for number, path in sorted(files.items()):
        inside, places = open_contents(path)
        for name, view in inside.named.items():
            whole = f"{PREFIX}.{number}.{name}"
            opened.tensors[whole] = places.locate(whole, view)
        opened.checksums |= places.checksums
        opened.files.append(path)
    return opened
