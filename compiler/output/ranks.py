"""One run by several processes, on one machine or on several that share a file system: started by `torchrun`, or by
anything that sets RANK and WORLD_SIZE.

They meet in a hidden folder beside the output. Each keeps a small file there that says how far it is and that it is
alive; rank 0 leads: it says where to write, waits for the others, finishes the output. A rank that fails, or is not
heard of for half a minute, ends the run for all, with its cause. No library is needed for that, and no network.

    .NAME.mapspec-ranks/state-RANK   JSON: nonce, beat, state, and what goes with the state
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
PARTING = 10.0  # seconds for the others to take note of the end

Progress = Callable[[int], None]
Work = Callable[[Path, Ledger], None]


class LostRank(ConnectionError):
    """Another process of this run has failed or gone; what is written may still be resumed."""


def from_environment(out: Path) -> Crew:
    """The processes that make one output together: those that the environment tells of. Raises Refusal."""
    words = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, size = int(words["RANK"]), int(words["WORLD_SIZE"])
    except ValueError:
        rank, size = 0, 0
    if not 0 <= rank < size:
        said = ", ".join(f"{name}={value}" for name, value in words.items())
        refuse(
            "RANK",
            f"the environment says {said}, which is no rank",
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
        self.heard: dict[int, dict[str, Any]] = {}  # what each other said last, once it was heard to say something new
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

        def told(size: int) -> None:
            if self.trouble:
                raise self.trouble
            progress(size)

        return told if self.size > 1 else progress

    # The leader ------------------------------------------------------------------------------------------------------

    @contextmanager
    def leading(self, journal: Journal, fingerprint: str) -> Iterator[None]:
        """Have the others write as soon as all are there; at the end wait for them, be it until they have stopped."""
        if self.size == 1:
            yield
            return
        try:
            self._wait(lambda: len(self.heard) == len(self.others), JOIN)
            # What is safe was compared with its hashes; nobody has to do so again.
            safe, place = journal.safe, str(journal.folder)
            self._say("go", place=place, journal=str(journal.path), safe=safe, fingerprint=fingerprint)
            yield
            self._wait(lambda: all(self.heard[n]["state"] == "done" for n in self.others))
        except BaseException as error:
            self._part(error)
            raise

    # The others ------------------------------------------------------------------------------------------------------

    def follow(self, fingerprint: str, work: Work) -> None:
        """Write what the leader asks for by `work(folder, ledger)`, and wait for its end. Raises Refusal."""
        self._wait(lambda: self._leader() in ("go", "finished"))
        if self._leader() == "go":
            told = self.heard[0]
            if told["fingerprint"] != fingerprint:
                refuse(
                    told["place"], "its leader sees another source, spec or setting", "unfit-ranks", "start all alike"
                )
            journal = Journal(Path(f"{told['journal']}.{self.rank}"), Path(told["place"]))
            journal.begin(fingerprint)
            journal.safe = {file: [(start, stop) for start, stop in ranges] for file, ranges in told["safe"].items()}
            with journal:
                work(Path(told["place"]), journal)
        self._say("done")
        self._wait(lambda: self._leader() == "finished")

    def _leader(self) -> str | None:
        """What the leader of this very run says."""
        said = self.heard.get(0, {})
        return said.get("state") if said.get("known", {}).get(str(self.rank)) == self.nonce else None

    # -----------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Crew:
        if self.size > 1:
            if self.leads:
                shutil.rmtree(self.folder, ignore_errors=True)
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
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._say("gone")  # after which it writes there no more

    def _part(self, error: BaseException | None) -> None:
        """Tell the end, and give the others the time to take note."""
        self._say("failed" if error else "finished", message=_cause(error) if error else "")
        deadline = time.monotonic() + PARTING
        while not all(map(self._parted, self.others)) and time.monotonic() < deadline:
            time.sleep(BEAT / 5)

    def _parted(self, other: int) -> bool:
        """Whether another process has taken note of the end, or never will."""
        said = self.heard.get(other, {}).get("state")
        silent = time.monotonic() - self.silent.get(other, (None, 0.0))[1] > LOST
        return silent or said == "gone" or (not self.leads and said in ("failed", "finished", "lost"))

    def _say(self, state: str, **more: Any) -> None:
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
                raise LostRank(f"of {self.size} processes only {len(self.heard) + 1} have appeared")
            time.sleep(BEAT / 5)

    def _keep_alive(self) -> None:
        while True:
            self._publish()
            for other in self.others:
                self._listen(other)
            if self.stop.wait(BEAT):
                return

    def _publish(self) -> None:
        """Put this process's file in place, whole."""
        with self.lock:
            known = {n: said["nonce"] for n, said in self.heard.items()}
            content = {"nonce": self.nonce, "beat": time.monotonic_ns(), "known": known, **self.state}
            path = self.folder / f"state-{self.rank}"
            try:
                if self.state["state"] == "here":
                    self.folder.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".new").write_text(json.dumps(content), encoding="utf-8")
                path.with_suffix(".new").replace(path)
            except (FileNotFoundError, FileExistsError):
                pass  # the folder was cleared away between two calls, be it within mkdir; this is said again
            except OSError as error:
                self.trouble = self.trouble or LostRank(f"{self.folder} cannot be written: {error.strerror}")

    def _listen(self, other: int) -> None:
        """Take note of what another one says. Its first file may be that of an earlier run, until it changes."""
        try:
            said = json.loads((self.folder / f"state-{other}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = None
        sign, now = said and (said["nonce"], said["beat"]), time.monotonic()
        before, since = self.silent.setdefault(other, (sign, now))
        if sign != before and said:
            self.silent[other] = sign, now
            if before is not None:
                with self.lock:
                    self.heard[other] = said
                if said["state"] == "failed":
                    self._lose(other, f"rank {other} failed: {said['message']}")
        elif (
            other in self.heard
            and now - since > LOST
            and self.heard[other]["state"] not in ("gone", "failed", "finished")
        ):
            self._lose(other, f"rank {other} has not been heard of for {LOST:.0f} seconds")

    def _lose(self, other: int, message: str) -> None:
        with self.lock:
            self.heard[other] = {**self.heard[other], "state": "lost"}
        self.trouble = self.trouble or LostRank(message)


def _cause(error: BaseException) -> str:
    if isinstance(error, Refusal):
        return error.diagnostics[0].message
    return str(error) or type(error).__name__
