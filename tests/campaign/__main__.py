"""`python tests/campaign`: what catches a mistake in a shipped spec. Prints one line a mistake, then a table.

The same seed gives the same mistakes. With `--log`, results are appended to a file, and mistakes that it has are skipped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def results(specs: list[Path], count: int, seed: int, kinds: list[str], done: set[str]) -> Iterator[dict[str, Any]]:
    """One result for each mistake that is not `done`."""
    from campaign.judge import Judge, private_cache
    from campaign.mistakes import chosen

    with tempfile.TemporaryDirectory() as name:
        private_cache(Path(name))
        for spec in specs:
            place = Path(name) / spec.stem
            place.mkdir()
            judge = Judge(spec, place)
            for mistake in chosen(str(spec), judge.known, random.Random(f"{seed} {spec.stem}"), count):
                key = f"{spec.stem}: {mistake.kind}: {mistake.place}: {mistake.change}"
                if key in done or (kinds and mistake.kind not in kinds):
                    continue
                verdict = judge.judge(mistake)
                yield {"key": key, "spec": spec.stem, "kind": mistake.kind, "by": verdict.by, "reason": verdict.reason}


def record(specs: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """The controls of each spec."""
    from campaign.judge import Judge, private_cache
    from campaign.mistakes import chosen

    controls: dict[str, list[dict[str, Any]]] = json.loads((ROOT / "tests/data/controls.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        private_cache(Path(name))
        for spec in specs:
            place = Path(name) / spec.stem
            place.mkdir()
            judge, found_here = Judge(spec, place), []
            for mistake in chosen(str(spec), judge.known, random.Random(0), 0):
                if mistake.kind in ("fixed field dropped", "requirement dropped"):
                    found = judge.counterexample(mistake)
                    if found and not found.also:
                        found_here.append(dict(found.control))
            controls |= {spec.stem: sorted(found_here, key=json.dumps)} if found_here else {}
            print(spec.stem, len(found_here), flush=True)
    return dict(sorted(controls.items()))


def table(rows: list[dict[str, Any]], of: str) -> str:
    """Counts of verdicts, one line for each spec or kind."""
    from campaign.judge import CAUGHT, MISSED

    columns = [by for by in (*CAUGHT, *MISSED) if any(row["by"] == by for row in rows)]
    lines = [f"| {of} | mistakes | " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) + 1)]
    for name in [*sorted({row[of] for row in rows}), "all"]:
        found = Counter(row["by"] for row in rows if name in (row[of], "all"))
        lines.append(f"| {name} | {found.total()} | " + " | ".join(str(found[by]) for by in columns) + " |")
    return "\n".join(lines)


def main() -> int:
    """Judge a sample of mistakes; 1 where one survives."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=20, help="mistakes of each spec; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--specs", nargs="*", default=[], help="names; default: all shipped specs")
    parser.add_argument("--kinds", nargs="*", default=[], help="only these kinds of mistakes")
    parser.add_argument("--log", type=Path, help="a file of JSON lines, to continue from")
    parser.add_argument("--record", action="store_true", help="write tests/data/controls.json instead")
    parser.add_argument("--table", action="store_true", help="only print the tables of --log")
    options = parser.parse_args()
    specs = [p for p in sorted((ROOT / "specs").glob("*.yaml")) if not options.specs or p.stem in options.specs]
    if options.record:
        lines = [
            f' "{name}": [\n  ' + ",\n  ".join(map(json.dumps, found)) + "\n ]" for name, found in record(specs).items()
        ]
        (ROOT / "tests/data/controls.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return 0
    text = options.log.read_text() if options.log and options.log.is_file() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    if not options.table:
        for row in results(specs, options.count, options.seed, options.kinds, {row["key"] for row in rows}):
            print(f"{row['by']:17} {row['key']}  {row['reason']}", flush=True)
            rows.append(row)
            if options.log:
                with options.log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows, "spec"), table(rows, "kind"), sep="\n\n")
    return int(any(row["by"] == "survived" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
