"""No crash, full disk, kill or second run leaves a folder that looks finished and is not, and none loses what is there.

The long form of the kills is `make fuzz`; here are a few of each kind.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.folders import files_of
from support.signals import default_signals
from support.synthetic import synthetic

from compiler.cli.options import Notes
from compiler.diagnostics import Refusal
from compiler.executor import execute
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.output import journal
from compiler.output.atomic_output import AtomicOutput
from compiler.output.earlier_run import MARK
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.transfer import engine, files, worker

ROOT = Path(__file__).parent.parent.parent
KILLS = Path(__file__).parent.parent / "fuzz" / "kills.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# Writes slowly, and notes what is safe often; says so once something is.
SLOW = """
import os, sys, time
from compiler.cli.main import main
from compiler.output import journal
from compiler.transfer import engine, worker
journal.EVERY = 0.01
engine.TASK = engine.BLOCK = worker.WINDOW = worker.BLOCK = 1 << 10
write, note = os.pwrite, journal.Journal.note
os.pwrite = lambda *args: (time.sleep(0.002), write(*args))[1]
def noted(self, hurried=False):
    note(self, hurried)
    if self.total:
        print("noted", flush=True)
journal.Journal.note = noted
main(sys.argv[1:])
"""

LIE = """
honest = journal.Journal.recall
def recall(self):
    fingerprint = honest(self)
    self.safe = {file: [(0, 1 << 40)] for file in self.safe}
    return fingerprint
journal.Journal.recall = recall

