"""`compile verify SPEC SOURCE OUT`: compares a converted folder with the model that it was made from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.cli.options import Parser, notes, print_json, program_of, request
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, refuse

if TYPE_CHECKING:
    from compiler.verify.compare import SourceModel, Verdict
    from compiler.verify.outputs import OutputDifference

LOGITS_NOT_CHECKED = "logits NOT checked — pass --source-spec SPEC or --source-model MODULE:CLASS to compare them"


LATE = 16  # tokens that agree before the first difference, from which on that is said


def verify_parser() -> Parser:
    parser = Parser("verify", "Compare a converted folder with the model that it was made from.")
    parser.add_spec()
    parser.add_source()
    parser.add_argument("out", type=Path, metavar="OUT", help="the converted folder")
    parser.add_settings()
    add_source_model(parser)
    parser.add_json()
    parser.set_defaults(dtype=None, reverse=False)
    return parser


def add_source_model(parser: argparse.ArgumentParser) -> None:
    """The options that name the source model; `run --verify` has them too."""
    parser.add_argument(
        "--source-spec",
        metavar="SPEC",
        help="a remote_code spec that reads the same source: its rendered model is the source model",
    )
    parser.add_argument(
        "--source-model",
        metavar="MODULE:CLASS",
        help="the source's own model, or FILE.py:FUNCTION: called with one dict, the source's config, it returns a torch "
        "module whose state_dict has the checkpoint's names. This runs that code.",
    )
    parser.add_argument(
        "--source-config", type=Path, metavar="FILE", help="the config of --source-model, if it is not that of --config"
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="how many tokens to run in each sequence (default: 64, or what windows and long contexts of the config need)",
    )
    parser.add_argument(
        "--require-logits",
        action="store_true",
        help="fail (exit status 1) unless the outputs of both models are compared",
    )


def verify(options: argparse.Namespace) -> int:
    lines, say = notes(options)
    result = verified(options, program_of(options, say), request(options), options.out)
    print_json(result | {"notes": lines}) if options.json else print(f"{options.out}: {result['text']}")
    return 0


def verified(options: argparse.Namespace, program: Any, asked: Any, out: Path) -> dict[str, Any]:
    """The result of a successful check: its numbers, and a `text` for people. Raises Refusal where a check fails."""
    model = source_model(options)
    if model is None:
        result = _round_trip(program, asked, out)
        if options.require_logits:
            refuse(str(out), result["text"], "logits-not-checked", "--require-logits needs a source model")
        return result
    from compiler.verify.compare import verify as compare

    found = compare(program, asked, out, model)
    if not found.agrees:
        raise Refusal(faults(found, str(model), out))
    return {"text": agreement(found, str(model)), "proof": "logits", "model": str(model)} | numbers(found)


def agreement(found: Verdict, model: str) -> str:
    """The text of a verdict that agrees."""
    computed = f"in float32 ({' and '.join(found.widened)} of its code replaced)" if found.widened else "in float32"
    if found.narrow:
        computed = f"up to the rounding of {' and '.join(found.narrow)}, in which it computes"
    lines = [f"agrees with {model} on {_inputs(found)} {computed}: {differences(found)}"]
    lines += [f"NOT seen: {line}" for line in found.unseen]
    if found.unused:
        lines.append(f"NOT used by these inputs: {listed(found.unused, 4)}")
    return "; ".join(lines)


def _inputs(found: Verdict) -> str:
    """The inputs that ran, such as `2 x 64 tokens`."""
    if set(found.inputs) == {"input_ids"} and len(found.inputs["input_ids"]) == 2:
        batch, length = found.inputs["input_ids"]
        return f"{batch} x {length:,} tokens"
    return ", ".join(f"{name} {list(shape)}" for name, shape in found.inputs.items())


def differences(found: Verdict) -> str:
    """Each output with its difference."""
    return ", ".join(map(_difference, found.outputs))


def _difference(output: OutputDifference) -> str:
    text = f"{output.name}: largest difference {output.difference:.2g} (largest value {output.scale:.3g})"
    if output.divergence is not None and output.argmax is not None:
        text += f", KL {output.divergence:.1e} nats, top-1 agreement {output.argmax:.1%}"
    return text


def numbers(found: Verdict) -> dict[str, Any]:
    """A verdict for tools."""
    outputs = {
        o.name: {"difference": o.difference, "scale": o.scale, "divergence": o.divergence, "argmax": o.argmax}
        for o in found.outputs
    }
    return {
        **outputs[found.worst.name],
        "tokens": found.tokens,
        "inputs": {name: list(shape) for name, shape in found.inputs.items()},
        "outputs": outputs,
        "unseen": list(found.unseen),
        "unused": list(found.unused),
        "narrow": list(found.narrow),
        "widened": list(found.widened),
    }


def source_model(options: argparse.Namespace) -> SourceModel | None:
    """The source model that the options name, or None. Raises Refusal."""
    from compiler.program.loading import load_program

    if options.source_spec and options.source_model:
        refuse(
            "compile verify", "--source-spec and --source-model both name the source model", "wrong-usage", "pass one"
        )
    if options.length is not None and options.length < 2:
        refuse("compile verify", f"--length {options.length}: the least is 2", "wrong-usage")
    if not options.source_spec and not options.source_model:
        return None
    from compiler.verify.compare import SourceModel

    if options.source_spec:
        program = load_program(options.source_spec)
        if program.spec.target.remote_code is None:
            message = "--source-spec needs a spec whose target is `remote_code`, and this one has none"
            refuse(program.spec.path, message, "wrong-usage", "pass the source's own class with --source-model")
        return SourceModel(program, length=options.length)
    module, _, name = options.source_model.rpartition(":")
    if not module or not name.isidentifier() or (":" in module and not module.endswith(".py")):
        message = f"{options.source_model!r} is neither MODULE:CLASS nor FILE.py:FUNCTION"
        refuse("--source-model", message, "wrong-usage")
    return SourceModel(None, options.source_model, options.source_config, options.length)


def faults(found: Verdict, model: str, out: Path) -> list[Diagnostic]:
    """Where the models differ, at the rules or the field that explain it."""
    where = f", first in {found.module} (by {found.departs:.2g})" if found.module else ""
    worst = found.worst
    if worst.first is not None and worst.first >= LATE and found.tokens:
        where += f", at token {worst.first + 1:,} and later"
    wrong = [output for output in found.outputs if not output.agrees]
    right = [output.name for output in found.outputs if output.agrees]
    agreeing = f"; {listed(right)} agree{'s' * (len(right) == 1)}" if right else ""
    message = f"differs from {model}{where}: {', '.join(map(_difference, wrong))}{agreeing}"
    if found.field is not None:
        name, old, new = found.field.name, found.field.old, found.field.new
        message = f"{name} = {old!r} in config.json is wrong: the folder {message}"
        return [Diagnostic(Span(str(out)), message, "diverging-model", f"with {name} = {new!r} the two agree")]
    if found.layout is not None:
        modules = " and ".join(found.layout.modules)
        lines = f"rule{'s' * (len(found.rules) > 1)} at line{'s' * (len(found.rules) > 1)}"
        message = f"rope layout of {modules}: {lines} {listed(str(r.span.line) for r in found.rules)}: {out} {message}"
        hint = f"with {found.layout.op} on their rows the two agree"
        return [Diagnostic(found.rules[0].span, message, "diverging-model", hint)]
    if not found.rules:
        hint = (
            "no single rule and no usual value of a config field explains it: compare the fields of config.json"
            if found.searched
            else "there is too little memory to look for the rule at fault: that takes three times the model's"
        )
        return [Diagnostic(Span(str(out)), message, "diverging-model", hint)]
    names = listed(r.name or str(r.targets[0]) for r in found.rules)
    hint = (
        "with other weights for this rule the two agree: look at its names and ops"
        if len(found.rules) == 1
        else f"with other weights for {'one' if found.undecided else 'all'} of these rules the two agree: {names}"
    )
    return [Diagnostic(rule.span, f"{out} {message}", "diverging-model", hint) for rule in found.rules]


def _round_trip(program: Any, asked: Any, out: Path) -> dict[str, Any]:
    from compiler.verify.round_trip import round_trip

    found = round_trip(program, asked, out)
    if found.differences:
        raise Refusal(
            Diagnostic(d.rule.span, f"{d.name} {d.text}, from {out}", "changed-tensor", "convert the source again")
            for d in found.differences
        )
    counts = [f"exact ({found.equal} tensors)"] * bool(found.equal or not found.rounded)
    counts += [f"equal up to rounding ({found.rounded} tensors)"] * bool(found.rounded)
    text = f"round trip {', '.join(counts)}; {LOGITS_NOT_CHECKED}"
    return {"text": text, "proof": "weights", "equal": found.equal, "rounded": found.rounded}
