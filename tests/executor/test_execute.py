"""The executor on plans that move, cast and compute at once: the bytes of plain torch, whatever the threads, the size
of a block or the device; memory by blocks; a `.pth` that torch reads.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.diagnostics import Refusal, Span
from compiler.executor import computed_tasks, execute, gpu_pipeline
from compiler.layout import computed as formula
from compiler.ops import kernels
from compiler.ops.algebra import Bundle, Op
from compiler.ops.arithmetic import Affine, Crop, Full, Pad
from compiler.ops.lossy import DequantizeBlocks, DequantizeMxfp4, Lora, Normalize
from compiler.ops.rearrange_notation import parse_rearrange
from compiler.ops.structural import Cast, Concat, Copy, Split, Stack
from compiler.output import pth_layout, safetensors_layout
from compiler.plan.plan import Group, Plan, TargetTensor
from compiler.program.program import Rule
from compiler.transfer import worker

SPAN = Span("x.yaml", 1, 1)


def group(
    sources: Mapping[tuple[int, tuple[int, ...]], str],
    ops: list[Op],
    tensors: Mapping[str, Tensor],
    holes: tuple[str, ...] = (),
) -> Group:
    """One application of `ops`; its targets are named by their slot and key. `sources`: (slot, key) -> name."""
    slots = 1 + max((slot for slot, _ in sources), default=-1)
    bundle = Bundle(tuple({k: n for (s, k), n in sources.items() if s == slot} for slot in range(slots)), holes)
    made = bundle.map(lambda name: tensors[name])
    for op in ops:
        made = op.apply(made, kernels.TorchAlgebra())
    first = next(iter(sources.values()), "made")
    targets = tuple(
        {k: TargetTensor(f"{first}>{slot}{k}", tuple(t.shape), kernels.dtype_of(t)) for k, t in each.items()}
        for slot, each in enumerate(made.slots)
    )
    return Group(Rule("transform", first, (), (), (), None, SPAN), bundle, tuple(ops), Bundle(targets, made.holes))


def expected(groups: list[Group], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for one in groups:
        made = one.sources.map(lambda name: tensors[name])
        for op in one.ops:
            made = op.apply(made, kernels.TorchAlgebra())
        for slot, targets in zip(made.slots, one.targets.slots, strict=True):
            found |= {target.name: slot[key].contiguous() for key, target in targets.items()}
    return found


def plan_of(groups: list[Group]) -> Plan:
    return Plan(None, tuple(groups), (), (), {}, {})  # type: ignore[arg-type]


def converted(
    folder: Path,
    groups: list[Group],
    tensors: Mapping[str, Tensor],
    *,
    jobs: int = 2,
    on: str = "cpu",
    limit: int = 1 << 40,
) -> dict[str, Tensor]:
    source = folder / "source.safetensors"
    if not source.exists():
        save_file({n: t.contiguous() for n, t in tensors.items()}, source)
    plan, checkpoint = plan_of(groups), open_checkpoint(source)
    out = folder / f"out{len(list(folder.iterdir()))}"
    out.mkdir()
    files = safetensors_layout.lay_out(plan.targets, limit)
    told: list[int] = []
    execute.write_folder(plan, checkpoint, files, out, device=on, jobs=jobs, progress=told.append)
    assert sum(told) == sum(target.nbytes for target in plan.targets)
    return {name: t for file in files for name, t in load_file(out / file.name).items()}


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert kernels.bytes_of(found[name]) == kernels.bytes_of(tensor), name


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 120, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


TENSORS = {
    "moved": numbers(40, 24).bfloat16(),
    "turned": numbers(30, 50, seed=1).bfloat16(),
    "rows": numbers(30, 50, seed=15).bfloat16(),
    "columns": numbers(40, 24, seed=16).bfloat16(),
    "norm": numbers(24, seed=2).bfloat16(),
    "wide": numbers(16, 10, seed=3),
    "gate": numbers(20, 8, seed=4).half(),
    "up": numbers(20, 8, seed=5).half(),
    "q": codes(300, 70).view(torch.float8_e4m3fn),
    "s": numbers(3, 3, seed=6).abs(),
    "qn": codes(61, 3).view(torch.float8_e4m3fn),
    "sn": numbers(16, 1, seed=14).abs(),
    "q3": codes(4, 40, 30, seed=7).view(torch.float8_e4m3fn),
    "s3": numbers(4, 3, 2, seed=8).abs(),
    "b4": codes(6, 5, 2, 16, seed=9),
    "e4": codes(6, 5, 2, seed=10) + 60,
    "w": numbers(32, 48, seed=11).bfloat16(),
    "a": numbers(4, 48, seed=12),
    "b": numbers(32, 4, seed=13),
    "ints": torch.arange(60, dtype=torch.int32).reshape(12, 5),
    "twice": numbers(20, 11, seed=40).bfloat16(),
    "thrice": numbers(6, 30, seed=41),
    "doubled": numbers(9, 5, seed=42),
    "one": torch.tensor(3.5),
    "none": torch.empty(0, 7),
    **{f"e{n}": codes(128, 64, seed=20 + n).view(torch.float8_e4m3fn) for n in range(3)},
    **{f"es{n}": numbers(2, 1, seed=30 + n).abs() for n in range(3)},
}
BLOCKS = DequantizeBlocks(128, 32, "bfloat16")
KEY: tuple[int, ...] = ()


def every_group() -> list[Group]:
    """What moves, what casts, what computes, and chains of them."""
    t = TENSORS
    chains: list[tuple[dict[tuple[int, tuple[int, ...]], str], list[Op], tuple[str, ...]]] = [
        ({(0, KEY): "moved"}, [Split(0, 2, (30, 10))], ()),
        ({(0, KEY): "turned"}, [parse_rearrange("a b -> b a", {}, SPAN)], ()),
        ({(0, KEY): "norm"}, [Affine(1.0, 1.0)], ()),
        ({(0, KEY): "wide"}, [Affine(2.0, -1.0), Cast("bfloat16"), Split(1, 2, None)], ()),
        ({(0, KEY): "rows"}, [parse_rearrange("a b -> b a", {}, SPAN), Normalize(1), Cast("float32")], ()),
        ({(0, KEY): "columns"}, [Normalize(0), Split(0, 2, (30, 10))], ()),
        ({(0, KEY): "twice"}, [Copy(2)], ()),
        ({(0, KEY): "thrice"}, [parse_rearrange("a b -> b a", {}, SPAN), Copy(3), Concat(1, 3)], ()),
        ({(0, KEY): "doubled"}, [Affine(2.0, 0.5), Copy(2)], ()),
        ({(0, KEY): "gate", (1, KEY): "up"}, [Concat(0, 2), Pad(0, 40, 47, 0.5), Cast("float32")], ()),
        ({(0, KEY): "q", (1, KEY): "s"}, [DequantizeBlocks(128, 32, "bfloat16"), Crop(0, 300, 290)], ()),
        ({(0, KEY): "qn", (1, KEY): "sn"}, [DequantizeBlocks(4, 3, "float32")], ()),
        ({(0, KEY): "q3", (1, KEY): "s3"}, [DequantizeBlocks(16, 16, "float16")], ()),
        ({(0, KEY): "b4", (1, KEY): "e4"}, [DequantizeMxfp4("bfloat16"), parse_rearrange("e o i -> e i o", {}, SPAN)], ()),
        ({(0, KEY): "w", (1, KEY): "a", (2, KEY): "b"}, [Lora(4, 0.5), Split(0, 2, (8, 24))], ()),
        ({(0, KEY): "ints"}, [Cast("float32"), Pad(1, 5, 9, -1.0)], ()),
        ({(0, KEY): "one"}, [Affine(3.0, 1.0)], ()),
        ({(0, KEY): "none"}, [Affine(3.0, 1.0)], ()),
        ({}, [Full(2.0, (5, 3), "float16")], ()),
        ({(s, (n,)): f"{'es' if s else 'e'}{n}" for s in (0, 1) for n in range(3)},
         [DequantizeBlocks(64, 64, "bfloat16"), Stack("e"), Affine(1.0, 1.0)], ("e",)),
    ]  # fmt: skip
    return [group(sources, ops, t, holes) for sources, ops, holes in chains]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, tasks and buffers so small that every one of them has an end."""
    for module, name, size in (
        (formula, "BLOCK", 300), (computed_tasks, "TASK", 1000), (worker, "WINDOW", 100), (worker, "BLOCK", 200), (gpu_pipeline, "STAGE", 64),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, size)


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_plan_of_every_kind(tmp_path: Path, jobs: int) -> None:
    groups = every_group()
    same(converted(tmp_path, groups, TENSORS, jobs=jobs), expected(groups, TENSORS))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("limit", [1, 5000])
