"""What a user asks for: the options of `compile run`, typed once. The command line takes names and defaults from here.

Imports nothing heavy, so that `compile --help` may read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One conversion: a source and how to read it, and how to write the output.

    `check`: compare the result with the target class before it gets its name. `assigned` is what `--set` gives. Without `compare` and `checksums` a plan is made from headers alone: no byte of a
    tensor is read. `parts` is the number of tensor-parallel parts that a reversed conversion writes.
    """

    source: Sequence[Path]
    config: Path | None = None
    assigned: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Path | None = None
    processor: Path | None = None
    dtype: str | None = None
    device: str = "cpu"
    jobs: int = 2
    checksums: bool = True
    compare: bool = True
    max_shard_size: str = "5GB"
    reverse: bool = False
    force: bool = False
    resume: bool = False
    check_values: bool = False
    digests: bool = False
    weights: str | None = None
    parts: int = 1
    check: bool = True
    model: str | None = None
    any_model_type: bool = False
    strict: bool = False


# Field -> its default, of those that have a plain one.
DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(Request) if f.default is not MISSING}
