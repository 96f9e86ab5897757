"""A source is compared with its checksums as it is read: what does not match is never taken for good."""

from __future__ import annotations

import threading
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.diagnostics import Refusal
from compiler.transfer import checksummed_source
from compiler.transfer.checksummed_source import Checked


class Damaged(Exception):
    pass


def fail() -> None:
    raise Damaged


def ranges_of(data: bytes, cuts: list[int]) -> list[tuple[int, int, int]]:
    """Every second piece between the cuts is checked; the others are what lies between records."""
    edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    return [(a, b, zlib.crc32(data[a:b])) for a, b in [*pairwise(edges)][::2]]


SIZES = st.integers(1, 200)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=200),
    cuts=st.lists(SIZES, max_size=8),
    reads=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=8),
    flip=st.none() | st.integers(0, 199),
    each=st.booleans(),
)
def test_a_read_gives_the_bytes_that_were_summed_or_fails(
    tmp_path_factory: pytest.TempPathFactory,
    data: bytes,
    cuts: list[int],
    reads: list[tuple[int, int]],
    flip: int | None,
    each: bool,
) -> None:
    path, ranges = tmp_path_factory.mktemp("checked") / "file", ranges_of(data, cuts)
    stored = bytearray(data)
    if flip is not None:
        stored[flip % len(data)] ^= 0x10
    path.write_bytes(stored)
    bad = [(a, b) for a, b, crc in ranges if zlib.crc32(stored[a:b]) != crc]
    wanted = [(start % len(data), min(len(data), start % len(data) + size)) for start, size in reads]
    with Checked(path, ranges, fail) as source:
        for start, stop in wanted:
            got = memoryview(bytearray(stop - start))
            try:
                source.read_each(iter([(start, got)])) if each else source.read(start, [got])
            except Damaged:
                assert bad
                return
            assert got == stored[start:stop]
            assert not any(a < stop and start < b for a, b in bad), "damaged bytes were handed out"


@pytest.mark.parametrize("damage", [False, True])
def test_threads_compare_each_range_once_and_all_learn_of_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    data, size = bytes(range(256)) * 256, 4096
    (tmp_path / "file").write_bytes(data)
    ranges = [(n, n + size, zlib.crc32(data[n : n + size])) for n in range(0, len(data), size)]
    if damage:
        ranges[7] = (*ranges[7][:2], ranges[7][2] ^ 1)
    summed: list[int] = []
    ends: list[str] = []
    start = threading.Barrier(4)

    class Counted(Checked):
        def sum(self, n: int) -> int:
            summed.append(n)
            return super().sum(n)

    def work(source: Counted) -> None:
        start.wait()
        try:
            for n in range(0, len(data), 512):
                source.read(n, [memoryview(bytearray(512))])
            ends.append("read")
        except Damaged:
            ends.append("damaged")

    with Counted(tmp_path / "file", ranges, fail) as source:
        threads = [threading.Thread(target=work, args=(source,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert ends == ["damaged" if damage else "read"] * 4
    assert len(summed) == len(set(summed))
    assert damage or len(summed) == len(ranges)


def test_a_failed_read_wakes_those_who_wait(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    with Checked(tmp_path / "file", [(0, 200, 0)], fail) as source:
        for _ in range(2):
            with pytest.raises(Refusal, match="100 bytes early") as caught:
                source.read(50, [memoryview(bytearray(4))])
            assert caught.value.diagnostics[0].kind == "file-truncated"


def test_what_nobody_reads_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300))
    with Checked(tmp_path / "file", [(0, 100, zlib.crc32(bytes(100))), (100, 200, 1), (200, 300, 1)], fail) as source:
        source.read(0, [memoryview(bytearray(100))])
        with pytest.raises(Damaged):
            source.read(99, [memoryview(bytearray(2))])


def test_the_window_is_not_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksummed_source, "WINDOW", 7)
    data = bytes(range(100))
    (tmp_path / "file").write_bytes(data)
    with Checked(tmp_path / "file", [(3, 90, zlib.crc32(data[3:90]))], fail) as source:
        got = memoryview(bytearray(10))
        source.read(80, [got])
        assert got == data[80:90]