def test_a_plan_of_every_kind_block_by_block(tmp_path: Path, limit: int) -> None:
    groups = every_group()
    same(converted(tmp_path, groups, TENSORS, limit=limit), expected(groups, TENSORS))


def test_only_some_of_the_files(tmp_path: Path) -> None:
    """As one of several processes does it."""
    groups = every_group()
    save_file(TENSORS, tmp_path / "source.safetensors")
    plan, checkpoint = plan_of(groups), open_checkpoint(tmp_path / "source.safetensors")
    files = safetensors_layout.lay_out(plan.targets, 2000)
    for part in (files[::2], files[1::2]):
        execute.write_folder(plan, checkpoint, part, tmp_path, device="cpu", jobs=2, progress=lambda n: None)
    same({n: t for f in files for n, t in load_file(tmp_path / f.name).items()}, expected(groups, TENSORS))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blocks_of_random_chains(data: st.DataObject) -> None:
    """Layout, then arithmetic, then layout: rows asked for one block at a time are those of the whole."""
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 6]))
    tensor = numbers(rows * 2, columns)
    shuffles: list[Callable[[], Op]] = [
        lambda: parse_rearrange("a b -> b a", {}, SPAN),
        lambda: parse_rearrange("(a two) b -> (two a) b", {"two": 2}, SPAN),
        lambda: parse_rearrange("(a b) c -> a (b c)", {"b": 2}, SPAN),
    ]
    ops: list[Op] = []
    whole = tensor
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            computed = [Affine(2.0, 1.0), Normalize(0), Normalize(1), Cast("float16"), Cast("float32"), Cast("int32")]
            op: Op = data.draw(st.sampled_from(computed))
        elif data.draw(st.booleans()):
            axis, more = data.draw(st.integers(-2, 1)), data.draw(st.integers(1, 5))
            op = Pad(axis, whole.shape[axis], whole.shape[axis] + more, 7.0)
        else:
            op = data.draw(st.sampled_from(shuffles))()
        try:
            whole = op.apply(Bundle(({KEY: whole},)), kernels.TorchAlgebra()).slots[0][KEY]
        except ValueError:
            continue
        ops.append(op)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        import tempfile

        patch.setattr(formula, "BLOCK", data.draw(st.integers(1, 60)))
        patch.setattr(formula, "WASTE", data.draw(st.integers(1, 100)))
        patch.setattr(computed_tasks, "TASK", data.draw(st.integers(1, 60)))
        groups = [group({(0, KEY): "x"}, ops, {"x": tensor})]
        with tempfile.TemporaryDirectory() as folder:
            same(converted(Path(folder), groups, {"x": tensor}), expected(groups, {"x": tensor}))


