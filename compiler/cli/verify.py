"""`compile verify SPEC SOURCE OUT`: compare a converted folder with the model that it was made from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.cli.options import Meter, Parser, notes_for, person, print_json, request
from compiler.console import usage
from compiler.console.terminal import painter
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, refuse

if TYPE_CHECKING:
    from compiler.jobs.request import Request
    from compiler.program.program import Program
    from compiler.progress import Progress
    from compiler.verify.compare import SourceModel, Verdict
    from compiler.verify.outputs import OutputDifference

LOGITS_NOT_CHECKED = "logits NOT checked — pass --source-spec SPEC or --source-model FILE.py:FUNCTION to compare them"
LATE = 16  # a first difference at this token or later is reported with its position


def verify_parser() -> Parser:
    parser = Parser("verify", "Compare a converted folder with the model that it was made from.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument("out", type=Path, metavar="OUT", help="the converted folder")
    parser.add_settings()
    add_source_model(parser)
    parser.add_json()
    parser.set_defaults(checksums=False)
    return parser


def add_source_model(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the source model. `run --verify` has them too."""
    parser.add_argument(
        "--source-spec",
        metavar="SPEC",
        help="a remote_code spec that reads the same source: its rendered model is the source model",
    )
    parser.add_argument(
        "--source-model",
        metavar="FILE.py:FUNCTION",
        help="the source's own model: a function that is called with one dict, the source's config, and returns a torch "
        "module whose state_dict has the checkpoint's names, or MODULE:CLASS. This runs that code.",
    )
    parser.add_argument(
        "--source-config", type=Path, metavar="FILE", help="the config of --source-model, if it differs from --config"
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="number of tokens in each sequence (default: 64, or more if the config has windows or long contexts)",
    )
    parser.add_argument(
        "--require-logits",
        action="store_true",
        help="fail (exit status 1) unless the outputs of both models are compared",
    )


def verify(options: argparse.Namespace) -> int:
    from compiler.jobs.detect import named_program

    named = dict.fromkeys((options.out, options.config, options.source_config), "unreadable-file")
    usage.check_places("mapspec verify", options.spec, options.source, named)
    usage.check_converted("mapspec verify", options.spec, options.source, options.out)
    asked = request(options)
    with Meter(silent=options.json or options.quiet > 0) as meter:
        notes = notes_for(options, meter)
        program = named_program(options.spec, asked, notes, person(options))
        result = verified(options, program, asked, options.out, meter)
    if options.json:
        print_json(result | {"notes": notes.lines()})
    elif options.quiet < 2:
        print(f"{options.out}: {_painted(result['text'])}")
    return 0


def _painted(text: str) -> str:
    """A verdict with what is not known in the colour of doubt, and the rest in that of success."""
    paint = painter(sys.stdout)
    parts = text.split("; ")
    return "; ".join(
        paint("doubt" if "NOT " in part else "good" if n == 0 else "message", part) for n, part in enumerate(parts)
    )


def verified(
    options: argparse.Namespace, program: Program, asked: Request, out: Path, progress: Progress | None = None
) -> dict[str, Any]:
    """The result of a successful check: its numbers, and a `text` for people. Raises Refusal if a check fails."""
    model = source_model_of(options.source_spec, options.source_model, options.source_config, options.length)
    if model is None:
        if options.length is not None:
            message = "--length is about running the source model, and none is named"
            refuse("mapspec verify", message, "wrong-usage", "add --source-spec or --source-model")
        result = _round_trip(program, asked, out, progress)
        if options.require_logits:
            refuse(str(out), result["text"], "logits-not-checked", "--require-logits needs a source model")
        return result
    from compiler.verify.compare import verify as compare

    verdict = compare(program, asked, out, model, progress)
    if not verdict.agrees:
        raise Refusal(faults(verdict, str(model), out))
    return {"text": agreement(verdict, str(model)), "proof": "logits", "model": str(model)} | numbers(verdict)


def agreement(verdict: Verdict, model: str) -> str:
    """The text of a verdict that agrees."""
    computed = f"in float32 ({' and '.join(verdict.widened)} of its code replaced)" if verdict.widened else "in float32"
    if verdict.narrow:
        computed = f"up to the rounding of {' and '.join(verdict.narrow)}, in which it computes"
    lines = [f"agrees with {model} on {_inputs(verdict)} {computed}: {differences(verdict)}"]
    lines += [f"NOT seen: {line}" for line in verdict.unseen]
    if verdict.unused:
        lines.append(f"NOT used by these inputs: {listed(verdict.unused, 4)}")
    return "; ".join(lines)


def _inputs(verdict: Verdict) -> str:
    """The inputs that ran, such as `2 x 64 tokens`."""
    if set(verdict.inputs) == {"input_ids"} and len(verdict.inputs["input_ids"]) == 2:
        batch, length = verdict.inputs["input_ids"]
        return f"{batch} x {length:,} tokens"
    return ", ".join(f"{name} {list(shape)}" for name, shape in verdict.inputs.items())


def differences(verdict: Verdict) -> str:
    """Each output with its difference."""
    return ", ".join(map(_difference, verdict.outputs))


def _difference(output: OutputDifference) -> str:
    text = f"{output.name}: largest difference {output.difference:.2g} (largest value {output.scale:.3g})"
    if output.divergence is not None and output.argmax is not None:
        text += f", KL {output.divergence:.1e} nats, top-1 agreement {output.argmax:.1%}"
    return text


