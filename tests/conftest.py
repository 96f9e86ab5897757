"""Every test asks the installed classes themselves, not the cache of an earlier run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.converter_process import ConverterProcess

os.environ["MAPSPEC_CACHE"] = ""
settings.register_profile("without deadline", deadline=None)  # how long a test takes says nothing on a busy machine
settings.load_profile("without deadline")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConverterProcess]:
    """Runs converters; torch is imported once for all of a module's."""
    started = ConverterProcess(tmp_path_factory.mktemp("elsewhere"))
    yield started
    started.close()
