"""`compile run SPEC SOURCE OUT`: converts a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.options import Meter, Parser, notes, print_json, program_of, request


def run_parser() -> Parser:
    parser = Parser("run", "Convert a checkpoint into a folder that Transformers loads.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write (with --reverse: the file)")
    parser.add_conversion()
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a folder whose tokenizer files travel along")
    parser.add_argument("--device", default="cpu", help="where the tensors are computed: cpu or cuda")
    parser.add_argument("--no-checksums", action="store_true", help="do not compare a .pth with its own checksums")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many threads move bytes (default: 2)")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="the size of one file of weights (default: 5GB)"
    )
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    parser.add_argument("--resume", action="store_true", help="continue a run that was killed or interrupted")
    parser.add_argument(
        "--check-values", action="store_true", help="count NaN and infinity in every tensor, not in samples"
    )
    return parser


def run(options: argparse.Namespace) -> int:
    from compiler.convert import convert

    kept, say = notes(options)
    program = program_of(options, say)
    with Meter() as meter:
        plan = convert(program, request(options), options.out, say, meter)
    total = sum(target.nbytes for target in plan.targets)
    if options.json:
        spec = program.spec.name.value
        tensors = len(plan.targets)
        print_json({"out": str(options.out), "spec": spec, "tensors": tensors, "bytes": total, "notes": kept})
    else:
        print(f"{options.out}: {len(plan.targets)} tensors, {total:,} bytes")
    return 0
