"""Tests whose number is a matter of patience: the default run takes a part of them, `make test-all` all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")
ALL = bool(os.environ.get("MAPSPEC_ALL"))


def portion(items: Iterable[Item], of: int) -> list[Item]:
    """Every `of`-th item, from the first; all of them where MAPSPEC_ALL is set."""
    return list(items)[:: 1 if ALL else of]