if __name__"""
# fsync takes its time on a disk, and what SIGKILL leaves is the same in memory.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture(scope="module")
def program() -> Program:
    return load_program("llama")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, program: Program) -> Path:
    return synthetic(program, 0, finite=True).save(tmp_path_factory.mktemp("source"), "*.pth")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((engine, "TASK"), (engine, "BLOCK"), (worker, "WINDOW"), (worker, "BLOCK")):
        monkeypatch.setattr(module, name, 1 << 10)


def refusal(*args: Any) -> Any:
    with pytest.raises(Refusal) as caught:
        convert(*args)
    (problem,) = caught.value.diagnostics
    return problem


def start(source: Path, out: Path, *options: str, code: str = SLOW) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", code, "run", "llama", str(source), str(out), *options]
    with default_signals():
        return subprocess.Popen(
            words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out.parent
        )


def noted(process: subprocess.Popen[str]) -> None:
    """Wait until something is safe."""
    assert process.stdout is not None
    assert process.stdout.readline() == "noted\n", process.communicate()


# ---------------------------------------------------------------------------------------------------------------------
# Kills


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("llama", ["--over"]),
        ("minimind1_llama", ["--dtype", "float16"]),
        ("litgpt_gemma", ["--set", "n_head=8"]),
        ("minimind1_llama", ["--reverse", "--over"]),
    ],
    ids=["copied", "gathered", "computed", "back"],
)
def test_killed_and_continued(tmp_path: Path, spec: str, options: list[str]) -> None:
    made = synthetic(load_program(spec), 0, finite=True).save(tmp_path, "*.pth")
    if "--reverse" in options:
        convert(load_program(spec), Request([made]), tmp_path / "converted")
        made = tmp_path / "converted"
    with tempfile.TemporaryDirectory(dir=MEMORY) as runs:
        words = [sys.executable, str(KILLS), spec, str(made), f"{runs}/runs", "--rounds", "3", "--calls", "1", *options]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["killed"] > 6


def test_the_kills_see_a_journal_that_lies(tmp_path: Path, source: Path) -> None:
    """The measure itself: a journal that calls everything safe is found out."""
    lying = KILLS.read_text().replace("\nif __name__", LIE)
    (tmp_path / "lying.py").write_text(lying)
    with tempfile.TemporaryDirectory(dir=MEMORY) as runs:
        words = [
            sys.executable,
            str(tmp_path / "lying.py"),
            "llama",
            str(source),
            f"{runs}/runs",
            "--rounds",
            "6",
            "--calls",
            "2",
        ]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1


def killed(source: Path, out: Path, *options: str) -> None:
    process = start(source, out, *options)
    noted(process)
    process.kill()
    process.communicate()
    assert not out.exists()


def test_an_unfinished_run_is_not_thrown_away_by_mistake(tmp_path: Path, program: Program, source: Path) -> None:
    out, words = tmp_path / "out", Request([source])
    convert(program, words, tmp_path / "whole")
    killed(source, out)
    left = files_of(tmp_path / ".out.mapspec-partial")
    assert refusal(program, words, out).kind == "unfinished-output"
    other = Request([source], assigned={"rope_theta": 5.0}, resume=True)
    assert refusal(program, other, out).kind == "resume-mismatch"
    assert files_of(tmp_path / ".out.mapspec-partial").keys() == left.keys()
    notes = Notes(silent=True)
    convert(program, Request([source], resume=True), out, notes)
    assert any("are unchanged and are reused" in line for line in notes.lines())
    assert files_of(out) == files_of(tmp_path / "whole")
    killed(source, tmp_path / "again")
    convert(program, Request([source], force=True), tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "out", "whole"]


def test_what_was_changed_since_is_written_again(tmp_path: Path, program: Program, source: Path) -> None:
    convert(program, Request([source]), tmp_path / "whole")
    killed(source, tmp_path / "out")
    (weights,) = (tmp_path / ".out.mapspec-partial").rglob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xa5" * 3000)
    convert(program, Request([source], resume=True), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_distributed_checkpoint_is_continued(tmp_path: Path, program: Program, source: Path) -> None:
    convert(program, Request([source], container="dcp"), tmp_path / "whole")
    killed(source, tmp_path / "out", "--container", "dcp")
    notes = Notes(silent=True)
    convert(program, Request([source], container="dcp", resume=True), tmp_path / "out", notes)
    assert any("are unchanged and are reused" in line for line in notes.lines())
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_source_that_changed_is_another_run(tmp_path: Path, program: Program, source: Path) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(source.read_bytes())
    killed(copy, tmp_path / "out")
    os.utime(copy, ns=(1, 1))
    assert refusal(program, Request([copy], resume=True), tmp_path / "out").kind == "resume-mismatch"


def test_resume_after_the_end(tmp_path: Path, program: Program, source: Path) -> None:
    """It finds that nothing is left to do, and says so only where that is true."""
    out, again = tmp_path / "out", Request([source], resume=True)
    convert(program, again, out)
    before = files_of(out)
    convert(program, again, out)
    assert files_of(out) == before
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert refusal(program, again, out).kind == "output-exists"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_signal_leaves_what_can_be_continued_and_says_so(
    tmp_path: Path, program: Program, source: Path, number: signal.Signals
) -> None:
    process = start(source, tmp_path / "out")
    noted(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "run the same command with --resume to continue" in said
    assert "Traceback" not in said
    convert(program, Request([source], resume=True), tmp_path / "out")
    convert(program, Request([source]), tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_signal_before_anything_is_safe_leaves_nothing(tmp_path: Path, source: Path) -> None:
    nothing = SLOW.replace("EVERY = 0.01", "EVERY = 100").replace("    note(self, hurried)\n", "")
    process = start(source, tmp_path / "out", code=nothing)
    while not list(tmp_path.glob(".out*/new/out/*.safetensors")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "nothing was written under the final name" in said
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# Several runs


def test_eight_at_once(tmp_path: Path, program: Program, source: Path) -> None:
    convert(program, Request([source]), tmp_path / "whole")
    quick = "import sys; from compiler.cli.main import main; main(sys.argv[1:])"
    runs = [start(source, tmp_path / f"out{n}", code=quick) for n in range(8)]
    assert [run.wait(timeout=100) for run in runs] == [0] * 8
    for n in range(8):
        assert files_of(tmp_path / f"out{n}") == files_of(tmp_path / "whole")
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize("options", [{}, {"force": True}, {"resume": True}], ids=str)
def test_two_into_the_same(tmp_path: Path, program: Program, source: Path, options: dict[str, bool]) -> None:
    first = start(source, tmp_path / "out")
    noted(first)
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path / "out", tmp_path / "link" / "out"):
        problem = refusal(program, Request([source], **options), out)
        assert problem.kind == "output-busy"
        assert f"process {first.pid}" in problem.message
    assert first.wait(timeout=60) == 0
    convert(program, Request([source]), tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


# ---------------------------------------------------------------------------------------------------------------------
# Disks


def places(size: int, count: int) -> Iterator[int]:
    return (n * size // count for n in range(count))


@pytest.mark.parametrize("checksums", [False, True])
def test_a_read_that_fails(checksums: bool, tmp_path: Path, program: Program, source: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None) -> None:  # fmt: skip
    """Wherever in the source it is: the file and the byte are named, and no folder is there."""
    read, failures = os.preadv, 0
    out = tmp_path / "out"
    for broken in places(source.stat().st_size, 60):

        def preadv(fd: int, buffers: Any, offset: int, broken: int = broken) -> int:
            if offset <= broken < offset + sum(map(len, buffers)):
                raise OSError(errno.EIO, "Input/output error")
            return read(fd, buffers, offset)

        monkeypatch.setattr(files.os, "preadv", preadv)
        try:
            convert(program, Request([source], checksums=checksums), out)
        except Refusal as caught:
            (problem,) = caught.diagnostics
            assert (problem.kind, problem.span.path) == ("unreadable-file", str(source))
            assert "Input/output error" in problem.message
            failures += 1
            assert list(tmp_path.iterdir()) == []
        else:  # a byte that is no tensor's
            AtomicOutput(out, force=True).discard()
            for file in out.iterdir():
                file.unlink()
            out.rmdir()
    assert failures >= 50


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_write_that_fails(tmp_path: Path, program: Program, source: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None, error: int) -> None:  # fmt: skip
    write = os.pwrite
    for broken in range(1, 400, 8 if error == errno.ENOSPC else 80):
        calls = iter(range(1, 1 << 30))

        def pwrite(fd: int, data: Any, offset: int, broken: int = broken, calls: Iterator[int] = calls) -> int:
            if next(calls) >= broken:
                raise OSError(error, os.strerror(error))
            return write(fd, data, offset)

        monkeypatch.setattr(files.os, "pwrite", pwrite)
        problem = refusal(program, Request([source]), tmp_path / "out")
        monkeypatch.setattr(files.os, "pwrite", write)
        assert problem.kind == ("output-unwritable" if error == errno.EIO else "disk-full")
        assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_a_byte(
    tmp_path: Path, program: Program, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 1000})
    )
    monkeypatch.setattr(execute, "write_folder", None)
    problem = refusal(program, Request([source]), tmp_path / "out")
    assert problem.kind == "disk-full"
    assert "the disk has 1,000 free" in problem.message
    assert list(tmp_path.iterdir()) == []


def test_a_file_size_limit(tmp_path: Path, source: Path) -> None:
    """A limit of the system that no free space foretells."""
    done = subprocess.run(
        [sys.executable, "-m", "compiler", "run", "llama", str(source), str(tmp_path / "out")],
        env=ENVIRONMENT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "[disk-full]" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_real_full_disk(tmp_path: Path, program: Program, source: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert refusal(program, Request([source]), small / "out").kind == "disk-full"
        assert refusal(program, Request([source]), small).kind == "output-unwritable"
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_disk_fails_while_a_note_is_made(
    tmp_path: Path, program: Program, source: Path, monkeypatch: pytest.MonkeyPatch, small_steps: None
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(journal, "EVERY", 0.001)
    monkeypatch.setattr(journal, "sync", fail)
    problem = refusal(program, Request([source]), tmp_path / "out")
    assert problem.kind == "output-unwritable"
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------------
# The same bytes


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_threads_steps_and_ways_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    program = load_program("minimind1_llama")
    source = synthetic(program, 0, finite=True).save(tmp_path, "*.pth")

    def made(name: str, jobs: int = 2) -> dict[str, bytes]:
        convert(program, Request([source], dtype=dtype, jobs=jobs, max_shard_size="100KB"), tmp_path / name)
        return files_of(tmp_path / name)

    whole = made("a")
    assert len(whole) > 4
    assert made("b", jobs=1) == whole
    assert made("c", jobs=7) == whole
    for module, name in ((engine, "TASK"), (engine, "BLOCK"), (worker, "WINDOW"), (worker, "BLOCK")):
        monkeypatch.setattr(module, name, 3 << 10)
    assert made("d", jobs=3) == whole
    code = "import sys; from compiler.cli.main import main; main(sys.argv[1:])"
    for seed in ("1", "2"):
        words = [*(["--dtype", dtype] if dtype else []), "--max-shard-size", "100KB"]
        command = [
            sys.executable,
            "-c",
            code,
            "run",
            "minimind1_llama",
            str(source),
            str(tmp_path / f"e{seed}"),
            *words,
        ]
        subprocess.run(command, env={**ENVIRONMENT, "PYTHONHASHSEED": seed}, check=True, capture_output=True)
        assert files_of(tmp_path / f"e{seed}") == whole


def test_what_lies_beside_the_weights_is_the_same(tmp_path: Path, source: Path) -> None:
    """Card, manifest with digests, index, configs and a tokenizer that was built: with any number of threads, any seed of
    hashes, where the source lies elsewhere, and after a kill."""
    vocabulary = Path(__file__).parent.parent / "data" / "vocabularies" / "bpe.model"
    options = ["--tokenizer", str(vocabulary), "--digests", "--max-shard-size", "100KB"]
    elsewhere = tmp_path / "elsewhere" / source.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(source.read_bytes())
    code, wholes = "import sys; from compiler.cli.main import main; main(sys.argv[1:])", []
    for seed, (place, jobs) in enumerate([(source, "1"), (source, "7"), (elsewhere, "3")]):
        out = tmp_path / str(seed)
        command = [sys.executable, "-c", code, "run", "llama", str(place), str(out), *options, "--jobs", jobs]
        done = subprocess.run(
            command, env={**ENVIRONMENT, "PYTHONHASHSEED": str(seed)}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        wholes.append(files_of(out))
    out = tmp_path / "continued"
    process = start(source, out, *options)
    noted(process)
    process.kill()
    process.communicate()
    command = [sys.executable, "-c", code, "run", "llama", str(source), str(out), *options, "--resume", "--jobs", "4"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, check=False)
    assert b"are unchanged and are reused" in done.stderr
    wholes.append(files_of(out))
    assert {"README.md", "mapspec.json", "model.safetensors.index.json", "tokenizer.json"} <= wholes[0].keys()
    assert all(whole == wholes[0] for whole in wholes)


def test_the_way_back_gives_the_same_bytes(tmp_path: Path, program: Program, source: Path) -> None:
    convert(program, Request([source]), tmp_path / "out")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        convert(program, Request([tmp_path / "out"], reverse=True), tmp_path / name / "x.pth")
    assert (tmp_path / "a" / "x.pth").read_bytes() == (tmp_path / "b" / "x.pth").read_bytes()
    found, expected = (torch.load(p, weights_only=True) for p in (tmp_path / "a" / "x.pth", source))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if "freqs" not in name)


# ---------------------------------------------------------------------------------------------------------------------
# The hidden folder, the lock and the final name


def written(out: Path, text: str = "new", **options: Any) -> AtomicOutput:
    """One file written through an AtomicOutput."""
    with AtomicOutput(out, folder=False, fingerprint="run", **options) as output:
        output.place.write_text(text)
        output.finish()
    return output


def stopped(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run with --force, killed before it takes its final name."""
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if target == out:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            written(out, force=True)


