"""What a folder of a class contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassSignature:
    """What a folder of the class holds. `shapes`: every tensor of the weights file, parameters and persistent buffers;
    `ties`: a parameter that is not written, and the written one that it shares."""

    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, str]
