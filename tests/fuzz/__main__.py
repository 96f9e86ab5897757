"""All long checks of `docs/trust.md`: `python tests/fuzz` takes about twenty minutes and prints one JSON object a line."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent)]

INPUTS = [("safetensors", 20_000), ("pth", 20_000), ("spec", 6_000), ("injection", 8_000)]
KILLS = [
    ("llama", []),
    ("llama", ["--over", "--max-shard-size", "100KB"]),
    ("minimind1_llama", ["--dtype", "float16"]),
    ("litgpt_gemma", ["--set", "n_head=8"]),
    ("llama", ["--reverse"]),
    ("minimind1_llama", ["--reverse", "--over"]),
]


def main() -> int:
    """Run everything; 1 where something is wrong."""
    from support.synthetic import synthetic

    from compiler.jobs.convert import convert
    from compiler.jobs.request import Request
    from compiler.program.loading import load_program

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    failed = False
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        commands = [[str(HERE / "inputs.py"), what, f"{place}/{what}", str(rounds)] for what, rounds in INPUTS]
        commands.append([str(HERE / "hostile.py"), f"{place}/hostile"])
        for n, (spec, options) in enumerate(KILLS):
            folder = Path(place) / f"source{n}"
            folder.mkdir()
            program = load_program(spec)
            source = synthetic(program, 0, finite=True).save(folder, "*.pth")
            if "--reverse" in options:
                convert(program, Request([source]), folder / "converted")
                source = folder / "converted"
            words = [spec, str(source), f"{place}/kills{n}", "--rounds", "200", "--calls", "40", *options]
            commands.append([str(HERE / "kills.py"), *words])
        for command in commands:
            print(" ".join([Path(command[0]).stem, *command[1:2]]), end=" ", flush=True)
            failed |= subprocess.run([sys.executable, *command], env=environment, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
