"""Proposes the rules of a spec for an unknown checkpoint, from names and shapes.

`draft` takes the name families of a checkpoint and of a target class and returns a `Draft`: a list of guesses, each of
them one rule with a confidence, and with a question where shapes do not decide. The spec compiles only after every
question has been decided, by a person, by a converted checkpoint or by running the source's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compiler.draft.companion_tensors import merge_companions
from compiler.draft.fuse_steps import Fused, concat_steps, split_steps
from compiler.draft.module_pairs import module_of, pair_modules
from compiler.draft.name_similarity import label, similarity, slug, square
from compiler.draft.reshape_steps import TRANSPOSE, Reshaping, Step, reshape
from compiler.draft.sizes import Sizes
from compiler.draft.tensor_roles import FUSED, NameFamily, Shape
from compiler.ops.rearrange_notation import ROPE_TO_HALF

SURE, LIKELY, GUESSED = 1.0, 0.9, 0.5
ROPE = "shapes do not reveal how rotary pairs are stored: as halves, or interleaved (then rope_to_half: HEADS)"
ALSO = (
    "; nor whether the rotary pairs of queries and keys are interleaved (then add a last step: "
    f"{{rearrange: '{ROPE_TO_HALF}', sizes: {{pair: head_dim // 2, two: 2}}, only: [0, 1]}})"
)
GATE = "shapes do not distinguish gate and up: exchange the two targets if this draft has them the wrong way round"
LOOSE = "paired by shape and order only"
CREATED = "the checkpoint has no such tensor; is it zero in the source?"
SQUARE = "a square matrix does not show whether it is transposed; the other matrices of its layer are"
UNUSED = "no target tensor takes it: write a rule for it, or list it under ignore with the reason"


@dataclass
class Guess:
    """One rule: its `kind` in the language, names, sizes of split or joined parts, steps. `question` is what is undecided,
    `remark` how it was decided."""

    kind: str
    name: str
    sources: list[str]
    targets: list[str]
    steps: list[Step] = field(default_factory=list)
    source_sizes: list[str] = field(default_factory=list)
    target_sizes: list[str] = field(default_factory=list)
    confidence: float = SURE
    shape: Shape = ()  # of the target, where it is one tensor
    question: str = ""
    remark: str = ""

    @property
    def key(self) -> str:
        """The key of its question under `undecided`."""
        return self.name or self.sources[0]


@dataclass
class Draft:
    """The rules of a drafted spec. `missing`: target tensors that no source tensor matches."""

    guesses: list[Guess]
    missing: list[str]


def draft(
    sources: Sequence[NameFamily],
    targets: Sequence[NameFamily],
    ties: dict[str, str],
    sizes: Sizes,
    rotary: bool = True,
) -> Draft:
    """The rules from these source families to these target families. `rotary`: whether the class may rotate its queries."""
    drafter = _Drafter(list(sources), list(targets), sizes, rotary)
    drafter.keep()
    drafter.tie(ties)
    drafter.divide()
    drafter.one_to_one()
    drafter.fused()
    drafter.siblings()
    drafter.by_module()
    drafter.rest()
    return Draft(drafter.guesses, [family.text for family in drafter.targets])


class _Drafter:
    def __init__(self, sources: list[NameFamily], targets: list[NameFamily], sizes: Sizes, rotary: bool) -> None:
        self.sources, self.companions = merge_companions(sources)
        self.targets, self.sizes = targets, sizes
        self.guesses: list[Guess] = []
        self.all, self.wanted = [*self.sources], [*self.targets]
        self.roles = {family.role for family in targets}
        self.rotary = rotary and "positions" not in self.roles
        self.renamed_queries = {f.role for f in sources} & {"q"} and not {f.text for f in sources} & {
            f.text for f in targets if f.role == "q"
        }

    def take(self, sources: Sequence[NameFamily], targets: Sequence[NameFamily]) -> None:
        for family in sources:
            self.sources.remove(family)
        for family in targets:
            self.targets.remove(family)

    def keep(self) -> None:
        """Pairs tensors of the same name and shape."""
        named = {family.text: family for family in self.sources}
        for target in [*self.targets]:
            source = named.get(target.text)
            alike = source is not None and source.shapes == target.shapes and source.level == target.level
            if source is not None and alike and not (square(source) and self.transposed_layout()):
                self.add(Guess("keep", "", [source.text], [target.text]))
                self.take([source], [target])

    def tie(self, ties: dict[str, str]) -> None:
        """Ties the head to the embedding where the target class shares them."""
        if not ties or any(family.role == "head" for family in self.targets):
            return
        owner = next((f for f in self.sources if f.role == "embedding"), None)
        kept = next((g.sources[0] for g in self.guesses if g.targets[0] in ties.values()), "")
        head = next((f for f in self.sources if f.role == "head"), None)
        if head is not None and (owner is not None or kept):
            self.guesses.append(Guess("tie", "", [head.text], [owner.text if owner else kept]))
            self.take([head], [])

    def divide(self) -> None:
        """Divides families whose shapes differ by stage. Only now: a part's name says too little to keep it."""
        sources, targets = self.sources, self.targets
        self.sources, self.targets = _stages_apart(sources, targets), _stages_apart(targets, sources)

    def one_to_one(self) -> None:
        """Pairs tensors that have the same role on both sides, most similar names first."""
        pairs = sorted(
            (
                (similarity(s, t), s, t)
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
            found = reshape(source, target) or self.cropped(source, target)
            if found is not None:
                self.pair(source, target, [*found.steps], LIKELY if found.certain else GUESSED)

    def cropped(self, source: NameFamily, target: NameFamily) -> Fused | None:
        """Steps that crop a padded vocabulary, or None."""
        if (
            source.role not in ("embedding", "head")
            or not (source.shape and target.shape)
            or source.shape[1:] != target.shape[1:]
            or source.shape[0] < target.shape[0]
        ):
            return None
        step: Step = {"crop": {"axis": 0, "from": "padded_vocab_size", "to": "vocab_size"}}
        return Fused((step,), certain=False)

    def transposed_layout(self) -> bool:
        """Whether the target stores its matrices transposed, as every non-square pair of the same role shows."""
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
        if square(source) and source.shape == target.shape and not steps and self.transposed_layout():
            steps, question = [TRANSPOSE], SQUARE
        if source.role in ("q", "k") and source.part in ("weight", "bias") and self.rotary:
            steps, question = self.rotated(source, steps)
        elif source.role.endswith(("gate", "up")) and not (source.clear and target.clear):
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
                shape=target.shape,
                question=question,
            )
        )
        self.take([source], [target])

    def rotated(self, source: NameFamily, steps: list[Step]) -> tuple[list[Step], str]:
        """Steps and question for queries and keys. Projects with their own names for them, and without biases or norms on
        them, mostly store rotary pairs interleaved."""
        heads = "num_attention_heads" if source.role == "q" else "num_key_value_heads"
        side_by_side = (
            self.renamed_queries
            and not {"q_norm", "k_norm"} & self.roles
            and not any(f.role == "q" and f.part == "bias" for f in [*self.all, *self.wanted])
        )
        if side_by_side and not steps:
            return [{"rope_to_half": heads}], ROPE.replace("rope_to_half: HEADS", "as here") + "; else a rename"
        return steps, ROPE.replace("HEADS", heads)

    def fused(self) -> None:
        """Splits fused source tensors and concatenates the parts of fused target tensors."""
        for source in [*self.sources]:
            parts = self.parts(source, self.targets)
            found = split_steps(source, parts, self.sizes) if parts else None
            if found is not None:
                question = found.question + (ALSO if len(parts) == 3 and self.rotary else "")
                self.add(
                    Guess("transform", label(source), [source.text], [f.text for f in parts], [*found.steps],
                          target_sizes=[*found.name_sizes], confidence=GUESSED, question=question)
                )  # fmt: skip
                self.take([source], parts)
        for target in [*self.targets]:
            parts = self.parts(target, self.sources)
            found = concat_steps(parts, target, self.sizes) if parts else None
            if found is not None:
                self.add(
                    Guess("transform", label(target), [f.text for f in parts], [target.text], [*found.steps],
                          source_sizes=[*found.name_sizes], confidence=GUESSED, question=found.question)
                )  # fmt: skip
                self.take(parts, [target])
        for source in [*self.sources]:
            same = [t for t in self.targets if t.role == source.role == "qkv" and t.part == source.part]
            if same and (found := split_steps(source, same[:1], self.sizes)):
                self.pair(source, same[0], [*found.steps], GUESSED, found.question)

    def parts(self, whole: NameFamily, among: Sequence[NameFamily]) -> list[NameFamily]:
        """The families that make up a fused tensor, in the usual order; empty if one is missing."""
        prefix = next((p for p in ("expert_", "shared_") if whole.role.startswith(p)), "")
        roles = (FUSED | {"gate_up": ("gate", "up"), "in": ("gate", "up")}).get(whole.role.removeprefix(prefix), ())
        found = []
        for role in roles:
            same = [f for f in among if f.role == prefix + role and f.part == whole.part]
            if not same:
                return []
            found.append(max(same, key=lambda f: (f.shape[1:] == whole.shape[1:], similarity(whole, f))))
        return found

    def siblings(self) -> None:
        """Pairs the other tensors of modules of which one tensor is paired."""
        for guess in [*self.guesses]:
            if guess.kind == "tie" or len(guess.sources) != 1 or len(guess.targets) != 1:
                continue
            (ours, leaf), (theirs, _) = module_of(guess.sources[0]), module_of(guess.targets[0])
            sources = {module_of(f.text)[1]: f for f in self.sources if module_of(f.text)[0] == ours != f.text}
            targets = {module_of(f.text)[1]: f for f in self.targets if module_of(f.text)[0] == theirs != f.text}
            for leaf in [leaf for leaf in targets if leaf in sources]:
                if reshape(sources[leaf], targets[leaf]) == Reshaping(()):
                    loose = guess.question in (LOOSE, GATE)
                    self.pair(sources[leaf], targets[leaf], [], GUESSED if loose else LIKELY, guess.question * loose)

    def by_module(self) -> None:
        """Pairs modules by the shapes of all their tensors, then those whose numbers only one side writes as an index."""
        for unfolds in ((), (0,), (1,), (0, 1)):
            sides = []
            for n, families in enumerate((self.sources, self.targets)):
                pairs = [(family, part) for family in families
                         for part in (family.unfold() if n in unfolds and family.level else [family])]  # fmt: skip
                sides.append({part.text: (family, part) for family, part in pairs})
            for pair in pair_modules(*([part for _, part in side.values()] for side in sides)):
                for source, target in pair.tensors():
                    for families, side, part in ((self.sources, sides[0], source), (self.targets, sides[1], target)):
                        _put_part(families, side[part.text][0], part)
                    self.pair(source, target, [], LIKELY if pair.certain else GUESSED)

    def rest(self) -> None:
        """Pairs what is left by shape, creates missing biases, and asks about every tensor that stays unpaired."""
        pairs = [
            (similarity(s, t), s, t)
            for t in self.targets
            for s in self.sources
            if (s.level, s.part) == (t.level, t.part) and reshape(s, t) is not None
        ]
        pairs.sort(key=lambda pair: (pair[1].shapes != pair[2].shapes, -pair[0], pair[1].text, pair[2].text))
        for _, source, target in pairs:
            if source in self.sources and target in self.targets:
                found = reshape(source, target)
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
                    Guess("create", "", [like.sources[0]], [target.text], steps, confidence=GUESSED, question=CREATED)
                )
                self.take([], [target])
        for source in [*self.sources]:
            companion = self.companions.get(source.text)
            for name in companion.names(source.text) if companion else [source.text]:
                self.guesses.append(Guess("ignore", "", [name], [], confidence=GUESSED, question=UNUSED))
            self.take([source], [])

    def add(self, guess: Guess) -> None:
        companion = self.companions.get(guess.sources[0])
        if companion is not None:
            guess.sources = [*companion.names(guess.sources[0]), *guess.sources[1:]]
            guess.steps = [*companion.steps, *guess.steps]
            guess.name = guess.name or slug(guess.targets[0])
            guess.kind, guess.confidence = "transform", GUESSED
            guess.question = guess.question or companion.question
        names = {g.name for g in self.guesses}
        base, number = guess.name, 2
        while guess.name and guess.name in names:
            guess.name, number = f"{base}_{number}", number + 1
        self.guesses.append(guess)


def _stages_apart(families: Sequence[NameFamily], others: Sequence[NameFamily]) -> list[NameFamily]:
    """The families, those whose shapes differ by stage as one of each stage, unless the other side has the like."""
    like = {(family.shapes, family.numbers) for family in others}
    return [
        one
        for family in families
        for one in (
            family.apart()
            if family.level == 2 and family.mixed and (family.shapes, family.numbers) not in like
            else [family]
        )
    ]


def _put_part(families: list[NameFamily], whole: NameFamily, part: NameFamily) -> None:
    """Replaces a family by its parts if `part` is one of them."""
    if whole is not part and whole in families:
        at = families.index(whole)
        families[at : at + 1] = whole.unfold()