def link_to_itself(out: Path) -> None:
    out.symlink_to(out)


def linked_hidden_folder(out: Path) -> None:
    (out.parent / ".out.mapspec-partial").symlink_to(out.parent)


def pipe_for_a_lock(out: Path) -> None:
    hidden = out.parent / ".out.mapspec-partial"
    hidden.mkdir()
    os.mkfifo(hidden / "lock")


@pytest.mark.parametrize(
    ("name", "spoil", "message", "hint"),
    [
        ("out", link_to_itself, "it is a broken link", "remove it"),
        ("out", linked_hidden_folder, ".out.mapspec-partial is a link, and the run would write its temp", "remove it"),
        ("out", pipe_for_a_lock, "not a regular file", "remove it"),
        ("x" * 239, None, "its name is too long: at most 238 bytes, because the temporary folder's name is longer", ""),
        ("x" * 300, None, "cannot be written: File name too long", "choose another"),
    ],
    ids=["broken link", "hidden link", "lock", "long", "too long"],
)
def test_a_place_that_cannot_be_written(tmp_path: Path, name: str, spoil: Any, message: str, hint: str) -> None:
    out = tmp_path / name
    if spoil:
        spoil(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refusal) as caught:
        written(out, force=True)
    (problem,) = caught.value.diagnostics
    assert message in problem.message
    assert (problem.kind, problem.hint) == ("output-unwritable", hint)
    assert sorted(tmp_path.rglob("*")) == before
    assert written(tmp_path / ("x" * 238), force=False).path.read_text() == "new"


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append((path, mode)))
    with pytest.raises(Refusal, match=f"no permission to write in {tmp_path}"):
        written(tmp_path / "new" / "out", force=False)
    assert asked == [(tmp_path, os.W_OK | os.X_OK)]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_run_takes_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run ends between two of this one's steps: before the lock is opened, and before it is held."""
    opened, hidden = os.open, tmp_path / ".out.mapspec-partial"
    steps = iter(("folder", "lock", "none"))

    def racing(path: Any, *rest: Any, **named: Any) -> int:
        step = next(steps, "") if Path(path) == hidden / "lock" else ""
        if step == "folder":
            hidden.rmdir()
        handle = opened(path, *rest, **named)
        if step == "lock":
            (hidden / "lock").unlink()
        return handle

    monkeypatch.setattr(os, "open", racing)
    before = len(os.listdir("/proc/self/fd"))
    with AtomicOutput(tmp_path / "out", force=False, folder=False) as output:
        assert next(steps, "") == "", "all three were used"
        assert os.path.samestat(os.fstat(output.held), os.stat(hidden / "lock"))
        assert (hidden / "lock").read_text() == f"{os.getpid()}\n"
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    assert written(tmp_path / "out", force=False).path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_run_that_is_stopped_before_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    stopped(out, monkeypatch)
    left = AtomicOutput(out, force=False, folder=False).left()
    assert left == "everything is written; run the same command with --resume to move it to its final name"
    assert not out.exists()
    with AtomicOutput(out, force=False, resume=True, folder=False, fingerprint="run") as output:
        assert output.done
    assert out.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_user_s_file_gets_another_name_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first run was killed after it had linked the file and before it took its name."""
    out = tmp_path / "out"
    out.write_text("mine")
    stopped(out, monkeypatch)
    assert out.samefile(tmp_path / "out~")
    written(out, force=True)
    assert (out.read_text(), (tmp_path / "out~").read_text()) == ("new", "mine")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out~")) == ["out~", "out~2"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(os, "link", link)
    run = written(tmp_path / "out", force=True)
    assert run.notes == ["kept the earlier out as out~"]
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"out": "new", "out~": "mine"}


def test_a_file_that_is_already_there_is_compared(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("new")
    written(tmp_path / "out", force=False, resume=True)
    with pytest.raises(Refusal, match="its content differs from what this run writes"):
        written(tmp_path / "out", "newer", force=False, resume=True)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"out": "new"}


def test_parts_in_folders_are_replaced_and_the_files_beside_them_stay(tmp_path: Path) -> None:
    """`parts` reaches into subfolders: there too, only what an earlier run wrote is replaced."""
    out = tmp_path / "out"

    def write(names: dict[str, str]) -> list[str]:
        with AtomicOutput(out, force=True, parts="*/part*") as output:
            for name, text in names.items():
                (output.place / name).parent.mkdir(parents=True, exist_ok=True)
                (output.place / name).write_bytes(text.encode() + len(MARK).to_bytes(2, "little") + MARK)
            output.finish()
        return output.notes

    write({"a/part0": "old", "a/part1": "old", "b/part0": "old"})
    mine = {"a/notes.txt": b"mine", "b/part9": b"mine without the mark", "c/deep/notes.txt": b"mine"}
    for name, content in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    (out / "a" / "dangling").symlink_to(tmp_path / "nowhere")
    assert write({"a/part0": "new", "a/notes.txt": "new"}) == ["kept your notes.txt as notes.txt~"]
    assert (out / "a" / "dangling").is_symlink()
    (out / "a" / "dangling").unlink()
    found = {name: content.removesuffix(MARK)[:20] for name, content in files_of(out).items()}
    assert found == {
        "a/part0": b"new\x07\x00",
        "a/notes.txt": b"new\x07\x00",
        "a/notes.txt~": b"mine",
        "b/part9": b"mine without the mar",
        "c/deep/notes.txt": b"mine",
    }
