"""How fast layouts move, against the fastest copy of as many bytes.

    python benchmarks/bench_transfer.py [--rounds 5] [--folder DIR] [--gib 1] [--cold] [case ...]

Makes a folder beside this repository (about 6 bytes of disk for every byte of --gib), removes it at the end, and
prints one line per case: the median seconds, the ratio to the fastest of `cp`, `cat`, `dd bs=1M` and
`cp --reflink=never` on a file of the output's size in the same rounds, the same ratio between the best rounds of
each, and the peak memory (VmHWM) of the process.
Each run is a process of its own, timed from the first lowering to the last byte written; what was written is
compared with torch's result after the timing. Before each run the file system is synced; --cold drops the sources
from the page cache as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compiler import layout, transfer  # noqa: E402
from compiler.moves import lower  # noqa: E402

if TYPE_CHECKING:
    import torch

ROWS, COLUMNS, HEAD = 8192, 4096, 128  # 64 MiB of two bytes
BYTES = ROWS * COLUMNS * 2
COPIES = {
    "cp": ["cp", "IN", "OUT"],
    "cp --reflink=never": ["cp", "--reflink=never", "IN", "OUT"],
    "cat": ["sh", "-c", "cat IN > OUT"],
    "dd bs=1M": ["dd", "if=IN", "of=OUT", "bs=1M", "status=none"],
}

# Each case is written once, over the layout algebra and over torch: a function of the sources' tensors.
Tensors = list[Any]


class Torch:
    """The few functions of `layout` that the cases use, by torch."""

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
    for tensor in t:
        inner = (ROWS // HEAD, HEAD // 2, 2, COLUMNS)
        yield x.rearrange(tensor, inner, (0, 2, 1, 3), (ROWS, COLUMNS))


def experts(x: Any, t: Tensors) -> Iterator[Any]:
    """Sixteen experts to each tensor, gates first, fused."""
    for gate, up in zip(t[::2], t[1::2], strict=True):
        pieces = [x.split(tensor, 0, [ROWS // 16] * 16) for tensor in (gate, up)]
        yield x.concat([x.stack(part, 0) for part in pieces], 1)


def interleave(x: Any, t: Tensors) -> Iterator[Any]:
    for gate, up in zip(t[::2], t[1::2], strict=True):
        yield x.stack([gate, up], 2)


CASES: dict[str, tuple[str, str, Callable[[Any, Tensors], Any]]] = {
    "rename": ("bfloat16", "bfloat16", lambda x, t: t[::-1]),
    "split rows": ("bfloat16", "bfloat16", lambda x, t: [p for a in t for p in x.split(a, 0, [4096, 2048, 2048])]),
    "split columns": ("bfloat16", "bfloat16", lambda x, t: [p for a in t for p in x.split(a, 1, [1024, 3072])]),
    "rope": ("bfloat16", "bfloat16", rotary),
    "expert stack": ("bfloat16", "bfloat16", experts),
    "transpose": ("bfloat16", "bfloat16", lambda x, t: [x.permute(a, (1, 0)) for a in t]),
    "interleave": ("bfloat16", "bfloat16", interleave),
    "bf16 -> fp32": ("bfloat16", "float32", lambda x, t: [x.cast(a, "float32") for a in t]),
    "fp16 -> fp32": ("float16", "float32", lambda x, t: [x.cast(a, "float32") for a in t]),
    "fp32 -> bf16": ("float32", "bfloat16", lambda x, t: [x.cast(a, "bfloat16") for a in t]),
    "fp32 -> fp16": ("float32", "float16", lambda x, t: [x.cast(a, "float16") for a in t]),
    "fp16 -> bf16": ("float16", "bfloat16", lambda x, t: [x.cast(a, "bfloat16") for a in t]),
    "bf16 -> fp32, transposed": (
        "bfloat16",
        "float32",
        lambda x, t: [x.permute(x.cast(a, "float32"), (1, 0)) for a in t],
    ),
}


def size_of(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def child(case: str, folder: Path, count: int) -> None:
    """One timed run in this process: prints seconds and kilobytes."""
    before, _, function = CASES[case]
    start = time.perf_counter()
    item = size_of(before)
    tensors = [layout.source("s", before, (ROWS, COLUMNS), n * ROWS * COLUMNS * item) for n in range(count)]
    moves, end = [], 0
    for array in function(layout, tensors):
        moves += (these := lower(array, end))
        end += sum(m.length for m in these)
    transfer.transfer([transfer.Output(folder / "out", end, b"", moves)], {"s": folder / f"{before}.bin"})
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    print(seconds, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def verify(case: str, folder: Path, count: int) -> None:
    import torch

    before, after, function = CASES[case]
    dtype = getattr(torch, before)
    source = torch.from_file(str(folder / f"{before}.bin"), size=count * ROWS * COLUMNS, dtype=dtype)
    out = (folder / "out").stat().st_size // size_of(after)
    written = torch.from_file(str(folder / "out"), size=out, dtype=getattr(torch, after))
    at = 0
    for tensor in function(Torch(), list(source.view(count, ROWS, COLUMNS))):
        expected = tensor.reshape(-1)
        if not torch.equal(written[at : at + len(expected)], expected):
            raise SystemExit(f"{case}: what was written is not what torch says, from element {at} on")
        at += len(expected)
    if at != out:
        raise SystemExit(f"{case}: {out} elements were written, {at} expected")


def prepare(folder: Path, count: int, cases: list[str]) -> None:
    """Random weights of an ordinary size, under every element type that the cases read."""
    import torch

    types = {CASES[case][0] for case in cases} | {"bfloat16"}
    if any(size_of(after) > size_of(before) for before, after, _ in map(CASES.__getitem__, cases)):
        types.add("float32")
    for dtype in sorted(types):
        with (folder / f"{dtype}.bin").open("wb") as file:
            for seed in range(count):
                weights = torch.randn(ROWS * COLUMNS, generator=torch.Generator().manual_seed(seed)) * 0.02
                file.write(weights.to(getattr(torch, dtype)).view(torch.uint8).numpy().data)


def run(command: list[str], folder: Path, source: Path, cold: bool) -> tuple[float, str]:
    (folder / "out").unlink(missing_ok=True)
    os.sync()
    if cold:
        with source.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout


def measure(case: str, folder: Path, count: int, rounds: int, cold: bool) -> str:
    before, after, _ = CASES[case]
    like = folder / f"{after if size_of(after) != size_of(before) else before}.bin"  # a file of the output's size
    times: dict[str, list[float]] = {}
    peak = 0
    for _ in range(rounds):
        for name, words in COPIES.items():
            command = [w.replace("IN", str(like)).replace("OUT", str(folder / "out")) for w in words]
            times.setdefault(name, []).append(run(command, folder, like, cold)[0])
        command = [sys.executable, __file__, "--child", case, "--folder", str(folder), "--count", str(count)]
        _, printed = run(command, folder, folder / f"{before}.bin", cold)
        seconds, kilobytes = printed.split()
        times.setdefault("ours", []).append(float(seconds))
        peak = max(peak, int(kilobytes))
    verify(case, folder, count)
    medians = {name: statistics.median(values) for name, values in times.items()}
    fastest = min(COPIES, key=medians.__getitem__)
    ratio = medians["ours"] / medians[fastest]
    best = min(times["ours"]) / min(min(times[name]) for name in COPIES)  # tells noise from cost on a busy machine
    cells = [
        case,
        f"{medians['ours']:.3f}",
        f"{medians[fastest]:.3f} ({fastest})",
        f"{ratio:.2f}",
        f"{best:.2f}",
        f"{peak / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="all, unless some are named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=ROOT.parent)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.count)
        return
    cases = options.cases or list(CASES)
    count = max(2, round(options.gib * (1 << 30) / BYTES) // 2 * 2)
    folder = Path(tempfile.mkdtemp(prefix="bench-transfer-", dir=options.folder))
    try:
        prepare(folder, count, cases)
        print("| case | seconds | fastest copy | ratio | of the best rounds | MB |\n|---|---|---|---|---|---|")
        for case in cases:
            print(measure(case, folder, count, options.rounds, options.cold), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
