"""The files next to the weights of a folder: configs, code, index, tokenizer, card and manifest.

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
    """Write everything but the weights of `parts` into the folder of `output`, and remove other files from it. The
    tokenizer is the `given` one, or the one next to the `source`. Raises Refusal, OSError."""
    output.place.mkdir(exist_ok=True)
    if output.journal.total:
        say(f"{output.journal.total:,} bytes of an earlier run are unchanged and are reused")
    for old in output.place.iterdir():
        if old.name not in {file.name for file in parts}:
            old.unlink()
    named, special = given is not None, plan.program.spec.tokenizer
    files = tokenizer_files(given or source, say, named=named)
    tokenizer = assemble.complete_tokenizer(files, plan.config, special, plan.places, say, named=named)
    for line in assemble.lint(tokenizer, plan.config):
        say(line)
    written = {**texts(plan, assemble.generation_fields(tokenizer, plan.config)), **tokenizer.texts}
    if len(parts) > 1:
        written[safetensors_layout.INDEX] = safetensors_layout.index_json(parts, plan.targets)
    written[card.MANIFEST] = card.manifest(plan, checkpoint)
    if not card.has_own_readme(output.path):
        written[card.CARD] = card.card(plan, checkpoint, [*written, *tokenizer.copies])
    for name, text in written.items():
        (output.place / name).write_text(text, encoding="utf-8", errors="backslashreplace")  # names need not be Unicode
    for name, file in tokenizer.copies.items():
        shutil.copyfile(file, output.place / name)


def texts(plan: Plan, generation: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """config.json in both dialects, generation_config.json (with token ids that only the tokenizer has) and the code
    of path B, by file name."""
    from compiler.render.remote_code import from_spec
    from compiler.target import model_class as target

    spec = plan.program.spec
    model_type = spec.target.remote_code.value if spec.target.remote_code else target.model_type(spec.target.class_name)
    config = config_dialects.config_json(
        plan.config, model_class=spec.target.class_name, model_type=model_type, dtype=plan.dtype
    )
    code: dict[str, str] = {}
    if spec.target.remote_code:
        config["auto_map"] = from_spec.auto_map_of(spec)
        code = from_spec.code(spec)
    written = {"config.json": config_dialects.json_text(config), **code}
    if fields := config_dialects.generation_json({**plan.config, **generation}):
        written["generation_config.json"] = config_dialects.json_text(fields)
    return written
