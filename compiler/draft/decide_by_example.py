"""Decides what shapes leave open, by trying: a second checkpoint holds what should come out.

Takes a proposal, the checkpoint and the answer (the same model, converted by someone else); returns the proposal with
every guess that one alternative alone makes come out right, bit for bit. What no alternative explains stays a question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, permutations

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.draft.fuse_steps import IN_GROUPS, PAIRED
from compiler.draft.proposal import Proposal
from compiler.draft.reshape_steps import TRANSPOSE, Step
from compiler.draft.rules import GATE, SURE, Draft, Guess
from compiler.executor.execute import arrange_group
from compiler.language.parser import load_spec
from compiler.layout.moves import extents, lower
from compiler.plan.bind import bind
from compiler.plan.plan import Group, Plan
from compiler.program.environment import Environment, NamedShapes
from compiler.program.loading import compile_spec

LIKE = "gives the bytes of the other checkpoint"
ROTATIONS = ("rope_to_half", "rope_to_interleaved")


def decide(proposal: Proposal, checkpoint: Checkpoint, answer: Checkpoint) -> Proposal:
    """The same proposal with the questions answered that the second checkpoint answers."""
    proposal = _exchanged(proposal, checkpoint, answer)
    for number, guess in enumerate(proposal.draft.guesses):
        if not guess.question:
            continue
        fitting = [other for other in alternatives(guess) if _fits(proposal, number, other, checkpoint, answer)]
        if len(fitting) == 1:
            proposal = replaced_by(proposal, number, replace(fitting[0], confidence=SURE, question="", remark=LIKE))
    return proposal


def _exchanged(proposal: Proposal, checkpoint: Checkpoint, answer: Checkpoint) -> Proposal:
    """Gate and the other matrix of an MLP change places where that is what the answer says."""
    asked = [n for n, guess in enumerate(proposal.draft.guesses) if guess.question == GATE]
    for one, other in combinations(asked, 2):
        a, b = proposal.draft.guesses[one], proposal.draft.guesses[other]
        if any(_fits(proposal, n, g, checkpoint, answer) for n, g in ((one, a), (other, b))):
            continue
        swapped = replaced_by(proposal, one, replace(a, targets=b.targets))
        swapped = replaced_by(swapped, other, replace(b, targets=a.targets))
        if all(_fits(swapped, n, swapped.draft.guesses[n], checkpoint, answer) for n in (one, other)):
            proposal = swapped
    return proposal


def replaced_by(proposal: Proposal, number: int, guess: Guess) -> Proposal:
    """The proposal with another guess at this place."""
    guesses = [*proposal.draft.guesses]
    guesses[number] = guess
    return replace(proposal, draft=Draft(guesses, proposal.draft.missing))


def heads_of(guess: Guess) -> str:
    """The word for how many heads it has, as its question or its steps name it."""
    word = "num_key_value_heads"
    return word if word in f"{guess.question} {guess.steps}" else "num_attention_heads"


def alternatives(guess: Guess) -> list[Guess]:
    """The guess, and what the shapes allow beside it, each once."""
    found = [guess]
    found += (other for other in _others(guess) if other not in found)
    return found


def _others(guess: Guess) -> Iterator[Guess]:
    name = guess.name or "tried"
    if len(guess.sources) == len(guess.targets) == 1 and guess.kind in ("rename", "transform"):
        ways: list[list[Step]] = [[], *([{word: heads_of(guess)}] for word in ROTATIONS), [TRANSPOSE]]
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
        for steps, rows in _layouts(guess) if len(guess.targets) == 3 else ():
            yield replace(guess, steps=steps, target_sizes=rows)
            yield replace(guess, steps=[*steps, PAIRED], target_sizes=rows)
    elif guess.kind == "transform" and len(guess.sources) > 1:
        for order in list(permutations(range(len(guess.sources))))[1:]:
            yield replace(
                guess,
                sources=[guess.sources[n] for n in order],
                source_sizes=[guess.source_sizes[n] for n in order] if guess.source_sizes else [],
            )


def _layouts(guess: Guess) -> Iterator[tuple[list[Step], list[str]]]:
    """How queries, keys and values may lie in one matrix: steps, and sizes beside the names."""
    yield guess.steps, guess.target_sizes
    if guess.steps != [{"split": 0}]:  # the same in other words, and of two right answers neither would be taken
        yield [{"split": 0}], ["num_attention_heads * head_dim", *["num_key_value_heads * head_dim"] * 2]
    yield [*IN_GROUPS], []


def _fits(proposal: Proposal, number: int, guess: Guess, checkpoint: Checkpoint, answer: Checkpoint) -> bool:
    """Whether the rule, written so, makes what the answer holds."""
    try:
        plan = plan_of(replaced_by(proposal, number, guess), checkpoint)
    except Refusal:
        return False
    groups = [g for g in plan.groups if set(g.rule.sources[0].text.split()) <= set(guess.sources) and g.source_names]
    return bool(groups) and all(_same(group, checkpoint, answer) for group in groups[:2])


def plan_of(proposal: Proposal, checkpoint: Checkpoint) -> Plan:
    """The draft, its questions left out, bound to its checkpoint. Raises Refusal."""
    program = compile_spec(load_spec(f"{proposal.name}.yaml", proposal.text(decided=True)))
    return bind(program, checkpoint.tensors, Environment(program, NamedShapes(checkpoint.tensors), {}))


def _same(group: Group, checkpoint: Checkpoint, answer: Checkpoint) -> bool:
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
            if bytes(made) != bytes(read_bytes(wanted)):
                return False
    return True
