"""What the parent asks of an isolated process that runs one model, and what that process returns.

A `Job` is pickled by the parent for its own child and for nobody else. A `Results` is written as one safetensors file:
tensors under `output.N.NAME` (trial N), `module.M.output`, `module.M.input` and `given.NAME`, the rest as JSON in the
metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compiler.plan.plan import Plan
from compiler.program.program import Program

RESULTS = "results.safetensors"


@dataclass(frozen=True)
class RowOrder:
    """The rows of a query or key projection in the other rotary layout: in each head of `head_dim` rows the first
    `rotary_dim` are reordered, `to` "half" (first elements of all pairs, then second ones) or "interleaved"."""

    tensor: str
    head_dim: int
    rotary_dim: int
    to: str


@dataclass(frozen=True)
class Trial:
    """One run of the model.

    The checkpoint's tensors `names` are replaced by values that a fault of kind `level` does not change; without names
    the weights stay. A `plan` replaces the job's plan, `config` the folder's config.json; `rows` reorders rows of the
    converted tensors.
    """

    names: tuple[str, ...] = ()
    level: str = ""
    plan: Plan | None = None
    config: Mapping[str, Any] | None = None
    rows: tuple[RowOrder, ...] = ()


@dataclass(frozen=True)
class InputShape:
    """One input of the model: `kind` is tokens (whole numbers from 0 up to `below`), floats (standard normal) or mask
    (ones); `source` is the parameter of the source model that takes it, if it has another name there."""

    name: str
    kind: str
    shape: tuple[int, ...]
    below: int = 0
    source: str = ""


@dataclass(frozen=True)
class Job:
    """What to run.

    `plan` makes the model's tensors from the checkpoint's; without one the model has the checkpoint's own names. With
    `folder`, Transformers builds the model from the config there and, if `written`, takes its weights too. Otherwise
    `names`: of the sources at `paths`, where the spec has several. `entry` is MODULE:CLASS or FILE:FUNCTION, built from `config`. `rounding`: a dtype that every weight is rounded to.

    `inputs` are the tensors to run. If they are None, the process draws them: of the `shapes`, or of the shapes that
    the class and its config imply, with `length` tokens smaller than `below`. `watch`: record what each module returns.
    """

    program: Program
    paths: tuple[Path, ...]
    plan: Plan | None = None
    folder: Path | None = None
    written: bool = False
    entry: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    rounding: str = ""
    weights: str | None = None
    names: tuple[str, ...] = ()
    inputs: Mapping[str, Any] | None = None
    shapes: tuple[InputShape, ...] = ()
    length: int = 0
    below: int = 0
    watch: bool = False
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Results:
    """`outputs`: for each trial the model's floating outputs by name, in float32; empty where a trial other than the
    first could not run. `stored`: each tensor of a Transformers model -> its names in the weights file, where they differ.
    `modules`: name -> (output, input or None) in the order in which modules finish in the first
    trial. `inputs`: what was run. `unused`: the model's tensors that no operation of the first trial read. `narrow`:
    floating dtypes narrower than float32 that the model computes with; `widened`: those that were replaced by float32.
    """

    outputs: tuple[Mapping[str, Any], ...]
    modules: Mapping[str, tuple[Any, Any]]
    inputs: Mapping[str, Any]
    unused: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def save_results(results: Results, folder: Path) -> None:
    """Write `results` into the folder of the job."""
    from safetensors.torch import save_file

    tensors = {f"given.{name}": tensor for name, tensor in results.inputs.items()}
    for number, outputs in enumerate(results.outputs):
        tensors |= {f"output.{number}.{name}": tensor for name, tensor in outputs.items()}
    for number, (output, given) in enumerate(results.modules.values()):
        tensors[f"module.{number}.output"] = output
        if given is not None:
            tensors[f"module.{number}.input"] = given
    other = {
        "trials": len(results.outputs),
        "modules": list(results.modules),
        "unused": results.unused,
        "narrow": results.narrow,
        "widened": results.widened,
        "stored": dict(results.stored),
        "names": list(tensors),  # safetensors sorts them
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / RESULTS,
        {"results": json.dumps(other)},
    )


def load_results(folder: Path) -> Results:
    """Read what `save_results` wrote."""
    from safetensors import safe_open

    with safe_open(str(folder / RESULTS), "pt") as file:
        other = json.loads(file.metadata()["results"])
        tensors = {name: file.get_tensor(name) for name in other["names"]}

    def below(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    return Results(
        tuple(below(f"output.{number}.") for number in range(other["trials"])),
        {
            name: (tensors[f"module.{number}.output"], tensors.get(f"module.{number}.input"))
            for number, name in enumerate(other["modules"])
        },
        below("given."),
        tuple(other["unused"]),
        tuple(other["narrow"]),
        tuple(other["widened"]),
        {name: tuple(names) for name, names in other["stored"].items()},
    )
