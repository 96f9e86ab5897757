"""How fast the executor's pass through a device is, against what the device and its bus can do.

    python -m benchmarks.gpu FOLDER [--device cuda] [--count 16] [--rounds 5]

The kernels: what one group is made into, against a copy of as many bytes from device to device; a piece that is a plain
view of its source costs nothing and is not counted. End to end: `device.Pipeline` from a file in the page cache to host
memory, against the slower of the bus's two directions from and to pinned memory. Medians of rounds that take turns; what
was made is compared with what torch makes on the CPU. With `--device cpu` the same steps run, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cases import COLUMNS, ELEMENTS, LAYOUT, ROWS, SHUFFLE, Torch
from compiler.executor.gpu_pipeline import Pipeline, engine_of
from compiler.executor.torch_layout import arranged, stored
from compiler.layout import array as layout
from compiler.transfer.files import InputFile
from compiler.transfer.worker import Worker

CASES = {name: case for name, case in (LAYOUT | SHUFFLE).items() if name not in ("rename", "split rows")}
NBYTES = 2  # of a bfloat16


class Clock:
    """Times what is put on a device, until it is done."""

    def __init__(self, device: str, rounds: int) -> None:
        self.wait: Callable[[], None] = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        self.rounds = rounds

    def medians(self, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Seconds of each call; a first round, which pays for what is made once, is not counted."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds + 1):
            for name, call in calls.items():
                self.wait()
                start = time.perf_counter()
                call()
                self.wait()
                times[name].append(time.perf_counter() - start)
        return {name: statistics.median(found[1:]) for name, found in times.items()}


def made(case: str, tensors: list[Tensor]) -> list[Tensor]:
    """What becomes of a group's tensors, as the executor makes it."""
    named = {str(n): tensor for n, tensor in enumerate(tensors)}
    arrays = [stored(name, tensor) for name, tensor in named.items()]
    return [arranged(array, named, tensors[0].device) for array in CASES[case].make(layout, arrays)]


def copied(case: str, tensors: list[Tensor]) -> int:
    """How many bytes of it are no plain view of the source."""
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return sum(t.numel() * NBYTES for t in made(case, tensors) if t.untyped_storage().data_ptr() not in own)


def kernels(device: str, count: int, clock: Clock) -> Iterator[str]:
    tensors = [torch.randn(ROWS, COLUMNS, device=device).bfloat16() for _ in range(count)]
    spare = [torch.empty_like(tensor) for tensor in tensors]

    def copy() -> None:
        for tensor, target in zip(tensors, spare, strict=True):
            target.copy_(tensor)

    calls: dict[str, Callable[[], object]] = {case: lambda case=case: made(case, tensors) for case in CASES}
    medians = clock.medians({"copy": copy} | calls)
    whole = count * ELEMENTS * NBYTES
    speed = whole / medians["copy"]
    yield f"A copy from device to device: {2 * speed / 1e9:.0f} GB/s, read and written."
    yield from ("", "| case | GB/s, read and written | of a copy |", "|---|---|---|")
    for case in CASES:
        own = copied(case, tensors) / medians[case]
        yield f"| {case} | {2 * own / 1e9:.0f} | {own / speed:.2f} |"


def end_to_end(folder: Path, device: str, count: int, clock: Clock) -> Iterator[str]:
    path = folder / "bfloat16.bin"
    source = torch.from_file(str(path), size=count * ELEMENTS, dtype=torch.bfloat16).view(count, ROWS, COLUMNS)
    arrays = [layout.source("s", "bfloat16", (ROWS, COLUMNS), n * ELEMENTS * NBYTES) for n in range(count)]
    engine = engine_of(device)
    pinned = engine.buffer(ELEMENTS * NBYTES)
    there = torch.empty_like(pinned, device=device)
    out = torch.empty(count * ELEMENTS, dtype=torch.bfloat16).view(torch.uint8)

    def bus(target: Tensor, origin: Tensor) -> None:
        for _ in range(count):
            target.copy_(origin, non_blocking=True)

    with InputFile(path) as opened:
        pipeline, worker = Pipeline(engine), Worker({"s": opened})

        def through(case: str) -> None:
            """Every two matrices are a group."""
            at = 0
            for first in range(0, count, 2):
                for _, _, data in pipeline.run(lambda t: made(case, t), arrays[first : first + 2], worker.fill):
                    out[at : at + len(data)] = torch.frombuffer(data, dtype=torch.uint8)
                    at += len(data)

        calls: dict[str, Callable[[], object]] = {case: lambda case=case: through(case) for case in CASES}
        limits = {"up": lambda: bus(there, pinned), "down": lambda: bus(pinned, there)}
        medians = clock.medians(limits | calls)
        slower = max(medians["up"], medians["down"])
        size = count * ELEMENTS * NBYTES / 1e9
        yield f"To the device {size / medians['up']:.1f} GB/s, back {size / medians['down']:.1f} GB/s, from and to pinned memory."
        yield from ("", "| case | seconds | GB/s | of the slower direction |", "|---|---|---|---|")
        for case, layouts in CASES.items():
            through(case)
            pairs = [list(source[n : n + 2]) for n in range(0, count, 2)]
            wanted = torch.cat([t.reshape(-1) for pair in pairs for t in layouts.make(Torch(), pair)])
            if not torch.equal(out.view(torch.bfloat16), wanted):
                raise SystemExit(f"{case}: what the device made is not what the host makes")
            yield f"| {case} | {medians[case]:.3f} | {size / medians[case]:.1f} | {slower / medians[case]:.2f} |"


def table(folder: Path, device: str, count: int, rounds: int) -> Iterator[str]:
    """The lines of the whole table. `folder` holds `bfloat16.bin`, `count` matrices as `benchmarks.cases` has them."""
    clock = Clock(device, rounds)
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "the host itself, for the steps alone"
    yield from (f"{card}; torch {torch.__version__}; {count * ELEMENTS * NBYTES / (1 << 30):.2g} GiB of bfloat16.", "")
    yield from kernels(device, count, clock)
    yield ""
    yield from end_to_end(folder, device, count, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where bfloat16.bin lies")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--count", type=int, default=16, help="how many matrices of 64 MiB, an even number")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for line in table(options.folder, options.device, options.count, options.rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
