"""The parts of a `tokenizer.json` that every kind of tokenizer needs: added tokens, and the tokens around a text.

Takes the tokens in the order of their ids and a `TokenizerContext`; returns `TokenizerParts`. Special tokens are split
off a text first; the text between two of them is encoded by itself. Refuses tokens whose text or id differs between two
files. Source of the format: the package tokenizers 0.22, the types that it serializes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from compiler import strict_json
from compiler.diagnostics import refuse
from compiler.language.spec import TiktokenSection

Fields = dict[str, Any]
ROLES = ("bos", "eos", "pad", "unk")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def json_object(path: Path, data: bytes) -> Fields:
    """The content of a JSON file of a tokenizer. Raises Refusal: `json-syntax` for what is no JSON object."""
    try:
        fields = strict_json.parse(data)
    except ValueError as error:
        refuse(str(path), f"it is not valid JSON: {error}", "json-syntax")
    if not isinstance(fields, dict):
        refuse(str(path), "it is not a JSON object", "json-syntax")
    return fields


@dataclass(frozen=True)
class TokenizerParts:
    """`fields` of tokenizer.json; `special`: role -> token; `about`: a description of the file it was built from."""

    fields: Fields
    special: Mapping[str, str]
    about: str


@dataclass(frozen=True)
class TokenizerContext:
    """What other files add: the `settings` of tokenizer_config.json and special_tokens_map.json, `added` tokens (token ->
    id), the `config` of the model, the spec's section for tiktoken `ranks`, and the `places` of its special tokens."""

    settings: Mapping[str, Any]
    added: Mapping[str, int]
    config: Mapping[str, Any]
    ranks: TiktokenSection | None
    places: Mapping[str, Any]


def unsupported(
    path: Path, reason: str, hint: str = "give the tokenizer.json of the same model with --tokenizer"
) -> NoReturn:
    """Refuse a file that cannot be expressed as a tokenizer.json."""
    refuse(str(path), reason, "unsupported-tokenizer", hint)


def added(number: int, text: str, *, normalized: bool = False, special: bool = True) -> Fields:
    """A token that is matched in a text before all others; `normalized`: after the normalization."""
    return {"id": number, "content": text} | dict(zip(FLAGS, (False, False, False, normalized, special), strict=True))


def added_by_other_files(path: Path, names: Sequence[str], context: TokenizerContext) -> dict[int, Fields]:
    """The tokens by id that other files add to those of `path`, or rename. Raises Refusal."""
    tokens = {number: added(number, text, special=False) for text, number in context.added.items()}
    entries = context.settings.get("added_tokens_decoder")
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if not key.isdigit() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            refuse(str(path.parent / "tokenizer_config.json"), f"the added token {key!r} is malformed", "bad-config")
        flags = {flag: entry[flag] for flag in FLAGS if isinstance(entry.get(flag), bool)}
        tokens[int(key)] = added(int(key), entry["content"]) | flags
    renamed = {number: token["content"] for number, token in tokens.items()}
    ids = {text: number for number, text in enumerate(names) if renamed.get(number, text) == text}
    for number, text in renamed.items():
        if ids.setdefault(text, number) != number:
            message = f"the token {text!r} has the id {ids[text]} in one file and {number} in another"
            refuse(str(path), message, "unsupported-tokenizer", "the files beside it belong to another tokenizer")
    return tokens


def tokenizer_parts(
    tokens: Mapping[int, Fields],
    names: Sequence[str],
    special: Mapping[str, str],
    context: TokenizerContext,
    about: str,
    *,
    begins: bool,
    **parts: Fields | None,
) -> TokenizerParts:
    """`tokens`: added tokens by id; `names`: all others in the order of ids; `begins`: whether a text begins with bos
    by default; `parts`: the normalizer, pre_tokenizer, decoder and model."""
    configured = {role: content(context.settings.get(f"{role}_token")) for role in ROLES}
    special = dict(special) | {role: text for role, text in configured.items() if text}
    ids = {name: n for n, name in enumerate(names)} | {token["content"]: n for n, token in tokens.items()}
    begin, end = (
        special[role] if context.settings.get(f"add_{role}_token", default) and special.get(role) in ids else ""
        for role, default in (("bos", begins), ("eos", False))
    )
    fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [tokens[n] for n in sorted(tokens)],
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "post_processor": _frame(begin, end, ids),
        "decoder": parts.get("decoder"),
        "model": parts.get("model"),
    }
    return TokenizerParts(fields, special, about)


def content(token: Any) -> str:
    """The text of a token, which some files wrap into a mapping."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _frame(begin: str, end: str, ids: Mapping[str, int]) -> Fields | None:
    """Special tokens around a text, and around each of two."""

    def one(part: str, kind: int) -> list[Fields]:
        parts = [{"SpecialToken": {"id": begin, "type_id": kind}}] * bool(begin)
        parts += [{"Sequence": {"id": part, "type_id": kind}}]
        return parts + [{"SpecialToken": {"id": end, "type_id": kind}}] * bool(end)

    used = sorted({begin, end} - {""})
    if not used:
        return None
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in used},
    }
