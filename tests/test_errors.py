"""Every mistake gives its recorded text: `tests/errors/x.yaml` beside `x.out`. `make regen` records them anew."""

from pathlib import Path

import pytest

from compiler.build import build
from compiler.diagnostics import Refusal

HERE = Path(__file__).parent / "errors"
CASES = sorted(HERE.glob("*.yaml"))


def complaint(path: Path) -> str:
    """What the compiler says about a spec, its folder left out."""
    with pytest.raises(Refusal) as caught:
        build(str(path), prove=True)
    return "\n".join(str(d) for d in caught.value.diagnostics).replace(f"{HERE}/", "") + "\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_mistake_gives_its_text(path: Path) -> None:
    assert complaint(path) == path.with_suffix(".out").read_text()


def test_each_has_a_place() -> None:
    """All but the faults of a whole file point at a line and a column."""
    for path in CASES:
        assert f"{path.name}:" in path.with_suffix(".out").read_text()


if __name__ == "__main__":
    for case in CASES:
        case.with_suffix(".out").write_text(complaint(case))
