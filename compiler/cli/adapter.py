"""`compile adapter SPEC BASE ADAPTER OUT`: a LoRA of the source's layout as a PEFT adapter of the converted model."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.cli.options import Notes, Parser, print_json, request


def adapter_parser() -> Parser:
    parser = Parser("adapter", "Convert a LoRA for the model that its base model becomes; --reverse for the way back.")
    parser.add_spec()
    parser.add_argument(
        "base", type=Path, metavar="BASE", help="the base model: the source of SPEC (--reverse: its folder)"
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="a file, or the folder of a PEFT adapter")
    parser.add_argument("out", type=Path, metavar="OUT", help="the PEFT folder to write (--reverse: a .pth)")
    parser.add_settings()
    parser.add_field("reverse", "from a PEFT adapter of the converted model to a .pth")
    parser.add_field("force", "write over what is there")
    parser.add_json()
    parser.set_defaults(checksums=False)
    return parser


def adapter(options: argparse.Namespace) -> int:
    from compiler.checkpoints import config_file
    from compiler.jobs.adapter import carry, read_adapter, turned, write_peft, write_plain
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
    beside = options.config or config_file.beside(options.base, "config.json") if plan.reverse else None
    over = turned(program.spec.target, config_file.read_config_file(beside) if beside else plan.config)
    pairs = carry(plan, base.tensors, read_adapter(options.adapter, over if plan.reverse else ()), str(options.adapter))
    with output:
        write_plain(pairs, output.place) if plan.reverse else write_peft(pairs, plan, output.place, over)
        output.finish()
    ranks = sorted({pair.a.shape[0] for pair in pairs.values()})
    if options.json:
        print_json({"out": str(options.out), "weights": len(pairs), "ranks": ranks, "notes": notes.lines()})
    else:
        print(f"{options.out}: adapters of {len(pairs)} weights, of rank {', '.join(map(str, ranks))}")
    return 0
