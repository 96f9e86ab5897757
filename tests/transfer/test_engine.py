"""The copy engine: the right bytes, bounded memory, and an end with its cause when anything goes wrong."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.diagnostics import Refusal
from compiler.layout import array as layout
from compiler.layout import moves
from compiler.layout.array import Array
from compiler.layout.moves import lower
from compiler.transfer import engine, files, worker
from compiler.transfer.engine import TransferFile

TORCH = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy().tobytes()


def store(path: Path, tensor: torch.Tensor, junk: int = 0) -> Path:
    path.write_bytes(bytes(junk) + raw(tensor))
    return path


def output(path: Path, arrays: Sequence[Array], header: bytes = b"") -> TransferFile:
    """One tensor behind another."""
    found, end = [], len(header)
    for array in arrays:
        these = lower(array, end)
        found += these
        end += sum(m.length for m in these)
    return TransferFile(path, end, header, found)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, generator=torch.Generator().manual_seed(seed))


# The right bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_kind_of_move_in_one_file(tmp_path: Path, jobs: int) -> None:
    a, b = noise(3000, 700), noise(3000, 700, seed=1)
    vector, odd = noise(128, seed=2), noise(5, seed=3)
    paths = {n: store(tmp_path / n, t, 3) for n, t in {"a": a, "b": b, "v": vector, "o": odd}.items()}
    la, lb = (layout.source(n, "int16", (3000, 700), 3) for n in "ab")
    lv, lo = layout.source("v", "int16", (128,), 3), layout.source("o", "int16", (5,), 3)
    pairs = [
        (odd, lo),
        (a, la),
        (a.T, layout.permute(la, (1, 0))),
        (torch.cat([a, b], 1), layout.concat([la, lb], 1)),
        (vector.reshape(64, 2).T.reshape(128), layout.rearrange(lv, (64, 2), (1, 0), (128,))),
        (torch.stack([a, b], 2), layout.stack([la, lb], 2)),
        (torch.stack([a.T, b.T], 2).reshape(700, 6000), layout.reshape(
            layout.stack([layout.permute(la, (1, 0)), layout.permute(lb, (1, 0))], 2), (700, 6000))),
        (a.reshape(10, 150, 2, 700).transpose(1, 2),
         layout.permute(layout.reshape(la, (10, 150, 2, 700)), (0, 2, 1, 3))),
        (b[:, 100:163], layout.narrow(lb, 1, 100, 63)),
        (b[:, 100:400], layout.narrow(lb, 1, 100, 300)),
        (odd, lo),
        (odd.as_strided((300, 5), (0, 1)), layout.source("o", "int16", (300, 5), 3, (0, 1))),
        (b, lb),
    ]  # fmt: skip
    told: list[int] = []
    done = output(tmp_path / "out", [array for _, array in pairs], b"head!")
    engine.transfer([done], paths, jobs=jobs, fsync=True, progress=told.append)
    assert (tmp_path / "out").read_bytes() == b"head!" + b"".join(raw(t) for t, _ in pairs)
    assert sum(told) == done.size - 5


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_small_windows_and_blocks_change_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("t")
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(len(shape))))
    tensor = noise(*shape)
    array = layout.permute(layout.source("a", "int16", shape, 1), order)
    count = data.draw(st.integers(1, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "WINDOW", data.draw(st.integers(1, 200)))
        patch.setattr(engine, "TASK", data.draw(st.integers(1, 500)))
        patch.setattr(engine, "BLOCK", data.draw(st.integers(1, 500)))
        patch.setattr(worker, "VECTOR", data.draw(st.integers(1, 5)))
        patch.setattr(moves, "FEW_RUNS", data.draw(st.sampled_from([1, 10_000])))
        engine.transfer([output(folder / "out", [array] * count)], {"a": store(folder / "a", tensor, 1)})
    assert (folder / "out").read_bytes() == raw(tensor.permute(order)) * count


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_columns_of_one_matrix_are_cut_together(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever columns, in whatever order and files; twice is no harm, and some may be left out."""
    folder = tmp_path_factory.mktemp("t")
    rows, widths = data.draw(st.integers(1, 40)), data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    matrix = noise(rows, sum(widths))
    array = layout.source("a", "int16", matrix.shape, 3)
    pieces = list(zip(matrix.split(widths, 1), layout.split(array, 1, widths), strict=True))
    picked = data.draw(st.lists(st.sampled_from(range(len(pieces))), min_size=1, max_size=7))
    parts = [[pieces[n] for n in picked[::2]], [pieces[n] for n in picked[1::2]]]
    outputs = [output(folder / f"out{n}", [a for _, a in part], b"h") for n, part in enumerate(parts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "WINDOW", data.draw(st.integers(1, 300)))
        patch.setattr(engine, "TASK", data.draw(st.integers(1, 900)))
        patch.setattr(engine, "GAP", data.draw(st.sampled_from([0, 4, 100])))
        patch.setattr(files, "VECTOR", data.draw(st.integers(1, 5)))
        engine.transfer(outputs, {"a": store(folder / "a", matrix, 3)}, jobs=data.draw(st.integers(1, 3)))
    for n, part in enumerate(parts):
        assert (folder / f"out{n}").read_bytes() == b"h" + b"".join(raw(t) for t, _ in part)


def test_a_matrix_whose_columns_are_cut_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = noise(3000, 2000)
    source = {"a": store(tmp_path / "a", matrix)}
    halves = layout.split(layout.source("a", "int16", matrix.shape), 1, [700, 1300])
    preadv, read = os.preadv, []

    def counted(fd: int, buffers: Sequence[memoryview], at: int) -> int:
        read.append(sum(map(len, buffers)))
        return preadv(fd, buffers, at)

    monkeypatch.setattr(os, "preadv", counted)
    engine.transfer([output(tmp_path / "out", halves)], source)
    assert (tmp_path / "out").read_bytes() == raw(matrix[:, :700]) + raw(matrix[:, 700:])
    assert sum(read) == 2 * matrix.numel()


@pytest.mark.parametrize("most", [1, 999, 5000])
def test_a_write_of_columns_may_be_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    matrix = noise(300, 2000)
    halves = layout.split(layout.source("a", "int16", matrix.shape), 1, [700, 1300])

    def short(fd: int, buffers: Sequence[memoryview], at: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[:most], at)

    monkeypatch.setattr(os, "pwritev", short)
    engine.transfer([output(tmp_path / "out", halves)], {"a": store(tmp_path / "a", matrix)})
    assert (tmp_path / "out").read_bytes() == raw(matrix[:, :700]) + raw(matrix[:, 700:])


def test_a_write_of_columns_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(fd: int, buffers: Sequence[memoryview], at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    matrix = noise(300, 2000)
    halves = layout.split(layout.source("a", "int16", matrix.shape), 1, [700, 1300])
    monkeypatch.setattr(os, "pwritev", failing)
    with pytest.raises(Refusal, match="no room") as caught:
        engine.transfer([output(tmp_path / "out", halves)], {"a": store(tmp_path / "a", matrix)})
    assert caught.value.diagnostics[0].kind == "disk-full"
    assert not (tmp_path / "out").exists()


def test_several_files_and_an_empty_one(tmp_path: Path) -> None:
    tensor = noise(1000, 40)
    source = {"a": store(tmp_path / "a", tensor)}
    array = layout.source("a", "int16", tensor.shape)
    halves = layout.split(array, 0, [400, 600])
    outputs = [output(tmp_path / f"out{n}", [h], b"h") for n, h in enumerate(halves)]
    engine.transfer([*outputs, output(tmp_path / "none", [])], source)
    assert (tmp_path / "out0").read_bytes() == b"h" + raw(tensor[:400])
    assert (tmp_path / "out1").read_bytes() == b"h" + raw(tensor[400:])
    assert (tmp_path / "none").read_bytes() == b""


# Casts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", TORCH)
@pytest.mark.parametrize("after", TORCH)
def test_casts_ride_along_with_every_layout(tmp_path: Path, before: str, after: str) -> None:
    tensor = torch.randn(600, 500, generator=torch.Generator().manual_seed(1)).to(TORCH[before])
    array = layout.source("a", before, tensor.shape, 2)
    turned = layout.permute(array, (1, 0))
    mixed = layout.concat([layout.cast(array, after), layout.cast(layout.source("f", "float32", (600, 3)), after)], 1)
    single = torch.randn(600, 3, generator=torch.Generator().manual_seed(2))
    paths = {"a": store(tmp_path / "a", tensor, 2), "f": store(tmp_path / "f", single)}
    arrays = [layout.cast(array, after), layout.cast(turned, after), mixed]
    engine.transfer([output(tmp_path / "out", arrays)], paths)
    to = TORCH[after]
    expected = [tensor.to(to), tensor.T.to(to), torch.cat([tensor.to(to), single.to(to)], 1)]
    assert (tmp_path / "out").read_bytes() == b"".join(map(raw, expected))


def test_a_cast_there_and_back_loses_what_torch_loses(tmp_path: Path) -> None:
    tensor = torch.randn(70_000, generator=torch.Generator().manual_seed(3))
    array = layout.cast(layout.cast(layout.source("a", "float32", tensor.shape), "bfloat16"), "float32")
    engine.transfer([output(tmp_path / "out", [array])], {"a": store(tmp_path / "a", tensor)})
    assert (tmp_path / "out").read_bytes() == raw(tensor.bfloat16().float())


# Trouble --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> tuple[TransferFile, dict[str, Path]]:
    tensor = noise(4_000_000)
    return output(tmp_path / "out", [layout.source("a", "int16", tensor.shape)]), {"a": store(tmp_path / "a", tensor)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_source_that_ends_early(tmp_path: Path, order: tuple[int, int]) -> None:
    path = store(tmp_path / "a", noise(1000, 1000))
    array = layout.permute(layout.source("a", "int16", (1000, 1001)), order)
    with pytest.raises(Refusal, match=r"the file ends at byte 2000000.*file-truncated"):
        engine.transfer([output(tmp_path / "out", [array])], {"a": path})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_shows_before_a_byte_is_written(
    job: tuple[TransferFile, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    written: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Refusal, match=r"no room for its 8000000 bytes \[disk-full\]"):
        engine.transfer([job[0]], job[1], progress=written.append)
    assert not written
    assert not job[0].path.exists()


def test_a_file_system_that_cannot_reserve(
    job: tuple[TransferFile, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    engine.transfer([job[0]], job[1])
    assert job[0].path.read_bytes() == job[1]["a"].read_bytes()
    job[0].path.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(Refusal, match="disk-full"):
        engine.transfer([job[0]], job[1])


def test_short_reads_and_writes_are_completed(
    job: tuple[TransferFile, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write, dice = os.preadv, os.pwrite, random.Random(0)
    monkeypatch.setattr(os, "preadv", lambda fd, b, at: read(fd, [b[0][: dice.randint(1, 90_000)], *b[1:]][:1], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[: dice.randint(1, 90_000)], at))
    rows = layout.rearrange(layout.source("a", "int16", (4_000_000,)), (10, 200, 2, 1000), (0, 2, 1, 3), (4_000_000,))
    engine.transfer([job[0], output(job[0].path.with_name("rows"), [rows])], job[1])
    assert job[0].path.read_bytes() == job[1]["a"].read_bytes()
    tensor = noise(4_000_000).reshape(10, 200, 2, 1000).transpose(1, 2)
    assert job[0].path.with_name("rows").read_bytes() == raw(tensor)


@pytest.mark.parametrize("call", ["preadv", "pwrite"])
def test_the_first_error_stops_all_and_names_file_and_byte(
    job: tuple[TransferFile, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    original, calls = getattr(os, call), []

    def failing(fd: int, data: object, at: int) -> int:
        calls.append(at)
        if at >= 1 << 20:
            raise OSError(errno.EIO, "Input/output error")
        return original(fd, data, at)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match=rf"at byte \d+: '.*/{'a' if call == 'preadv' else 'out'}'") as caught:
        engine.transfer([job[0]], job[1])
    assert caught.value.errno == errno.EIO
    assert len(calls) < 6  # of the eight windows
    assert not job[0].path.exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("transfer-")]


def test_an_interrupt_ends_the_threads_and_removes_the_output(
    job: tuple[TransferFile, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(thread: threading.Thread, join: object = threading.Thread.join) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.transfer([job[0]], job[1])
    assert not job[0].path.exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("transfer-")]


def test_nothing_is_overwritten(job: tuple[TransferFile, dict[str, Path]]) -> None:
    job[0].path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        engine.transfer([job[0]], job[1])
    assert job[0].path.read_bytes() == b"precious"


def test_moves_must_cover_their_output(tmp_path: Path) -> None:
    (move,) = lower(layout.source("a", "int16", (10,)), 4)
    for size, header in ((24, b"12"), (25, b"1234"), (24, b"123456")):
        with pytest.raises(ValueError, match=r"bytes"):
            engine.transfer([TransferFile(tmp_path / "out", size, header, [move])], {})


# Cost -----------------------------------------------------------------------------------------------------------------


def test_layout_alone_loads_neither_numpy_nor_torch_and_stays_small(tmp_path: Path) -> None:
    store(tmp_path / "a", torch.zeros(64 << 20, dtype=torch.uint8))
    script = f"""
import resource, sys
from pathlib import Path
from compiler.layout import array
from compiler.layout.moves import lower
from compiler.transfer import engine
folder = Path({str(tmp_path)!r})
rows = array.rearrange(array.source("a", "bfloat16", (32768, 1024)), (256, 64, 2, 1024), (0, 2, 1, 3), (32768, 1024))
engine.transfer([engine.TransferFile(folder / "out", 64 << 20, b"", lower(rows))], {{"a": folder / "a"}})
assert not {{"numpy", "torch"}} & set(sys.modules)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 << 10


def test_any_number_of_jobs_starts_a_bounded_number_of_threads(
    job: tuple[TransferFile, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread.name), start(thread))[1])
    engine.transfer([job[0]], job[1], jobs=2000)
    assert len(started) == engine.MOST_THREADS == engine.crew_size(10**30)
    assert [engine.crew_size(n) for n in (1, 2, 5)] == [1, 2, 5]


@pytest.mark.parametrize("way", ["write", "write_each", "write_all"])
def test_a_buffer_takes_bytes_as_a_file_does(way: str, tmp_path: Path) -> None:
    """Each of the three ways to write puts the same bytes in the same places."""
    parts = [memoryview(bytes([n] * n)) for n in range(1, 8)]
    buffer = memoryview(bytearray(100))
    with files.OutputFile(tmp_path / "x", 100) as file:
        for sink in (worker.Memory(buffer), file):
            if way == "write_each":
                sink.write_each((part, 90 - 10 * n) for n, part in enumerate(parts))
            elif way == "write_all":
                sink.write_all([*parts], 5)
            else:
                sink.write(parts[-1], 93)
    assert bytes(buffer) == (tmp_path / "x").read_bytes()
    assert sum(map(bool, buffer)) == (7 if way == "write" else 28)
