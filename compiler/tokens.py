"""The tokenizer of a converted folder: its files, its chat template in both places, and whether it fits the model.

Takes the files; returns which to copy, which texts to write instead, and warnings in words. A tokenizer is never changed
here, but for the template, which old and new programs look for in two places. Refuses files that are no JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.diagnostics import listed, refuse
from compiler.strictjson import parse

CONFIG, WHOLE, TEMPLATE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"
ROLES = {"bos": "begins a text with", "eos": "ends a text with", "pad": "pads with"}
CHAT = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]


@dataclass(frozen=True)
class Tokenizer:
    """`copies`: name -> file to copy; `texts`: name -> text to write; `ids`: token -> id, where a file says so;
    `special`: role -> token; `template` of chats, or empty."""

    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    ids: Mapping[str, int]
    special: Mapping[str, str]
    template: str

    @property
    def names(self) -> list[str]:
        return [*self.copies, *self.texts]


def read_tokenizer(found: Mapping[str, Path], config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of some files. `config` is that of the model, whose ids name the special tokens where there is
    nothing but a `tokenizer.json`. Raises Refusal."""
    fields = _json(found[CONFIG]) if CONFIG in found else {}
    ids = _ids(_json(found[WHOLE])) if WHOLE in found else {}
    tokens = {id_: token for token, id_ in ids.items()}
    texts: dict[str, str] = {}
    if WHOLE in found and CONFIG not in found:
        named = {f"{role}_token": tokens.get(config.get(f"{role}_token_id")) for role in ROLES}  # type: ignore[arg-type]
        fields = {"tokenizer_class": "PreTrainedTokenizerFast"} | {
            role: t for role, t in named.items() if t is not None
        }
        texts[CONFIG] = _text(fields)
    old = fields.get("chat_template")
    # Where both places speak, programs go by the file.
    template = found[TEMPLATE].read_text(encoding="utf-8") if TEMPLATE in found else old if isinstance(old, str) else ""
    if template and TEMPLATE not in found:
        texts[TEMPLATE] = template
    if template and fields and old != template and not isinstance(old, list):
        texts[CONFIG] = _text(fields | {"chat_template": template})
    spoken = _json(found["special_tokens_map.json"]) if "special_tokens_map.json" in found else {}
    special = {role: _content(fields.get(f"{role}_token") or spoken.get(f"{role}_token")) for role in ROLES}
    return Tokenizer(
        {name: path for name, path in found.items() if name not in texts},
        texts,
        ids,
        {role: token for role, token in special.items() if token},
        template,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse(path.read_bytes())
    except ValueError as error:
        refuse(str(path), f"it is no JSON: {error}", "json-syntax")
    if not isinstance(found, dict):
        refuse(str(path), "it holds no fields", "json-syntax")
    return found


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _content(token: Any) -> str:
    """The text of a token, which some files wrap into what else there is to say of it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _ids(whole: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of a `tokenizer.json`; a vocabulary is a mapping, or a list of pairs in the order of ids."""
    vocabulary = (whole.get("model") or {}).get("vocab") or {}
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((v[0], n) for n, v in enumerate(vocabulary))
    added = ((t.get("content"), t.get("id")) for t in whole.get("added_tokens") or ())
    return {str(token): number for token, number in (*pairs, *added) if isinstance(number, int)}


# ---------------------------------------------------------------------------------------------------------------------
# Does it fit?


def generation_fields(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """What generation_config.json says besides the config: the ids of special tokens that only the tokenizer knows."""
    known = {f"{role}_token_id": tokenizer.ids.get(token) for role, token in tokenizer.special.items()}
    return {name: number for name, number in known.items() if number is not None and config.get(name) is None}


def lint(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Iterator[str]:
    """What a user would find out late: ids without a row, special tokens that two files call otherwise, a template
    that fails."""
    rows = config.get("vocab_size")
    if tokenizer.ids and isinstance(rows, int):
        highest = max(tokenizer.ids.values())
        beyond = sorted((n, t) for t, n in tokenizer.ids.items() if n >= rows)
        if beyond:
            some = listed((f"{t!r} ({n})" for n, t in beyond), 4)
            yield f"the embedding has {rows} rows, and the tokenizer ids up to {highest}: {some} would fail"
    for role, what in ROLES.items():
        said, token = config.get(f"{role}_token_id"), tokenizer.special.get(role)
        if token is None:
            if tokenizer.names and said is None and role == "eos":
                yield "neither the tokenizer nor the config says which token ends a text: generation will not stop"
            continue
        number = tokenizer.ids.get(token)
        if tokenizer.ids and number is None:
            yield f"the tokenizer {what} {token!r}, which is none of its tokens"
        elif number is not None and said is not None and number not in (said if isinstance(said, list) else [said]):
            late = "; generation would not stop there" if role == "eos" else ""
            yield f"the tokenizer {what} {token!r} ({number}), the config with {said}{late}"
    if tokenizer.template and (problem := template_problem(tokenizer.template, tokenizer.special)):
        yield f"the chat template fails on a plain conversation: {problem}"


def template_problem(template: str, special: Mapping[str, str]) -> str:
    """Why a template cannot render a conversation of three turns; empty where it can. It runs in a sandbox."""
    try:
        rendered(template, CHAT, special)
    except Exception as error:  # whatever a template of somebody else raises
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def rendered(template: str, messages: list[dict[str, str]], special: Mapping[str, str], **words: Any) -> str:
    """A conversation as the template writes it, as Transformers renders it (`utils/chat_template_utils.py`, 5.24)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what an assistant says; the text is its content."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def fail(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = lambda value, ensure_ascii=False, **rest: json.dumps(
        value, ensure_ascii=ensure_ascii, **rest
    )
    env.globals |= {"raise_exception": fail, "strftime_now": lambda form: "1 January 2000"}
    tokens = {f"{role}_token": token for role, token in special.items()}
    return env.from_string(template).render(messages=messages, **tokens, **words)