def test_rows_are_computed_apart_and_a_product_whole() -> None:
    arrays = {name: formula.layout.source(name, "float32", (4096, 1024)) for name in "wq"}
    a, b = formula.layout.source("a", "float32", (8, 1024)), formula.layout.source("b", "float32", (4096, 8))
    formulas = formula.Formulas()
    plain = formulas.compute(Affine(1.0, 1.0), (arrays["w"],), (4096, 1024))
    turned = formula.layout.permute(plain, (1, 0))
    product = formulas.compute(Lora(8, 1.0), (arrays["w"], a, b), (4096, 1024))
    assert formula.block_rows(plain, formulas.nodes) == 512
    assert formula.block_rows(formula.layout.narrow(plain, 0, 100, 2000), formulas.nodes) == 512
    assert formula.block_rows(turned, formulas.nodes) == 0, "each row of it would need all rows"
    assert formula.block_rows(product, formulas.nodes) == 0
    scale = formula.layout.source("s", "float32", (32, 8))
    blocks = formulas.compute(DequantizeBlocks(128, 128, "float32"), (arrays["q"], scale), (4096, 1024))
    assert formula.block_rows(blocks, formulas.nodes) % 128 == 0


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    """A tensor of 256 MiB is computed in much less."""
    import subprocess
    import sys

    code = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]!r}
