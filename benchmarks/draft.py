"""How much of a spec `compile draft` finds by itself: each shipped spec is hidden and drafted again.

Given are the names, shapes and types of the spec's example checkpoint, the target class, and the fields of the target's
config; with --bare only the fields of the source's own config, so that sizes must be measured from shapes. A rule is counted
once for each folded name of the target; it is identical where the same bytes of the same source tensors land in the
same places of every such tensor, compared as layouts. Wrong rules must be marked as undecided. Targets with code of
their own have no class to draft for and are left out.

    python -m benchmarks.draft [--bare] [SPEC ...]        # prints the table; --wrong lists the rules that differ
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.diagnostics import Refusal
from compiler.draft.proposal import propose
from compiler.draft.spec_text import Proposal
from compiler.draft.tensor_roles import name_families
from compiler.language.parser import load_spec
from compiler.layout import array as layout
from compiler.layout.moves import lower
from compiler.plan.bind import bind
from compiler.plan.plan import Group, Plan
from compiler.program.environment import Environment, Given, NamedShapes
from compiler.program.inverse import SourceShapes, TensorShape, invert
from compiler.program.loading import compile_spec, load_program
from compiler.program.program import Program
from compiler.proof.proof import prove, target_signature

SPECS = sorted((Path(__file__).parent.parent / "specs").glob("*.yaml"))


@dataclass
class Result:
    """`rules` of a spec, how many of them are `identical`, how many of the others are `marked`; `proven` once the
    questions are left out, `asked` questions in all."""

    spec: str
    rules: int = 0
    identical: int = 0
    marked: int = 0
    asked: int = 0
    proven: bool = False
    problem: str = ""
    wrong: tuple[str, ...] = ()


def example(program: Program) -> tuple[dict[str, TensorShape], dict[str, Any], Plan]:
    """The source of a spec's first example, the target's config, and the plan of the spec for it."""
    spec = program.spec
    given = {name: Given(value, "the example") for name, (value, _) in spec.examples[0].items()}
    env = Environment(program, SourceShapes(program, {}), given, trusted=True)
    config = {f.name: env.evaluate(f.expr) if f.expr else f.constant for f in spec.config}
    shapes = {n: tuple(s) for n, s in target_signature(program, config).shapes.items()}
    env = Environment(program, SourceShapes(program, shapes), given, trusted=True)
    source = invert(program, env, shapes)
    arguments = {n: g for n, g in given.items() if n in spec.arguments}
    return source, config, bind(program, source, Environment(program, NamedShapes(source), arguments))


def draft(program: Program, source: Mapping[str, TensorShape], config: Mapping[str, Any]) -> Proposal:
    spec = program.spec
    shapes = {name: (tuple(form.shape), form.dtype) for name, form in source.items()}
    return propose(f"{spec.name.value}_draft", shapes, spec.target.class_name, config)


def meaning(plan: Plan, source: Mapping[str, TensorShape]) -> dict[str, object]:
    """Target name -> the source bytes that fill it, comparable between plans."""
    return {name: what for group in plan.groups for name, what in _filled(group, source).items()}


def _filled(group: Group, source: Mapping[str, TensorShape]) -> dict[str, object]:
    bundle: Any = group.sources.map(lambda name: _array(name, source[name]))  # type: ignore[arg-type,return-value]
    try:
        for op in group.ops:
            bundle = op.apply(bundle, layout.LayoutAlgebra())
    except NotImplementedError:
        ops = tuple(replace(op) for op in group.ops)
        return {target.name: (ops, tuple(group.source_names), target.shape) for target in group.target_list}
    pairs = [(t, slot[k]) for slot, ts in zip(bundle.slots, group.targets.slots, strict=True) for k, t in ts.items()]
    return {target.name: (target.shape, tuple(lower(array))) for target, array in pairs}


def _array(name: str, form: TensorShape) -> layout.Array:
    return layout.source(name, form.dtype, tuple(form.shape))


def own_words(program: Program) -> dict[str, Any]:
    """The source's config: the spec's arguments with the values of its example, or their defaults."""
    spec = program.spec
    defaults = {name: argument.default for name, argument in spec.arguments.items() if argument.default is not None}
    return defaults | {name: value for name, (value, _) in spec.examples[0].items() if name in spec.arguments}


def measured(path: Path, bare: bool = False) -> Result:
    """Hide one spec, draft it again, compare."""
    program = load_program(str(path))
    result = Result(path.stem)
    source, config, plan = example(program)
    truth = meaning(plan, source)
    forms = name_families({target.name: (target.shape, target.dtype) for target in plan.targets})
    result.rules = len(forms)
    try:
        proposal = draft(program, source, own_words(program) if bare else config)
        result.asked = len(proposal.questions)
        text = proposal.text(decided=True)
        drafted = compile_spec(load_spec(f"{proposal.name}.yaml", text))
        env = Environment(drafted, NamedShapes(source), {})
        made = meaning(bind(drafted, source, env), source)
    except Refusal as refusal:
        result.problem = str(refusal).splitlines()[0]
        result.wrong = tuple(form.text for form in forms)
        return result
    questions = proposal.questions
    doubted = {t for guess in proposal.draft.guesses if guess.question for t in guess.targets} | set(questions)
    wrong = []
    for form in forms:
        if all(made.get(name) == truth[name] for name in form.names):
            result.identical += 1
            continue
        result.marked += form.text in doubted
        wrong.append(form.text + ("" if form.text in doubted else "  NOT MARKED"))
    result.wrong = tuple(wrong)
    try:
        prove(drafted)
        result.proven = True
    except Refusal as refusal:
        result.problem = str(refusal).splitlines()[0]
    return result


def main(words: list[str]) -> None:
    names = {word for word in words if not word.startswith("--")}
    total = Result("all")
    print(f"{'spec':32} rules  identical  wrong  marked  questions  proven")
    for path in SPECS:
        if (names and path.stem not in names) or load_program(str(path)).spec.target.model is None:
            continue
        one = measured(path, "--bare" in words)
        wrong = one.rules - one.identical
        print(
            f"{one.spec:32} {one.rules:5}  {one.identical:9}  {wrong:5}  {one.marked:6}  {one.asked:9}  {'yes' if one.proven else 'no'}"
        )
        if "--wrong" in words:
            print("".join(f"    {text}\n" for text in (*one.wrong, *([one.problem] if one.problem else []))), end="")
        total.rules += one.rules
        total.identical += one.identical
        total.marked += one.marked
        total.asked += one.asked
    share = total.identical / max(1, total.rules)
    print(
        f"{'all':32} {total.rules:5}  {total.identical:9}  {total.rules - total.identical:5}  {total.marked:6}  {total.asked:9}"
    )
    print(f"identical: {share:.1%}; wrong and marked: {total.marked} of {total.rules - total.identical}")


if __name__ == "__main__":
    main(sys.argv[1:])
