"""The options of a conversion. The command line takes their names and defaults from here.

Imports the standard library only, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One conversion: a source, how to read it, and how to write the output.

    `assigned`: the values of `--set`. `check`: compare the result with the target class before it gets its name. Without
    `compare` and `checksums` only file headers are read, no tensor. `parts`: how many tensor-parallel parts a reversed
    conversion writes; `ranks`: the same for several kinds of model-parallel ranks, as `tp=2,pp=2,ep=1`. `names`: the name of
    the source at each path, where the spec has several. `to`: the spec whose layout is written in place of a Transformers
    folder. `container`: `dcp` to store the weights as torch.distributed.checkpoint does.
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
    ranks: str | None = None
    check: bool = True
    model: str | None = None
    any_model_type: bool = False
    strict: bool = False
    to: str | None = None
    container: str | None = None
    names: Sequence[str] = ()

    @property
    def backwards(self) -> bool:
        """Whether the layout of a source is written, not a Transformers folder."""
        return self.reverse or bool(self.to)


# Field -> its default; not of `source` and `assigned`.
DEFAULTS: Mapping[str, Any] = {f.name: f.default for f in fields(Request) if f.default is not MISSING}
