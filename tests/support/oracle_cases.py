"""The recorded cases: `tests/data/oracles/FAMILY/CASE/` with a `case.json`, and more where `MAPSPEC_ORACLES` points.

`case.json` says: `spec`; `weights` (a file of `source/`, a list of them, or "." for all; without it the only one there),
`config` (a file of `source/`), `of` (the case of the family whose files it reads) and `set` (arguments) as a user would give them; `tolerance` of the logits; `also`, specs
of path B that `test_custom` holds to the same logits; `config_differs`, the fields of config.json that may differ from
the recorded ones, with the reason; `lossy`, why there is no way back to every bit of the source.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from support.parity import ORACLES

from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.program.program import Program

Digest = tuple[str, tuple[int, ...], str]  # dtype, shape, sha256
CHECKPOINTS = (".pth", ".pt", ".bin", ".safetensors", ".gguf", ".msgpack")
# What a config says of its file or of training, not of the model.
NOT_THE_MODEL = {
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "use_cache",
    "_attn_implementation_autoset",
}

OTHER_DIALECT = {"rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base"}


@dataclass(frozen=True)
class Case:
    folder: Path

    @property
    def name(self) -> str:
        name = f"{self.folder.parent.name}/{self.folder.name}"
        return name if ORACLES in self.folder.parents else f"again/{name}"

    @cached_property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "case.json").read_text())
        return found

    @property
    def spec(self) -> str:
        return str(self.said["spec"])

    @cached_property
    def program(self) -> Program:
        return load_program(self.spec)

    @cached_property
    def request(self) -> Request:
        source = self.files / "source"
        files = [p for p in sorted(source.iterdir()) if p.suffix in CHECKPOINTS]
        named = self.said.get("weights", files[0].name if files else ".")
        weights = [source / name for name in (named if isinstance(named, list) else [named])]
        config = source / self.said["config"] if self.said.get("config") else None
        return Request(weights, config=config, assigned=self.said.get("set", {}))

    @property
    def files(self) -> Path:
        """The folder of its files: its own, or that of the case whose source another spec reads."""
        return self.folder.parent / self.said.get("of", self.folder.name)

    @property
    def golden(self) -> Path | None:
        """The logits of the original code, where it could run."""
        path = self.files / "expected" / "golden_logits.safetensors"
        return path if path.is_file() else None

    @cached_property
    def manifest(self) -> Mapping[str, Digest]:
        """Target name -> dtype, shape, sha256 of its little-endian bytes."""
        path = self.folder / "expected" / "manifest.json"
        entries = json.loads(path.read_text()) if path.is_file() else {}
        return {n: (e["dtype"], tuple(e["shape"]), e["sha256"]) for n, e in entries.items()}


def cases() -> list[Case]:
    roots = [ORACLES, *(Path(p) for p in os.environ.get("MAPSPEC_ORACLES", "").split(os.pathsep) if p)]
    return [Case(path.parent) for root in roots for path in sorted(root.glob("*/*/case.json"))]


def digest(tensor: Any) -> Digest:
    """The same of one tensor of torch."""
    import torch

    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), hashlib.sha256(data).hexdigest()


def digests(folder: Path) -> dict[str, Digest]:
    """The same of a converted folder."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {name: digest(tensor) for file in files for name, tensor in load_file(file).items()}


def understood(path: Path) -> dict[str, Any]:
    """Every field of a config.json as the installed class reads it, defaults included."""
    from transformers import CONFIG_MAPPING

    written = json.loads(path.read_text())
    fields: dict[str, Any] = CONFIG_MAPPING[written["model_type"]](**written).to_dict()
    rope = fields.get("rope_parameters") or {}
    if nested := {kind: part for kind, part in rope.items() if isinstance(part, dict)}:
        fields["rope_parameters"] = nested  # one for each kind of layer; what stands beside them was spread to them
    # What `rope_parameters` say counts; the words of the other dialect travel along unread.
    unread = OTHER_DIALECT if fields.get("rope_parameters") else set()
    return {n: v for n, v in fields.items() if n not in NOT_THE_MODEL | unread}
