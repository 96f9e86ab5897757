"""mapspec from Python: what the commands do, as functions.

    from compiler import api

    api.convert("specs/mine.yaml", "model.pth", "out")
    weights = dict(api.iter_tensors("specs/mine.yaml", "model.pth", device="cuda"))   # no file is written

A spec is the name of a shipped one or a path; a source is a file, a folder, or several files. `settings` are the options
of `compile run` by the names of `convert.Request`: `config` (a file), `assigned` (what `--set` gives, as a mapping),
`dtype`, `reverse`, ... Every function raises `Refusal`, whose `diagnostics` say what is wrong and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.diagnostics import Diagnostic, Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.jobs.request import Request
    from compiler.plan.plan import Plan
    from compiler.program.program import Program

__all__ = ["Diagnostic", "Refusal", "compile_spec", "convert", "iter_tensors", "load_spec", "plan"]

Source = str | Path | Sequence[str | Path]


def load_spec(spec: str | Path) -> Program:
    """A spec, read and checked; not yet proven against its target class."""
    from compiler.program.loading import load_program

    return load_program(str(spec))


def compile_spec(spec: str | Path, *, prove: bool = True) -> dict[str, str]:
    """The files that `compile SPEC` writes below `generated/`: {path: text}. Proving imports Transformers."""
    from compiler.jobs.compile import build

    return build(str(spec), prove=prove)


def plan(spec: str | Path, source: Source, **settings: Any) -> Plan:
    """What would become what, from headers alone: `.targets`, `.groups`, `.config`, `.values`.

    `compare=True` reads the tensors that are tied, and refuses those that differ, as a conversion does.
    """
    from compiler.jobs.prepare import prepare

    return prepare(load_spec(spec), _request(source, {"checksums": False, "compare": False} | settings)).plan


def convert(
    spec: str | Path,
    source: Source,
    out: str | Path,
    *,
    progress: Callable[[int], None] = lambda size: None,
    **settings: Any,
) -> Plan:
    """Convert into the folder `out` (with `reverse=True`: into that file). `progress` is told of bytes, from any thread."""
    from compiler.jobs.convert import convert as run

    return run(load_spec(spec), _request(source, settings), Path(out), progress=progress)


def iter_tensors(
    spec: str | Path, source: Source, device: str = "cpu", **settings: Any
) -> Iterator[tuple[str, Tensor]]:
    """The name and tensor of every target, on a device, in the order in which they would be written.

    Nothing is written and no model is built: this is a way to serve or fine-tune at once. Tensors are yielded as soon as
    the work that makes them is queued; they may be used in the current stream like any other. Tied names are yielded
    once. The source is checked, the plan made and the device opened before the first tensor is asked for.
    """
    from compiler.executor.execute import tensors
    from compiler.jobs.prepare import prepare

    prepared = prepare(load_spec(spec), _request(source, settings))
    return tensors(prepared.plan, prepared.checkpoint, device)


def _request(source: Source, settings: dict[str, Any]) -> Request:
    from compiler.jobs.request import Request

    paths = [source] if isinstance(source, str | Path) else source
    if isinstance(settings.get("config"), str):
        settings = settings | {"config": Path(settings["config"])}
    return Request(source=[Path(path) for path in paths], **settings)
