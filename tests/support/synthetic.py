"""Checkpoints made up from a spec alone: what the source must have been, with random bits in it.

The target class tells names and shapes of what it writes, the spec's derived inverse those of the source. Works for
every spec with an example; nothing here knows one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compiler.jobs.request import Request
from compiler.language.name_pattern import options
from compiler.language.spec import in_parts
from compiler.program.environment import Environment, Given
from compiler.program.inverse import SourceShapes, invert
from compiler.program.program import Program
from compiler.proof.proof import target_signature

_BITS = {
    "float32": torch.int32,
    "float16": torch.int16,
    "bfloat16": torch.int16,
    "float8_e4m3fn": torch.uint8,
    "uint8": torch.uint8,
}


@dataclass(frozen=True)
class Synthetic:
    """`tensors` of a made-up source; `arguments` are the example's words that no shape tells, for `--set`."""

    tensors: Mapping[str, Tensor]
    ignored: Mapping[str, Tensor]
    arguments: Mapping[str, Any]

    def save(self, folder: Path, weights: str) -> Path:
        """Write it as the spec's `source.weights` says, and return the file."""
        tensors = {**self.tensors, **self.ignored}
        if "safetensors" in weights:
            save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors")
            return folder / "model.safetensors"
        torch.save(tensors, folder / "model.pth")
        return folder / "model.pth"


def synthetic(program: Program, example: int = 0, dtype: str = "float32", finite: bool = False) -> Synthetic:
    """A source for one of the spec's examples: any bits in its tensors, NaN included, but finite numbers where two are
    tied (a comparison of values finds no NaN equal to itself) or where `finite` asks for them."""
    spec = program.spec
    values = {name: value for name, (value, _) in spec.examples[example].items()}
    given = {name: Given(value, "the example") for name, value in values.items()}
    env = Environment(program, SourceShapes(program, {}), given, trusted=True)
    config = {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in spec.config}
    shapes = {n: tuple(s) for n, s in target_signature(program, config).shapes.items()}
    env = Environment(program, SourceShapes(program, shapes), given, trusted=True)
    random = torch.Generator().manual_seed(example)
    make = _numbers if finite else _bits
    tensors = {
        n: make(form.shape, dtype if form.dtype == "float32" else form.dtype, random)
        for n, form in sorted(invert(program, env, shapes).items())
    }
    for tie in program.ties:
        for alias in tensors if env.holds(tie.when) else ():
            captures = tie.alias.match(alias)
            if captures is not None:
                owner = tie.owner.fill(captures)
                tensors[owner] = _numbers(tuple(tensors[owner].shape), dtype, random)
                tensors[alias] = tensors[owner].clone()
    # Names that the spec leaves behind, where it lists them.
    ignored = {
        pattern.fill(
            {h: _number(env, h) for h in pattern.holes} | {h: words[0] for h, words in choices.items()}
        ): torch.ones(2)
        for pattern, _ in program.ignored
        if (choices := {h: words for h, hole in pattern.holes.items() if (words := options(hole))}) is not None
    }
    for field in spec.layout.constants:  # what the arguments give
        if field.name in ignored and field.expr and (numbers := env.evaluate(field.expr)) is not None:
            ignored[field.name] = torch.tensor(numbers)
    return Synthetic(tensors, ignored, {n: v for n, v in values.items() if n in spec.arguments})


def saved(source: Synthetic, folder: Path, program: Program) -> Path:
    """Write a source in the container that its spec names; returns what a user gives a converter."""
    weights = program.spec.weights
    if weights.endswith(".gguf"):
        architecture = program.spec.arguments["general_architecture"].default
        return gguf_file({**source.tensors, **source.ignored}, folder / "model.gguf", architecture)
    if not in_parts(weights):
        return source.save(folder, weights)
    kinds = program.spec.ranks.numbers if program.spec.ranks else ()
    file = folder / "source" / weights.replace("*", "00", weights.count("*") - ("total" in kinds)).replace("*", "01")
    file.parent.mkdir(parents=True)
    tensors = {**source.tensors, **source.ignored}
    if file.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    else:
        torch.save(tensors, file if file.suffix in (".pt", ".pth") else file.with_name(f"{file.name}.pth"))
    return folder / "source"


def request_of(source: Synthetic, folder: Path, program: Program) -> Request:
    """A request for a source, written into the folder; each of several sources is a file of its own there."""
    if not program.spec.sources:
        return Request([saved(source, folder, program)], assigned=source.arguments)
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in source.tensors.items():
        owner, _, bare = name.partition(":")
        states.setdefault(owner, {})[bare] = tensor
    for owner, state in states.items():
        (folder / owner).mkdir(parents=True)
        torch.save(state, folder / owner / "model.pth")
    paths = [folder / owner / "model.pth" for owner in states]
    return Request(paths, names=[*states], assigned=source.arguments)


def gguf_file(tensors: Mapping[str, Tensor], path: Path, architecture: str) -> Path:
    """Tensors of float32 or float16 as a GGUF file that says nothing else of its model."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _number(env: Environment, hole: str) -> str:
    """The first number that an index may stand for."""
    return next(str(n) for n in range(99) if env.admits(hole, str(n)))


def _numbers(shape: tuple[int, ...], dtype: str, random: torch.Generator) -> Tensor:
    if dtype == "uint8":
        return torch.randint(100, 150, shape, generator=random, dtype=torch.uint8)
    return torch.randn(shape, generator=random).to(getattr(torch, dtype))


def _bits(shape: tuple[int, ...], dtype: str, random: torch.Generator) -> Tensor:
    kind = _BITS[dtype]
    info = torch.iinfo(kind)
    return torch.randint(info.min, info.max, shape, generator=random, dtype=kind).view(getattr(torch, dtype))


def image(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What makes a tensor the same: dtype, shape, bytes. For comparison with `==`."""
    return {
        name: (str(t.dtype), tuple(t.shape), t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


def folder_image(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The image of all weights in a folder; an index must name exactly the files and tensors that there are."""
    files = sorted(folder.glob("*.safetensors"))
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    where: dict[str, str] = {}
    for file in files:
        part = image(load_file(file))
        assert not found.keys() & part.keys()
        found |= part
        where |= dict.fromkeys(part, file.name)
    index = folder / "model.safetensors.index.json"
    assert index.is_file() == (len(files) > 1)
    if index.is_file():
        assert json.loads(index.read_text())["weight_map"] == where
    return found
