"""One run by several processes: the bytes of one, the end of one is the end of all, and what was written is resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic import synthetic

from compiler.diagnostics import Refusal
from compiler.output import ranks
from compiler.output.safetensors_layout import OutFile
from compiler.program.loading import load_program

ROOT = Path(__file__).parent.parent.parent
# The command, with short waits and, where asked for, a rank that stops or dies in the middle of its bytes.
SLOW = """
import os, sys, time
from compiler.cli.main import main
from compiler.output import journal, ranks
from compiler.transfer import engine, worker
ranks.BEAT, ranks.LOST, ranks.JOIN, ranks.PARTING = 0.05, float(os.environ.get("LOST", "30")), 30, 2
engine.TASK = worker.WINDOW = 512
journal.EVERY = 0.02
how, whom = os.environ.get("END", ""), os.environ.get("WHOM")
if how:
    plain, count = worker.Worker.copy, [0]
    def copy(self, *words):
        for size in plain(self, *words):
            count[0] += 1
            time.sleep(0.01)
            if count[0] > 40 and whom == os.environ["RANK"]:
                if how == "raise":
                    raise OSError(5, "the disk is broken", "there")
                if how == "kill":
                    time.sleep(0.3)
                    os.kill(os.getpid(), 9)
            yield size
    worker.Worker.copy = copy
main(sys.argv[1:])
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tensors = dict(synthetic(load_program("llama"), 0, "float16", finite=True).tensors)
    torch.save(tensors, tmp_path / "model.pth")
    return tmp_path / "model.pth"


def start(count: int, *words: object, **more: str) -> list[subprocess.Popen[str]]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {"WORLD_SIZE": str(count), **more}
    command = [sys.executable, "-c", SLOW, "run", "llama", "--max-shard-size", "30KB", "--jobs", "1", *map(str, words)]
    return [
        subprocess.Popen(command, cwd=ROOT, env=env | {"RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(count)
    ]  # fmt: skip


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    texts = [process.communicate(timeout=60) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture
def plain(source: Path) -> dict[str, bytes]:
    """What one process makes."""
    ((status, _, err),) = ended(start(1, source, source.parent / "plain"))
    assert status == 0, err
    return content(source.parent / "plain")


def test_three_write_what_one_does(source: Path, plain: dict[str, bytes]) -> None:
    ends = ended(start(3, source, source.parent / "out"))
    assert [status for status, _, _ in ends] == [0, 0, 0], ends
    assert content(source.parent / "out") == plain
    assert len([name for name in plain if name.endswith(".safetensors")]) > 5
    assert "tensors" in ends[0][1]
    assert [(out, err) for _, out, err in ends[1:]] == [("", ""), ("", "")], "only the leader speaks"
    assert sorted(p.name for p in source.parent.iterdir()) == ["model.pth", "out", "plain"]


def test_more_processes_than_files(source: Path, plain: dict[str, bytes]) -> None:
    folder = source.parent / "out"
    ends = ended(start(3, source, folder, "--max-shard-size", "1GB"))
    assert [status for status, _, _ in ends] == [0, 0, 0], ends
    assert [name for name in content(folder) if name.endswith("safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("whom", ["0", "2"])
def test_one_that_fails_ends_all(source: Path, whom: str) -> None:
    ends = ended(start(3, source, source.parent / "out", END="raise", WHOM=whom))
    assert [status for status, _, _ in ends] == [1, 1, 1], ends
    assert all("Traceback" not in err for _, _, err in ends)
    assert "the disk is broken" in ends[int(whom)][2]
    for rank in {0, 1, 2} - {int(whom)}:
        assert f"rank {whom} failed" in ends[rank][2] or (rank and "rank 0 failed: rank 2 failed" in ends[rank][2])
        assert "lost-rank" in ends[rank][2]
    assert not (source.parent / "out").exists()
    assert not list(source.parent.glob(".*-ranks"))


def test_a_killed_rank_is_missed_and_the_run_resumed(source: Path, plain: dict[str, bytes]) -> None:
    out = source.parent / "out"
    ends = ended(start(3, source, out, END="kill", WHOM="1", LOST="1"))
    assert [status for status, _, _ in ends] == [1, -signal.SIGKILL, 1], ends
    assert "rank 1 has not answered" in ends[0][2]
    assert "--resume" in ends[0][2]
    assert not out.exists()
    hidden = source.parent / ".out.mapspec-partial"
    journals = sorted(p.name for p in hidden.glob("journal*"))
    assert journals == ["journal", "journal.1", "journal.2"]
    noted = [json.loads(line) for name in journals for line in (hidden / name).read_text().splitlines()[1:]]
    total = sum(stop - start for note in noted for _, start, stop in note["ranges"])
    ends = ended(start(2, source, out, "--resume"))
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert f"{total:,} bytes of an earlier run are unchanged" in ends[0][2], "of all three"
    assert content(out) == plain
    assert sorted(p.name for p in source.parent.iterdir()) == ["model.pth", "out", "plain"]


@pytest.mark.parametrize("said", ["finished", "failed"])
def test_what_an_earlier_run_left_confuses_nobody(source: Path, plain: dict[str, bytes], said: str) -> None:
    """State files of a run that was killed as a whole."""
    folder = source.parent / ".out.mapspec-ranks"
    folder.mkdir()
    for rank in range(3):
        state = {
            "nonce": "x",
            "beat": 1,
            "known": {"1": "x", "2": "x"},
            "state": "go" if rank else said,
            "message": "?",
        }
        (folder / f"state-{rank}").write_text(json.dumps(state))
    ends = ended(start(3, source, source.parent / "out"))
    assert [status for status, _, _ in ends] == [0, 0, 0], ends
    assert content(source.parent / "out") == plain


def test_ranks_that_see_different_sources(source: Path) -> None:
    """One of two is given another checkpoint."""
    import shutil

    other = shutil.copy(source, source.parent / "other.pth")
    env = {"WORLD_SIZE": "2"}
    first = start(2, source, source.parent / "out", **env)[0:2]
    first[1].kill()
    first[1].communicate()
    second = start(2, other, source.parent / "out", **env)
    second[0].kill()
    second[0].communicate()
    ends = ended([first[0], second[1]])
    assert [status for status, _, _ in ends] == [1, 1], ends
    assert "unfit-ranks" in ends[1][2]
    assert not (source.parent / "out").exists()


def test_a_leader_that_refuses_frees_the_others(source: Path) -> None:
    source.write_bytes(source.read_bytes()[:-100])
    began = time.monotonic()
    ends = ended(start(2, source, source.parent / "out"))
    assert [status for status, _, _ in ends] == [1, 1]
    assert time.monotonic() - began < 20


@given(st.lists(st.integers(0, 100), max_size=20), st.integers(1, 5))
def test_shares(sizes: list[int], count: int) -> None:
    files = [OutFile(f"{n}", b"", {}, size) for n, size in enumerate(sizes)]
    shares = [ranks.Crew(rank, count, Path("x")).share(files) for rank in range(count)]
    assert sorted(f.name for share in shares for f in share) == sorted(f.name for f in files)
    loads = [sum(f.size for f in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)


@pytest.mark.parametrize("env", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"RANK": "-1", "WORLD_SIZE": "3"}])
def test_an_environment_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Refusal, match="not a valid rank"):
        ranks.from_environment(Path("x"))
