"""`compile plan SPEC SOURCE`: what would become what."""

from __future__ import annotations

import argparse
from typing import Any

from compiler.options import Parser, note, print_json, request


def plan_parser() -> Parser:
    parser = Parser("plan", "Say what would become what, from headers alone.")
    parser.add_spec()
    parser.add_source()
    parser.add_conversion()
    return parser


def plan(options: argparse.Namespace) -> int:
    from compiler.build import load_program
    from compiler.convert import prepare

    found, checkpoint = prepare(load_program(options.spec), request(options), note)
    rows: list[dict[str, Any]] = [
        {
            "targets": [t.name for t in g.target_list],
            "shapes": [list(t.shape) for t in g.target_list],
            "dtype": g.target_list[0].dtype,
            "sources": g.source_names,
            "rule": g.rule.name or g.rule.kind,
            "at": str(g.rule.span),
        }
        for g in found.groups
    ]
    total = sum(target.nbytes for target in found.targets)
    if options.json:
        print_json({"groups": rows, "tensors": len(found.targets), "bytes": total, "config": dict(found.config)})
        return 0
    for row in rows:
        shapes = " ".join(f"{name} {shape}" for name, shape in zip(row["targets"], row["shapes"], strict=True))
        print(f"{', '.join(row['sources'])} -> {shapes} {row['dtype']}  ({row['rule']}, {row['at']})")
    print(f"{len(checkpoint.tensors)} source tensors, {len(found.targets)} targets, {total:,} bytes")
    return 0
