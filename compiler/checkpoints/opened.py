"""What a reader finds in the files of a checkpoint, before wrappers' prefixes are removed from the names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from compiler.checkpoints.formats.stored_tensor import AnyTensor, Tensor

Replica = tuple[Tensor, Tensor]  # two stored tensors that must have the same bytes


@dataclass
class Opened:
    """The contents of one or more files. `replicas`: what several ranks hold alike, of which `tensors` has the first."""

    tensors: dict[str, AnyTensor] = field(default_factory=dict)
    objects: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    checksums: dict[tuple[Path, int, int], int] = field(default_factory=dict)
    indexes: list[Path] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)

    def absorb(self, other: Opened) -> None:
        self.tensors |= other.tensors
        self.objects = other.objects | self.objects
        self.notes += [note for note in other.notes if note not in self.notes]
        self.files += other.files
        self.checksums |= other.checksums
        self.indexes += other.indexes
        self.replicas += other.replicas
