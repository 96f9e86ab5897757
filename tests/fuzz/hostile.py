"""Runs the command line on every hostile input of `cases`, each command in a fork of its own, and judges how it ends.

Whatever comes, nothing may be left but the finished output; no traceback, no more than 10 seconds or 1 GB, no message
without end or with control characters. What a case expects of `run` holds as well. Prints one JSON object; `wrong`
names every deviation.

    python tests/fuzz/hostile.py FOLDER [--only TEXT] [--light] [--commands run,detect]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import container_cases
from cases import CASES, Case

from compiler.checkpoints import checkpoint
from compiler.cli.main import main
from compiler.executor import execute, nonfinite_values
from compiler.jobs import compile, convert, detect
from compiler.language import schema
from compiler.plan_report import overview
from compiler.transfer import strided_copy

PRELOADED = (compile, container_cases, checkpoint, convert, execute, strided_copy, schema, overview, nonfinite_values)
SECONDS, PATIENCE, MEMORY, LONGEST = 10, 120, 1_000_000_000, 12_000  # PATIENCE: by the clock, for a busy machine
HEAVY = re.compile(r"\d,000|\d [MG]B|doubled")
COMMANDS = ("run", "bare", "plan", "detect", "auto")


@dataclass
class Ended:
    """How a command ended: its exit status, what it said, its seconds of a processor and its largest memory in bytes."""

    status: int
    said: str
    seconds: float
    memory: int


def forked(action: Any, where: Path, seconds: float) -> Ended:
    """Run `action` in a fork, in the folder `where`; killed after so many seconds of the clock."""
    report = where.parent / "report"
    began = time.monotonic()
    process = os.fork()
    if not process:
        child(action, where, report)
    while not (ended := os.wait4(process, os.WNOHANG))[0]:
        time.sleep(0.002)
        if time.monotonic() - began > seconds:
            os.kill(process, signal.SIGKILL)
            ended = os.wait4(process, 0)
            break
    killed = time.monotonic() - began > seconds
    took = seconds if killed else ended[2].ru_utime + ended[2].ru_stime
    said = report.read_bytes().decode("utf-8", "surrogateescape")
    said, _, memory = said.rpartition("\0") if "\0" in said else (said, "", "0")  # killed before the end
    return Ended(os.waitstatus_to_exitcode(ended[1]), said, took, int(memory))


def child(action: Any, where: Path, report: Path) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    os.chdir(where)
    out = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    status = 99
    try:
        action()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
        os.write(out, b"\0%d" % peak)
        os._exit(status)


def words_of(command: str, place: Path, told: Mapping[str, Any]) -> tuple[list[str], Path]:
    """The command line for one case, and its output."""
    found = [place / name for name in ("model.pth", "model.safetensors") if os.path.lexists(place / name)]
    source = told.get("source", found[0] if found else place)
    config = told.get("config", place / "config.json")
    out = Path(told.get("out", place.parent / "out"))
    configured = ["--config", str(config)] if os.path.lexists(config) else []
    if command == "detect":
        return ["detect", str(source), *configured], out
    name = "auto" if command == "auto" else str(told.get("spec", "llama"))
    words = ["plan" if command == "plan" else "run", name, str(source)]
    words += [str(out)] * (command != "plan") + [*configured] * (command != "bare")
    options = told.get("options", [])
    return words + (options if command in ("run", "bare") else []), out


def image(folder: Path) -> dict[str, Any]:
    """What lies in a folder; of small files also what they hold."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        held = path.read_bytes() if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20 else None
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, held)
    return found