import torch
from pathlib import Path
from safetensors.torch import save_file
from test_execute import *
torch.set_num_threads(1)
folder = Path({str(tmp_path)!r})
small, big = torch.zeros(4, 4096), torch.zeros(16384, 4096)
save_file({{"big": big}}, folder / "source.safetensors")
groups = [group({{(0, ()): "big"}}, [Affine(1.0, 1.0)], {{"big": big}})]
del big
plan, checkpoint = plan_of(groups), open_checkpoint(folder / "source.safetensors")
execute.write_folder(plan, checkpoint, safetensors_layout.lay_out(plan.targets, 1 << 40), folder, device="cpu", jobs=2, progress=lambda n: None)
"""
    measured = code.replace(
        "plan, checkpoint = plan_of",
        "Path('/proc/self/clear_refs').write_text('5'); before = rss()\nplan, checkpoint = plan_of",
    )
    measured = measured.replace(
        "import torch\n",
        "import torch\ndef rss(): return int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n",
        1,
    )
    done = subprocess.run(
        [sys.executable, "-c", measured + "\nprint(rss() - before)"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 120_000, "kilobytes beyond what torch itself takes"


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_an_op_that_fails_names_its_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("out of luck")

    groups = every_group()
    monkeypatch.setitem(kernels.KERNELS, "add_low_rank", broken)
    with pytest.raises(
        Refusal, match=r"the rule w failed on w \[32, 48\], a \[4, 48\], b \[32, 4\]: out of luck \[failed-step\]"
    ):
        converted(tmp_path, groups, TENSORS)
    assert not list((tmp_path / "out1").iterdir())


def test_a_kernel_that_makes_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = every_group()
    monkeypatch.setitem(kernels.KERNELS, "affine", lambda tensor, scale, shift: tensor.double())
    with pytest.raises(Refusal, match=r"affine made .* of float64"):
        converted(tmp_path, groups, TENSORS)


def test_an_interrupted_group_lets_the_next_in() -> None:
    gate = computed_tasks.MemoryGate()
    gate.enter(1 << 40)
    entered = threading.Event()
    thread = threading.Thread(target=lambda: (gate.enter(5), entered.set()))
    thread.start()
    assert not entered.wait(0.05), "a group that is larger than all room is alone"
    gate.leave(1 << 40)
    assert entered.wait(5)
    thread.join()


def test_no_such_device(tmp_path: Path) -> None:
    for name in ("tpu!", "cuda:77", "mps:0", "meta"):
        with pytest.raises(Refusal, match="no-device"):
            converted(tmp_path, every_group(), TENSORS, on=name)


# ---------------------------------------------------------------------------------------------------------------------
# On a device


class Fake(gpu_pipeline.Host):
    """A device whose copies wait on their stream until somebody needs them: what is used too early is seen."""

    direct = False

    def __init__(self) -> None:
        self.queues: dict[str, list[Callable[[], None]]] = {"up": [], "run": [], "down": []}
        self.log: list[str] = []

    def mark(self, stream: str) -> Any:
        self.log.append(f"mark {stream}")
        return object()

    def await_on(self, stream: str, event: Any) -> None:
        self.log.append(f"{stream} awaits")

    def wait(self, event: Any) -> None:
        if event is not None:
            self.log.append("host waits")

    def used(self, tensor: Tensor, stream: str) -> None:
        self.log.append(f"used by {stream}")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("jobs", [1, 3])
def test_the_pipeline_of_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    engine = Fake()
    monkeypatch.setattr(gpu_pipeline, "engine_of", lambda name: engine)
    groups = every_group()
    same(converted(tmp_path, groups, TENSORS, jobs=jobs, on="fake"), expected(groups, TENSORS))
    assert "run awaits" in engine.log
    assert "down awaits" in engine.log
    assert (
        engine.log.count("used by run") >= sum(len(g.source_names) for g in groups) - 8
    )  # plain copies and sums stay away


@pytest.mark.usefixtures("small")
def test_the_host_waits_for_buffers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that fits a staging buffer makes the host wait before the first byte comes back."""
    engine = Fake()
    monkeypatch.setattr(gpu_pipeline, "STAGE", 4096)
    sender = gpu_pipeline.Sender(engine)
    array = formula.layout.source("x", "float32", (10,))
    data = numbers(10)

    def fill(array: formula.Array, buffer: memoryview) -> None:
        buffer[:] = kernels.bytes_of(data)

    for _ in range(2):
        made, event = sender.compute(lambda tensors: [tensors[0] + 1], [array], fill)
    assert "host waits" not in engine.log
    sender.compute(lambda tensors: tensors, [array], fill)
    assert engine.log.count("host waits") == 1, "the first buffer is filled again once it was sent"
    ((number, start, got),) = gpu_pipeline.Fetcher(engine).fetch(made, event)
    assert (number, start, bytes(got)) == (0, 0, bytes(kernels.bytes_of(data + 1)))
    assert list(gpu_pipeline.Fetcher(engine).fetch([numbers(0)], event)) == [], "a tensor without elements has no bytes"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("stage", [64, 32 << 20])
