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
        words = [sys.executable, str(KILLS), spec, str(made), f"{runs}/runs", "--rounds", "6", "--calls", "1", *options]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["killed"] > 8


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
