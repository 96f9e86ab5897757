"""The parts of a `tokenizer.json` that do not depend on what it is made of: special tokens, and what stands around a text.

Takes the tokens in the order of their ids and what lies beside the file (`Beside`); returns `Whole`. What a special token
stands for is taken from a text wherever it is written there; each text between two of them is encoded by itself. Refuses
tokens that two files call otherwise than each other.
Source of the format: https://github.com/huggingface/tokenizers, tokenizers/src (0.22), the types that are serialized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from compiler.diagnostics import refuse
from compiler.language.spec import TiktokenSection

Fields = dict[str, Any]
ROLES = ("bos", "eos", "pad", "unk")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class TokenizerParts:
    """`fields` of tokenizer.json; `special`: role -> token; `about` the file that it was made of, in words."""

    fields: Fields
    special: Mapping[str, str]
    about: str


@dataclass(frozen=True)
class AddedTokens:
    """What is known besides the file: `said` in tokenizer_config.json, `added` tokens (token -> id) by other files, the
    `config` of the model, what the spec says of a file of `ranks`, and the `places` of special tokens behind them."""

    said: Mapping[str, Any]
    added: Mapping[str, int]
    config: Mapping[str, Any]
    ranks: TiktokenSection | None
    places: Mapping[str, Any]


def no_form(
    path: Path, reason: str, hint: str = "give the tokenizer.json of the same model with --tokenizer"
) -> NoReturn:
    """Refuse a file that has no form as a tokenizer.json."""
    refuse(str(path), reason, "unsupported-tokenizer", hint)


def added(number: int, text: str, *, normalized: bool = False, special: bool = True) -> Fields:
    """A token that is looked for in a text before anything else; `normalized`: after the normalization."""
    return {"id": number, "content": text} | dict(zip(FLAGS, (False, False, False, normalized, special), strict=True))


def added_beside(path: Path, names: Sequence[str], beside: AddedTokens) -> dict[int, Fields]:
    """The tokens by id that other files add to those of `path`, or call otherwise. Raises Refusal."""
    found = {number: added(number, text, special=False) for text, number in beside.added.items()}
    entries = beside.said.get("added_tokens_decoder")
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        if not key.isdigit() or not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            refuse(str(path.parent / "tokenizer_config.json"), f"the added token {key!r} is none", "bad-config")
        flags = {flag: entry[flag] for flag in FLAGS if isinstance(entry.get(flag), bool)}
        found[int(key)] = added(int(key), entry["content"]) | flags
    renamed = {number: token["content"] for number, token in found.items()}
    ids = {text: number for number, text in enumerate(names) if renamed.get(number, text) == text}
    for number, text in renamed.items():
        if ids.setdefault(text, number) != number:
            message = f"the token {text!r} has the id {ids[text]} in one file and {number} in another"
            refuse(str(path), message, "unsupported-tokenizer", "the files beside it belong to another tokenizer")
    return found


def whole(
    tokens: Mapping[int, Fields],
    names: Sequence[str],
    special: Mapping[str, str],
    beside: AddedTokens,
    about: str,
    *,
    begins: bool,
    **parts: Fields | None,
) -> TokenizerParts:
    """`tokens` are those added, by id, `names` all others in the order of ids; `begins`: a text begins with bos, where
    nothing else is said; `parts` are the normalizer, pre_tokenizer, decoder and model."""
    spoken = {role: content(beside.said.get(f"{role}_token")) for role in ROLES}
    special = dict(special) | {role: text for role, text in spoken.items() if text}
    ids = {name: n for n, name in enumerate(names)} | {token["content"]: n for n, token in tokens.items()}
    begin, end = (
        special[role] if beside.said.get(f"add_{role}_token", default) and special.get(role) in ids else ""
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
    """The text of a token, which some files wrap into what else there is to say of it."""
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
