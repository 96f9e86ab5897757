"""The files beside the weights of a folder: configs, code, index, tokenizer, and what the folder says of itself.

Takes a Plan and its checkpoint; writes into an output that is not finished yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.model_folder import card
from compiler.output import safetensors_layout
from compiler.output.atomic_output import AtomicOutput
from compiler.plan.plan import Plan
from compiler.target import config_dialects
from compiler.tokenizer import assemble
from compiler.tokenizer.find import tokenizer_files


def write(
    plan: Plan,
    checkpoint: Checkpoint,
    given: Path | None,
    source: Path,
    parts: Sequence[safetensors_layout.OutFile],
    output: AtomicOutput,
    say: Callable[[str], None],
) -> None:
    """Write everything but the weights of `parts` into the folder of `output`, and remove from it what is neither. The
    tokenizer is the `given` one, or what lies beside the `source`. Raises Refusal, OSError."""
    output.place.mkdir(exist_ok=True)
    if output.journal.total:
        say(f"{output.journal.total:,} bytes of an earlier run are there and as they were written")
    for old in output.place.iterdir():
        if old.name not in {file.name for file in parts}:
            old.unlink()
    named, special = given is not None, plan.program.spec.tokenizer
    files = tokenizer_files(given or source, say, named=named)
    tokenizer = assemble.complete_tokenizer(files, plan.config, special, plan.places, say, named=named)
    for line in assemble.lint(tokenizer, plan.config):
        say(line)
    found = {**texts(plan, assemble.generation_fields(tokenizer, plan.config)), **tokenizer.texts}
    if len(parts) > 1:
        found[safetensors_layout.INDEX] = safetensors_layout.index_json(parts, plan.targets)
    found[card.MANIFEST] = card.manifest(plan, checkpoint)
    if not card.own_words(output.path):
        found[card.CARD] = card.card(plan, checkpoint, [*found, *tokenizer.copies])
    for name, text in found.items():
        (output.place / name).write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be Unicode
    for name, file in tokenizer.copies.items():
        shutil.copyfile(file, output.place / name)


def texts(plan: Plan, generation: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """The files beside the weights: config.json in both dialects, generation_config.json (with more fields, where only
    the tokenizer knows them), the code of path B."""
    from compiler.render.remote_code import from_spec
    from compiler.target import model_class as target

    spec = plan.program.spec
    remote = from_spec.remote_code(spec) if spec.target.model is None else None
    model_type = remote.model_type if remote else target.model_type(spec.target.class_name)
    config = config_dialects.config_json(
        plan.config, model_class=spec.target.class_name, model_type=model_type, dtype=plan.dtype
    )
    if remote:
        config["auto_map"] = dict(remote.auto_map)
    found = {"config.json": config_dialects.json_text(config), **(remote.files if remote else {})}
    if fields := config_dialects.generation_json({**plan.config, **generation}):
        found["generation_config.json"] = config_dialects.json_text(fields)
    return found
