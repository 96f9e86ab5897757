"""The two descriptions in a converted folder: `README.md` for people, `mapspec.json` for tools.

Takes a Plan, its checkpoint and, with `digests`, the written folder; returns texts. Both are the same for the same
input: they name files without their folders, and contain no time. Digests read every byte once more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from compiler import __version__, strict_json
from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.formats.stored_tensor import dense, read_bytes
from compiler.diagnostics import printable
from compiler.dtypes import FLOATING
from compiler.language import document
from compiler.output.earlier_run import MANIFEST
from compiler.plan.config_table import config_table
from compiler.plan.plan import Plan
from compiler.program.program import Program
from compiler.progress import Tick, no_tick
from compiler.templating import environment

CARD = "README.md"
UNVERIFIED = (
    "mapspec converted the weights by a spec whose names and shapes were proven against the class. The model was not "
    "run; `mapspec verify` compares it with its source."
)
_CHUNK = 1 << 20


def manifest(
    plan: Plan,
    checkpoint: Checkpoint,
    files: Mapping[str, int],
    digests: Path | None = None,
    *,
    checked: bool = True,
    tick: Tick = no_tick,
) -> str:
    """The text of mapspec.json: tool, spec and its hash, settings, source files, the source of each tensor, and the size
    of every other file that the run writes (`files`), so that a later run recognizes them.

    `checked`: whether the target class is compared with what is written. `digests`: the written folder, to add the SHA-256
    of every source file and of every tensor; `tick` is called with the number of bytes that were just hashed.
    """
    spec = plan.program.spec
    written = open_checkpoint(digests).tensors if digests else {}
    owners = {file: name for name, one in checkpoint.sources.items() for file in one.files}
    tensors: dict[str, Any] = {}
    for group in plan.groups:
        rule = {"kind": group.rule.kind, "name": group.rule.name, "line": group.rule.span.line}
        for target in group.target_list:
            entry: dict[str, Any] = {"dtype": target.dtype, "shape": list(target.shape), "from": group.source_names}
            entry["rule"] = {key: value for key, value in rule.items() if value}
            if checkpoint.sources:
                entry["sources"] = sorted(
                    {owners[p.path] for n in group.source_names for p in checkpoint.tensors[n].parts}
                )
            if digests:
                entry["sha256"] = hashlib.sha256(read_bytes(dense(written[target.name]))).hexdigest()
                tick(target.nbytes)
            tensors[target.name] = entry
    sources: list[dict[str, Any]] = [{"file": path.name, "bytes": path.stat().st_size} for path in checkpoint.files]
    for source, path in zip(sources, checkpoint.files, strict=True) if owners else ():
        source["source"] = owners[path]
    for source, path in zip(sources, checkpoint.files, strict=True) if digests else ():
        source["sha256"] = file_digest(path, tick)
    content = {
        "mapspec": __version__,
        "spec": {"name": spec.name.value, "sha256": spec_digest(plan)},
        "reverse": plan.reverse,
        "settings": dict(plan.values),
        "guesses": dict(plan.guesses),
        "released": list(plan.released),
        "sources": sources,
        "ties": dict(plan.ties),
        "ignored": dict(plan.ignored),
        "class_check": "passed" if checked else "skipped",
        "verified": None,
        "files": dict(files),
        "tensors": tensors,
    }
    return _json(content)


def recorded_settings(place: Path, program: Program, reverse: bool = False) -> dict[str, Any]:
    """The arguments and facts of the conversion (in this direction) that wrote a folder, by name, without its guesses;
    empty if its mapspec.json is missing, malformed, or of another spec."""
    try:
        content = strict_json.parse((place / MANIFEST).read_bytes())
        own = content["spec"]["name"] == program.spec.name.value and content.get("reverse", False) is reverse
        settings, guesses = content["settings"] if own else {}, content.get("guesses", ())
        return {name: value for name, value in settings.items() if not reverse or name not in guesses}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def record(place: Path, proof: Mapping[str, Any]) -> None:
    """Write the result of `verify`, its text and numbers, into the card and the manifest of a folder."""
    text = (place / CARD).read_text(encoding="utf-8")
    content = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    content["verified"] = {name: value for name, value in proof.items() if name != "text"}
    new = text.replace(UNVERIFIED, f"`mapspec verify` compared the folder with its source: {proof['text']}.")
    if new != text:
        content["files"][CARD] = len(new.encode())
        _replace(place / CARD, new)
    _replace(place / MANIFEST, _json(content))


def _replace(path: Path, text: str) -> None:
    """Replace a file in one step."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, default=dict) + "\n"


def spec_digest(plan: Plan) -> str:
    """The SHA-256 of a spec's content, independent of its layout and comments."""
    plain = document.plain(plan.program.spec.root)
    return hashlib.sha256(json.dumps(plain, ensure_ascii=True, default=str).encode()).hexdigest()


def file_digest(path: Path, tick: Tick = no_tick) -> str:
    """The SHA-256 of a file. `tick` is called with the number of bytes just read."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            tick(len(chunk))
    return digest.hexdigest()


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return printable(text).replace("|", "\\|")


def has_own_readme(place: Path) -> bool:
    """Whether a folder has a README.md that mapspec did not write, and that is therefore kept."""
    path = place / CARD
    return path.is_file() and b"of mapspec " not in path.read_bytes()


def card(
    plan: Plan, checkpoint: Checkpoint, files: Collection[str], *, checked: bool = True, distributed: bool = False
) -> str:
    """The text of README.md. `files`: the names of the files next to the weights; `distributed`: whether these are a
    distributed checkpoint."""
    spec = plan.program.spec
    causal = spec.target.class_name.endswith("ForCausalLM")
    ignored: dict[str, list[str]] = {}
    for name, reason in plan.ignored:
        ignored.setdefault(reason, []).append(f"`{name}`")
    template = environment().get_template("card.md.jinja")
    return template.render(
        title=f"{spec.target.class_name} from {checkpoint.path.name}",
        summary=spec.summary.rstrip("."),
        spec=spec.name.value,
        version=__version__,
        model_class=spec.target.class_name,
        custom=spec.target.model is None,
        causal=causal,
        auto="AutoModelForCausalLM" if causal else "AutoModel",
        parameters=sum(math.prod(t.shape) for t in plan.targets if t.dtype in FLOATING),
        tensors=len(plan.targets),
        dtype=plan.dtype,
        config=[
            [_cell(text) for text in (f"`{row.field}`", f"`{row.text}`", row.origin)] for row in config_table(plan)
        ],
        sources=[f"`{path.name}` ({path.stat().st_size:,} bytes)" for path in checkpoint.files],
        tokenizer=any(name in files for name in ("tokenizer.json", "tokenizer.model", "vocab.json")),
        chat="chat_template.jinja" in files,
        proof=UNVERIFIED,
        checked=checked,
        distributed=distributed,
        guesses=[f"`{name}` = {value!r}" for name, value in plan.guesses.items()],
        released=", ".join(plan.released),
        ignored={reason: names if len(names) < 5 else [*names[:4], "..."] for reason, names in ignored.items()},
    )
