"""`compile adapter SPEC BASE ADAPTER OUT`: convert a LoRA of the source's layout to a PEFT adapter, or back."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.cli.options import Notes, Parser, print_json, request


def adapter_parser() -> Parser:
    parser = Parser(
        "adapter",
        "Convert a LoRA of the source's layout to a PEFT adapter of the converted model, or back with --reverse.",
    )
    parser.add_spec()
    parser.add_argument(
        "base", type=Path, metavar="BASE", help="the base model: the source of SPEC (--reverse: the converted folder)"
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the adapter: a file, or a PEFT folder")
    parser.add_argument("out", type=Path, metavar="OUT", help="the PEFT folder to write (--reverse: a .pth file)")
    parser.add_settings()
    parser.add_field("reverse", "convert a PEFT adapter of the converted model to a .pth file")
    parser.add_field("force", "overwrite OUT")
    parser.add_json()
    parser.set_defaults(checksums=False)
    return parser


def adapter(options: argparse.Namespace) -> int:
    from compiler.checkpoints import config_file
    from compiler.jobs.adapter import carry, in_out_weights, read_adapter, write_peft, write_plain
    from compiler.jobs.detect import named_program
    from compiler.jobs.prepare import prepare
    from compiler.output.atomic_output import AtomicOutput

    notes = Notes(silent=options.json)
    options.source = [options.base]
    asked = request(options)
    program = named_program(options.spec, asked, notes)
    output = AtomicOutput(options.out, options.force, folder=not options.reverse)
    output.check()
    prepared = prepare(program, asked, notes)
    plan, base = prepared.plan, prepared.checkpoint
    path = options.config or config_file.beside(options.base, "config.json") if plan.reverse else None
    in_out = in_out_weights(program.spec.target, config_file.read_config_file(path) if path else plan.config)
    pairs = carry(
        plan, base.tensors, read_adapter(options.adapter, in_out if plan.reverse else ()), str(options.adapter)
    )
    with output:
        write_plain(pairs, output.place) if plan.reverse else write_peft(pairs, plan, output.place, in_out)
        output.finish()
    ranks = sorted({pair.a.shape[0] for pair in pairs.values()})
    if options.json:
        print_json({"out": str(options.out), "weights": len(pairs), "ranks": ranks, "notes": notes.lines()})
    else:
        print(f"{options.out}: adapters of {len(pairs)} weights, of rank {', '.join(map(str, ranks))}")
    return 0
