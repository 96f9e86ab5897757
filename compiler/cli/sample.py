"""`mapspec sample DIR`: write a small checkpoint to try the commands on."""

from __future__ import annotations

import argparse
from pathlib import Path

from compiler.cli.options import Parser, print_json


def sample_parser() -> Parser:
    parser = Parser("sample", "Write a small checkpoint with random weights, its config, tokenizer and a LoRA.")
    parser.add_argument("out", type=Path, metavar="DIR", help="the folder to write")
    parser.add_json()
    return parser


def sample(options: argparse.Namespace) -> int:
    from compiler.jobs.sample import write_sample

    names = write_sample(options.out)
    if options.json:
        print_json({"out": str(options.out), "files": names})
    else:
        print(f"{options.out}: {', '.join(names)}")
        print(f"next: mapspec detect {options.out / 'model.pth'}")
    return 0
