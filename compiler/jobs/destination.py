"""What a conversion writes: which container, under which names, and the files beside the weights.

Forward it is a folder of Transformers. Reversed, an OUT that is called like a file of weights is that file; any other is
a folder as the source's trainer keeps it: its container, its config, the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from compiler.checkpoints import config_file
from compiler.checkpoints.checkpoint import Checkpoint
from compiler.executor import tensor_parallel_parts
from compiler.executor.execute import StateDict
from compiler.jobs.request import Request
from compiler.model_folder import sidecar_files, source_folder
from compiler.output import pth_layout, safetensors_layout
from compiler.output.pth_layout import Wrapping
from compiler.output.safetensors_layout import OutFile
from compiler.plan.plan import Plan
from compiler.tokenizer.find import FILES as TOKENIZER_FILES
from compiler.tokenizer.find import tokenizer_files

# Endings of files of weights; an OUT of another name is a folder.
TORCH, SAFETENSORS = (".pth", ".pt", ".ckpt", ".bin"), ".safetensors"


def is_folder(request: Request, out: Path) -> bool:
    """Whether OUT is a folder."""
    return not (request.reverse or request.to) or request.parts > 1 or out.suffix not in (*TORCH, SAFETENSORS)


@dataclass(frozen=True)
class Destination:
    """`files`: the safetensors files; empty where torch files are written. `folder`: whether OUT is one."""

    plan: Plan
    request: Request
    folder: bool
    files: list[OutFile]

    @classmethod
    def of(cls, plan: Plan, request: Request, out: Path) -> Destination:
        """What is written for a plan to OUT. Raises Refusal."""
        folder = is_folder(request, out)
        first = source_folder.weights_name(plan) if folder else out.name
        if plan.reverse and not first.endswith(SAFETENSORS):
            return cls(plan, request, folder, [])
        largest = safetensors_layout.parse_size(request.max_shard_size) if folder else 10**18
        files = safetensors_layout.lay_out(plan.targets, largest)
        return cls(plan, request, folder, files if folder else [replace(file, name=out.name) for file in files])

    @property
    def names(self) -> list[str]:
        """The first component of the name of each file of weights."""
        return [file.name for file in self.files] or [Path(name).parts[0] for name in self._torch_names()]

    def _torch_names(self) -> list[str]:
        if self.request.parts == 1:
            return [source_folder.weights_name(self.plan)]
        return [self.plan.program.spec.weights.replace("*", f"{n:02d}") for n in range(self.request.parts)]

    def state_dicts(self, place: Path) -> list[StateDict]:
        """The torch files to write, at `place`. Raises Refusal."""
        if not self.folder:
            return tensor_parallel_parts.state_dicts(self.plan, place, 1, Wrapping())
        wrapping = source_folder.wrapping(self.plan)
        if self.request.parts == 1:
            place = place / source_folder.weights_name(self.plan)
        return tensor_parallel_parts.state_dicts(self.plan, place, self.request.parts, wrapping)

    def sidecars(
        self, checkpoint: Checkpoint, out: Path, say: Callable[[str], None]
    ) -> sidecar_files.SidecarFiles | None:
        """The files beside the weights; None for an OUT that is one file. Raises Refusal, OSError."""
        request, plan = self.request, self.plan
        if not self.folder:
            return None
        if not plan.reverse:
            return sidecar_files.collect(
                plan,
                checkpoint,
                request.tokenizer,
                request.processor,
                request.source[0],
                self.files,
                out,
                say,
                request.check,
            )
        beside = self._of_first(checkpoint, out, say) if plan.first else self._of_folder()
        return source_folder.collect(plan, checkpoint, beside, self.files, self._sizes(), request.check)

    def _of_first(self, checkpoint: Checkpoint, out: Path, say: Callable[[str], None]) -> sidecar_files.SidecarFiles:
        """The configs and the tokenizer that the first of two conversions would write."""
        plan, request = self.plan.first, self.request
        assert plan is not None
        made = sidecar_files.collect(
            plan, checkpoint, request.tokenizer, request.processor, request.source[0], [], out, say, request.check
        )
        kept = {*source_folder.CONFIGS, *TOKENIZER_FILES}
        return sidecar_files.SidecarFiles(
            {name: text for name, text in made.texts.items() if name in kept},
            {name: path for name, path in made.copies.items() if name in kept},
            made.reads,
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

    def _sizes(self) -> dict[str, int]:
        """The size of each file of weights in bytes, by name."""
        if self.files:
            return {file.name: file.size for file in self.files}
        parts = self.state_dicts(Path())
        return {str(p.path): pth_layout.lay_out(p.path.name, p.targets, p.wrapping).size for p in parts}
