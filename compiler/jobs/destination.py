"""What a conversion writes: which container, under which names, and the files beside the weights.

Forward it is a folder of Transformers. Reversed, an OUT that is called like a file of weights is that file; any other is
a folder as the source's trainer keeps it: its container, its config, the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from compiler import packages
from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import refuse
from compiler.executor import model_parallel_files
from compiler.executor.model_parallel_files import Grid
from compiler.jobs.request import Request
from compiler.language.spec import SourceLayout
from compiler.model_folder import gguf_tokenizer, gguf_values, sidecar_files, source_folder
from compiler.output import dcp_layout, gguf_layout, pth_layout, safetensors_layout
from compiler.output.safetensors_layout import OutFile
from compiler.plan.gguf_types import Q8_0, with_float32_vectors, with_q8_0
from compiler.plan.plan import Plan
from compiler.program.program import Program
from compiler.tokenizer.find import FILES as TOKENIZER_FILES
from compiler.tokenizer.find import tokenizer_files

# Endings of files of weights; an OUT of another name is a folder.
TORCH, SAFETENSORS, GGUF = (".pth", ".pt", ".ckpt", ".bin"), ".safetensors", ".gguf"
ONE_FILE = 10**18  # bytes
DCP = "dcp"


def is_folder(request: Request, out: Path) -> bool:
    """Whether OUT is a folder."""
    if request.container == DCP:
        return True
    return not request.backwards or grid_of(request).count > 1 or out.suffix not in (*TORCH, SAFETENSORS, GGUF)


def grid_of(request: Request) -> Grid:
    """The model-parallel ranks that a request asks for. Raises Refusal: `wrong-usage`."""
    return model_parallel_files.grid_of(request.ranks, request.parts)


def as_stored(plan: Plan, request: Request, out: Path) -> Plan:
    """The plan with the dtypes that the container of OUT needs."""
    if not plan.reverse or not weights_file(plan.program, request, out).endswith(GGUF):
        return plan
    return with_q8_0(plan) if request.dtype == Q8_0 else with_float32_vectors(plan)


def weights_file(program: Program, request: Request, out: Path) -> str:
    """The name of the file of weights that a program writes backwards, or of the first of several."""
    return source_folder.weights_name(program) if is_folder(request, out) else out.name


def check_container(program: Program, request: Request, out: Path) -> None:
    """Raises Refusal: `wrong-usage` for a container that OUT or the layout cannot have, and for a type that it does not have;
    `missing-package`; for a spec of several sources, which cannot be written."""
    if request.backwards and program.spec.sources:
        message = f"{program.spec.name} has several sources, and these cannot be written from one folder"
        hint = "no tensor shows which files were its own; `mapspec verify` compares a folder with all of them"
        refuse("--reverse" if request.reverse else "--to", message, "wrong-usage", hint)
    gguf = request.backwards and weights_file(program, request, out).endswith(GGUF)
    if request.container == DCP:
        if out.suffix in (*TORCH, SAFETENSORS, GGUF):
            refuse(
                "--container", "a distributed checkpoint is a folder", "wrong-usage", f"name it {out.with_suffix('')}"
            )
        if grid_of(request).count > 1 or gguf:
            other = f"{program.spec.name}, a GGUF file," if gguf else "a folder of model-parallel ranks"
            refuse("--container", f"{other} has no other container", "wrong-usage", "leave --container out")
        packages.need("--container dcp", "torch")
    if request.dtype == Q8_0 and not gguf:
        hint = "add --to gguf, with an OUT such as model.gguf"
        refuse("--dtype", f"only GGUF files have the type {Q8_0}", "wrong-usage", hint)


@dataclass(frozen=True)
class Destination:
    """What a plan writes to `out`. `folder`: whether that is one; `say` gets remarks about what is left out."""

    plan: Plan
    checkpoint: Checkpoint
    request: Request
    out: Path
    folder: bool
    say: Callable[[str], None]

    @cached_property
    def files(self) -> list[OutFile]:
        """The files of weights, in whichever container. Raises Refusal."""
        plan, request = self.plan, self.request
        if request.container == DCP:
            layout = plan.program.spec.layout if plan.reverse else SourceLayout()
            limit = safetensors_layout.parse_size(request.max_shard_size)
            files = dcp_layout.lay_out(plan.targets, limit, layout.state_dict)
            common = source_folder.wrapping(plan) if layout.common else None
            return [*files, *([pth_layout.out_file(layout.common, [], common)] if common else [])]
        if not plan.reverse:
            return safetensors_layout.lay_out(plan.targets, safetensors_layout.parse_size(request.max_shard_size))
        name = weights_file(plan.program, request, self.out)
        if name.endswith(GGUF):
            return [self._gguf(name)]
        if not name.endswith(SAFETENSORS):
            return self._torch_files(name)
        if self.folder:
            return safetensors_layout.lay_out(plan.targets, safetensors_layout.parse_size(request.max_shard_size))
        return [replace(file, name=name) for file in safetensors_layout.lay_out(plan.targets, ONE_FILE)]

    @property
    def names(self) -> list[str]:
        """The first component of the name of each file of weights."""
        return list(dict.fromkeys(Path(file.name).parts[0] for file in self.files))

    def _torch_files(self, name: str) -> list[OutFile]:
        """The file of that name, or one for each model-parallel rank. A file outside a folder is a plain state dict."""
        plan, grid = self.plan, grid_of(self.request)
        if not self.folder:
            return [pth_layout.out_file(name, plan.targets)]
        wrapping = model_parallel_files.with_sizes(plan.program, source_folder.wrapping(plan), grid)
        if grid.count == 1:
            return [pth_layout.out_file(name, plan.targets, wrapping)]
        return model_parallel_files.out_files(plan, grid, wrapping)

    def _gguf(self, name: str) -> OutFile:
        plan, beside = self.plan, self.beside
        fields = source_folder.fields(plan)
        dtype = Q8_0 if any(target.dtype == Q8_0 for target in plan.targets) else plan.dtype
        values = gguf_values.model_values(fields, self.out.stem, dtype)
        rows = int(fields["vocab_size"])
        ids = gguf_values.token_ids(fields)
        values |= gguf_tokenizer.tokenizer_values(beside.texts, beside.copies, rows, ids, self.say)
        return gguf_layout.lay_out(name, plan.targets, values, source_folder.constants(plan))

    @cached_property
    def sidecars(self) -> sidecar_files.SidecarFiles | None:
        """The files beside the weights; None for an OUT that is one file. Raises Refusal, OSError."""
        request, plan = self.request, self.plan
        if not self.folder:
            return None
        if not plan.reverse:
            return self._of_transformers(plan, self.files)
        sizes = {file.name: file.size for file in self.files}
        return source_folder.collect(plan, self.checkpoint, self.beside, self.files, sizes, request.check)

    @cached_property
    def beside(self) -> sidecar_files.SidecarFiles:
        """The configs and the tokenizer of the Transformers folder that a plan starts from or goes through."""
        if self.plan.first is None:
            return self._of_folder()
        made = self._of_transformers(self.plan.first, [])
        kept = {*source_folder.CONFIGS, *TOKENIZER_FILES}
        return sidecar_files.SidecarFiles(
            {name: text for name, text in made.texts.items() if name in kept},
            {name: path for name, path in made.copies.items() if name in kept},
            made.reads,
        )

    def _of_transformers(self, plan: Plan, files: list[OutFile]) -> sidecar_files.SidecarFiles:
        request = self.request
        return sidecar_files.collect(
            plan,
            self.checkpoint,
            request.tokenizer,
            request.processor,
            request.source[0],
            files,
            self.out,
            self.say,
            request.check,
        )

    def _of_folder(self) -> sidecar_files.SidecarFiles:
        """The configs and the tokenizer of the Transformers folder that is converted back."""
        source = self.request.source[0]
        config = self.request.config or config_file.beside(source, source_folder.HUB)
        paths = [config.parent / name for name in source_folder.CONFIGS] if config else []
        texts = {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}
        place = self.request.tokenizer or (source if source.is_dir() else source.parent)
        files = tokenizer_files(place, lambda _: None, named=self.request.tokenizer is not None).values()
        return sidecar_files.SidecarFiles(texts, {path.name: path for path in files}, tuple(files))
