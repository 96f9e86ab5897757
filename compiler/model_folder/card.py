"""What a converted folder says of itself: `README.md` for people, `mapspec.json` for tools.

Takes a Plan, its checkpoint and, with `digests`, the written folder; returns texts. Both are the same for the same
input, name files without their folders and hold no time. Digests are not free, since they read every byte once more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compiler import __version__
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.dtypes import FLOATING
from compiler.language import document
from compiler.plan.plan import Plan
from compiler.resources import folder

MANIFEST, CARD = "mapspec.json", "README.md"
UNVERIFIED = (
    "The bytes were placed by a spec whose compilation proves names and shapes against the class. The model was not "
    "run; `compile verify` holds it to its source."
)
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "intermediate_size", "max_position_embeddings")  # fmt: skip
_CHUNK = 1 << 20


def manifest(plan: Plan, checkpoint: Checkpoint, digests: Path | None = None) -> str:
    """The text of mapspec.json: tool, spec and its hash, settings, source files, and where each tensor comes from.

    With `digests`, the written folder, also the SHA-256 of every source file and of every tensor's bytes there.
    """
    spec = plan.program.spec
    written = open_checkpoint(digests).tensors if digests else {}
    tensors: dict[str, Any] = {}
    for group in plan.groups:
        rule = {"kind": group.rule.kind, "name": group.rule.name, "line": group.rule.span.line}
        for target in group.target_list:
            entry: dict[str, Any] = {"dtype": target.dtype, "shape": list(target.shape), "from": group.source_names}
            entry["rule"] = {key: value for key, value in rule.items() if value}
            if digests:
                entry["sha256"] = hashlib.sha256(read_bytes(written[target.name])).hexdigest()
            tensors[target.name] = entry
    sources: list[dict[str, Any]] = [{"file": path.name, "bytes": path.stat().st_size} for path in checkpoint.files]
    for source, path in zip(sources, checkpoint.files, strict=True) if digests else ():
        source["sha256"] = file_digest(path)
    content = {
        "mapspec": __version__,
        "spec": {"name": spec.name.value, "sha256": spec_digest(plan)},
        "settings": dict(plan.values),
        "sources": sources,
        "ties": dict(plan.ties),
        "ignored": dict(plan.ignored),
        "verified": None,
        "tensors": tensors,
    }
    return _json(content)


def record(place: Path, proof: Mapping[str, Any]) -> None:
    """Write into card and manifest of a folder what `verify` found: its text and its numbers."""
    text = (place / CARD).read_text(encoding="utf-8")
    content = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    content["verified"] = {name: value for name, value in proof.items() if name != "text"}
    text = text.replace(UNVERIFIED, f"Compared with its source: {proof['text']}.")
    for name, new in ((CARD, text), (MANIFEST, _json(content))):
        draft = place / f".{name}.draft"
        draft.write_text(new, encoding="utf-8")
        draft.replace(place / name)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, default=dict) + "\n"


def spec_digest(plan: Plan) -> str:
    """The SHA-256 of what a spec says, whatever its layout and comments."""
    plain = document.plain(plan.program.spec.root)
    return hashlib.sha256(json.dumps(plain, ensure_ascii=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def own_words(place: Path) -> bool:
    """Whether a folder that is written again has a README.md that is not of this kind, and stays."""
    path = place / CARD
    return path.is_file() and b"of mapspec " not in path.read_bytes()


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(folder("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return env.get_template("card.md.jinja")


def card(plan: Plan, checkpoint: Checkpoint, files: Collection[str]) -> str:
    """The text of README.md. `files`: the names of what lies beside the weights."""
    spec = plan.program.spec
    causal = spec.target.class_name.endswith("ForCausalLM")
    ignored: dict[str, list[str]] = {}
    for name, reason in plan.ignored:
        ignored.setdefault(reason, []).append(f"`{name}`")
    return _template().render(
        title=f"{spec.target.class_name} from {checkpoint.path.name}",
        summary=spec.summary.rstrip("."),
        spec=spec.name.value,
        version=__version__,
        model_class=spec.target.class_name,
        custom=spec.target.remote_code is not None,
        causal=causal,
        auto="AutoModelForCausalLM" if causal else "AutoModel",
        parameters=sum(math.prod(t.shape) for t in plan.targets if t.dtype in FLOATING),
        tensors=len(plan.targets),
        dtype=plan.dtype,
        sizes={name: plan.config[name] for name in SIZES if plan.config.get(name) is not None},
        sources=[f"`{path.name}` ({path.stat().st_size:,} bytes)" for path in checkpoint.files],
        tokenizer=any(name in files for name in ("tokenizer.json", "tokenizer.model", "vocab.json")),
        chat="chat_template.jinja" in files,
        proof=UNVERIFIED,
        ignored={reason: names if len(names) < 5 else [*names[:4], "..."] for reason, names in ignored.items()},
    )
