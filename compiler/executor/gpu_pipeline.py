"""Computes groups of tensors on a GPU: reading, sending, computing and fetching overlap.

Bytes go through two staging buffers in each direction: while the device copies one, the host fills or empties the other.
Three streams order the device's work by events, so that the host waits for buffers only: `up` sends, `run` computes a
group in one pass, `down` fetches. In a `Pipeline` of two threads, one reads and sends the next group while the other
fetches and writes the previous one. On the CPU the same steps run one after another. Raises what torch raises.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from compiler.dtypes import ITEM_SIZES
from compiler.layout import array as layout
from compiler.layout.array import Array
from compiler.ops import kernels

STAGE = 32 << 20  # bytes of a staging buffer

Fill = Callable[[Array, memoryview], None]  # puts the bytes of an array into a buffer
Call = Callable[[list[Tensor]], list[Tensor]]


class Host:
    """The host as a device: every step is done when its method returns."""

    device = torch.device("cpu")
    direct = True  # whether files can be read directly into its tensors

    def buffer(self, size: int) -> Tensor:
        """Host memory that the device copies from and to asynchronously."""
        return torch.empty(size, dtype=torch.uint8)

    def on(self, stream: str) -> contextlib.AbstractContextManager[Any]:
        """Put the work inside on one of the streams."""
        return contextlib.nullcontext()

    def mark(self, stream: str) -> Any:
        """An event after all work that the stream has so far."""

    def await_on(self, stream: str, event: Any) -> None:
        """Make a stream wait for an event."""

    def wait(self, event: Any) -> None:
        """Make the host wait for an event; None is no event."""

    def used(self, tensor: Tensor, stream: str) -> None:
        """Keep the memory of another stream's tensor until this stream is done with it."""

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """Let the caller's own stream use the results of `run`."""


class Cuda(Host):
    """A CUDA device with three streams."""

    direct = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.streams = {name: torch.cuda.Stream(device) for name in ("up", "run", "down")}

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def on(self, stream: str) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self.streams[stream])

    def mark(self, stream: str) -> Any:
        event = torch.cuda.Event()
        event.record(self.streams[stream])
        return event

    def await_on(self, stream: str, event: Any) -> None:
        self.streams[stream].wait_event(event)

    def wait(self, event: Any) -> None:
        if event is not None:
            event.synchronize()

    def used(self, tensor: Tensor, stream: str) -> None:
        tensor.record_stream(self.streams[stream])

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.streams["run"])
        for tensor in tensors:
            tensor.record_stream(current)


def engine_of(name: str) -> Host:
    """The device of that name. Raises LookupError or RuntimeError if torch cannot use it."""
    device = kernels.device_named(name)
    if device.type == "cpu":
        return Host()
    if device.type != "cuda":
        raise LookupError("only cpu and cuda are supported")
    return Cuda(device)


class Stage:
    """Two buffers used in turn, each with the event after which it is free."""

    def __init__(self, engine: Host) -> None:
        self.engine = engine
        self.size = STAGE
        self.buffers = [engine.buffer(self.size) for _ in range(2)]
        self.events: list[Any] = [None, None]
        self.turn = 0

    def next(self) -> Tensor:
        """Wait for the next buffer to be free, and return it."""
        self.turn = 1 - self.turn
        self.engine.wait(self.events[self.turn])
        return self.buffers[self.turn]

    def busy(self, event: Any) -> None:
        """Mark the buffer returned last as free after this event."""
        self.events[self.turn] = event


class Sender:
    """Reads arrays of stored bytes into tensors on the device, and computes with them."""

    def __init__(self, engine: Host) -> None:
        self.engine = engine
        self.stage: Stage | None = None

    def send(self, array: Array, fill: Fill) -> Tensor:
        """Start sending an array. `run` may use the tensor after the mark of `up`."""
        with self.engine.on("up"):
            tensor = torch.empty(array.shape, dtype=getattr(torch, array.dtype), device=self.engine.device)
        count, item = math.prod(array.shape), ITEM_SIZES[array.dtype]
        if not count:
            return tensor
        if self.engine.direct:
            fill(array, kernels.bytes_of(tensor))
            return tensor
        self.stage = self.stage or Stage(self.engine)
        flat = layout.reshape(array, (count,))
        received = tensor.view(-1).view(torch.uint8)
        step = max(1, self.stage.size // item)
        for start in range(0, count, step):
            stop = min(count, start + step)
            buffer = self.stage.next()[: (stop - start) * item]
            fill(layout.narrow(flat, 0, start, stop - start), kernels.bytes_of(buffer))
            with self.engine.on("up"):
                received[start * item : stop * item].copy_(buffer, non_blocking=True)
            self.stage.busy(self.engine.mark("up"))
        return tensor

    def compute(self, call: Call, arrays: Sequence[Array], fill: Fill) -> tuple[list[Tensor], Any]:
        """The results of `call` on the tensors of these arrays, and the mark of `run` after which they are complete."""
        tensors = [self.send(array, fill) for array in arrays]
        self.engine.await_on("run", self.engine.mark("up"))
        with self.engine.on("run"):
            results = [tensor.contiguous() for tensor in call(tensors)]
        for tensor in tensors:
            self.engine.used(tensor, "run")
        return results, self.engine.mark("run")


class Fetcher:
    """Copies tensors of the stream `run` to the host, in pieces."""

    def __init__(self, engine: Host) -> None:
        self.engine = engine
        self.stage = Stage(engine)

    def fetch(self, tensors: Sequence[Tensor], made: Any) -> Iterator[tuple[int, int, memoryview]]:
        """Yield (number of the tensor, first byte, bytes), valid until the next one; one piece is always being copied.

        The tensors are complete after the event `made`.
        """
        self.engine.await_on("down", made)
        pending: tuple[int, int, Tensor, Any] | None = None
        for number, tensor in enumerate(tensors):
            flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
            for start in range(0, len(flat), self.stage.size):
                piece = flat[start : start + self.stage.size]
                buffer = self.stage.next()[: len(piece)]
                with self.engine.on("down"):
                    buffer.copy_(piece, non_blocking=True)
                event = self.engine.mark("down")
                if pending:
                    yield self.arrived(pending)
                pending = number, start, buffer, event
            self.engine.used(tensor, "down")
        if pending:
            yield self.arrived(pending)

    def arrived(self, piece: tuple[int, int, Tensor, Any]) -> tuple[int, int, memoryview]:
        number, start, buffer, event = piece
        self.engine.wait(event)
        return number, start, kernels.bytes_of(buffer)


class Pipeline:
    """Runs groups on a device for several threads."""

    def __init__(self, engine: Host) -> None:
        self.sender, self.fetcher = Sender(engine), Fetcher(engine)
        self.sending, self.fetching = threading.Lock(), threading.Lock()

    def run(self, call: Call, arrays: Sequence[Array], fill: Fill) -> Iterator[tuple[int, int, memoryview]]:
        """Yield (number of the result, first byte, bytes) of the results of `call`; valid until the next one."""
        with self.sending:
            results, made = self.sender.compute(call, arrays, fill)
        with self.fetching:
            yield from self.fetcher.fetch(results, made)
