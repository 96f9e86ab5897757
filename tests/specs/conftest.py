"""Every case asks its target class a question of its own: answered in this process, which imports Transformers once, it
takes milliseconds; a process for each question would import it a hundred times."""

from __future__ import annotations

import importlib

import pytest


@pytest.fixture(scope="session", autouse=True)
def target_classes_at_hand() -> None:
    importlib.import_module("transformers")
