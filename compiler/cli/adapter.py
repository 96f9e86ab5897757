"""`compile adapter SPEC BASE ADAPTER OUT`: convert a LoRA of the source's layout to a PEFT adapter, or back."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler import packages
from compiler.cli.options import Parser, notes_for, person, print_json, request
from compiler.console import usage


def adapter_parser() -> Parser:
    parser = Parser("adapter", "Convert a LoRA to fit its converted base model, or back with --reverse.")
    parser.add_spec()
    parser.add_argument(
        "base", type=Path, metavar="BASE", help="the base model: the source of SPEC (--reverse: the converted folder)"
    )
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="the adapter: a PEFT folder, or a file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the PEFT folder to write (--reverse: a .pth file)")
    parser.add_settings()
    parser.add_field("reverse", "convert a PEFT adapter of the converted model to a .pth file")
    parser.add_field("force", "replace what an earlier run wrote")
    parser.add_json()
    parser.set_defaults(checksums=False)
    return parser


def adapter(options: argparse.Namespace) -> int:
    from compiler.checkpoints import config_file
    from compiler.jobs.adapter import carry, check_copies
    from compiler.jobs.detect import named_program
    from compiler.jobs.option_effects import check_effects
    from compiler.jobs.peft_format import module_kinds, peft_files, read_adapter, write_peft, write_plain
    from compiler.jobs.prepare import prepare
    from compiler.output.atomic_output import AtomicOutput
    from compiler.plan.notes import Remark

    packages.need("mapspec adapter")
    notes = notes_for(options)
    options.source = [options.base]
    named = dict.fromkeys((options.adapter, options.config), "unreadable-file")
    usage.check_places("mapspec adapter", options.spec, options.source, named)
    asked = request(options)
    check_effects(asked)
    program = named_program(options.spec, asked, notes, person(options))
    output = AtomicOutput(options.out, options.force, folder=not options.reverse)
    output.check()
    prepared = prepare(program, asked, notes)
    plan, base = prepared.plan, prepared.checkpoint
    spec = program.spec
    config = options.config or config_file.beside(options.base, "config.json" if plan.reverse else spec.source_config)
    fields = config_file.read_config_file(config) if plan.reverse and config else plan.config
    kinds = module_kinds(spec.target, fields)
    given = read_adapter(options.adapter, kinds) if plan.reverse else read_adapter(options.adapter)
    check_copies(base, given, str(options.adapter))
    pairs = carry(plan, base.tensors, given.pairs, str(options.adapter))
    reads = [options.base, options.adapter, *base.files, *base.indexes, *given.files, Path(spec.path)]
    output.protect([*reads, *([config] if config else [])], peft_files())
    with output:
        write_plain(pairs, output.place) if plan.reverse else write_peft(pairs, plan, output.place, kinds)
        output.finish()
    for line in output.notes:
        notes(Remark(line))
    ranks = sorted({pair.a.shape[0] for pair in pairs.values()})
    if options.json:
        print_json({"out": str(options.out), "weights": len(pairs), "ranks": ranks, "notes": notes.lines()})
    elif options.quiet < 2:
        place = f"{options.out}{'/' * options.out.is_dir()}"
        print(f"wrote {place} · adapters of {len(pairs)} weights · rank {', '.join(map(str, ranks))}")
    return 0
