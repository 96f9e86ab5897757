"""`compile run SPEC SOURCE OUT`: converts a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.commands_verify import add_source_model, verified
from compiler.diagnostics import refuse
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
    parser.add_argument("--verify", action="store_true", help="then hold the folder to the source, as `verify` does")
    add_source_model(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    from compiler.convert import convert

    kept, say = notes(options)
    if options.reverse and options.verify:
        refuse("compile run", "--verify holds a folder to its source; the way back makes no folder", "wrong-usage")
    program = program_of(options, say)
    with Meter() as meter:
        plan = convert(program, request(options), options.out, say, meter)
    proof = verified(options, program, request(options), options.out) if options.verify else None
    total = sum(target.nbytes for target in plan.targets)
    if options.json:
        spec = program.spec.name.value
        tensors = len(plan.targets)
        result = {"out": str(options.out), "spec": spec, "tensors": tensors, "bytes": total, "notes": kept}
        print_json(result | ({"verified": proof} if proof else {}))
    else:
        print(f"{options.out}: {len(plan.targets)} tensors, {total:,} bytes")
        if proof:
            print(proof["text"])
    return 0
