"""Proposes the rules of a spec for a checkpoint that nobody has described: by names, and by what shapes allow.

Takes the forms of a checkpoint and of a target class; returns a `Draft`: guesses, each with its confidence, and a
question where shapes cannot decide. A guess is one rule. Whatever has a question must be decided by a person (or by
trying) before the spec compiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.draft.companion_tensors import united
from compiler.draft.fuse_steps import Fused, cut, join
from compiler.draft.name_similarity import label, likeness, slug, square
from compiler.draft.reshape_steps import TRANSPOSE, Step, way
from compiler.draft.sizes import Measures
from compiler.draft.tensor_roles import NameFamily

SURE, LIKELY, GUESSED = 1.0, 0.9, 0.5
ROPE = "shapes cannot tell how the rotary pairs lie: as halves, or side by side (then rope_to_half: HEADS)"
ALSO = "; nor whether the rotary pairs of queries and keys lie side by side (then, behind the rest, rearrange only: [0, 1])"
GATE = "shapes cannot tell the gate from the other: exchange the two targets if it is the other way round"
LOOSE = "only the shape and the order speak for this pair"
MADE = "the checkpoint has no such tensor; is it zero there?"
SQUARE = "a square matrix does not show which way round it stands; its neighbours are transposed"
LEFT = "nothing in the target takes this tensor; is it really not needed?"


@dataclass
class Guess:
    """One rule: a `kind` of the language, names, the sizes beside them, steps. `question` is what is undecided,
    `remark` how something was decided."""

    kind: str
    name: str
    sources: list[str]
    targets: list[str]
    steps: list[Step] = field(default_factory=list)
    source_sizes: list[str] = field(default_factory=list)
    target_sizes: list[str] = field(default_factory=list)
    confidence: float = SURE
    question: str = ""
    remark: str = ""

    @property
    def key(self) -> str:
        """What the question is filed under."""
        return self.name or self.sources[0]


@dataclass
class Draft:
    """All rules of a spec to be. `missing`: names of the target that nothing was found for."""

    guesses: list[Guess]
    missing: list[str]


def draft(sources: Sequence[NameFamily], targets: Sequence[NameFamily], ties: dict[str, str], sizes: Measures) -> Draft:
    """The rules that take these forms to those."""
    drafter = _Drafter(list(sources), list(targets), sizes)
    drafter.keep()
    drafter.tie(ties)
    drafter.one_to_one()
    drafter.fused()
    drafter.rest()
    return Draft(drafter.guesses, [form.text for form in drafter.targets])


class _Drafter:
    def __init__(self, sources: list[NameFamily], targets: list[NameFamily], sizes: Measures) -> None:
        self.sources, self.joints = united(sources)
        self.targets, self.sizes = targets, sizes
        self.guesses: list[Guess] = []
        self.all, self.wanted = [*self.sources], [*self.targets]
        self.roles = {form.role for form in targets}
        self.foreign = {f.role for f in sources} & {"q"} and not {f.text for f in sources} & {
            f.text for f in targets if f.role == "q"
        }

    def take(self, sources: Sequence[NameFamily], targets: Sequence[NameFamily]) -> None:
        for form in sources:
            self.sources.remove(form)
        for form in targets:
            self.targets.remove(form)

    def keep(self) -> None:
        """The same name, the same shape: the same tensor."""
        named = {form.text: form for form in self.sources}
        for target in [*self.targets]:
            source = named.get(target.text)
            alike = source is not None and source.shape == target.shape and source.level == target.level
            if source is not None and alike and not (square(source) and self.turned()):
                self.add(Guess("keep", "", [source.text], [target.text]))
                self.take([source], [target])

    def tie(self, ties: dict[str, str]) -> None:
        """The head, where the target shares it with the embedding."""
        if not ties or any(form.role == "head" for form in self.targets):
            return
        owner = next((f for f in self.sources if f.role == "embedding"), None)
        kept = next((g.sources[0] for g in self.guesses if g.targets[0] in ties.values()), "")
        head = next((f for f in self.sources if f.role == "head"), None)
        if head is not None and (owner is not None or kept):
            self.guesses.append(Guess("tie", "", [head.text], [owner.text if owner else kept]))
            self.take([head], [])

    def one_to_one(self) -> None:
        """One tensor of a role on either side."""
        pairs = sorted(
            (
                (likeness(s, t), s, t)
                for t in self.targets
                for s in self.sources
                if (s.role, s.part) == (t.role, t.part)
            ),
            key=lambda pair: (-pair[0], pair[1].text, pair[2].text),
        )
        for _, source, target in pairs:
            if (
                source not in self.sources
                or target not in self.targets
                or source.role in ("other", "norm_other", "qkv")
            ):
                continue
            found = way(source, target) or self.cropped(source, target)
            if found is not None:
                self.pair(source, target, [*found.steps], LIKELY if found.certain else GUESSED)

    def cropped(self, source: NameFamily, target: NameFamily) -> Fused | None:
        """A vocabulary that was padded."""
        if (
            source.role not in ("embedding", "head")
            or source.shape[1:] != target.shape[1:]
            or source.shape[0] < target.shape[0]
        ):
            return None
        step: Step = {"crop": {"axis": 0, "from": "padded_vocab_size", "to": "vocab_size"}}
        return Fused((step,), certain=False)

    def turned(self) -> bool:
        """Whether the target's matrices stand the other way round, which a square one does not show."""
        pairs = [
            (s, t)
            for s in self.all
            for t in self.wanted
            if (s.role, s.part) == (t.role, t.part) and s.level == t.level > 0
        ]
        oblong = [(s, t) for s, t in pairs if len(s.shape) == len(t.shape) == 2 and s.shape[0] != s.shape[1]]
        return bool(oblong) and all(s.shape == t.shape[::-1] for s, t in oblong)

    def pair(
        self, source: NameFamily, target: NameFamily, steps: list[Step], confidence: float, question: str = ""
    ) -> None:
        if square(source) and source.shape == target.shape and not steps and self.turned():
            steps, question = [TRANSPOSE], SQUARE
        if source.role in ("q", "k") and source.part in ("weight", "bias") and "positions" not in self.roles:
            steps, question = self.rotated(source, steps)
        elif source.role.endswith(("gate", "up")) and not (source.plain and target.plain):
            question = "" if source.text.rsplit(".", 2)[1:] == target.text.rsplit(".", 2)[1:] else GATE
        if confidence <= GUESSED and not question:
            question = LOOSE
        kind = "transform" if steps else "rename"
        name = label(target) if steps else ""
        self.add(
            Guess(
                kind,
                name,
                [source.text],
                [target.text],
                steps,
                confidence=GUESSED if question else confidence,
                question=question,
            )
        )
        self.take([source], [target])

    def rotated(self, source: NameFamily, steps: list[Step]) -> tuple[list[Step], str]:
        """Queries and keys under names of their own, without biases or norms, mostly come with their pairs side by side."""
        heads = "num_attention_heads" if source.role == "q" else "num_key_value_heads"
        side_by_side = (
            self.foreign
            and not {"q_norm", "k_norm"} & self.roles
            and not any(f.role == "q" and f.part == "bias" for f in [*self.sources, *self.targets])
        )
        if side_by_side and not steps:
            return [{"rope_to_half": heads}], ROPE.replace("rope_to_half: HEADS", "as here") + "; else a rename"
        return steps, ROPE.replace("HEADS", heads)

    def fused(self) -> None:
        """Several tensors of the target in one of the source, or the other way round."""
        for source in [*self.sources]:
            parts = self.parts(source, self.targets)
            found = cut(source, parts, self.sizes) if parts else None
            if found is not None:
                question = found.question + (ALSO if len(parts) == 3 and "positions" not in self.roles else "")
                self.add(
                    Guess("transform", label(source), [source.text], [f.text for f in parts], [*found.steps],
                          target_sizes=[*found.beside], confidence=GUESSED, question=question)
                )  # fmt: skip
                self.take([source], parts)
        for target in [*self.targets]:
            parts = self.parts(target, self.sources)
            found = join(parts, target, self.sizes) if parts else None
            if found is not None:
                self.add(
                    Guess("transform", label(target), [f.text for f in parts], [target.text], [*found.steps],
                          source_sizes=[*found.beside], confidence=GUESSED, question=found.question)
                )  # fmt: skip
                self.take(parts, [target])
        for source in [*self.sources]:
            same = [t for t in self.targets if t.role == source.role == "qkv" and t.part == source.part]
            if same and (found := cut(source, same[:1], self.sizes)):
                self.pair(source, same[0], [*found.steps], GUESSED, found.question)

    def parts(self, whole: NameFamily, among: Sequence[NameFamily]) -> list[NameFamily]:
        """What a fused tensor is made of, in the usual order."""
        prefix = next((p for p in ("expert_", "shared_") if whole.role.startswith(p)), "")
        roles = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up"), "in": ("gate", "up")}.get(
            whole.role.removeprefix(prefix), ()
        )
        found = []
        for role in roles:
            same = [f for f in among if f.role == prefix + role and f.part == whole.part]
            if not same:
                return []
            found.append(max(same, key=lambda f: likeness(whole, f)))
        return found

    def rest(self) -> None:
        """What is left finds a partner of its shape, is left behind, or is made up; a person must look at each."""
        pairs = [
            (likeness(s, t), s, t)
            for t in self.targets
            for s in self.sources
            if (s.level, s.part) == (t.level, t.part) and way(s, t) is not None
        ]
        for _, source, target in sorted(pairs, key=lambda pair: (-pair[0], pair[1].text, pair[2].text)):
            if source in self.sources and target in self.targets:
                found = way(source, target)
                assert found is not None
                self.pair(source, target, [*found.steps], GUESSED)
        for target in [*self.targets]:
            like = next(
                (
                    g
                    for g in self.guesses
                    if target.part == "bias" and target.text.rsplit(".", 1)[0] + ".weight" in g.targets
                ),
                None,
            )
            if like is not None:
                steps: list[Step] = [{"fill": "zeros", "shape": [str(n) for n in target.shape]}]
                self.add(
                    Guess("create", "", [like.sources[0]], [target.text], steps, confidence=GUESSED, question=MADE)
                )
                self.take([], [target])
        for source in [*self.sources]:
            joint = self.joints.get(source.text)
            for name in joint.names(source.text) if joint else [source.text]:
                self.guesses.append(Guess("ignore", "", [name], [], confidence=GUESSED, question=LEFT))
            self.take([source], [])

    def add(self, guess: Guess) -> None:
        joint = self.joints.get(guess.sources[0])
        if joint is not None:
            guess.sources = [*joint.names(guess.sources[0]), *guess.sources[1:]]
            guess.steps = [*joint.steps, *guess.steps]
            guess.name = guess.name or slug(guess.targets[0])
            guess.kind, guess.confidence = "transform", GUESSED
            guess.question = guess.question or joint.question
        names = {g.name for g in self.guesses}
        base, number = guess.name, 2
        while guess.name and guess.name in names:
            guess.name, number = f"{base}_{number}", number + 1
        self.guesses.append(guess)
