"""Rejects options of a conversion that would change nothing in what it writes, so that none is ignored in silence.

Takes a `Request` and what is known of the output. Options that bound resources (`jobs`, `device`) or that ask for less
checking are accepted everywhere. Raises Refusal: `wrong-usage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from compiler.diagnostics import Report, Span
from compiler.jobs.request import DEFAULTS, Request

Ineffective = tuple[str, str]  # the field of an option, and why it has no effect


def check_effects(request: Request, out: Path | None = None, file: str = "", folder: bool = True) -> None:
    """Check the options of one request. `out`: the output, if one is written; `file`: the name of its file of weights;
    `folder`: whether that is in a folder."""
    report = Report()
    for name, reason in [*_of_direction(request), *(_of_output(request, file, folder) if out else ())]:
        option = "--" + name.replace("_", "-")
        report.add(Span(option), f"it has no effect here: {reason}", "wrong-usage", f"leave {option} out")
    report.settle()


def _of_direction(request: Request) -> Iterator[Ineffective]:
    given = _given(request)
    if request.reverse:
        for name in given & {"weights", "model"}:
            yield name, "--reverse reads a Transformers folder, and the option is about other sources"
    if request.backwards:
        direction = "--reverse" if request.reverse else "--to"
        for name in sorted(given & {"processor", "digests"}):
            what = "a processor" if name == "processor" else "a mapspec.json with digests"
            yield name, f"only a Transformers folder has {what}, and {direction} writes another layout"


def _of_output(request: Request, file: str, folder: bool) -> Iterator[Ineffective]:
    given = _given(request)
    if "tokenizer" in given and request.backwards and not folder and not file.endswith(".gguf"):
        yield "tokenizer", "one file of weights is written, without a tokenizer; name a folder to get both"
    shards = request.container or not request.backwards or (folder and file.endswith(".safetensors"))
    if "max_shard_size" in given and not shards:
        yield "max_shard_size", "only safetensors folders and distributed checkpoints are written as shards of a size"


def _given(request: Request) -> set[str]:
    """The fields that differ from their defaults."""
    return {name for name, default in DEFAULTS.items() if getattr(request, name) != default}
