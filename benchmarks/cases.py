"""What is timed: each case is written once, over the layout algebra and over torch.

    python -m benchmarks.cases CASE FOLDER COUNT [--fsync]      # one run, as the benchmark times it

A case is a function of the source's tensors, `COUNT` matrices of 8192 x 4096 in `FOLDER/TYPE.bin`; it yields what is to
be written, one behind the other, into `FOLDER/out`. Prints the peak memory of the process in kilobytes, and the largest
part of it that is no file's (RssAnon).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.layout import array as layout
from compiler.layout.moves import lower
from compiler.transfer import engine

if TYPE_CHECKING:
    import torch

ROWS, COLUMNS, HEAD = 8192, 4096, 128
ELEMENTS = ROWS * COLUMNS
Tensors = list[Any]


@dataclass(frozen=True)
class Case:
    """`before` and `after` are element types."""

    before: str
    after: str
    make: Callable[[Any, Tensors], Any]


class Torch:
    """The functions of `layout` that the cases use, by torch."""

    def split(self, tensor: torch.Tensor, axis: int, sizes: list[int]) -> tuple[torch.Tensor, ...]:
        return tensor.split(sizes, axis)

    def concat(self, tensors: Tensors, axis: int) -> torch.Tensor:
        import torch

        return torch.cat(tensors, axis)

    def stack(self, tensors: Tensors, axis: int) -> torch.Tensor:
        import torch

        return torch.stack(tensors, axis)

    def permute(self, tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
        return tensor.permute(order)

    def rearrange(self, tensor: torch.Tensor, inner: tuple, order: tuple, outer: tuple) -> torch.Tensor:
        return tensor.reshape(inner).permute(order).reshape(outer)

    def cast(self, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
        import torch

        return tensor.to(getattr(torch, dtype))


def rotary(x: Any, t: Tensors) -> Iterator[Any]:
    """Interleaved pairs to halves, head by head."""
    for tensor in t:
        inner = (ROWS // HEAD, HEAD // 2, 2, COLUMNS)
        yield x.rearrange(tensor, inner, (0, 2, 1, 3), (ROWS, COLUMNS))


def grouped(x: Any, t: Tensors) -> Iterator[Any]:
    """Queries, keys and values that lie group by group: eight groups of six, one and one heads of 128."""
    for tensor in t:
        whole = x.rearrange(tensor, (8, 8, HEAD, COLUMNS), (0, 1, 2, 3), (8, 8 * HEAD, COLUMNS))
        for part in x.split(whole, 1, [6 * HEAD, HEAD, HEAD]):
            yield x.rearrange(part, part.shape, (0, 1, 2), (part.shape[0] * part.shape[1], COLUMNS))


def experts(x: Any, t: Tensors) -> Iterator[Any]:
    """Sixteen experts to each tensor, gates first, fused."""
    for gate, up in zip(t[::2], t[1::2], strict=True):
        pieces = [x.split(tensor, 0, [ROWS // 16] * 16) for tensor in (gate, up)]
        yield x.concat([x.stack(list(part), 0) for part in pieces], 1)


def interleave(x: Any, t: Tensors) -> Iterator[Any]:
    for gate, up in zip(t[::2], t[1::2], strict=True):
        yield x.stack([gate, up], 2)


BF16, F16, F32 = "bfloat16", "float16", "float32"
LAYOUT = {
    "rename": Case(BF16, BF16, lambda x, t: t[::-1]),
    "split rows": Case(
        BF16, BF16, lambda x, t: [p for a in t for p in x.split(a, 0, [ROWS // 2, ROWS // 4, ROWS // 4])]
    ),
    "split columns": Case(
        BF16, BF16, lambda x, t: [p for a in t for p in x.split(a, 1, [COLUMNS // 4, COLUMNS - COLUMNS // 4])]
    ),
    "rope": Case(BF16, BF16, rotary),
    "grouped qkv": Case(BF16, BF16, grouped),
    "expert stack": Case(BF16, BF16, experts),
}
SHUFFLE = {
    "transpose": Case(BF16, BF16, lambda x, t: [x.permute(a, (1, 0)) for a in t]),
    "interleave": Case(BF16, BF16, interleave),
}
CASTS = {
    "bf16 -> fp32": Case(BF16, F32, lambda x, t: [x.cast(a, F32) for a in t]),
    "fp16 -> fp32": Case(F16, F32, lambda x, t: [x.cast(a, F32) for a in t]),
    "fp32 -> bf16": Case(F32, BF16, lambda x, t: [x.cast(a, BF16) for a in t]),
    "fp32 -> fp16": Case(F32, F16, lambda x, t: [x.cast(a, F16) for a in t]),
    "bf16 -> fp16": Case(BF16, F16, lambda x, t: [x.cast(a, F16) for a in t]),
}
CASES = LAYOUT | SHUFFLE | CASTS


def size_of(dtype: str) -> int:
    return 4 if dtype == F32 else 2


def run(case: Case, folder: Path, count: int, fsync: bool) -> None:
    item = size_of(case.before)
    tensors = [layout.source("s", case.before, (ROWS, COLUMNS), n * ELEMENTS * item) for n in range(count)]
    moves, end = [], 0
    for array in case.make(layout, tensors):
        moves += (these := lower(array, end))
        end += sum(m.length for m in these)
    output = engine.TransferFile(folder / "out", end, b"", moves)
    engine.transfer([output], {"s": folder / f"{case.before}.bin"}, fsync=fsync)


def verify(case: Case, folder: Path, count: int) -> None:
    """Compare what was written with what torch says. Raises SystemExit."""
    import torch

    source = torch.from_file(
        str(folder / f"{case.before}.bin"), size=count * ELEMENTS, dtype=getattr(torch, case.before)
    )
    out = (folder / "out").stat().st_size // size_of(case.after)
    written = torch.from_file(str(folder / "out"), size=out, dtype=getattr(torch, case.after))
    at = 0
    for tensor in case.make(Torch(), list(source.view(count, ROWS, COLUMNS))):
        expected = tensor.reshape(-1)
        if not torch.equal(written[at : at + len(expected)], expected):
            raise SystemExit(f"what was written is not what torch says, from element {at} on")
        at += len(expected)
    if at != out:
        raise SystemExit(f"{out} elements were written, {at} expected")


def status(word: str) -> int:
    """A number of kilobytes of this process, as the kernel counts them."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(word))


def main() -> None:
    name, folder, count, *options = sys.argv[1:]
    seen, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.wait(0.02):
            seen.append(status("RssAnon"))

    sampler = threading.Thread(target=sample)
    if "--memory" in options:
        sampler.start()
    run(CASES[name], Path(folder), int(count), "--fsync" in options)
    stop.set()
    print(status("VmHWM"), max(seen))


if __name__ == "__main__":
    main()