def numbers(verdict: Verdict) -> dict[str, Any]:
    """The numbers of a verdict, for `--json`."""
    outputs = {
        o.name: {"difference": o.difference, "scale": o.scale, "divergence": o.divergence, "argmax": o.argmax}
        for o in verdict.outputs
    }
    return {
        **outputs[verdict.worst.name],
        "tokens": verdict.tokens,
        "inputs": {name: list(shape) for name, shape in verdict.inputs.items()},
        "outputs": outputs,
        "unseen": list(verdict.unseen),
        "unused": list(verdict.unused),
        "narrow": list(verdict.narrow),
        "widened": list(verdict.widened),
    }


def source_model_of(spec: str | None, entry: str | None, config: Path | None, length: int | None) -> SourceModel | None:
    """The source model: that of a spec, or `entry`, MODULE:CLASS or FILE.py:FUNCTION; None if neither is named. Raises
    Refusal: `wrong-usage`."""
    from compiler.program.loading import load_program

    if spec and entry:
        refuse(
            "mapspec verify", "--source-spec and --source-model both name the source model", "wrong-usage", "pass one"
        )
    if length is not None and length < 2:
        refuse("mapspec verify", f"--length {length}: it must be 2 or more", "wrong-usage", "as in --length 64")
    if config and not entry:
        refuse("mapspec verify", "--source-config is the config of --source-model", "wrong-usage", "add --source-model")
    if not spec and not entry:
        return None
    from compiler.verify.compare import SourceModel

    if spec:
        program = load_program(spec)
        if program.spec.target.model is not None:
            message = "--source-spec needs a spec with its own code, and its target is a Transformers class"
            refuse(program.spec.path, message, "wrong-usage", "pass the source's own class with --source-model")
        return SourceModel(program, length=length)
    assert entry is not None
    module, _, name = entry.rpartition(":")
    if not module or not name.isidentifier() or (":" in module and not module.endswith(".py")):
        message = f"{entry!r} is neither MODULE:CLASS nor FILE.py:FUNCTION"
        refuse("--source-model", message, "wrong-usage", "as in --source-model trainer.model:Transformer")
    if module.endswith(".py") and not Path(module).is_file():
        refuse("--source-model", f"there is no file {module!r}", "unreadable-file", usage.nearest_path(Path(module)))
    return SourceModel(None, entry, config, length)


def faults(verdict: Verdict, model: str, out: Path) -> list[Diagnostic]:
    """The difference between the models, at the rules or the config field that explain it."""
    where = f", first in {verdict.module} (by {verdict.departs:.2g})" if verdict.module else ""
    worst = verdict.worst
    if worst.first is not None and worst.first >= LATE and verdict.tokens:
        where += f", at token {worst.first + 1:,} and later"
    wrong = [output for output in verdict.outputs if not output.agrees]
    right = [output.name for output in verdict.outputs if output.agrees]
    agreeing = f"; {listed(right)} agree{'s' * (len(right) == 1)}" if right else ""
    message = f"differs from {model}{where}: {', '.join(map(_difference, wrong))}{agreeing}"
    if verdict.field is not None:
        name, old, new = verdict.field.name, verdict.field.old, verdict.field.new
        message = f"{name} = {old!r} in config.json is wrong: the folder {message}"
        return [Diagnostic(Span(str(out)), message, "diverging-model", f"with {name} = {new!r} the two models agree")]
    if verdict.layout is not None:
        modules = " and ".join(verdict.layout.modules)
        lines = f"rule{'s' * (len(verdict.rules) > 1)} at line{'s' * (len(verdict.rules) > 1)}"
        message = (
            f"rope layout of {modules}: {lines} {listed(str(r.span.line) for r in verdict.rules)}: {out} {message}"
        )
        hint = f"with {verdict.layout.op} on their rows the two models agree"
        return [Diagnostic(verdict.rules[0].span, message, "diverging-model", hint)]
    if not verdict.rules:
        hint = (
            "neither a single rule nor a usual value of a config field explains it: compare the fields of config.json"
            if verdict.searched
            else "too little memory to search for the rule at fault: the search takes three times the memory of the model"
        )
        return [Diagnostic(Span(str(out)), message, "diverging-model", hint)]
    names = listed(r.name or str(r.targets[0]) for r in verdict.rules)
    hint = (
        "with other weights for this rule the two models agree: check its names and ops"
        if len(verdict.rules) == 1
        else f"with other weights for these rules the two models agree: {names}"
    )
    return [Diagnostic(rule.span, f"{out} {message}", "diverging-model", hint) for rule in verdict.rules]


def _round_trip(program: Program, asked: Request, out: Path, progress: Progress | None) -> dict[str, Any]:
    from compiler.verify.round_trip import round_trip

    result = round_trip(program, asked, out, progress)
    if result.differences:
        raise Refusal(
            Diagnostic(d.rule.span, f"{d.name} {d.text}, from {out}", "changed-tensor", "convert the source again")
            for d in result.differences
        )
    counts = [f"exact ({result.equal} tensors)"] * bool(result.equal or not result.rounded)
    counts += [f"equal up to rounding ({result.rounded} tensors)"] * bool(result.rounded)
    text = f"round trip {', '.join(counts)}; {LOGITS_NOT_CHECKED}"
    return {"text": text, "proof": "weights", "equal": result.equal, "rounded": result.rounded}
