"""A draft as the text of a spec, and the whole way to it: from the shapes of a checkpoint and the name of a class.

Every guess is written with its confidence as a remark; what is undecided stands under `undecided`, which keeps the spec
from compiling. Refuses a class that cannot be built from what is known of its config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiler.diagnostics import Refusal
from compiler.draft.reshape_steps import Step
from compiler.draft.rules import Draft, Guess, draft
from compiler.draft.sizes import WORDS, Measures, measure, target_config
from compiler.draft.submodel_sizes import towers
from compiler.draft.tensor_roles import Shape, fold
from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec
from compiler.proof.proof import further_examples
from compiler.target import config_dialects
from compiler.target import model_class as target

NO_TENSOR = "no tensor of the checkpoint was found for it"
GUESS = "nothing tells it; the value is a guess"
_TIE = "tie_word_embeddings"


@dataclass(frozen=True)
class Proposal:
    """The text of a spec, and what it was made from. `text` with `decided=True` leaves the questions out."""

    name: str
    target: str
    weights: str
    draft: Draft
    sizes: Measures
    config: Mapping[str, Any]

    def text(self, decided: bool = False) -> str:
        """The spec; `decided`: without its open questions. Its examples tell its sizes apart where they can."""
        lines = _lines(self, decided)
        try:
            program = compile_spec(load_spec(f"{self.name}.yaml", "\n".join(_lines(self, True)) + "\n"))
            further = further_examples(program)
        except Refusal:
            further = []
        if further:
            at = next(n for n, line in enumerate(lines) if line.startswith("example:"))
            first = {name: value for name, (value, _) in program.spec.examples[0].items()}
            lines[at:] = ["example:", *(f"  - {json.dumps(one)}" for one in (first, *further))]
        return "\n".join(lines) + "\n"

    @property
    def questions(self) -> dict[str, str]:
        """What must be decided, by what it is about."""
        found = {guess.key: guess.question for guess in self.draft.guesses if guess.question}
        found |= dict.fromkeys(self.draft.missing, NO_TENSOR)
        return found | dict.fromkeys(sorted(self.sizes.guessed), GUESS)


def propose(
    name: str, shapes: Mapping[str, tuple[Shape, str]], model_class: str, given: Mapping[str, Any], weights: str = "*"
) -> Proposal:
    """Draft a spec for tensors of these shapes and types. `given`: what a config says. Raises Refusal."""
    forms = fold(shapes)
    sizes = measure(forms, given)
    fields = target.config_fields(model_class)
    config = target_config(sizes, given, fields)
    config |= (apart := towers(forms, given, fields, sizes))
    if "encoder_layers" in apart and "num_hidden_layers" not in given:
        config.pop("num_hidden_layers", None)  # of such a class a name for one of the two
    if _TIE in fields and _TIE not in config:
        config[_TIE] = not any(form.role == "head" for form in forms)
    for flag, roles in (("attention_bias", ("q", "k", "v", "qkv", "o")), ("mlp_bias", ("down",))):
        if flag in fields and flag not in config:
            config[flag] = any(form.role in roles and form.part == "bias" for form in forms)
    if (
        isinstance(pad := config.get("pad_token_id", fields.get("pad_token_id")), int)
        and pad >= sizes["vocab_size"] > 0
    ):
        config["pad_token_id"] = None  # the class's own default is for another vocabulary
    signature = _signature(model_class, config, given)
    theirs = fold({n: (tuple(s), "float32") for n, s in signature.shapes.items()})
    rows = {form.shape[0] for form in forms if form.role == "embedding" and form.shape}
    if rows and max(rows) > sizes["vocab_size"] > 0:
        sizes.values["padded_vocab_size"] = max(rows)
        first = next(form for form in forms if form.role == "embedding" and form.shape[0] == max(rows))
        sizes.expressions["padded_vocab_size"] = f'dim("{first.first()}", 0)'
    return Proposal(name, model_class, weights, draft(forms, theirs, dict(signature.ties), sizes), sizes, config)


def _signature(model_class: str, config: dict[str, Any], given: Mapping[str, Any]) -> target.ClassSignature:
    """What the class writes. A class may compute `head_dim`, and then takes none; the config loses it, as it loses a
    value of a type that the class does not take."""
    kind = target.model_type(model_class)
    while True:
        written = config_dialects.config_json(config, model_class=model_class, model_type=kind, dtype="float32")
        try:
            return target.signature(model_class, written)
        except Refusal as refusal:
            named = re.search(r"[Ff]ield '(\w+)'", str(refusal))
            if named and isinstance(config.get(named[1]), str):
                del config[named[1]]
            elif "head_dim" in config and "head_dim" not in given:
                del config["head_dim"]
            else:
                raise


# ---------------------------------------------------------------------------------------------------------------------


def _lines(proposal: Proposal, decided: bool) -> list[str]:
    guesses = proposal.draft.guesses
    body = [line for kind in ("keep", "rename") for line in _renames(kind, guesses)]
    body += _transforms(guesses)
    body += _pairs("create", [(g.targets[0], _created(g), g) for g in guesses if g.kind == "create"])
    body += _pairs("tie", [(g.sources[0], scalar(g.targets[0]), g) for g in guesses if g.kind == "tie"])
    body += _pairs("ignore", [(g.sources[0], scalar(g.question), g) for g in guesses if g.kind == "ignore"])
    arguments, facts, config = _values(proposal, "\n".join(body))
    lines = [
        "spec: 1",
        f"name: {proposal.name}",
        f"summary: a draft, to be read and corrected, of {proposal.name.replace('_', ' ')} as {proposal.target}",
        f"source: {{weights: {json.dumps(proposal.weights)}, config: config.json}}",
        f"target: {{model: {proposal.target}}}",
    ]
    if proposal.questions and not decided:
        lines += ["", "undecided: # remove each when it is decided; until then nothing compiles"]
        lines += [f"  {scalar(key)}: {scalar(question)}" for key, question in proposal.questions.items()]
    lines += ["", "arguments:" + " {}" * (not arguments)]
    lines += [f"  {name}: {json.dumps(value)}" for name, value in arguments.items()]
    lines += ["", "facts:" + " {}" * (not facts)]
    lines += [f"  {name}: {expression}" for name, expression in facts.items()]
    lines += ["", "config:", *config, "", *body]
    used = {n: v for n, v in proposal.sizes.values.items() if n in facts and n not in ("q_rows", "kv_rows")}
    return [*lines, "example:" + " {}" * (not used), *(f"  {name}: {value}" for name, value in used.items())]


def scalar(text: str) -> str:
    """A text as YAML: plain where that is safe."""
    safe = re.fullmatch(r"[A-Za-z_][\w.{}|/:+-]*", text) and not text.endswith(":") and ": " not in text
    return text if safe and text not in ("true", "false", "null", "yes", "no") else json.dumps(text)


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
    return f"{{like: {json.dumps(guess.sources[0])}, shape: [{', '.join(guess.steps[0]['shape'])}], fill: zeros}}"


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
    return (
        "{" + ", ".join(f"{k}: {json.dumps(v) if k == 'rearrange' else _step_value(v)}" for k, v in step.items()) + "}"
    )


def _values(proposal: Proposal, body: str) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Arguments, facts, and the lines of the config: measured where a shape tells it, given elsewhere."""
    sizes, config = proposal.sizes, proposal.config
    copied, renamed, fixed = [], {}, {}
    arguments: dict[str, Any] = {}
    facts: dict[str, str] = {}
    rows = {"q_rows": "num_attention_heads * head_dim", "kv_rows": "num_key_value_heads * head_dim"}

    def need(word: str) -> None:
        """Define a word, and the words that its expression needs before it."""
        if word in arguments or word in facts:
            return
        expression = rows.get(word) or sizes.expressions.get(word)
        if expression is None:
            name = sizes.named.get(word, word)
            arguments[name] = sizes[word]
            if name != word:
                facts[word] = name
            return
        for other in (*WORDS, "padded_vocab_size"):
            if other != word and re.search(rf"\b{other}\b", expression):
                need(other)
        facts[word] = expression

    for name, value in config.items():
        word = next((w for w, names in WORDS.items() if name in names and sizes.values.get(w) == value), None)
        word = name if sizes.expressions.get(name) and sizes.values.get(name) == value else word
        if word is not None and (name == word or word in sizes.expressions):
            need(word)
            if name == word:
                copied.append(name)
            else:
                renamed[name] = word
        elif isinstance(value, str | int | float | bool):
            told = sizes.named.get(name, name)
            arguments[told] = value
            if told == name:
                copied.append(name)
            else:
                renamed[name] = told
        else:
            fixed[name] = value
    for word in (*WORDS, "padded_vocab_size", *rows):
        if re.search(rf"\b{word}\b", body):
            need(word)
    lines = [f"  copy: [{', '.join(copied)}]"]
    lines += [f"  rename: {{{', '.join(f'{k}: {v}' for k, v in renamed.items())}}}"] if renamed else []
    lines += [f"  set: {json.dumps(fixed)}"] if fixed else []
    return arguments, facts, lines
