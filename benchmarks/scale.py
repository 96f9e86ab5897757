"""A mixture of experts of 671 billion parameters, planned from its headers alone.

    python -m benchmarks.scale [--layers 118] [--experts 256] [--shards 163]

Writes sparse files that hold only their headers, then plans them in a process of its own. Prints the seconds from the
first import to the finished plan with its byte ranges, and the peak memory (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCABULARY = 4096, 1808, 64, 8, 128, 129_280
CHILD = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from compiler.executor import execute
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.output import safetensors_layout
from compiler.program.loading import load_program
source = Path(sys.argv[1])
given = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_experts_per_tok": 8, "tie_word_embeddings": False}
prepared = prepare(load_program("qwen3_moe"), Request([source], assigned=given))
plan, checkpoint = prepared.plan, prepared.checkpoint
planned = time.perf_counter()
files = safetensors_layout.lay_out(plan.targets, safetensors_layout.parse_size("5GB"))
outputs, others = execute.outputs(plan, checkpoint, files, Path("out"))
done = time.perf_counter()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
moves = sum(len(output.moves) for output in outputs)
print(planned - start, done - planned, int(peak) / 1024, len(plan.targets), sum(t.nbytes for t in plan.targets), moves)
"""


def tensors(layers: int, experts: int) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes."""
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name in ("input", "post_attention"):
            yield f"{layer}.{name}_layernorm.weight", [HIDDEN]
        for name, rows in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield f"{layer}.self_attn.{name}_proj.weight", [rows * HEAD, HIDDEN]
        yield f"{layer}.self_attn.o_proj.weight", [HIDDEN, HEADS * HEAD]
        for name in "qk":
            yield f"{layer}.self_attn.{name}_norm.weight", [HEAD]
        yield f"{layer}.mlp.gate.weight", [experts, HIDDEN]
        for e in range(experts):
            for name in ("gate", "up", "down"):
                shape = [HIDDEN, INNER] if name == "down" else [INNER, HIDDEN]
                yield f"{layer}.mlp.experts.{e}.{name}_proj.weight", shape


def write_sparse(folder: Path, layers: int, experts: int, shards: int) -> int:
    """The checkpoint as files of holes behind their headers; how many parameters it has."""
    found = list(tensors(layers, experts))
    total, weight_map, step = 0, {}, -(-len(found) // shards)
    for n in range(shards):
        header, end = {}, 0
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        for name, shape in found[n * step : (n + 1) * step]:
            size = 2
            for length in shape:
                size *= length
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            weight_map[name] = file
            end += size
        total += end // 2
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(len(text).to_bytes(8, "little") + text)
            opened.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def plan(folder: Path) -> list[float]:
    """[seconds to the plan, seconds to its byte ranges, MiB at most, targets, bytes, ranges] of a fresh process."""
    words = [sys.executable, "-c", CHILD, str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("layers", 118), ("experts", 256), ("shards", 163)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        total = write_sparse(Path(folder), options.layers, options.experts, options.shards)
        seconds, lowering, peak, targets, size, ranges = plan(Path(folder))
    print(f"{total / 1e9:.0f} billion parameters, {targets:.0f} targets, {size:.0f} bytes in {ranges:.0f} ranges")
    print(f"planned in {seconds:.2f} s, byte ranges in {lowering:.2f} s more; {peak:.0f} MiB")


if __name__ == "__main__":
    main()
