"""Every mistake gives its recorded text, and docs/errors.md explains every kind with one of them.

`tests/errors/x.yaml` is a spec beside `x.out`; the cases of `error_runs` are checkpoints and commands beside
`tests/errors/runs/x.out`. `make regen` records them anew.
"""

import ast
import re
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "docs"), str(Path(__file__).parent.parent)]

import make_errors  # noqa: E402
from support import error_runs  # noqa: E402

from compiler.cli.main import main  # noqa: E402
from compiler.diagnostics import Diagnostic, Refusal  # noqa: E402
from compiler.jobs.compile import build  # noqa: E402

HERE = Path(__file__).parent.parent / "errors"
CASES = sorted(HERE.glob("*.yaml"))
SPECS = sorted((ROOT / "specs").glob("*.yaml"))


def complaint(path: Path) -> str:
    """What the compiler says about a spec, its folder left out."""
    said: list[Diagnostic] = []
    try:
        build(str(path), prove=True, warn=said.append)
    except Refusal as refusal:
        said += refusal.diagnostics
    return "\n".join(map(str, said)).replace(f"{HERE}/", "") + "\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_mistake_gives_its_text(path: Path) -> None:
    assert complaint(path) == path.with_suffix(".out").read_text()


@pytest.mark.parametrize("name", error_runs.CASES)
def test_a_broken_run_gives_its_text(name: str, tmp_path: Path) -> None:
    assert error_runs.transcript(name, tmp_path) == (HERE / "runs" / f"{name}.out").read_text()


def test_each_has_a_place() -> None:
    """All but the faults of a whole file point at a line and a column."""
    for path in CASES:
        assert f"{path.name}:" in path.with_suffix(".out").read_text()


# ---------------------------------------------------------------------------------------------------------------------
# The page

# Compounds in the compiler's text that have the form of a kind and are none.
WORDS = frozenset(["gzip-compressed", "xz-compressed", "zstd-compressed"])
MAKERS = frozenset(["refuse", "add", "Diagnostic", "Fault", "_warn", "fail", "disjoint", "_refuse"])


def raised(tree: ast.AST) -> set[str]:
    """The texts in the form of a kind that a module hands to what makes a diagnostic."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in MAKERS:
                values = [*node.args, *(k.value for k in node.keywords)]
                texts = [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
                found |= {t for t in texts if re.fullmatch(r"[a-z]+(-[a-z]+)*", t)} - WORDS
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            defaults = [d.value for d in node.args.defaults if isinstance(d, ast.Constant)]
            found |= {d for d in defaults if isinstance(d, str) and re.fullmatch(r"[a-z]+(-[a-z]+)+", d)}
    return {t for t in found if "-" in t or t == "undecided"}


KINDS = {kind for path in (ROOT / "compiler").rglob("*.py") for kind in raised(ast.parse(path.read_text()))}
TEXTS = {kind for chapter in make_errors.texts().values() for kind in chapter}


def test_every_kind_is_explained_and_none_is_dead() -> None:
    assert not KINDS - TEXTS
    assert not TEXTS - KINDS
    assert raised(ast.parse('refuse(span, "text", "new-kind")')) == {"new-kind"}


def test_every_kind_says_how_to_fix_it() -> None:
    fixes = make_errors.fixes()
    assert fixes.keys() == TEXTS, "docs/fixes.yaml"
    assert [kind for kind, text in fixes.items() if not text.endswith(".") or len(text) < 12] == []


def test_every_kind_has_an_example_or_a_reason() -> None:
    shown = make_errors.examples().keys()
    assert not TEXTS - shown - make_errors.UNRECORDED.keys()
    assert not make_errors.UNRECORDED.keys() & shown


def test_the_page_is_fresh() -> None:
    assert make_errors.PAGE.read_text() == make_errors.page(), "python docs/make_errors.py"


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["explain", "claimed-twice"])
    said = capsys.readouterr().out
    assert done.value.code == 0
    assert "The order of rules has no meaning" in said
    assert "both claim" in said
    with pytest.raises(SystemExit) as done:
        main(["explain", "claimed-twise"])
    assert done.value.code == 1
    assert "did you mean 'claimed-twice'?" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Warnings


def test_shipped_specs_are_clean() -> None:
    said: list[Diagnostic] = []
    for path in SPECS:
        build(str(path), prove=False, warn=said.append)
    assert said == []


def test_a_warning_fails_where_it_is_asked_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [str(HERE / "unused_name.yaml"), "--no-proof", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as done:
        main([*words, "--strict"])
    assert (done.value.code, list(tmp_path.iterdir())) == (1, [])
    with pytest.raises(SystemExit) as done:
        main([*words, "--json"])
    assert done.value.code == 0
    assert '"severity": "warning"' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) != []


if __name__ == "__main__":
    for case in CASES:
        case.with_suffix(".out").write_text(complaint(case))
    for case_name in error_runs.CASES:
        with tempfile.TemporaryDirectory() as folder:
            (HERE / "runs" / f"{case_name}.out").write_text(error_runs.transcript(case_name, Path(folder)))
    make_errors.PAGE.write_text(make_errors.page(), encoding="utf-8")
