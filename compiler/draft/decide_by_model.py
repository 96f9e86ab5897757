"""Answers a draft's questions by running the source's own model and comparing logits.

Questions about one subject (the rotary layout of all queries and keys, gate and up of one MLP, a fused matrix and its
bias) are one choice. `decide_by_model` runs every combination of choices in the target class on the same tokens. A
choice is made where all combinations whose logits agree with the source model's share it, and where the others differ
by at least `MARGIN` times more. Raises Refusal for a source model that cannot be run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import Refusal, listed
from compiler.draft.decide_by_example import ROTATIONS, alternatives, heads_argument, plan_of, with_guess
from compiler.draft.fuse_steps import PAIRED
from compiler.draft.name_similarity import slug
from compiler.draft.reshape_steps import TRANSPOSE, Step
from compiler.draft.rules import GATE, LOOSE, ROPE, SQUARE, SURE, Guess
from compiler.draft.sizes import with_synonyms
from compiler.draft.spec_text import Proposal
from compiler.jobs.request import Request
from compiler.model_folder.sidecar_files import texts
from compiler.plan.plan import Plan
from compiler.verify.compare import Run, SourceModel, run_job, source_job, vocabulary
from compiler.verify.job import Job, Trial
from compiler.verify.outputs import compare_outputs, tolerance
from compiler.verify.sequence_length import BASE, POSITIONS

MOST_COMBINATIONS = 128  # combinations that are run at most
MOST_EXCHANGED = 4  # tensors of one shape whose targets are exchanged
MARGIN = 10  # the others must differ by this many times more
Choice = Mapping[int, Guess]  # number of a guess -> the guess to use


def decide_by_model(
    proposal: Proposal, checkpoint: Checkpoint, request: Request, model: SourceModel, run: Run = run_job
) -> tuple[Proposal, str]:
    """The proposal without the questions that the model decides, and a sentence to print. Raises Refusal."""
    if proposal.draft.missing:
        return proposal, f"{model} was not run: the draft has no source for {listed(proposal.draft.missing)}"
    first = plan_of(proposal, checkpoint)
    questions = []
    for choices in _choices(proposal):
        possible = [c for c in choices if _comparable_plan(first, _with_choices(proposal, [c]), checkpoint) is not None]
        questions += [possible] if len(possible) > 1 else []
    count = math.prod(map(len, questions))
    if not questions or count > MOST_COMBINATIONS:
        why = (
            f"{count} combinations are too many"
            if questions
            else "no question has alternatives that logits could tell apart"
        )
        return proposal, f"{model} was not run: {why}"
    ways = list(product(*(range(len(choices)) for choices in questions)))
    chosen = [_with_choices(proposal, [q[n] for q, n in zip(questions, way, strict=True)]) for way in ways]
    plans = [_comparable_plan(first, other, checkpoint) for other in chosen]
    runnable = [n for n, plan in enumerate(plans) if plan is not None]
    ways, plans = [ways[n] for n in runnable], [plans[n] for n in runnable]
    count = len(ways)
    values = with_synonyms({**proposal.sizes.values, **first.config}) | dict(first.values)
    differences = _run_combinations(plans, replace(first, values=values), checkpoint, request, model, run)
    right = [n for n, (agrees, _) in enumerate(differences) if agrees]
    if not right:
        apart = min(difference for _, difference in differences)
        return (
            proposal,
            f"none of {count} combinations gives the logits of {model}; they differ by {apart:.2g} or more",
        )
    decided = 0
    for place, choices in enumerate(questions):
        found = {ways[n][place] for n in right}
        within = max(differences[n][1] for n in right)
        others = [difference for n, (_, difference) in enumerate(differences) if ways[n][place] not in found]
        found = _without_idle_pairs(choices, found)
        if len(found) != 1 or min(others, default=0.0) < MARGIN * within:
            continue
        remark = f"logits agree within {within:.2g}; with the alternatives they differ by {min(others):.2g} or more"
        for number, guess in choices[found.pop()].items():
            decided += 1
            proposal = with_guess(proposal, number, replace(guess, confidence=SURE, question="", remark=remark))
    return (
        proposal,
        f"{len(right)} of {count} combinations give{'s' * (len(right) == 1)} the logits of {model}; {decided} questions decided",
    )


def _without_idle_pairs(choices: Sequence[Choice], found: set[int]) -> set[int]:
    """The numbers of `found` choices, without those that only add `PAIRED` to another: where both give the right logits,
    nothing rotates, and queries and keys may be permuted alike."""

    def plain(choice: Choice) -> Choice:
        return {
            n: replace(guess, steps=[step for step in guess.steps if step != PAIRED]) for n, guess in choice.items()
        }

    return {n for n in found if not any(m != n and choices[m] == plain(choices[n]) for m in found)}


def _run_combinations(
    plans: Sequence[Plan | None],
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    model: SourceModel,
    run: Run,
) -> list[tuple[bool, float]]:
    """For each of the plans whether its outputs agree with those of the source model, which is built from the values of
    `plan`, and the largest difference of an output; infinite if it cannot run."""
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        place = Path(name)
        folder = place / "folder"
        folder.mkdir()
        for file, text in texts(plan).items():
            (folder / file).write_text(text, encoding="utf-8")
        job = Job(plan.program, tuple(request.source), plan, weights=request.weights, trials=(Trial(),))
        asked = source_job(job, plan, checkpoint, request, model, place, "")
        trials = tuple(Trial(plan=other) for other in plans)
        length = min([model.length or BASE, *(n for key in POSITIONS if isinstance(n := plan.config.get(key), int))])
        ours = run(
            place / "target",
            replace(job, folder=folder, length=length, below=vocabulary(plan), trials=trials),
        )
        theirs = run(place / "source", replace(asked, inputs=ours.inputs))
    close = tolerance(theirs.narrow)
    compared = [compare_outputs(theirs.outputs[0], outputs, close) for outputs in ours.outputs]
    return [
        (bool(found) and all(o.agrees for o in found), max((o.difference for o in found), default=math.inf))
        for found in compared
    ]


def _comparable_plan(first: Plan, proposal: Proposal, checkpoint: Checkpoint) -> Plan | None:
    """The plan of a proposal if it writes the same tensors and shapes as `first`, else None."""
    try:
        plan = plan_of(proposal, checkpoint)
    except Refusal:
        return None
    same = {(t.name, t.shape) for t in plan.targets} == {(t.name, t.shape) for t in first.targets}
    return plan if same else None


def _with_choices(proposal: Proposal, choices: list[Choice]) -> Proposal:
    for choice in choices:
        for number, guess in choice.items():
            proposal = with_guess(proposal, number, guess)
    return proposal


# ---------------------------------------------------------------------------------------------------------------------


def _choices(proposal: Proposal) -> Iterator[list[Choice]]:
    """For each subject with open questions, its alternatives."""
    about: dict[tuple[str, str], dict[int, Guess]] = {}
    for number, guess in enumerate(proposal.draft.guesses):
        if guess.question:
            about.setdefault(_subject(guess), {})[number] = guess
    for (question, _), guesses in about.items():
        if question == ROPE:
            yield [{n: _with_rotation(g, word) for n, g in guesses.items()} for word in ("", *ROTATIONS)]
        elif question == SQUARE:
            yield [{n: _with_steps(g, steps) for n, g in guesses.items()} for steps in ([TRANSPOSE], [])]
        elif question == GATE:
            yield [guesses, _swap_gates(guesses)]
        elif question == LOOSE and 1 < len(guesses) <= MOST_EXCHANGED:
            targets = [guess.targets for guess in guesses.values()]
            yield [
                {n: replace(g, targets=other) for (n, g), other in zip(guesses.items(), order, strict=True)}
                for order in permutations(targets)
            ]
        else:
            each = [alternatives(guess) for guess in guesses.values()]
            yield [dict(zip(guesses, some, strict=True)) for some in zip(*each, strict=False)]


def _subject(guess: Guess) -> tuple[str, str]:
    """What a question is about. Guesses with the same subject are decided together."""
    if guess.question.startswith(ROPE.partition("(")[0]):
        return ROPE, ""
    if guess.question == SQUARE:
        return SQUARE, ""
    if guess.question == LOOSE:
        return LOOSE, f"{guess.shape} {guess.steps}"
    if guess.question == GATE:
        return GATE, guess.targets[0].rsplit(".", 2)[0]
    return guess.question, guess.sources[0].rpartition(".")[0]


def _with_rotation(guess: Guess, word: str) -> Guess:
    steps = [step for step in guess.steps if not step.keys() & {*ROTATIONS}]
    return _with_steps(guess, [*steps, {word: heads_argument(guess)}] if word else steps)


def _with_steps(guess: Guess, steps: list[Step]) -> Guess:
    if not steps:
        return replace(guess, kind="rename", name="", steps=[])
    return replace(guess, kind="transform", name=guess.name or slug(guess.targets[0]), steps=steps)


def _swap_gates(guesses: Choice) -> dict[int, Guess]:
    """The guesses with their targets exchanged, weights with weights and biases with biases."""
    found = dict(guesses)
    for leaf in {guess.targets[0].rpartition(".")[2] for guess in guesses.values()}:
        same = [n for n, guess in guesses.items() if guess.targets[0].endswith(f".{leaf}")]
        for number, other in zip(same, reversed(same), strict=True):
            found[number] = replace(guesses[number], targets=guesses[other].targets)
    return found
