"""The files next to the weights of a folder: configs, code, index, tokenizer, card and manifest.

Takes a Plan and its checkpoint; `collect` returns the texts and the files to copy, `write` puts them into an output that
is not finished yet. Raises Refusal for a tokenizer that cannot be used, OSError.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.folder import METADATA, companions
from compiler.model_folder import card
from compiler.model_folder.processor_files import PREPROCESSOR, missing_parts, processor_files, spec_text
from compiler.output import safetensors_layout
from compiler.output.atomic_output import AtomicOutput
from compiler.output.earlier_run import INDEX, MANIFEST
from compiler.plan.plan import Plan
from compiler.target import config_dialects
from compiler.tokenizer import assemble
from compiler.tokenizer.find import check_file, folder_with_tokenizer, tokenizer_files

GENERATION = "generation_config.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class SidecarFiles:
    """`texts`: name -> text to write; `copies`: name -> file to copy; `reads`: the files that they were made from."""

    texts: Mapping[str, str]
    copies: Mapping[str, Path]
    reads: tuple[Path, ...]

    @property
    def names(self) -> list[str]:
        return [*self.texts, *self.copies]

    def sizes(self) -> dict[str, int]:
        """The size of each file in bytes."""
        sizes = {name: len(_encoded(text)) for name, text in self.texts.items()}
        return sizes | {name: file.stat().st_size for name, file in self.copies.items()}


def collect(
    plan: Plan,
    checkpoint: Checkpoint,
    given: Path | None,
    processor: Path | None,
    source: Path,
    parts: Sequence[safetensors_layout.OutFile],
    out: Path,
    say: Say,
    checked: bool = True,
) -> SidecarFiles:
    """Everything but the weights of `parts` for the folder `out`. The tokenizer is the `given` one, or the one next to the
    `source`; so is the `processor`, which may also be in the tokenizer's folder. `checked`: the target class is asked before the output is
    finished. Raises Refusal, OSError."""
    beside = folder_with_tokenizer(companions(source))
    processors: Mapping[str, Path] = {}
    if processor:
        processors = processor_files(processor, say, named=True)
    elif not (given and (processors := processor_files(given, say, named=False))):
        processors = processor_files(beside, say, named=False)
    named = given is not None
    files = tokenizer_files(given or beside, say, named=named and not (processors and not processor))
    spec = plan.program.spec
    tokenizer = assemble.complete_tokenizer(files, plan.config, spec.tokenizer, plan.places, say, named=named)
    missing = missing_parts(plan, processors, tokenizer=bool(tokenizer.names))
    for line in (*assemble.lint(tokenizer, plan.config), *missing):
        say(line)
    copies = {**tokenizer.copies, **processors, **_generation_config(plan, source)}
    written = {**texts(plan, assemble.generation_fields(tokenizer, plan.config)), **tokenizer.texts}
    written = {name: text for name, text in written.items() if name not in copies}
    if safetensors_layout.is_divided(parts):
        written[INDEX] = safetensors_layout.index_json(parts, plan.targets)
    if plan.processor and not processors:
        written[PREPROCESSOR] = spec_text(plan)
    if not card.has_own_readme(out):
        distributed = any(part.name == METADATA for part in parts)
        names = [*written, MANIFEST, *copies]
        written[card.CARD] = card.card(plan, checkpoint, names, checked=checked, distributed=distributed)
    sidecars = SidecarFiles(written, copies, (*files.values(), *copies.values()))
    sizes = {part.name: part.size for part in parts} | sidecars.sizes()
    return SidecarFiles(
        {**written, MANIFEST: card.manifest(plan, checkpoint, sizes, checked=checked)}, copies, sidecars.reads
    )


def _generation_config(plan: Plan, source: Path) -> dict[str, Path]:
    """The generation_config.json beside the source, where its names are those of the target class already: it is the
    model's own."""
    if not plan.program.keep_all or plan.program.spec.target.model is None:
        return {}
    for folder in companions(source):
        if (file := folder / GENERATION).is_file():
            check_file(file, folder)
            return {GENERATION: file}
    return {}


def write(sidecars: SidecarFiles, parts: Sequence[safetensors_layout.OutFile], output: AtomicOutput, say: Say) -> None:
    """Put the files into the folder of `output`, and remove other files than `parts` from it. Raises OSError."""
    output.place.mkdir(exist_ok=True)
    if output.journal.total:
        say(f"{output.journal.total:,} bytes of an earlier run are unchanged and are reused")
    kept = {Path(file.name).parts[0] for file in parts}
    for old in output.place.iterdir():
        if old.name not in kept:
            old.unlink()
    for name, text in sidecars.texts.items():
        (output.place / name).write_bytes(_encoded(text))
    for name, file in sidecars.copies.items():
        shutil.copyfile(file, output.place / name)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # names need not be Unicode


def texts(plan: Plan, generation: Mapping[str, Any] = MappingProxyType({})) -> dict[str, str]:
    """config.json in both dialects, generation_config.json (with token ids that only the tokenizer has) and the code
    of path B, by file name."""
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
    written = {"config.json": config_dialects.json_text(config), **(remote.files if remote else {})}
    if fields := config_dialects.generation_json({**plan.config, **generation}):
        written[GENERATION] = config_dialects.json_text(fields)
    return written
