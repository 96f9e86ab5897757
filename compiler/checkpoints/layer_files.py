"""Reads the folder of a DeepSpeed pipeline: one file for each layer of the pipeline, whatever the number of stages was.

A file has the names of its own layer; `sequential.N.` before them makes them those of the model, as DeepSpeed's modules without
a pipeline have them. Refuses several model-parallel ranks: what they hold of one tensor is a part, a copy or a summand,
and neither the files nor the shapes say which.
Source: deepspeed/runtime/pipe/module.py (ckpt_layer_path, save_state_dict) of 0.19.8.
"""

from __future__ import annotations

from pathlib import Path

from compiler.checkpoints.folder import LAYER_FILE
from compiler.checkpoints.formats.torch_save import open_zip
from compiler.checkpoints.opened import Opened
from compiler.checkpoints.state_dict_search import Contents
from compiler.diagnostics import listed, refuse

PREFIX = "sequential"


def open_layers(folder: Path) -> Opened:
    """Open all layer files of a folder as one checkpoint. Raises Refusal."""
    found: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := LAYER_FILE.fullmatch(path.name):
            found.setdefault(int(match[1]), {})[int(match[2] or 0)] = path
    if (ranks := sorted({rank for files in found.values() for rank in files})) != [0]:
        hint = "gather them with the trainer's own tools first"
        message = f"files of the model-parallel ranks {listed(ranks)}; only rank 0 alone is read"
        refuse(str(folder), message, "unsupported-tensor", hint)
    opened = Opened(notes=[f"joined the files of {len(found)} layers"])
    for number, files in sorted(found.items()):
        (path,) = files.values()
        searched: list[Contents] = []

        def contents(tree: object, path: Path = path, searched: list[Contents] = searched) -> object:
            searched.append(Contents(tree, str(path)))
            return searched[0].named.values()

        _, places = open_zip(path, contents)
        for name, view in searched[0].named.items():
            whole = f"{PREFIX}.{number}.{name}"
            opened.tensors[whole] = places.locate(whole, view)
        opened.checksums |= places.checksums
        opened.files.append(path)
    return opened