def test_a_gpu_gives_the_bytes_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int) -> None:
    monkeypatch.setattr(gpu_pipeline, "STAGE", stage)
    groups = every_group()
    same(converted(tmp_path, groups, TENSORS, on="cuda"), expected(groups, TENSORS))
    source = open_checkpoint(tmp_path / "source.safetensors")
    found = dict(execute.tensors(plan_of(groups), source, "cuda"))
    assert {t.device.type for t in found.values()} == {"cuda"}
    same({n: t.cpu() for n, t in found.items()}, expected(groups, TENSORS))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fake", [False, True])
def test_tensors_without_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake: bool) -> None:
    if fake:
        monkeypatch.setattr(gpu_pipeline, "engine_of", lambda name: Fake())
    groups = every_group()
    save_file(TENSORS, tmp_path / "source.safetensors")
    found = execute.tensors(plan_of(groups), open_checkpoint(tmp_path / "source.safetensors"), "cpu")
    assert isinstance(found, Iterator)
    same(dict(found), expected(groups, TENSORS))


# ---------------------------------------------------------------------------------------------------------------------
# A .pth


def test_a_pth_that_torch_reads(tmp_path: Path) -> None:
    groups = every_group()
    save_file(TENSORS, tmp_path / "source.safetensors")
    plan, checkpoint = plan_of(groups), open_checkpoint(tmp_path / "source.safetensors")
    files = [pth_layout.out_file("x.pth", plan.targets)]
    execute.write_folder(plan, checkpoint, files, tmp_path, device="cpu", jobs=2, progress=lambda n: None)
    same(torch.load(tmp_path / "x.pth", weights_only=True), expected(groups, TENSORS))
    same(torch.load(tmp_path / "x.pth", weights_only=True, mmap=True), expected(groups, TENSORS))
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        assert archive.testzip() is None, "every checksum holds"
        assert all(info.header_offset % 2 == 0 or info.file_size for info in archive.infolist())
    ours = open_checkpoint(tmp_path / "x.pth")
    assert {n: (t.dtype, t.shape) for n, t in ours.tensors.items()} == {
        t.name: (t.dtype, t.shape) for t in plan.targets
    }
    assert all(part.offset % 64 == 0 for t in ours.tensors.values() for part in t.parts)


@pytest.mark.parametrize("dtype", sorted(execute.layout.ITEM_SIZES))
def test_a_pth_of_every_element_type(tmp_path: Path, dtype: str) -> None:
    tensor = codes(6, 8).view(getattr(torch, dtype)) if dtype != "bool" else codes(6, 8) > 60
    target = TargetTensor("x", tuple(tensor.shape), dtype)
    file = pth_layout.lay_out("x.pth", [target])
    data = bytearray(file.size)
    data[file.offsets["x"] : file.offsets["x"] + target.nbytes] = kernels.bytes_of(tensor)
    (tmp_path / "x.pth").write_bytes(data)
    file.finish(tmp_path / "x.pth")
    same(torch.load(tmp_path / "x.pth", weights_only=True), {"x": tensor})


def test_a_pth_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Its table says where the second tensor lies; the bytes are holes of the file."""
    targets = [TargetTensor("a", (5 << 30,), "uint8"), TargetTensor("b", (3,), "uint8")]
    file = pth_layout.lay_out("x.pth", targets)
    with (tmp_path / "x.pth").open("wb") as made:
        made.truncate(file.size)
        made.seek(file.offsets["b"])
        made.write(b"abc")
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(pth_layout, "_checksum", lambda *_: 0)  # reading the holes would take seconds
        file.finish(tmp_path / "x.pth")
    loaded = torch.load(tmp_path / "x.pth", weights_only=True, mmap=True)
    assert (loaded["a"].shape, bytes(loaded["b"].tolist())) == ((5 << 30,), b"abc")
    assert open_checkpoint(tmp_path / "x.pth").tensors["b"].parts[0].offset == file.offsets["b"]


# ---------------------------------------------------------------------------------------------------------------------
# Planning at scale


def test_a_mixture_of_experts_is_planned_in_no_time(tmp_path: Path) -> None:
    """A tenth of what `python -m benchmarks.scale` plans, held to a loose bound; it grows in proportion."""
    sys.path.insert(0, str(Path(__file__).parent.parent.parent))
    from benchmarks import scale

    total = scale.write_sparse(tmp_path, 12, 256, 17)
    assert total > 65_000_000_000
    seconds, lowering, peak, targets, size, ranges = scale.plan(tmp_path)
    assert targets == 3 + 12 * (9 + 3 * 256) == ranges
    assert size == 2 * total
    assert seconds < 3
    assert lowering < 2
    assert peak < 150
