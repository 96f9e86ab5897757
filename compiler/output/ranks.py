"""One run in several processes, on one machine or on several that share a file system. `torchrun`, or anything that
sets RANK and WORLD_SIZE, starts them.

They meet in a hidden folder next to the output. Each rank writes a small state file there, several times a second.
Rank 0 leads: it publishes where to write, waits for the others and finishes the output. A rank that fails, or does not
update its file for half a minute, ends the run for all ranks, with its cause. Needs no library and no network.

    .NAME.mapspec-ranks/state-RANK   JSON: nonce, beat, state, and what goes with the state
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from compiler.diagnostics import Refusal, refuse
from compiler.output.journal import Journal
from compiler.output.safetensors_layout import OutFile
from compiler.transfer.engine import Ledger

BEAT = 0.25  # seconds between two signs of life
LOST = 30.0  # seconds without one
JOIN = 300.0  # seconds for the others to appear
PARTING = 10.0  # seconds for the others to read the end

Progress = Callable[[int], None]
Work = Callable[[Path, Ledger], None]


class LostRank(ConnectionError):
    """Another process of this run has failed or gone; what is written may still be resumed."""


def from_environment(out: Path) -> Crew:
    """The processes that write one output together, from RANK and WORLD_SIZE. Raises Refusal."""
    values = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, size = int(values["RANK"]), int(values["WORLD_SIZE"])
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size:
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        refuse(
            "RANK",
            f"{shown} in the environment is not a valid rank",
            "wrong-usage",
            "start with torchrun, or unset both",
        )
    return Crew(rank, size, out)


class Crew:
    """This process among those of one run. Within its context the others see that it is alive.

    Every method that waits raises LostRank with the cause where another process fails or is lost.
    """

    def __init__(self, rank: int, size: int, out: Path) -> None:
        self.rank, self.size = rank, size
        out = Path(os.path.realpath(out))
        self.folder = out.parent / f".{out.name}.mapspec-ranks"
        self.others = range(1, size) if rank == 0 else range(1)
        self.nonce = os.urandom(16).hex()
        self.state: dict[str, Any] = {"state": "here"}
        self.states: dict[int, dict[str, Any]] = {}  # the last state of each other rank, once it changed
        self.silent: dict[int, tuple[Any, float]] = {}  # its last sign of life, and when it came
        self.trouble: LostRank | None = None
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._keep_alive, name="ranks", daemon=True)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, files: Sequence[OutFile]) -> list[OutFile]:
        """The files that this process writes: each goes, largest first, to the one that has least to write."""
        loads = [(0, rank) for rank in range(self.size)]
        mine: list[OutFile] = []
        for file in sorted(files, key=lambda f: (-f.size, f.name)):
            load, rank = min(loads)
            loads[rank] = (load + file.size, rank)
            mine += [file] * (rank == self.rank)
        return mine

    def watched(self, progress: Progress) -> Progress:
        """The same, but raising where another process has failed."""

        def watching(size: int) -> None:
            if self.trouble:
                raise self.trouble
            progress(size)

        return watching if self.size > 1 else progress

    # The leader ------------------------------------------------------------------------------------------------------

    @contextmanager
    def leading(self, journal: Journal, fingerprint: str) -> Iterator[None]:
        """Have the others write as soon as all are there; at the end wait for them, be it until they have stopped."""
        if self.size == 1:
            yield
            return
        try:
            self._wait(lambda: len(self.states) == len(self.others), JOIN)
            # What is safe was compared with its hashes; nobody has to do so again.
            safe, place = journal.safe, str(journal.folder)
            self._announce("go", place=place, journal=str(journal.path), safe=safe, fingerprint=fingerprint)
            yield
            self._wait(lambda: all(self.states[n]["state"] == "done" for n in self.others))
        except BaseException as error:
            self._part(error)
            raise

    # The others ------------------------------------------------------------------------------------------------------

    def follow(self, fingerprint: str, work: Work) -> None:
        """Write this rank's files by `work(folder, ledger)`, then wait until the leader has finished. Raises Refusal."""
        self._wait(lambda: self._leader() in ("go", "finished"))
        if self._leader() == "go":
            orders = self.states[0]
            if orders["fingerprint"] != fingerprint:
                refuse(
                    orders["place"],
                    "rank 0 has another source, spec or setting",
                    "unfit-ranks",
                    "start every rank with the same command",
                )
            journal = Journal(Path(f"{orders['journal']}.{self.rank}"), Path(orders["place"]))
            journal.begin(fingerprint)
            journal.safe = {file: [(start, stop) for start, stop in ranges] for file, ranges in orders["safe"].items()}
            with journal:
                work(Path(orders["place"]), journal)
        self._announce("done")
        self._wait(lambda: self._leader() == "finished")

    def _leader(self) -> str | None:
        """The state of this run's leader; None before it knows this rank."""
        state = self.states.get(0, {})
        return state.get("state") if state.get("known", {}).get(str(self.rank)) == self.nonce else None

    # -----------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Crew:
        if self.size > 1:
            if self.leads:
                self._clear()
            self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.size == 1:
            return
        if error or self.leads:
            self._part(error)
        self.stop.set()
        self.thread.join()
        if self.leads:
            self._clear()
        else:
            self._announce("gone")  # after which it writes there no more

    def _clear(self) -> None:
        """Remove the state files, and the folder if nothing else is in it."""
        with suppress(OSError):
            for file in self.folder.glob("state-*"):
                file.unlink()
            self.folder.rmdir()

    def _part(self, error: BaseException | None) -> None:
        """Publish the end, and give the others time to read it."""
        self._announce("failed" if error else "finished", message=_cause(error) if error else "")
        deadline = time.monotonic() + PARTING
        while not all(map(self._parted, self.others)) and time.monotonic() < deadline:
            time.sleep(BEAT / 5)

    def _parted(self, other: int) -> bool:
        """Whether another process has read the end, or is lost."""
        state = self.states.get(other, {}).get("state")
        silent = time.monotonic() - self.silent.get(other, (None, 0.0))[1] > LOST
        return silent or state == "gone" or (not self.leads and state in ("failed", "finished", "lost"))

    def _announce(self, state: str, **more: Any) -> None:
        with self.lock:
            self.state = {"state": state, **more}
        if self.size > 1:
            self._publish()

    def _wait(self, done: Callable[[], bool], limit: float = float("inf")) -> None:
        deadline = time.monotonic() + limit
        while not done():
            if self.trouble:
                raise self.trouble
            if time.monotonic() > deadline:
                raise LostRank(f"of {self.size} processes only {len(self.states) + 1} started")
            time.sleep(BEAT / 5)

    def _keep_alive(self) -> None:
        while True:
            self._publish()
            for other in self.others:
                self._read_state(other)
            if self.stop.wait(BEAT):
                return

    def _publish(self) -> None:
        """Replace this process's state file in one step."""
        with self.lock:
            known = {n: state["nonce"] for n, state in self.states.items()}
            content = {"nonce": self.nonce, "beat": time.monotonic_ns(), "known": known, **self.state}
            path = self.folder / f"state-{self.rank}"
            try:
                if self.state["state"] == "here":
                    self.folder.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".new").write_text(json.dumps(content), encoding="utf-8")
                path.with_suffix(".new").replace(path)
            except (FileNotFoundError, FileExistsError):
                pass  # the folder was removed between two calls, or during mkdir; the next beat writes it again
            except OSError as error:
                self.trouble = self.trouble or LostRank(f"{self.folder} cannot be written: {error.strerror}")

    def _read_state(self, other: int) -> None:
        """Read the state of another rank. Its first file may be of an earlier run, so only a changed file counts."""
        try:
            state = json.loads((self.folder / f"state-{other}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = None
        sign, now = state and (state["nonce"], state["beat"]), time.monotonic()
        before, since = self.silent.setdefault(other, (sign, now))
        if sign != before and state:
            self.silent[other] = sign, now
            if before is not None:
                with self.lock:
                    self.states[other] = state
                if state["state"] == "failed":
                    self._lose(other, f"rank {other} failed: {state['message']}")
        elif (
            other in self.states
            and now - since > LOST
            and self.states[other]["state"] not in ("gone", "failed", "finished")
        ):
            self._lose(other, f"rank {other} has not answered for {LOST:.0f} seconds")

    def _lose(self, other: int, message: str) -> None:
        with self.lock:
            self.states[other] = {**self.states[other], "state": "lost"}
        self.trouble = self.trouble or LostRank(message)


def _cause(error: BaseException) -> str:
    if isinstance(error, Refusal):
        return error.diagnostics[0].message
    return str(error) or type(error).__name__
