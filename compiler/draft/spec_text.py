"""The text of a drafted spec.

`Proposal.text` writes YAML that the parser reads: names that mean something to YAML or to name patterns are quoted or
written as regular expressions. Each rule carries its confidence as a comment. Open questions are listed under
`undecided`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from compiler.diagnostics import Refusal
from compiler.draft.config_fields import Field, argument_name
from compiler.draft.config_fit import Path
from compiler.draft.fuse_steps import IN_GROUPS, IN_HEADS
from compiler.draft.reshape_steps import Step
from compiler.draft.rules import Draft, Guess
from compiler.draft.sizes import SIZE_FIELDS, Sizes
from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec
from compiler.proof.proof import further_examples

NO_TENSOR = "no tensor of the checkpoint matches this target tensor"
GUESS = "shapes do not reveal it and no config gives it: look it up in the source's code"
_WORDS = ("true", "false", "null")
_ROWS = {"q_rows": "num_attention_heads * head_dim", "kv_rows": "num_key_value_heads * head_dim"}


@dataclass(frozen=True)
class Proposal:
    """A drafted spec. `config`: fields of the target's config that a config file gives or that sizes measure; `fields`:
    all others that change what the model computes."""

    name: str
    target: str
    weights: str
    draft: Draft
    sizes: Sizes
    config: Mapping[str, Any]
    fields: Mapping[Path, Field] = field(default_factory=dict)

    def text(self, decided: bool = False, schema: str = "") -> str:
        """The spec as YAML; `schema`: the place of the JSON Schema, for editors.

        With `decided` as it is bound for a trial: without questions, guessed sizes as defaults, unused tensors ignored.
        """
        lines = _lines(self, decided, schema)
        try:
            program = compile_spec(load_spec(f"{self.name}.yaml", "\n".join(_lines(self, True, "")) + "\n"))
            further = further_examples(program)
        except Refusal:
            further = []
        if further:  # sizes that are equal in one example differ in another
            at = next(n for n, line in enumerate(lines) if line.startswith("example:"))
            first = program.spec.example_values[0]
            lines[at:] = ["example:", *(f"  - {json.dumps(one)}" for one in (first, *further))]
        return "\n".join(lines) + "\n"

    @property
    def facts(self) -> Mapping[str, str]:
        """The sizes that rules or fields use, each with the expression that measures it."""
        return _Values(self, "\n".join(_rules(self, True)), True).facts

    @property
    def questions(self) -> dict[str, str]:
        """Open questions by subject: a rule, a tensor or a config field."""
        found = {guess.key: guess.question for guess in self.draft.guesses if guess.question}
        found |= dict.fromkeys(self.draft.missing, NO_TENSOR)
        found |= dict.fromkeys(sorted(self.sizes.guessed), GUESS)
        return found | {argument_name(path): one.question for path, one in self.fields.items() if one.question}


def _rules(proposal: Proposal, decided: bool) -> list[str]:
    guesses = proposal.draft.guesses
    if not _grouped(proposal):
        guesses = [_equal_parts(guess) for guess in guesses]
    body = [line for kind in ("keep", "rename") for line in _renames(kind, guesses)]
    body += _transforms(guesses)
    body += _pairs("create", [(g.targets[0], _created(g), g) for g in guesses if g.kind == "create"])
    body += _pairs("tie", [(g.sources[0], scalar(g.targets[0]), g) for g in guesses if g.kind == "tie"])
    if decided:  # a spec that leaves a tensor unread does not bind
        unused = [(g.sources[0], scalar(g.question), g) for g in guesses if g.kind == "ignore" and g.sources[0]]
        body += _pairs("ignore", unused)
    return body


def _lines(proposal: Proposal, decided: bool, schema: str) -> list[str]:
    body = _rules(proposal, decided)
    values = _Values(proposal, "\n".join(body), decided)
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += [
        "spec: 1",
        f"name: {proposal.name}",
        f"summary: a draft, to be read and corrected, of {proposal.name.replace('_', ' ')} as {proposal.target}",
        f"source: {{weights: {_json(proposal.weights)}, config: config.json}}",
        f"target: {{model: {proposal.target}}}",
    ]
    if proposal.questions and not decided:
        lines += ["", "undecided: # remove each entry when it is decided; until then the spec does not compile"]
        lines += [f"  {scalar(key)}: {scalar(question)}" for key, question in proposal.questions.items()]
    lines += ["", "arguments:" + " {}" * (not values.arguments)]
    lines += [f"  {name}: {_json(value)}" for name, value in values.arguments.items()]
    lines += ["", "facts:" + " {}" * (not values.facts)]
    lines += [f"  {name}: {scalar(expression)}" for name, expression in values.facts.items()]
    example = values.example
    lines += ["", "config:", *values.config_lines(), "", *body]
    return [
        *lines,
        "example:" + " {}" * (not example),
        *(f"  {name}: {_json(value)}" for name, value in example.items()),
    ]


def _grouped(proposal: Proposal) -> bool:
    """Whether keys and values may have fewer heads than queries: the config has a field for it, or the checkpoint is so."""
    written = {*proposal.config, *(str(path[-1]) for path in proposal.fields)}
    heads = proposal.sizes["num_key_value_heads"]
    return not written.isdisjoint(SIZE_FIELDS["num_key_value_heads"]) or heads not in (
        0,
        proposal.sizes["num_attention_heads"],
    )


def _equal_parts(guess: Guess) -> Guess:
    """The rule for queries, keys and values of equal sizes, which an example cannot tell apart by their sizes."""
    steps = list(guess.steps)
    if tuple(steps[: len(IN_GROUPS)]) == IN_GROUPS:
        steps[: len(IN_GROUPS)] = IN_HEADS
    sizes = [[] if any("kv_rows" in s or "key_value" in s for s in some) else some
             for some in (guess.source_sizes, guess.target_sizes)]  # fmt: skip
    return replace(guess, steps=steps, source_sizes=sizes[0], target_sizes=sizes[1])


def scalar(text: str) -> str:
    """A text as a YAML scalar, quoted unless it is safe without quotes."""
    safe = re.fullmatch(r"[A-Za-z_][\w.{}|/:+-]*|[a-z(][\w.{}\"(), /*+-]*", text, re.ASCII)
    return text if safe and not text.endswith((":", " ")) and text.lower() not in _WORDS else _json(text)


def _json(value: Any) -> str:
    """JSON that YAML reads alike: what only one of them may hold unescaped is escaped, each character once."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() and c <= "\uffff" else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return f"\\U{ord(char):08x}"


