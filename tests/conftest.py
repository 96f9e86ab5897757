"""Tests ask the installed classes, each question once in a session: no answer of an earlier session is used."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.converter_process import ConverterProcess

if "MAPSPEC_TEST_SESSION" not in os.environ:  # the workers of one session share what their parent set
    os.environ["MAPSPEC_TEST_SESSION"] = tempfile.mkdtemp(prefix="mapspec-classes-")
    os.environ["MAPSPEC_CACHE"] = os.environ["MAPSPEC_TEST_SESSION"]


def pytest_sessionfinish() -> None:
    import shutil

    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["MAPSPEC_TEST_SESSION"], ignore_errors=True)


settings.register_profile("without deadline", deadline=None)  # how long a test takes says nothing on a busy machine
settings.load_profile("without deadline")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConverterProcess]:
    """Runs converters; torch is imported once for all of a module's."""
    started = ConverterProcess(tmp_path_factory.mktemp("elsewhere"))
    yield started
    started.close()
