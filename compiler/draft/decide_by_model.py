"""Decides what shapes leave open by running the source's own model: of the candidates one computes what it computes.

Takes a proposal, its checkpoint and the model. Questions about one thing (the rotary layout of all queries and keys, gate
and up of one MLP, a fused matrix and its bias) are one choice; every combination of choices is run on the same tokens
and its logits are held to the model's. Returns the proposal with each choice made that all combinations which agree
share, the margin in its remark, and a sentence. Refuses a model that cannot be run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.diagnostics import Refusal, listed
from compiler.draft.decide_by_example import ROTATIONS, alternatives, heads_of, plan_of, replaced_by
from compiler.draft.name_similarity import slug
from compiler.draft.proposal import Proposal
from compiler.draft.reshape_steps import TRANSPOSE, Step
from compiler.draft.rules import GATE, ROPE, SQUARE, SURE, Guess
from compiler.draft.sizes import in_all_words
from compiler.jobs.request import Request
from compiler.model_folder.sidecar_files import texts
from compiler.plan.plan import Plan
from compiler.verify.compare import Run, SourceModel, Verdict, draw_tokens, judged, run_job, source_job
from compiler.verify.run_model import Job, Trial

MOST = 128  # combinations that are run
APART = 10  # how much farther than the right ones the others must be
Choice = Mapping[int, Guess]  # by the number of the guess


def consult(
    proposal: Proposal, checkpoint: Checkpoint, request: Request, model: SourceModel, run: Run = run_job
) -> tuple[Proposal, str]:
    """The proposal with the questions answered that the model answers, and what came of it. Raises Refusal."""
    if proposal.draft.missing:
        return proposal, f"{model} was not run: nothing was found for {listed(proposal.draft.missing)}"
    first = plan_of(proposal, checkpoint)
    questions = []
    for choices in _choices(proposal):
        possible = [c for c in choices if _like(first, _chosen(proposal, [c]), checkpoint) is not None]
        questions += [possible] if len(possible) > 1 else []
    count = math.prod(map(len, questions))
    if not questions or count > MOST:
        why = (
            f"{count} combinations are too many" if questions else "no question has candidates that it could tell apart"
        )
        return proposal, f"{model} was not run: {why}"
    ways = list(product(*(range(len(choices)) for choices in questions)))
    chosen = [_chosen(proposal, [q[n] for q, n in zip(questions, way, strict=True)]) for way in ways]
    plans = [_like(first, other, checkpoint) or first for other in chosen]
    values = in_all_words({**proposal.sizes.values, **first.config}) | dict(first.values)
    verdicts = _held(plans, replace(first, values=values), request, model, run)
    right = [n for n, verdict in enumerate(verdicts) if verdict.agrees]
    if not right:
        apart = min(verdict.difference for verdict in verdicts)
        return (
            proposal,
            f"of {count} combinations none computes what {model} computes; logits differ by {apart:.2g} at least",
        )
    decided = 0
    for place, choices in enumerate(questions):
        found = {ways[n][place] for n in right}
        within = max(verdicts[n].difference for n in right)
        others = [v.difference for n, v in enumerate(verdicts) if ways[n][place] not in found]
        if len(found) != 1 or min(others) < APART * within:
            continue
        remark = f"logits agree within {within:.2g}, else they differ by {min(others):.2g} or more"
        for number, guess in choices[found.pop()].items():
            decided += 1
            proposal = replaced_by(proposal, number, replace(guess, confidence=SURE, question="", remark=remark))
    return (
        proposal,
        f"of {count} combinations {len(right)} compute{'s' * (len(right) == 1)} what {model} computes; {decided} questions are decided",
    )


def _held(plans: list[Plan], plan: Plan, request: Request, model: SourceModel, run: Run) -> list[Verdict]:
    """What each of the plans makes of the checkpoint, held to the model, which is built from the values of `plan`."""
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        place = Path(name)
        folder = place / "folder"
        folder.mkdir()
        for file, text in texts(plan).items():
            (folder / file).write_text(text, encoding="utf-8")
        ids = draw_tokens(plan, plan.config, model.length)
        job = Job(
            plan.program, tuple(request.source), plan, folder, False, "", {}, frozenset(), {}, "", ids, request.weights
        )
        asked = replace(source_job(job, plan, request, model, place, ""), trials=[Trial()])
        theirs = run(place / "source", asked)["logits.0"]
        ours = run(place / "target", replace(job, trials=[Trial(plan=other) for other in plans]))
    return [judged(theirs, ours[f"logits.{n}"]) for n in range(len(plans))]


def _like(first: Plan, proposal: Proposal, checkpoint: Checkpoint) -> Plan | None:
    """The plan of a proposal where it writes the same tensors in the same shapes as the first."""
    try:
        plan = plan_of(proposal, checkpoint)
    except Refusal:
        return None
    same = {(t.name, t.shape) for t in plan.targets} == {(t.name, t.shape) for t in first.targets}
    return plan if same else None


def _chosen(proposal: Proposal, choices: list[Choice]) -> Proposal:
    for choice in choices:
        for number, guess in choice.items():
            proposal = replaced_by(proposal, number, guess)
    return proposal


# ---------------------------------------------------------------------------------------------------------------------


def _choices(proposal: Proposal) -> Iterator[list[Choice]]:
    """For each thing that is asked about, what may be meant."""
    about: dict[tuple[str, str], dict[int, Guess]] = {}
    for number, guess in enumerate(proposal.draft.guesses):
        if guess.question:
            about.setdefault(_thing(guess), {})[number] = guess
    for (question, _), guesses in about.items():
        if question == ROPE:
            yield [{n: _turned(g, word) for n, g in guesses.items()} for word in ("", *ROTATIONS)]
        elif question == SQUARE:
            yield [{n: _stepped(g, steps) for n, g in guesses.items()} for steps in ([TRANSPOSE], [])]
        elif question == GATE:
            yield [guesses, _exchanged(guesses)]
        else:
            each = [alternatives(guess) for guess in guesses.values()]
            yield [dict(zip(guesses, some, strict=True)) for some in zip(*each, strict=False)]


def _thing(guess: Guess) -> tuple[str, str]:
    """What a question is about: guesses with one answer have one thing."""
    if guess.question.startswith(ROPE.partition("(")[0]):
        return ROPE, ""
    if guess.question == SQUARE:
        return SQUARE, ""
    if guess.question == GATE:
        return GATE, guess.targets[0].rsplit(".", 2)[0]
    return guess.question, guess.sources[0].rpartition(".")[0]


def _turned(guess: Guess, word: str) -> Guess:
    steps = [step for step in guess.steps if not step.keys() & {*ROTATIONS}]
    return _stepped(guess, [*steps, {word: heads_of(guess)}] if word else steps)


def _stepped(guess: Guess, steps: list[Step]) -> Guess:
    if not steps:
        return replace(guess, kind="rename", name="", steps=[])
    return replace(guess, kind="transform", name=guess.name or slug(guess.targets[0]), steps=steps)


def _exchanged(guesses: Choice) -> dict[int, Guess]:
    """The targets of weights, and of biases, the other way round."""
    found = dict(guesses)
    for leaf in {guess.targets[0].rpartition(".")[2] for guess in guesses.values()}:
        same = [n for n, guess in guesses.items() if guess.targets[0].endswith(f".{leaf}")]
        for number, other in zip(same, reversed(same), strict=True):
            found[number] = replace(guesses[number], targets=guesses[other].targets)
    return found