class Judge:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest: tuple[float, str] = (0.0, "")
        self.largest: tuple[int, str] = (0, "")
        self.said: dict[str, str] = {}

    def case(self, name: str, made: Case, commands: list[str]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        place, where = self.folder / "in", self.folder / "cwd"
        where.mkdir(parents=True)
        for command in commands:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            told: dict[str, Any] = {}

            def prepare(told: dict[str, Any] = told) -> None:
                told |= made.make(place) or {}
                (self.folder / "told").write_text(json.dumps(told, default=str))
                sys.exit(0)

            ready = forked(prepare, where, 60)
            assert ready.status == 0, (name, ready.said)
            told = json.loads((self.folder / "told").read_text())
            for left in ("told", "report"):
                (self.folder / left).unlink()
            words, out = words_of(command, place, told)
            before = image(self.folder)
            ended = forked(lambda words=words: main(words), where, PATIENCE)  # type: ignore[misc]
            self.judge(f"{name} [{command}]", made, command, ended, before, out)

    def judge(self, what: str, made: Case, command: str, ended: Ended, before: dict[str, Any], out: Path) -> None:
        self.slowest = max(self.slowest, (ended.seconds, what))
        self.largest = max(self.largest, (ended.memory, what))
        self.said[what] = ended.said

        def wrong(problem: str) -> None:
            self.wrong.append(f"{what}: {problem}: {ended.said[-600:]}")
            print(self.wrong[-1], file=sys.stderr, flush=True)

        (self.folder / "report").unlink()
        after = image(self.folder)
        finished = ended.status == 0 and command in ("run", "bare", "auto")
        if finished and out.is_dir() and out.is_relative_to(self.folder):
            inside = str(out.relative_to(self.folder))
            after = {n: v for n, v in after.items() if n != inside and not n.startswith(f"{inside}/")}
            before = {n: v for n, v in before.items() if n != inside and not n.startswith(f"{inside}/")}
            shutil.rmtree(out)
        if before != after:
            changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
            wrong(f"it left or changed {changed[:6]}")
            for place in set(after) - set(before):
                shutil.rmtree(self.folder / place, ignore_errors=True)
        if ended.status < 0:
            wrong(f"killed by {-ended.status} after {ended.seconds:.1f} s")
        elif ended.status not in (0, 1, 2) or "Traceback" in ended.said:
            wrong(f"status {ended.status}")
        self.counts[{0: "accepted", 1: "refused", 2: "refused"}.get(ended.status, "broken")] += 1
        if ended.seconds > SECONDS:
            wrong(f"{ended.seconds:.1f} seconds")
        if ended.memory > MEMORY:
            wrong(f"{ended.memory:,} bytes of memory")
        if len(ended.said) > LONGEST and not (command in ("plan", "detect") and ended.status == 0):
            wrong(f"a message of {len(ended.said):,} letters")
        if odd := {c for c in ended.said if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs", "Cf")}:
            wrong(f"control characters {odd}")
        if ended.status in (1, 2) and not re.search(r" \[[a-z-]+\]$|^usage: |^no spec fits", ended.said, re.M):
            wrong("refused without a reason")
        if command == "run":
            if made.expects != "either" and (ended.status == 0) != (made.expects == "converted"):
                wrong(f"it should have been {made.expects}")
            if made.says and not re.search(made.says, ended.said):
                wrong(f"it should say {made.says!r}")

    def report(self) -> dict[str, Any]:
        return {"cases": len({what.rpartition(" [")[0] for what in self.said}), **self.counts,
                "slowest": self.slowest, "memory": self.largest, "wrong": self.wrong}  # fmt: skip


def remembered() -> None:
    """The shipped specs are read once for all forks."""
    programs = detect.known_specs()
    detect.known_specs = lambda more=(): programs  # type: ignore[misc,assignment]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--light", action="store_true", help="without those of megabytes, which take most of the time")
    parser.add_argument("--every", type=int, default=1, help="of the chosen cases, every so many")
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--said", type=Path, help="write what each command said")
    options = parser.parse_args()
    remembered()
    judge = Judge(options.folder)
    chosen = [name for name in CASES if options.only in name and not (options.light and HEAVY.search(name))]
    for name in chosen[:: options.every]:
        judge.case(name, CASES[name], options.commands.split(","))
    if options.said:
        options.said.write_text(json.dumps(judge.said, indent=1))
    shutil.rmtree(options.folder, ignore_errors=True)
    print(json.dumps(judge.report()))
    sys.exit(bool(judge.wrong))