def _remark(guess: Guess) -> str:
    return f" # {guess.confidence:.0%}{', undecided' * bool(guess.question)}{guess.remark and ', ' + guess.remark}"


def _renames(kind: str, guesses: list[Guess]) -> list[str]:
    found = [g for g in guesses if g.kind == kind]
    if kind == "keep":
        return ["keep:", *(f"  - {scalar(g.sources[0])}" for g in found)] if found else []
    return _pairs("rename", [(g.sources[0], scalar(g.targets[0]), g) for g in found])


def _pairs(kind: str, pairs: list[tuple[str, str, Guess]]) -> list[str]:
    return [f"{kind}:", *(f"  {scalar(a)}: {b}{_remark(guess)}" for a, b, guess in pairs)] if pairs else []


def _created(guess: Guess) -> str:
    return f"{{like: {_json(guess.sources[0])}, shape: [{', '.join(guess.steps[0]['shape'])}], fill: zeros}}"


def _transforms(guesses: list[Guess]) -> list[str]:
    lines: list[str] = []
    for guess in guesses:
        if guess.kind != "transform":
            continue
        lines += [f"  - name: {guess.name}{_remark(guess)}"]
        lines += _names("from", guess.sources, guess.source_sizes)
        lines += _names("to", guess.targets, guess.target_sizes)
        if len(guess.steps) == 1:
            lines += [f"    {key}: {_step_value(value)}" for key, value in guess.steps[0].items()]
        else:
            lines += ["    steps:", *(f"      - {_flow(step)}" for step in guess.steps)]
    return ["transform:", *lines] if lines else []


def _names(key: str, names: list[str], sizes: list[str]) -> list[str]:
    if sizes:
        return [f"    {key}:", *(f"      {scalar(n)}: {s}" for n, s in zip(names, sizes, strict=True))]
    if len(names) == 1:
        return [f"    {key}: {scalar(names[0])}"]
    return [f"    {key}:", *(f"      - {scalar(name)}" for name in names)]


