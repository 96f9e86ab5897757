"""`python tests/mutants`: random mutants of the modules that decide a result, each run against the tests of its package.

A mutant changes one operator, constant or condition in one module of a copy of the repository. The tests that run its line
are tried first, then all tests of its package. It is `noticed` when a test fails, a collection fails or the tests run out of
time; a `survivor` is printed with its place, to be judged by a person:
a test is missing, or the change means the same. Nothing in the repository itself changes.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Package -> the tests that hold it, the quickest first.
TESTS = {
    "layout": ["tests/layout", "tests/transfer", "tests/executor"],
    "transfer": ["tests/transfer", "tests/executor", "tests/output"],
    "executor": ["tests/executor", "tests/jobs/test_run.py", "tests/render/test_converters.py"],
    "ops": ["tests/ops", "tests/language/test_language.py", "tests/executor", "tests/render/test_converters.py"],
    "language": ["tests/language", "tests/cli/test_errors.py"],
    "program": ["tests/language", "tests/ops", "tests/cli/test_errors.py", "tests/plan"],
    "source": ["tests/source", "tests/checkpoints"],
    "plan": ["tests/plan", "tests/jobs/test_run.py", "tests/cli/test_errors.py", "tests/language"],
    "proof": ["tests/proof", "tests/cli/test_errors.py", "tests/language/test_spec_mutations.py"],
    "checkpoints": ["tests/checkpoints", "tests/cli/test_errors.py"],
    "output": ["tests/output", "tests/jobs/test_run.py"],
    "target": ["tests/target", "tests/cli/test_errors.py"],
}
NEAREST = 30  # so many tests that run a mutant's line are tried before those of its package
COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A change of one expression: `before` at `line` and `column` of `file` becomes `after`."""

    file: str
    line: int
    column: int
    before: str
    after: str
    text: str


def mutations(node: ast.AST) -> Iterator[ast.expr]:
    """What an expression may become."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=right) if type(op) in COMPARE:
            yield ast.Compare(left, [COMPARE[type(op)]()], right)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            yield ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.IfExp(test=test, body=body, orelse=other):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, other)


def mutants(path: Path) -> list[Mutant]:
    """All mutants of a module, without annotations, f-strings and docstrings."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.expr) and (before := ast.get_source_segment(source, node)) is not None:
            begin = starts[node.lineno - 1] + len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
            for changed in mutations(node):
                after = f"({ast.unparse(ast.fix_missing_locations(changed))})"
                text = source[:begin] + after + source[begin + len(before) :]
                found.append(Mutant(str(path.relative_to(ROOT)), node.lineno, node.col_offset, before, after, text))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child)

    visit(ast.parse(source))
    return found


def covering(copy: Path, packages: list[str], data: Path) -> dict[str, dict[int, list[str]]]:
    """Module -> line -> the tests that run it, as `file::function`, of all folders in TESTS for these packages.

    The tests run once under coverage with a context for each; lines that run on import, or in another process, have none.
    """
    from coverage import CoverageData

    if not data.exists():
        folders = sorted({tests for package in packages for tests in TESTS[package]})
        whole = [f for f in folders if not any(f != other and f.startswith(other + "/") for other in folders)]
        settings = copy / "contexts.ini"
        settings.write_text(f"[run]\nsource = compiler\ndata_file = {data}\n")  # without the children of tests
        coverage = ["--cov", "--cov-config", str(settings), "--cov-context=test", "--cov-report="]
        command = [sys.executable, "-m", *PYTEST, *coverage, *whole]
        subprocess.run(command, cwd=copy, env=environment(copy), stdout=subprocess.DEVNULL, check=False)
    stored = CoverageData(str(data))
    stored.read()
    found: dict[str, dict[int, list[str]]] = {}
    for file in stored.measured_files():
        module = Path(file)
        name = str(Path(*module.parts[len(module.parts) - 1 - module.parts[::-1].index("compiler") :]))
        lines = found.setdefault(name, {})
        for line, contexts in stored.contexts_by_lineno(file).items():
            lines[line] = sorted({node for context in contexts if (node := node_of(context))})
    return found


def node_of(context: str) -> str | None:
    """`tests/plan/test_bind.py::test_a_name[parameters]|run` -> `tests/plan/test_bind.py::test_a_name`."""
    node = context.partition("|")[0].partition("[")[0]
    return node if "::" in node else None


PYTEST = ["pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]


def environment(copy: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def judge(mutant: Mutant, copy: Path, seconds: int, nearest: list[str]) -> tuple[str, str]:
    """`noticed` or `survivor`, and the first test that failed: of `nearest`, then of the mutant's package."""
    file = copy / mutant.file
    original = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    try:
        rounds = [nearest] if nearest else []
        rounds += [[tests] for tests in TESTS[Path(mutant.file).parts[1]] if (copy / tests).exists()]
        for tests in rounds:
            command = [sys.executable, "-m", *PYTEST, "-x", *tests]
            try:
                done = subprocess.run(
                    command, cwd=copy, env=environment(copy), capture_output=True, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired:
                return "noticed", f"{tests[0]}: out of time"
            if done.returncode not in (0, 5):
                failed = [line for line in done.stdout.decode().splitlines() if line.startswith(("FAILED", "ERROR"))]
                return "noticed", failed[0].partition(" - ")[0] if failed else tests[0]
        return "survivor", ""
    finally:
        file.write_text(original, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=400, help="for the tests of one folder")
    parser.add_argument("--packages", nargs="*", default=sorted(TESTS), choices=sorted(TESTS))
    parser.add_argument(
        "--contexts", type=Path, help="keep which tests run which line in this file, or take it from there"
    )
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    modules = [p for package in options.packages for p in sorted((ROOT / "compiler" / package).rglob("*.py"))]
    every = [mutant for path in modules for mutant in mutants(path)]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants in {len(modules)} modules", flush=True)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        copies = [Path(name) / str(n) for n in range(options.jobs)]
        for copy in copies:
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "out", "__pycache__"))

        contexts = (options.contexts or Path(name) / "contexts").absolute()
        near = covering(copies[0], options.packages, contexts)

        def work(number: int) -> list[tuple[Mutant, str, str]]:
            results = []
            for mutant in chosen[number :: options.jobs]:
                tests = near.get(mutant.file, {}).get(mutant.line, [])
                home = f"tests/{Path(mutant.file).parts[1]}/"
                nearest = sorted(tests, key=lambda test: (not test.startswith(home), test))[:NEAREST]
                verdict, by = judge(mutant, copies[number], options.seconds, nearest)
                change = f"{mutant.before!r} -> {mutant.after!r}"
                print(f"{verdict:8} {mutant.file}:{mutant.line}: {change} {by}", flush=True)
                results.append((mutant, verdict, by))
            return results

        results = [row for part in pool.map(work, range(options.jobs)) for row in part]
    survivors = [mutant for mutant, verdict, _ in results if verdict == "survivor"]
    print(f"{len(results) - len(survivors)} of {len(results)} noticed, {len(survivors)} survivors")
    if options.out:
        rows = [
            {k: v for k, v in asdict(m).items() if k != "text"} | {"verdict": verdict, "by": by}
            for m, verdict, by in results
        ]
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
