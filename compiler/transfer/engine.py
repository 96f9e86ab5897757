"""Writes files whose bytes come from other files, at the speed of a copy, in bounded memory.

Takes outputs (path, size, header, moves) and the paths of the sources. Space for every output is reserved before a
byte is written. Threads take contiguous ranges of the targets in turn, and with them the tasks that write what no move
can make. Knows nothing of specs or tensors' names; names of outputs are final, so a caller that wants all or nothing
hands in a temporary folder. Refuses a full disk and a source that ends early, with file and offset.
The first error stops all threads, removes the outputs and is raised; so does an interrupt. With a ledger the outputs
stay, and what it has from an earlier run is not written again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from compiler.layout.moves import Move, Strip, Tile, strip, tiles
from compiler.transfer.files import InputFile, OutputFile
from compiler.transfer.worker import BLOCK, GAP, Worker

TASK = 1 << 20  # bytes of target that a thread takes at a time: threads that stay close read a cold source in order

MOST_THREADS = 256

MOST_PITCH = 64 << 10  # bytes of a row; of a longer one, little is read for nothing

Targets = Mapping[Path, OutputFile]
Strips = list[tuple[Path, Strip]]


@dataclass(frozen=True)
class TransferFile:
    """A file to write: `header` first, then the moves' ranges, which ascend, and up to `size` leave no gap but `left`:
    (start, length) of what other tasks write."""

    path: Path
    size: int
    header: bytes
    moves: Sequence[Move]
    left: Sequence[tuple[int, int]] = ()


@dataclass(eq=False)
class Portion:
    """Bytes of an output that are complete once `tasks` tasks have run."""

    path: Path
    start: int
    stop: int
    tasks: int = 1


class Task(NamedTuple):
    """What one thread does at a time: `run` writes, and yields the bytes written, step by step."""

    run: Callable[[Worker, Targets], Iterator[int]]
    portions: tuple[Portion, ...]


class Ledger(Protocol):
    """`has`: whether an earlier run wrote a range; `wrote` records a range, from any thread."""

    def has(self, path: Path, start: int, stop: int) -> bool: ...
    def wrote(self, path: Path, start: int, stop: int) -> None: ...


def transfer(
    outputs: Sequence[TransferFile],
    sources: Mapping[str, Path],
    *,
    opener: Callable[[Path], InputFile] = InputFile,
    others: Iterable[Task] = (),
    jobs: int = 2,
    fsync: bool = False,
    progress: Callable[[int], None] | None = None,
    ledger: Ledger | None = None,
) -> None:
    """Write all outputs; `others` write what the outputs leave.

    `opener` opens a source; `progress` is called with the number of bytes written, from any thread.

    Raises Refusal (`disk-full`, `file-truncated`), OSError with the file's name, what a task or an interrupt raises;
    ValueError where the moves of an output and what it leaves do not cover it.
    """
    for output in outputs:
        _check_cover(output)
    with contextlib.ExitStack() as stack:
        readers = {name: stack.enter_context(opener(path)) for name, path in sources.items()}
        targets = {o.path: stack.enter_context(OutputFile(o.path, o.size, ledger is not None)) for o in outputs}
        for output in outputs:
            targets[output.path].write(memoryview(output.header), 0)
        tasks = itertools.chain(others, _tasks(outputs))
        _Crew(readers, targets, tasks, progress, ledger, fsync or ledger is not None).run(jobs)
        if fsync:
            for target in targets.values():
                os.fsync(target.fd)


def crew_size(jobs: int) -> int:
    """The number of threads that `jobs` asks for: at least one, and no more than any storage keeps busy."""
    return min(max(1, jobs), MOST_THREADS)


def _tasks(outputs: Sequence[TransferFile]) -> Iterator[Task]:
    """All the moves, in target order; but strips of the same rows with the first of them."""
    cuts = _cuts(outputs)
    for output in outputs:
        path = output.path
        for moves in _runs(output, cuts):
            start, end = moves[0].target, moves[-1].target + moves[-1].length
            if (place := (path, start)) in cuts:
                yield from _cut_tasks(cuts[place])
            elif moves[0].plain:
                for first in range(start, end, TASK):
                    last = min(end, first + TASK)
                    yield Task(partial(_copy, path, moves, first, last), (Portion(path, first, last),))
            else:
                blocks = list(tiles(moves[0], BLOCK))
                portion = Portion(path, start, end, len(blocks))
                yield from (Task(partial(_gather, path, moves[0], tile), (portion,)) for tile in blocks)


def _copy(path: Path, moves: Sequence[Move], start: int, stop: int, worker: Worker, targets: Targets) -> Iterator[int]:
    return worker.copy(targets[path], moves, start, stop)


def _gather(path: Path, move: Move, tile: Tile, worker: Worker, targets: Targets) -> Iterator[int]:
    return worker.gather(targets[path], move, tile)


def _cut(strips: Strips, start: int, stop: int, worker: Worker, targets: Targets) -> Iterator[int]:
    return worker.cut([(targets[path], strip) for path, strip in strips], start, stop)


def _cuts(outputs: Sequence[TransferFile]) -> dict[tuple[Path, int], Strips]:
    """Strips whose columns interleave in one matrix, by the place of the first strip; the others map to an empty list."""
    cuts: dict[tuple[Path, int], Strips] = {}
    near: dict[tuple[str, int, int, int], Strips] = {}
    for output in outputs:
        for move in output.moves:
            one = strip(move) if move.plain else None
            if one is None or one.pitch - one.width > GAP or one.pitch > MOST_PITCH:
                continue
            rows, number = (one.source, one.rows, one.pitch), one.offset // one.pitch
            siblings = [near[key] for n in (0, -1, 1) if (key := (*rows, number + n)) in near]
            strips = next((s for s in siblings if abs(s[0][1].offset - one.offset) < one.pitch), [])
            cuts[output.path, one.target] = [] if strips else strips
            if not strips:
                near[(*rows, number)] = strips
            strips.append((output.path, one))
    return cuts


def _cut_tasks(strips: Strips) -> Iterator[Task]:
    if not strips:
        return
    rows, high = strips[0][1].rows, max(1, TASK // strips[0][1].pitch)
    for first in range(0, rows, high):
        last = min(rows, first + high)
        places = [(path, s.target + first * s.width, s.target + last * s.width) for path, s in strips]
        yield Task(partial(_cut, strips, first, last), tuple(Portion(*place) for place in places))


def _runs(output: TransferFile, apart: Container[tuple[Path, int]]) -> Iterator[list[Move]]:
    """Plain moves that follow each other without a gap together, the others, and those `apart`, one by one."""
    run: list[Move] = []
    together = False  # with what follows
    for move in output.moves:
        plain = move.plain and (output.path, move.target) not in apart
        if run and not (plain and together and run[-1].target + run[-1].length == move.target):
            yield run
            run = []
        together = plain
        run.append(move)
    if run:
        yield run


class _Crew:
    """Threads that share one supply of tasks, and the first error that any of them meets."""

    def __init__(
        self,
        sources: Mapping[str, InputFile],
        targets: Targets,
        tasks: Iterator[Task],
        progress: Callable[[int], None] | None,
        ledger: Ledger | None,
        durable: bool,
    ) -> None:
        self.sources = sources
        self.targets = targets
        self.tasks = tasks
        self.progress = progress
        self.ledger = ledger
        self.durable = durable  # somebody waits until the disk has it all
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def run(self, jobs: int) -> None:
        threads = [threading.Thread(target=self.work, name=f"transfer-{n}") for n in range(crew_size(jobs))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # an interrupt reaches the main thread only: the others end with their step
            self.stop.set()
            for thread in threads:
                if thread.ident:
                    thread.join()
        if self.error:
            raise self.error

    def work(self) -> None:
        worker = Worker(self.sources)
        try:
            while not self.stop.is_set():
                with self.lock:
                    task = next(self.tasks, None)
                if task is None:
                    return
                if self.ledger and all(self.ledger.has(p.path, p.start, p.stop) for p in task.portions):
                    continue
                for count in task.run(worker, self.targets):
                    if self.progress:
                        self.progress(count)
                    if self.stop.is_set():
                        return
                self.record(task)
        except BaseException as error:
            with self.lock:
                self.error = self.error or error
            self.stop.set()

    def record(self, task: Task) -> None:
        """Record in the ledger what a task has completed; tasks start in target order, so earlier bytes are mostly written."""
        for portion in task.portions if self.durable else ():
            self.targets[portion.path].begin(portion.start)
        for portion in task.portions if self.ledger else ():
            with self.lock:
                portion.tasks -= 1
                complete = portion.tasks == 0
            if complete and self.ledger:
                self.ledger.wrote(portion.path, portion.start, portion.stop)


def _check_cover(output: TransferFile) -> None:
    end = len(output.header)
    for start, length in sorted([*((move.target, move.length) for move in output.moves), *output.left]):
        if start != end:
            raise ValueError(f"{output.path}: bytes from {min(end, start)} on are written twice or not at all")
        end += length
    if end != output.size:
        raise ValueError(f"{output.path}: {end} bytes are described, {output.size} are to be written")
