"""A folder or file that appears complete or not at all.

Everything is written into a hidden sibling, which is locked against a second run. Once all of it is on disk, a mark
says so; then it takes its name. A run that is killed before the mark can be continued from its journal; one that is
killed after it is completed by the next run. Over an existing output (`force`) only what an earlier run wrote is
removed (`earlier_run`): other files stay, and one that is in the way is renamed to `NAME~`. Nothing that a run reads
may be replaced (`protect`). Raises Refusal and OSError.

    .NAME.mapspec-partial/   lock, journal, finished (the mark), new/NAME, old (what NAME was before)
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from compiler.diagnostics import refuse
from compiler.output.earlier_run import INDEX, MANIFEST, is_folder, written_by_mapspec
from compiler.output.journal import Journal, sync

_LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # file systems without locks
_SINGLE = "model.safetensors"  # loaded before any index, so an old one must not stay beside new shards


class AtomicOutput:
    """Context manager around the hidden sibling of `path`; `place` is where to write, a folder or one file.

    `fingerprint` identifies the run; `parts` is the glob of the parts of a state dict, if a folder of those is written.
    With `resume`, a run of the same fingerprint is continued: `journal` has the bytes that need not be written again,
    and `done` is true if only the final name was missing. `notes` lists the users' files that were renamed.
    """

    def __init__(
        self,
        path: Path,
        force: bool,
        resume: bool = False,
        fingerprint: str = "",
        folder: bool = True,
        parts: str = "",
    ) -> None:
        self.given = path
        self.path = Path(os.path.realpath(path))
        self.force, self.resume, self.fingerprint, self.folder = force, resume, fingerprint, folder
        self.parts = parts
        self.hidden = self.path.parent / f".{self.path.name}.mapspec-partial"
        self.place = self.hidden / "new" / self.path.name
        self.old = self.hidden / "old"
        self.mark = self.hidden / "finished"
        self.draft = self.hidden / "finishing"  # the mark while it is written
        self.lock = self.hidden / "lock"
        self.journal = Journal(self.hidden / "journal", self.place)
        self.held = -1
        self.ours = False  # whether this run may remove the content of the hidden folder
        self.done = False
        self.made: list[Path] = []  # parents that did not exist, innermost first
        self.reads: tuple[Path, ...] = ()
        self.notes: list[str] = []

    def check(self) -> None:
        """Refuse, before any work, what could not be finished. Raises Refusal."""
        try:
            self._check()
        except OSError as error:  # a name that no file may have
            refuse(str(self.given), f"cannot be written: {error.strerror}", "output-unwritable", "choose another")

    def _check(self) -> None:
        name = str(self.given)
        if self.path.is_symlink():  # what is left of one once it was followed
            refuse(name, "it is a broken link", "output-unwritable", "remove it")
        longest = os.pathconf(next(p for p in (*self.path.parents, self.path) if p.is_dir()), "PC_NAME_MAX")
        if len(os.fsencode(self.hidden.name)) > longest:
            room = longest - len(os.fsencode(self.hidden.name)) + len(os.fsencode(self.path.name))
            refuse(
                name,
                f"its name is too long: at most {room} bytes, because the temporary folder's name is longer",
                "output-unwritable",
            )
        if self.hidden.is_symlink():
            refuse(
                name,
                f"{self.hidden} is a link, and the run would write its temporary files through it",
                "output-unwritable",
                "remove it",
            )
        if strange := self._strange():
            hint = "move it elsewhere; a run keeps its temporary files in this folder"
            refuse(name, f"{strange} is not a file of mapspec", "output-unwritable", hint)
        if _is_full(self.path) and not self.force and not self.resume:
            what = "output folder is not empty" if self.path.is_dir() else "output file exists"
            refuse(name, f"the {what}", "output-exists", "choose another, or overwrite it with --force")
        if self.path.exists() and not (self.path.is_dir() if self.folder else self.path.is_file()):
            what = (
                "the output is a folder, but this is a file"
                if self.folder
                else "the output is one file, but this is not one"
            )
            hint = f"name it: {self.given / 'x.pth'}" if self.path.is_dir() else "choose another"
            refuse(name, what, "output-exists", hint)
        if self.path.is_dir() and Path.cwd().is_relative_to(self.path):  # a shell would be left in a removed folder
            hint = "run the command from another folder, or name a folder in it"
            refuse(
                name, "it is the current folder, or one above, and the run would replace it", "output-unwritable", hint
            )
        if os.path.ismount(self.path):
            hint = f"choose a folder in it, such as {self.given / 'model'}"
            refuse(name, "it is a mount point, which cannot be replaced in one step", "output-unwritable", hint)
        parent = self.path.parent
        existing = next(p for p in (parent, *parent.parents) if p.exists())
        if not existing.is_dir():
            refuse(name, f"{existing} is a file, not a folder", "output-unwritable")
        if not os.access(existing, os.W_OK | os.X_OK):
            refuse(name, f"no permission to write in {existing}", "output-unwritable", "check its permissions")

    def check_room(self, size: int) -> None:
        """Refuse `size` bytes where the disk has no room for them beside what is already there. Raises Refusal."""
        files = self.place.iterdir() if self.place.is_dir() else ()
        written = sum(file.stat().st_blocks * 512 for file in files)
        free = shutil.disk_usage(next(p for p in (self.hidden, *self.hidden.parents) if p.exists())).free
        if size - written > free:
            message = f"it needs {size - written:,} bytes, the disk has {free:,} free"
            refuse(str(self.given), message, "disk-full", "free some space or write to another disk")

    def protect(self, reads: Iterable[Path], names: Iterable[str]) -> None:
        """Refuse an output that would replace, rename or remove a file of `reads`, by whatever name or link.

        `names`: the files that the run will write into its folder. Files are compared by device and inode. Raises Refusal.
        """
        self.reads = tuple(reads)
        self._check_reads({self.path / name for name in names} if self.folder else {self.path})

    def _check_reads(self, written: set[Path]) -> None:
        if self.place.is_dir():  # of a run that was killed
            written = written | {self.path / entry.name for entry in self.place.iterdir()}
        if self.path.exists():
            written = written | written_by_mapspec(self.path, self.parts) | {self.path / _SINGLE}
        ranks = self.path.parent / f".{self.path.name}.mapspec-ranks"
        lost = {identity for place in (*written, self.hidden, ranks) for identity in _identities(place)}
        folder = _identity(self.path) if self.path.is_dir() else None
        for read in self.reads:
            if (identity := _identity(read)) is not None and (identity in lost or identity == folder):
                message = "the run reads this file, and the output would replace or remove it"
                refuse(str(read), message, "output-exists", "choose another output")

    def holds(self, place: Path) -> bool:
        """Whether it is a part of what is written, or a folder above it."""
        return place.is_relative_to(self.hidden) or self.path.is_relative_to(place)

    # -----------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> AtomicOutput:
        self.check()
        parent = self.path.parent
        self.made = [p for p in (parent, *parent.parents) if not p.exists()]
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._acquire()
            if self.mark.exists():
                self.done = self.resume and self.mark.read_text(encoding="utf-8") == self.fingerprint
                self.settle()
            self.check()  # again: another run may have finished while this one waited
            if not self.done:
                self._take_over()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held >= 0:
            if self.ours and not self.resumable(error):
                self.discard()
            if [p.name for p in self.hidden.iterdir()] == [self.lock.name]:
                self.lock.unlink()
                with suppress(OSError):  # another run has come in
                    self.hidden.rmdir()
            os.close(self.held)
            self.held = -1
        for folder in self.made:
            with suppress(OSError):  # something lies in it
                folder.rmdir()

    def resumable(self, error: BaseException | None) -> bool:
        """Whether what is there is kept after this error: a refusal ends a run for good, an interrupt does not."""
        if error is None or self.mark.exists():
            return error is not None
        return isinstance(error, KeyboardInterrupt | OSError) and (self.journal.total > 0 or len(self._journals()) > 1)

    def _acquire(self) -> None:
        """Hold the lock, which the kernel frees however this process ends. Raises Refusal where another holds it."""
        while True:
            self.hidden.mkdir(exist_ok=True)
            try:
                handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            except FileNotFoundError:  # a run that ended took the folder away
                continue
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                refuse(str(self.lock), "not a regular file", "output-unwritable", "remove it")
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _LOCKLESS:
                    holder = os.read(handle, 32).decode("ascii", "replace").strip()
                    os.close(handle)
                    hint = "wait for it, or choose another output"
                    refuse(str(self.given), f"another run (process {holder}) is writing it", "output-busy", hint)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.lock)):
                    self.held = handle
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                    return
            os.close(handle)  # a lock that nobody will see again

    def _take_over(self) -> None:
        """Continue the unfinished run that is there, or clear it away. Raises Refusal."""
        fingerprint = self.journal.recall()
        hint = "repeat its command with --resume to continue it, or give --force without --resume to start again"
        if self.journal.total and fingerprint != self.fingerprint and self.resume:
            message = "the unfinished run had another source, spec or setting"
            refuse(str(self.given), message, "resume-mismatch", hint)
        if self.journal.total and not self.resume and not self.force:
            message = f"an unfinished run left {self.journal.total:,} bytes that can be used"
            refuse(str(self.given), message, "unfinished-output", hint)
        self.ours = True
        if not self.journal.total or not self.resume:
            self.journal.safe = {}
            self.discard()
            self.journal.begin(self.fingerprint)
        self.place.parent.mkdir(exist_ok=True)

    def _journals(self) -> list[Path]:
        """This process's, and those of the others that wrote with it."""
        return [self.journal.path, *self.hidden.glob(f"{self.journal.path.name}.*")]

    def discard(self) -> None:
        """Remove all but the lock; the journal first, so that it never speaks of what is gone."""
        for path in (*self._journals(), self.draft, self.mark, self.place.parent):
            _remove(path)

    def left(self) -> str:
        """What a run that did not come to its end has left."""
        if self.mark.exists():
            return "everything is written; run the same command with --resume to move it to its final name"
        if self.ours and self.journal.path.exists():
            others = " of this process, and more of the other ranks," if len(self._journals()) > 1 else ""
            return f"{self.journal.total:,} bytes{others} are kept; run the same command with --resume to continue"
        return "nothing was written under the final name"

    # -----------------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Make what was written durable and give it its name. Raises Refusal and OSError."""
        if self.resume and not self.force and _is_full(self.path):
            if not self._same():
                refuse(str(self.given), "its content differs from what this run writes", "output-exists", "use --force")
            return
        names = [entry.name for entry in self.place.iterdir()] if self.place.is_dir() else []
        self.protect(self.reads, names)  # again: files may have been linked while this run wrote
        if (manifest := self.place / MANIFEST).is_file():
            os.utime(manifest)  # the newest file, so that later changes of others show
        for path in (*self.place.rglob("*"), self.place, self.place.parent):
            sync(path)
        self.draft.write_text(self.fingerprint, encoding="utf-8")
        sync(self.draft)
        self.draft.rename(self.mark)
        sync(self.hidden)
        self.settle()

    def settle(self) -> None:
        """The steps after the mark. If they are interrupted, doing them again completes them."""
        if self.place.exists():
            if self.place.is_dir() and _is_full(self.path):
                self.path.rename(self.old)
            elif self.path.is_file() and not written_by_mapspec(self.path):
                self._link_aside()
            self.place.replace(self.path)
            sync(self.path.parent)
        if self.old.is_dir():
            earlier = written_by_mapspec(self.old, self.parts)
            self._bring_back(self.old, self.path, earlier)
            for file in sorted(earlier, key=lambda file: file.name in (INDEX, MANIFEST)):  # which say what is theirs
                file.unlink(missing_ok=True)
            for folder, _, _ in os.walk(self.old, topdown=False):
                os.rmdir(folder)
            sync(self.path)
        for path in (self.place.parent, *self._journals(), self.mark):
            _remove(path)

    def _link_aside(self) -> None:
        """Give the user's file that one file replaces another name."""
        aside = _aside(self.path)
        before = aside.with_name(f"{self.path.name}~")
        if before.exists() and before.samefile(self.path):  # done by a run that was killed
            return
        try:
            os.link(self.path, aside)
        except OSError:  # a file system without hard links
            self.path.rename(aside)
        self.notes.append(f"kept the earlier {self.path.name} as {aside.name}")

    def _bring_back(self, old: Path, new: Path, earlier: set[Path]) -> None:
        """Move the user's files of an old folder into the new one, those in its way under another name."""
        # First those that keep their names, so that no free name is taken twice.
        for entry in sorted(set(old.iterdir()) - earlier, key=lambda e: (os.path.lexists(new / e.name), e.name)):
            target = new / entry.name
            divided = is_folder(entry) and (is_folder(target) or any(entry in file.parents for file in earlier))
            shadows = new == self.path and entry.name == _SINGLE and (new / INDEX).exists()
            if shadows or (os.path.lexists(target) and not (divided and is_folder(target))):
                target = _aside(target)
                self.notes.append(f"kept your {entry.name} as {target.name}")
            if divided:
                target.mkdir(exist_ok=True)
                self._bring_back(entry, target, earlier)
                with suppress(OSError):  # it has files
                    target.rmdir()
            else:
                entry.rename(target)

    def _strange(self) -> Path | None:
        """A file in the hidden folder that no run of this program writes."""
        known = {self.lock, self.mark, self.draft, self.place.parent, self.old, *self._journals()}
        try:
            entries = set(self.hidden.iterdir())
        except FileNotFoundError:
            return None
        except NotADirectoryError:  # it is a file, or its parent is one
            return self.hidden if os.path.lexists(self.hidden) else None
        return min(entries - known if self.lock in entries else entries, default=None)

    def _same(self) -> bool:
        """Whether the output already is what was written into the hidden place."""
        if self.place.is_file() or self.path.is_file():
            return self.place.is_file() and self.path.is_file() and filecmp.cmp(self.place, self.path, shallow=False)
        names = [str(p.relative_to(self.place)) for p in self.place.rglob("*") if p.is_file()]
        earlier = {str(p.relative_to(self.path)) for p in written_by_mapspec(self.path, self.parts)}
        return earlier <= set(names) and not any(filecmp.cmpfiles(self.place, self.path, names, shallow=False)[1:])


def _is_full(path: Path) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _aside(path: Path) -> Path:
    """The first free name for a file that is in the way: NAME~, NAME~2, ..."""
    names = (path.with_name(f"{path.name}~{n if n > 1 else ''}") for n in range(1, 1 << 30))
    return next(name for name in names if not os.path.lexists(name))


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _identities(path: Path) -> Iterator[tuple[int, int]]:
    """Device and inode of a file and, of a folder, of everything in it; a link counts as what it leads to."""
    if (identity := _identity(path)) is not None:
        yield identity
    if is_folder(path):
        for entry in path.rglob("*"):
            if (identity := _identity(entry)) is not None:
                yield identity


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
