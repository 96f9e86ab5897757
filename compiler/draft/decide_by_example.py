"""Answers a draft's questions with a second checkpoint: the same model, already converted by someone else.

`decide_by_example` takes a proposal, the checkpoint and the converted one. A question is answered where exactly one
alternative reproduces the tensors of the converted checkpoint bit for bit; all others stay questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import dense, read_bytes
from compiler.diagnostics import Refusal
from compiler.draft.fuse_steps import IN_GROUPS, PAIRED
from compiler.draft.name_similarity import slug
from compiler.draft.reshape_steps import TRANSPOSE, Step
from compiler.draft.rules import GATE, LOOSE, SURE, Draft, Guess
from compiler.draft.spec_text import Proposal
from compiler.executor.execute import arrange_group
from compiler.language.parser import load_spec
from compiler.layout.moves import extents, lower
from compiler.plan.bind import bind
from compiler.plan.plan import Group, Plan
from compiler.program.environment import Environment, NamedShapes
from compiler.program.loading import compile_spec

REPRODUCED = "reproduces the converted checkpoint"
ROTATIONS = ("rope_to_half", "rope_to_interleaved")


def decide_by_example(proposal: Proposal, checkpoint: Checkpoint, answer: Checkpoint) -> Proposal:
    """The proposal without the questions that the converted checkpoint `answer` decides."""
    proposal = _exchange_targets(proposal, checkpoint, answer)
    for number, guess in enumerate(proposal.draft.guesses):
        if not guess.question:
            continue
        fitting = [other for other in alternatives(guess) if _reproduces(proposal, number, other, checkpoint, answer)]
        if len(fitting) == 1:
            proposal = with_guess(
                proposal, number, replace(fitting[0], confidence=SURE, question="", remark=REPRODUCED)
            )
    return proposal


def _exchange_targets(proposal: Proposal, checkpoint: Checkpoint, answer: Checkpoint) -> Proposal:
    """Exchanges the targets of two rules that shapes do not distinguish where the converted checkpoint has them so."""
    asked = [n for n, guess in enumerate(proposal.draft.guesses) if guess.question in (GATE, LOOSE)]
    for one, other in combinations(asked, 2):
        a, b = proposal.draft.guesses[one], proposal.draft.guesses[other]
        if (a.question, a.shape) != (b.question, b.shape):
            continue
        if any(_reproduces(proposal, n, g, checkpoint, answer) for n, g in ((one, a), (other, b))):
            continue
        exchanged = with_guess(proposal, one, replace(a, targets=b.targets))
        exchanged = with_guess(exchanged, other, replace(b, targets=a.targets))
        right = [_reproduces(exchanged, n, exchanged.draft.guesses[n], checkpoint, answer) for n in (one, other)]
        if all(right) or (a.question == LOOSE and any(right)):  # of three or more, one exchange after another
            proposal = exchanged
    return proposal


def with_guess(proposal: Proposal, number: int, guess: Guess) -> Proposal:
    """The proposal with guess `number` replaced; its step gets a name that no other step has."""
    guesses = [*proposal.draft.guesses]
    others = {other.name for n, other in enumerate(guesses) if n != number}
    name, count = guess.name, 2
    while name and name in others:
        name, count = f"{guess.name}_{count}", count + 1
    guesses[number] = replace(guess, name=name)
    return replace(proposal, draft=Draft(guesses, proposal.draft.missing))


def heads_argument(guess: Guess) -> str:
    """The argument that counts the heads of a guess's tensor: that of keys and values, or that of queries."""
    word = "num_key_value_heads"
    return word if word in f"{guess.question} {guess.steps}" else "num_attention_heads"


def alternatives(guess: Guess) -> list[Guess]:
    """The guess itself and every other rule that its shapes allow."""
    found = [guess]
    found += (other for other in _variants(guess) if other not in found)
    return found


def _variants(guess: Guess) -> Iterator[Guess]:
    name = guess.name or slug("_".join(guess.targets))
    if len(guess.sources) == len(guess.targets) == 1 and guess.kind in ("rename", "transform"):
        ways: list[list[Step]] = [[], *([{word: heads_argument(guess)}] for word in ROTATIONS), [TRANSPOSE]]
        for steps in ways:
            if steps != guess.steps:
                yield replace(guess, kind="transform" if steps else "rename", name=name if steps else "", steps=steps)
    elif guess.kind == "transform" and len(guess.targets) > 1:
        for order in list(permutations(range(len(guess.targets))))[1:]:
            yield replace(
                guess,
                targets=[guess.targets[n] for n in order],
                target_sizes=[guess.target_sizes[n] for n in order] if guess.target_sizes else [],
            )
        for steps, rows in _qkv_layouts(guess) if len(guess.targets) == 3 else ():
            yield replace(guess, steps=steps, target_sizes=rows)
            yield replace(guess, steps=[*steps, PAIRED], target_sizes=rows)
    elif guess.kind == "transform" and len(guess.sources) > 1:
        for order in list(permutations(range(len(guess.sources))))[1:]:
            yield replace(
                guess,
                sources=[guess.sources[n] for n in order],
                source_sizes=[guess.source_sizes[n] for n in order] if guess.source_sizes else [],
            )


def _qkv_layouts(guess: Guess) -> Iterator[tuple[list[Step], list[str]]]:
    """The ways to store queries, keys and values in one matrix: steps, and the sizes of the targets."""
    yield guess.steps, guess.target_sizes
    if guess.steps != [{"split": 0}]:  # not twice: of two equal answers neither would count as the only one
        yield [{"split": 0}], ["num_attention_heads * head_dim", *["num_key_value_heads * head_dim"] * 2]
    yield [*IN_GROUPS], []


def _reproduces(proposal: Proposal, number: int, guess: Guess, checkpoint: Checkpoint, answer: Checkpoint) -> bool:
    """Whether the rule, written as `guess`, reproduces the tensors of the converted checkpoint."""
    try:
        plan = plan_of(with_guess(proposal, number, guess), checkpoint)
    except Refusal:
        return False
    groups = [g for g in plan.groups if set(g.rule.sources[0].text.split()) <= set(guess.sources) and g.source_names]
    return bool(groups) and all(_same_bytes(group, checkpoint, answer) for group in groups[:2])


def plan_of(proposal: Proposal, checkpoint: Checkpoint) -> Plan:
    """The plan of the draft without its questions, bound to the checkpoint. Raises Refusal."""
    program = compile_spec(load_spec(f"{proposal.name}.yaml", proposal.text(decided=True)))
    return bind(program, checkpoint.tensors, Environment(program, NamedShapes(checkpoint.tensors), {}))


def _same_bytes(group: Group, checkpoint: Checkpoint, answer: Checkpoint) -> bool:
    try:
        arrays = arrange_group(group, checkpoint)
    except NotImplementedError:
        return False
    for slot, targets in zip(arrays.slots, group.targets.slots, strict=True):
        for key, target in targets.items():
            wanted = answer.tensors.get(target.name)
            if wanted is None or (wanted.dtype, tuple(wanted.shape)) != (target.dtype, target.shape):
                return False
            made = bytearray(target.nbytes)
            for move in lower(slot[key]):
                for extent in extents(move):
                    with open(extent.source, "rb") as file:
                        file.seek(extent.source_offset)
                        made[extent.target_offset : extent.target_offset + extent.length] = file.read(extent.length)
            if bytes(made) != bytes(read_bytes(dense(wanted))):
                return False
    return True
