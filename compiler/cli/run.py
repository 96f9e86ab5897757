"""`compile run SPEC SOURCE OUT`: convert a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.cli.options import Meter, Notes, Parser, person, print_json, request
from compiler.cli.verify import add_source_model, verified
from compiler.diagnostics import Diagnostic, Refusal, Span, refuse


def run_parser() -> Parser:
    parser = Parser("run", "Convert a checkpoint into a folder that Transformers loads.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to write (with --reverse also a file: model.pth)"
    )
    parser.add_conversion()
    parser.add_field(
        "tokenizer", "the tokenizer to include: a folder, or a file such as tokenizer.json", type=Path, metavar="PLACE"
    )
    parser.add_field(
        "processor", "the processor to include: a folder with preprocessor_config.json", type=Path, metavar="PLACE"
    )
    parser.add_field("device", "where tensors are computed: cpu or cuda")
    parser.add_field("checksums", "do not compare a .pth file with its own checksums", flag="--no-checksums")
    parser.add_field("check", "do not compare the result with the target class", flag="--no-check")
    parser.add_field("jobs", "number of threads that copy (default: %(default)s)", metavar="N")
    parser.add_field("max_shard_size", "maximum size of a weights file (default: %(default)s)", metavar="SIZE")
    parser.add_to()
    parser.add_field("parts", "with --reverse: write a folder of N tensor-parallel parts", metavar="N")
    parser.add_field("force", "write into a folder that is not empty")
    parser.add_field("resume", "continue a run that was killed or interrupted")
    parser.add_field("check_values", "count NaN and infinity in all values, not in samples")
    parser.add_field("digests", "put the SHA-256 of every source file and tensor into mapspec.json")
    parser.add_argument(
        "--readback",
        action="store_true",
        help="afterwards load config and tokenizer with Transformers and compare them with the files",
    )
    parser.add_argument(
        "--verify", action="store_true", help="afterwards compare the folder with the source, as `verify` does"
    )
    add_source_model(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    from compiler.jobs.convert import convert
    from compiler.jobs.detect import named_program
    from compiler.output.ranks import from_environment

    notes = Notes(silent=options.json)
    if (options.reverse or options.to) and options.verify:
        option = "--reverse" if options.reverse else "--to"
        refuse(
            "compile run",
            f"--verify compares a converted folder with its source; {option} writes no such folder",
            "wrong-usage",
        )
    if options.parts != 1 and not (options.reverse or options.to):
        refuse("compile run", "--parts is an option of --reverse and --to", "wrong-usage", "add --reverse")
    asked = request(options)
    program = named_program(options.spec, asked, notes, person(options))
    with Meter() as meter:
        plan = convert(program, asked, options.out, notes, meter)
    if not from_environment(options.out).leads:  # the leading process does the rest
        return 0
    if options.readback and not (options.reverse or options.to):
        read_back(options.out)
    proof = verified(options, program, asked, options.out) if options.verify else None
    if proof:
        from compiler.model_folder.card import record

        record(options.out, proof)
    total = sum(target.nbytes for target in plan.targets)
    if options.json:
        spec = program.spec.name.value
        tensors = len(plan.targets)
        result = {"out": str(options.out), "spec": spec, "tensors": tensors, "bytes": total, "notes": notes.lines()}
        print_json(result | ({"verified": proof} if proof else {}))
    else:
        print(f"{options.out}: {len(plan.targets)} tensors, {total:,} bytes")
        if proof:
            print(f"{options.out}: {proof['text']}")
    return 0


def read_back(out: Path) -> None:
    """Compare what Transformers loads with what was written. Raises Refusal: `misread-field`."""
    from compiler.verify.read_back import misread

    if lines := misread(out):
        hint = "don't use this folder: where Transformers misreads a field, the model takes the default of its class"
        raise Refusal(Diagnostic(Span(str(out)), line, "misread-field", hint) for line in lines)