def _step_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_step_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_step_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flow(step: Step) -> str:
    return "{" + ", ".join(f"{k}: {_json(v) if k == 'rearrange' else _step_value(v)}" for k, v in step.items()) + "}"


class _Values:
    """Arguments, facts and the fields of the config. A size that a shape gives is a fact, anything else an argument."""

    def __init__(self, proposal: Proposal, body: str, decided: bool) -> None:
        self.sizes, self.decided = proposal.sizes, decided
        self.arguments: dict[str, Any] = {}
        self.facts: dict[str, str] = {}
        self.example: dict[str, Any] = {}
        self.copied: list[str] = []
        self.renamed: dict[str, str] = {}
        self.fixed: dict[str, Any] = {}
        self.nested: dict[str, Any] = {}
        for name, value in proposal.config.items():
            self.known(name, value)
        for path, one in proposal.fields.items():
            self.own(path, one)
        for word in (*SIZE_FIELDS, "padded_vocab_size", *_ROWS):
            if re.search(rf"\b{word}\b", body):
                self.need(word)

    def need(self, word: str) -> None:
        """Define a size, after the sizes that its expression uses."""
        if word in self.arguments or word in self.facts:
            return
        expression = _ROWS.get(word) or self.sizes.expressions.get(word)
        if expression is None:
            name = self.sizes.named.get(word, word)
            self.argument(name, self.sizes[word], word in self.sizes.guessed)
            if name != word:
                self.fact(word, name, self.sizes[word])
            return
        for other in (*SIZE_FIELDS, "padded_vocab_size"):
            if other != word and re.search(rf"\b{other}\b", expression):
                self.need(other)
        self.fact(word, expression, self.sizes.values.get(word))

    def argument(self, name: str, value: Any, required: bool = False) -> None:
        if required and not self.decided:
            self.arguments[name] = {"help": f"{name.replace('_', ' ')}: shapes do not reveal it"}
            self.example[name] = value
        else:
            self.arguments[name] = value

    def fact(self, name: str, expression: str, value: Any) -> None:
        self.facts[name] = expression
        if value is not None:
            self.example[name] = value

    def known(self, name: str, value: Any) -> None:
        """A field that a config gives or that was measured by its role."""
        sizes = self.sizes
        word = next((w for w, names in SIZE_FIELDS.items() if name in names and sizes.values.get(w) == value), None)
        word = name if sizes.expressions.get(name) and sizes.values.get(name) == value else word
        if word is not None and (name == word or word in sizes.expressions or word in sizes.guessed):
            self.need(word)
            self.copied += [name] if name == word else []
            self.renamed |= {name: word} if name != word else {}
        elif isinstance(value, str | int | float | bool) or (value is None and name.endswith("_token_id")):
            source = sizes.named.get(name, name)
            self.argument(source, value)
            self.copied += [name] if source == name else []
            self.renamed |= {name: source} if source != name else {}
        else:
            self.fixed[name] = value

    def own(self, path: Path, one: Field) -> None:
        """A field that no config gives."""
        name = argument_name(path)
        while name in self.arguments or name in self.facts or (len(path) > 1 and name in self.sizes.values):
            name += "_"
        if one.expression:
            self.fact(name, one.expression, one.value)
        else:
            self.argument(name, one.value, one.required)
        if len(path) == 1:
            self.copied += [name] if name == path[0] else []
            self.renamed |= {str(path[0]): name} if name != path[0] else {}
            return
        here = self.nested
        for key in path[:-1]:
            here = here.setdefault(str(key), {})
        here[str(path[-1])] = name

    def config_lines(self) -> list[str]:
        lines = [f"  copy: [{', '.join(self.copied)}]"]
        lines += [f"  rename: {{{', '.join(f'{k}: {v}' for k, v in self.renamed.items())}}}"] if self.renamed else []
        if self.nested:
            lines += ["  derive:", *(f"    {name}: {_json(_mapping(inner))}" for name, inner in self.nested.items())]
        return lines + ([f"  set: {_json(self.fixed)}"] if self.fixed else [])


def _mapping(inner: Mapping[str, Any]) -> str:
    """The expression of a nested config."""
    pairs = (f'"{key}": {_mapping(value) if isinstance(value, Mapping) else value}' for key, value in inner.items())
    return "{" + ", ".join(pairs) + "}"
