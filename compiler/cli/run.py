"""`compile run SPEC SOURCE OUT`: convert a checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from compiler import packages
from compiler.cli.options import Meter, Parser, notes_for, person, print_json, request
from compiler.cli.verify import add_source_model, verified
from compiler.console import usage
from compiler.console.terminal import painter, plain
from compiler.diagnostics import Diagnostic, Refusal, Span, refuse
from compiler.plan_report.text import config_lines, size

if TYPE_CHECKING:
    from compiler.plan.plan import Plan

Paint = Callable[[str, str], str]
LARGE = 50_000_000  # bytes from which on the time is that of writing


def run_parser() -> Parser:
    parser = Parser("run", "Convert a checkpoint into a folder that Transformers loads.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="the folder to write (with --reverse also a file: model.pth)"
    )
    parser.add_conversion("q8_0")
    parser.add_field(
        "tokenizer", "the tokenizer to include: a folder, or a file such as tokenizer.json", type=Path, metavar="PLACE"
    )
    parser.add_field(
        "processor", "the processor to include: a folder with preprocessor_config.json", type=Path, metavar="PLACE"
    )
    parser.add_field("device", "where tensors are computed: cpu or cuda")
    parser.add_field("checksums", "do not compare a .pth file with its own checksums", flag="--no-checksums")
    parser.add_field("check", "do not compare the result with the target class", flag="--no-check")
    parser.add_field("jobs", "number of threads that copy (default: %(default)s, at most 256)", metavar="N")
    parser.add_field("max_shard_size", "maximum size of a weights file (default: %(default)s)", metavar="SIZE")
    parser.add_to()
    parser.add_field("container", "store the weights as torch.distributed.checkpoint does: dcp", choices=["dcp"])
    parser.add_field("parts", "with --reverse: write a folder of N tensor-parallel parts", metavar="N")
    parser.add_field(
        "ranks", "the same for several kinds of ranks: tensor, pipeline and expert parallel", metavar="tp=N,pp=N,ep=N"
    )
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
    from compiler.output import safetensors_layout
    from compiler.output.ranks import from_environment
    from compiler.plan.config_table import config_table

    check_modes(options)
    safetensors_layout.parse_size(options.max_shard_size)
    kinds = {options.tokenizer: "missing-tokenizer", options.processor: "missing-processor"}
    usage.check_places("mapspec run", options.spec, options.source, {options.config: "unreadable-file", **kinds})
    if options.verify:
        packages.need("mapspec run --verify")
    if options.readback:
        packages.need("mapspec run --readback", "transformers")
    asked = request(options)
    with Meter(silent=options.json or options.quiet > 0) as meter:
        notes = notes_for(options, meter)
        program = named_program(options.spec, asked, notes, person(options))
        start = time.monotonic()
        plan = convert(program, asked, options.out, notes, meter)
        seconds = time.monotonic() - start
        if not from_environment(options.out).leads:  # the leading process does the rest
            return 0
        if options.readback:
            read_back(options.out)
        proof = verified(options, program, asked, options.out, meter) if options.verify else None
    if proof:
        from compiler.model_folder.card import record

        record(options.out, proof)
    total = sum(target.nbytes for target in plan.targets)
    if options.json:
        spec = program.spec.name.value
        tensors = len(plan.targets)
        result = {"out": str(options.out), "spec": spec, "tensors": tensors, "bytes": total, "notes": notes.lines()}
        print_json(result | ({"verified": proof} if proof else {}))
    elif options.quiet < 2:
        paint = painter(sys.stdout)
        print(result_line(plan, options.out, seconds, paint))
        if proof:
            print(f"{paint('good', 'verified')} {options.out}: {proof['text']}")
        if options.verbose:
            print("\n".join(config_lines(config_table(plan), paint)))
        if not options.quiet and not proof and not asked.backwards:
            spec = program.spec.name.value if options.spec == "auto" else options.spec
            words = shlex.join([spec, *usage.source_words(options), str(options.out)])
            print(paint("command", f"next: mapspec verify {words}"))
    return 0


def check_modes(options: argparse.Namespace) -> None:
    """Raises Refusal: `wrong-usage` for options that only another mode has."""
    option = "--reverse" if options.reverse else "--to" if options.to else ""
    checks = {
        "verify": "--verify compares a converted folder with its source",
        "readback": "--readback loads a converted folder with Transformers",
    }
    for name, what in checks.items():
        if option and getattr(options, name):
            refuse("mapspec run", f"{what}; {option} writes no such folder", "wrong-usage", f"leave --{name} out")
    for flag, value in (("--parts", options.parts != 1), ("--ranks", options.ranks)):
        if value and not option:
            refuse("mapspec run", f"{flag} is an option of --reverse and --to", "wrong-usage", "add --reverse")
    for name in ("source_spec", "source_model", "source_config", "length", "require_logits"):
        if getattr(options, name) and not options.verify:
            flag = "--" + name.replace("_", "-")
            refuse("mapspec run", f"{flag} is an option of --verify", "wrong-usage", "add --verify")


def result_line(plan: Plan, out: Path, seconds: float, paint: Paint = plain) -> str:
    """What was written: `wrote out/ · ModelForCausalLM · 291 tensors · 2.39 GB · 2.1 s · 1.1 GB/s`."""
    total = sum(target.nbytes for target in plan.targets)
    place = f"{out}/" if out.is_dir() and not str(out).endswith("/") else str(out)
    words = [f"{len(plan.targets):,} tensors", size(total), f"{seconds:.2g} s" if seconds < 10 else f"{seconds:,.0f} s"]
    words += [] if plan.reverse else [f"{size(int(total / max(seconds, 1e-9)))}/s"] * (total >= LARGE)
    name = [] if plan.reverse else [plan.program.spec.target.class_name]
    return " · ".join([f"{paint('good', 'wrote')} {paint('heading', place)}", *name, *words])


def read_back(out: Path) -> None:
    """Compare what Transformers loads with what was written. Raises Refusal: `misread-field`."""
    from compiler.verify.read_back import misread

    if lines := misread(out):
        hint = "don't use this folder: where Transformers misreads a field, the model takes the default of its class"
        raise Refusal(Diagnostic(Span(str(out)), line, "misread-field", hint) for line in lines)
