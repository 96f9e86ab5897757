"""One pass against two: LitGPT's Llama as Meta's files, with `--to` and by way of a Transformers folder.

    python -m benchmarks.routes [--gib 1] [--rounds 3] [--folder DIR]

Prints a table: the seconds of both ways (medians of interleaved rounds, each run a process of its own or two, the source in
the page cache) and the bytes that each has on disk at its end. The weights of both are compared byte for byte. Nothing is
written outside of a temporary folder in DIR (by default beside the repository).
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from compiler.output import pth_layout
from compiler.plan.plan import TargetTensor

ROOT = Path(__file__).resolve().parent.parent
WIDTH, MLP, HEADS, GROUPS, VOCABULARY = 1024, 2816, 16, 4, 32000
CONFIG = {
    "n_head": HEADS,
    "n_query_groups": GROUPS,
    "n_embd": WIDTH,
    "intermediate_size": MLP,
    "padded_vocab_size": VOCABULARY,
    "block_size": 4096,
    "norm_eps": 1e-5,
    "rope_base": 10000.0,
    "rope_adjustments": None,
}
COMMAND = [sys.executable, "-m", "compiler", "run", "-qq", "--no-check"]


def targets(size: int) -> list[TargetTensor]:
    """The tensors of a model of about `size` bytes."""
    rows = WIDTH + 2 * WIDTH // HEADS * GROUPS
    block = {
        "norm_1.weight": (WIDTH,),
        "norm_2.weight": (WIDTH,),
        "attn.qkv.weight": (rows, WIDTH),
        "attn.proj.weight": (WIDTH, WIDTH),
        "mlp.fc_1.weight": (MLP, WIDTH),
        "mlp.fc_2.weight": (MLP, WIDTH),
        "mlp.proj.weight": (WIDTH, MLP),
    }
    ends = {"transformer.wte.weight": (VOCABULARY, WIDTH), "lm_head.weight": (VOCABULARY, WIDTH)}
    found = [TargetTensor(name, shape, "bfloat16") for name, shape in ends.items()]
    found.append(TargetTensor("transformer.ln_f.weight", (WIDTH,), "bfloat16"))
    layers, filled = 0, sum(target.nbytes for target in found)
    while layers < 1 or filled < size:
        layer = [TargetTensor(f"transformer.h.{layers}.{n}", shape, "bfloat16") for n, shape in block.items()]
        layers, filled, found = layers + 1, filled + sum(target.nbytes for target in layer), found + layer
    return found


def write_source(folder: Path, size: int) -> int:
    """A checkpoint of bytes that repeat at no row's length; returns how many its tensors have."""
    tensors = targets(size)
    file = pth_layout.lay_out("lit_model.pth", tensors)
    noise = bytes(byte & 0x3F for byte in os.urandom((1 << 20) - 3))  # no exponent of infinity
    with (folder / "lit_model.pth").open("wb") as written:
        while written.tell() < file.size:
            written.write(noise[: file.size - written.tell()])
    file.finish(folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(json.dumps(CONFIG))
    return sum(target.nbytes for target in tensors)


def seconds(place: Path, commands: list[list[str]], outputs: list[Path]) -> float:
    """The time of the commands, one after the other; their outputs are removed before."""
    for out in outputs:
        shutil.rmtree(out, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=place)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=ROOT.parent)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        place = Path(text)
        (place / "lit").mkdir()
        size = write_source(place / "lit", int(options.gib * (1 << 30)))
        one, middle, two = place / "one", place / "middle", place / "two"
        ways = {
            "--to": ([[*COMMAND, "litgpt_llama", "lit", "one", "--to", "meta_llama"]], [one]),
            "by a folder": (
                [
                    [*COMMAND, "litgpt_llama", "lit", "middle"],
                    [*COMMAND, "--reverse", "meta_llama", "middle", "two"],
                ],
                [middle, two],
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.rounds + 1):  # the first of each is not counted
            for name, (commands, outputs) in ways.items():
                times[name] += [seconds(place, commands, outputs)][: turn > 0]
        weights = "consolidated.00.pth"
        if not filecmp.cmp(one / weights, two / weights, shallow=False):
            raise SystemExit("the two ways differ")
        print(f"{machine.described(place)}\n\n{size / (1 << 30):.2f} GiB of bfloat16, LitGPT to Meta.\n")
        print("| way | seconds | GiB on disk |\n|---|---|---|")
        for name, (_, outputs) in ways.items():
            stored = sum(file.stat().st_size for out in outputs for file in out.rglob("*") if file.is_file())
            print(f"| {name} | {statistics.median(times[name]):.2f} | {stored / (1 << 30):.2f} |")


if __name__ == "__main__":
    main()
