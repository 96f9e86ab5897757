"""docs/specs.md tells every spec, its ops, its way back and its oracle as they are; the measured numbers are those of
the last `MAPSPEC_MEASURE=1` run, whichever machine it was on."""

import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
sys.path.insert(0, str(DOCS))

import make_specs  # noqa: E402


def test_the_page_is_fresh() -> None:
    measured = json.loads(make_specs.MEASURED.read_text())
    assert make_specs.PAGE.read_text() == make_specs.page(measured), "python docs/make_specs.py"


@pytest.mark.parametrize("row", make_specs.table({}), ids=lambda row: row[0].partition("]")[0][1:])
def test_a_spec_says_what_proves_it(row: list[str]) -> None:
    """A recorded case, or the source that it was written from."""
    assert row[5]
