"""Kills conversions without warning and continues them; what comes out must be what an undisturbed run writes.

A program of its own, without torch where the spec needs none: it forks a child for each conversion. `--rounds N` kills
at N random moments, some of them again while the run is continued; `--calls N` kills right after a call that writes,
at most N calls of each kind. Prints one JSON object: what was done, how often, and every deviation under `wrong`.

    python tests/fuzz/kills.py SPEC SOURCE FOLDER --rounds 200 --calls 20 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from compiler.cli.main import main
from compiler.executor import nonfinite_values
from compiler.jobs import compile, convert
from compiler.language import schema
from compiler.output import journal
from compiler.output.earlier_run import MARK
from compiler.transfer import engine, strided_copy, worker

# Small enough that a small checkpoint is written in hundreds of steps and noted dozens of times.
journal.EVERY = 0.004
engine.TASK = worker.BLOCK = worker.WINDOW = worker.BLOCK = 1 << 10
PAUSE = 2e-4  # seconds after each write
PRELOADED = (compile, convert, strided_copy, schema, nonfinite_values)  # so that a child need not
KINDS = ("pwrite", "fsync", "ftruncate", "posix_fallocate", "rename", "replace", "mkdir", "rmdir", "unlink", "open")


class Crash:
    """Wraps the calls of `os` that write: counts them, and kills this process after the nth of one kind."""

    def __init__(self, kind: str = "", after: int = 0, pause: float = 0.0) -> None:
        self.kind, self.after, self.pause = kind, after, pause
        self.counts: Counter[str] = Counter()
        for name in KINDS:
            setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = function(*args, **options)
            self.counts[name] += 1
            if name == self.kind and self.counts[name] == self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "pwrite":
                time.sleep(self.pause)
            return result

        return call


def child(words: list[str], crash: Callable[[], Crash] | None, report: int) -> NoReturn:
    """Run one conversion in a fork; its exit status, and the counts of its calls through `report`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(report, 2)
    status, crashing = 99, crash() if crash else None
    try:
        main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        if crashing and not crashing.kind:
            os.write(report, b"\n" + json.dumps(crashing.counts).encode())
        os._exit(status)


def run(words: list[str], crash: Callable[[], Crash] | None = None, kill_at: float | None = None) -> tuple[int, str]:
    """The wait status of one conversion, killed after `kill_at` seconds, and what it said."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        child(words, crash, writing)
    os.close(writing)
    if kill_at is not None:
        time.sleep(kill_at)
        os.kill(process, signal.SIGKILL)
    said = b""
    while part := os.read(reading, 1 << 16):
        said += part
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said.decode()


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds, or what a file holds, under the name `.`."""
    if folder.is_file():
        return {".": folder.read_bytes()}
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


USERS = {"notes.txt": b"mine", "more/deep.txt": b"mine, too"}
STALE = {"config.json": b"{}", "model-00001-of-00009.safetensors": b"old"}
# Last, because a manifest is newer than what it lists.
STALE["mapspec.json"] = json.dumps(
    {"mapspec": "0", "files": {name: len(text) for name, text in STALE.items()}}
).encode()


class Trial:
    """Conversions of one source, each compared with the undisturbed one; `over` what is in use, or not."""

    def __init__(self, spec: str, source: Path, folder: Path, options: list[str], over: bool) -> None:
        self.folder = folder
        self.out = folder / ("out.pth" if "--reverse" in options else "out")
        self.before = {**USERS, **STALE} if over else {}
        if over and "--reverse" in options:
            self.before = {".": b"old" + len(MARK).to_bytes(2, "little") + MARK}
        self.words = ["run", spec, str(source), str(self.out), *options, *["--force"] * over]
        self.clean()
        status, said = run(self.words)
        assert status == 0, said
        self.expected = files(self.out)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def clean(self) -> None:
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in self.before.items():
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.out / name).write_bytes(content)

    def check(self, what: str) -> None:
        """After a kill: no folder, the one before, or the whole of the new one, which users' files may still join."""
        self.counts["killed"] += 1
        found = files(self.out)
        if found and found != self.before:
            self.counts["killed after the end"] += 1
            if {**found, **USERS} != {**self.expected, **USERS}:
                self.wrong.append(f"{what}: a folder that looks finished and is not")

    def resume(self, what: str) -> None:
        """Continued: the whole, and nothing beside it."""
        status, said = run([*self.words, "--resume"])
        self.counts["resumed"] += 1
        self.counts["continued from a note"] += "are unchanged and are reused" in said
        self.counts["only named"] += "moved it to its final name" in said
        if status or files(self.out) != self.expected:
            self.wrong.append(f"{what}: {status}, {said.strip()[:300]}")
        if left := [p.name for p in self.folder.iterdir() if p != self.out]:
            self.wrong.append(f"{what}: it left {left}")

    def moments(self, rounds: int, rng: random.Random) -> None:
        began = time.monotonic()
        self.clean()
        run(self.words, lambda: Crash(pause=PAUSE))
        length = time.monotonic() - began
        for n in range(rounds):
            self.clean()
            what = f"round {n}"
            status, _ = run(self.words, lambda: Crash(pause=PAUSE), rng.uniform(0, 1.05 * length))
            if status == -signal.SIGKILL:
                self.check(what)
            while rng.random() < 0.4:
                words = [*self.words, "--resume"]
                run(words, lambda: Crash(pause=PAUSE), rng.uniform(0, length))
                self.check(f"{what} again")
            self.resume(what)

    def calls(self, most: int) -> None:
        self.clean()
        _, said = run(self.words, lambda: Crash(pause=PAUSE))
        totals = json.loads(said.splitlines()[-1])
        for kind, total in sorted(totals.items()):
            for n in sorted({total - k * total // most for k in range(min(most, total))}):
                self.clean()
                what = f"after {kind} {n} of {total}"
                status, _ = run(self.words, lambda kind=kind, n=n: Crash(kind, n, PAUSE))  # type: ignore[misc]
                # How many notes a run makes depends on the clock; there may be fewer calls this time.
                self.counts[f"killed after {kind}"] += status == -signal.SIGKILL
                self.check(what)
                self.resume(what)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("spec")
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--calls", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--over", action="store_true")
    asked, options = parser.parse_known_args()
    asked.folder.mkdir(exist_ok=True)
    trial = Trial(asked.spec, asked.source, asked.folder, options, asked.over)
    if asked.rounds:
        trial.moments(asked.rounds, random.Random(asked.seed))
    if asked.calls:
        trial.calls(asked.calls)
    print(json.dumps({**trial.counts, "wrong": trial.wrong}))
    sys.exit(bool(trial.wrong))
