"""The tokenizer of a converted folder: its files, its chat template in both places, and whether it fits the model.

Takes the files; returns which to copy, which texts to write instead, and warnings in words. A tokenizer is never changed
here, but for the template, which old and new programs look for in two places; where there is no `tokenizer.json`, one is
built of a sentencepiece model or a file of ranks. Refuses files that are no JSON, and what cannot be built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.diagnostics import Refusal, listed, refuse
from compiler.language.spec import TiktokenSection
from compiler.strict_json import parse
from compiler.tokenizer.chat_template import problem
from compiler.tokenizer.find import MODELS, RANKS, WHOLE, kind_of
from compiler.tokenizer.sentencepiece import of_pieces
from compiler.tokenizer.sentencepiece_model import read_pieces
from compiler.tokenizer.tiktoken import of_ranks, read_ranks
from compiler.tokenizer.tokenizer_json import AddedTokens, TokenizerParts, content, no_form

CONFIG, TEMPLATE, SPECIAL, ADDED = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
# What stays of a tokenizer_config.json that was written for a class with code of its own.
KEPT = re.compile(
    r"(add_)?\w+_token|additional_special_tokens|chat_template|model_max_length|(padding|truncation)_side|clean_up_\w+"
)
ROLES = {"bos": "begins a text with", "eos": "ends a text with", "pad": "pads with"}


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
    ids = _read_ids(found[WHOLE]) if WHOLE in found else {}
    tokens = {id_: token for token, id_ in ids.items()}
    texts: dict[str, str] = {}
    if WHOLE in found and CONFIG not in found:
        named = {role: tokens.get(config.get(f"{role}_token_id")) for role in ROLES}  # type: ignore[arg-type]
        fields = _plain_config({role: token for role, token in named.items() if token is not None})
        texts[CONFIG] = _text(fields)
    return _told(found, fields, ids, texts)


def complete_tokenizer(
    found: Mapping[str, Path],
    config: Mapping[str, Any],
    ranks: TiktokenSection | None,
    places: Mapping[str, Any],
    say: Callable[[str], None],
    *,
    named: bool,
) -> Tokenizer:
    """The tokenizer of some files, with a `tokenizer.json` built where there is none and something to build it of.

    `ranks` is what the spec says of a file of ranks, `places` where its special tokens stand. What cannot be built is
    refused where the user `named` it, and travels as it is where it happens to lie beside the weights. Raises Refusal.
    """
    path = next((found[name] for name in (RANKS, *MODELS) if name in found and kind_of(found[name])), None)
    if WHOLE in found or path is None:
        return read_tokenizer(found, config)
    try:
        tokenizer, about = _built(path, found, config, ranks, places)
    except Refusal as refusal:
        if named:
            raise
        for diagnostic in refusal.diagnostics:
            say(f"no {WHOLE} is built of {path.name}: {diagnostic.message}")
        rest = {name: file for name, file in found.items() if name != RANKS}
        return read_tokenizer(rest | {path.name: path}, config)
    say(f"{WHOLE} is built of {path.name}, {about}")
    return tokenizer


def _built(
    path: Path,
    found: Mapping[str, Path],
    config: Mapping[str, Any],
    ranks: TiktokenSection | None,
    places: Mapping[str, Any],
) -> tuple[Tokenizer, str]:
    """The tokenizer, and what it is built of, in words. Raises Refusal."""
    said = _json(found[CONFIG]) if CONFIG in found else {}
    spoken = _json(found[SPECIAL]) if SPECIAL in found else {}
    added = _json(found[ADDED]) if ADDED in found else {}
    beside = AddedTokens(spoken | said, {t: n for t, n in added.items() if isinstance(n, int)}, config, ranks, places)
    whole = _whole(path, beside)
    fields = _plain_config(whole.special) | {n: v for n, v in said.items() if KEPT.fullmatch(n)}
    texts = {WHOLE: json.dumps(whole.fields, ensure_ascii=False) + "\n", CONFIG: _text(fields)}
    rest = {name: file for name, file in found.items() if name not in (RANKS, SPECIAL, ADDED)}
    return _told(rest, fields, _ids(whole.fields), texts), whole.about


def _whole(path: Path, beside: AddedTokens) -> TokenizerParts:
    data = path.read_bytes()
    if (ranks := read_ranks(str(path), data)) is not None:
        return of_ranks(path, ranks, beside)
    if (pieces := read_pieces(str(path), data)) is not None:
        return of_pieces(path, pieces, beside)
    return no_form(path, "it is neither a sentencepiece model nor a file of ranks as tiktoken has them")


def _plain_config(special: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer_config.json that adds to a `tokenizer.json` only which tokens are special; role -> token."""
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    # By default there would be token types, which generation does not take.
    fields["model_input_names"] = ["input_ids", "attention_mask"]
    return fields | {f"{role}_token": token for role, token in special.items()}


def _told(
    found: Mapping[str, Path], fields: dict[str, Any], ids: Mapping[str, int], texts: dict[str, str]
) -> Tokenizer:
    """What the files say together: the template in both places, the special tokens."""
    old = fields.get("chat_template")
    # Where both places speak, programs go by the file.
    template = _template(found[TEMPLATE]) if TEMPLATE in found else old if isinstance(old, str) else ""
    if template and TEMPLATE not in found:
        texts[TEMPLATE] = template
    if template and fields and old != template and not isinstance(old, list):
        texts[CONFIG] = _text(fields | {"chat_template": template})
    spoken = _json(found[SPECIAL]) if SPECIAL in found else {}
    special = {role: content(fields.get(f"{role}_token") or spoken.get(f"{role}_token")) for role in ROLES}
    return Tokenizer(
        {name: path for name, path in found.items() if name not in texts},
        texts,
        ids,
        {role: token for role, token in special.items() if token},
        template,
    )


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        refuse(str(path), f"it is no text: {error.reason} at byte {error.start}", "bad-config")


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


def _read_ids(path: Path) -> dict[str, int]:
    try:
        return _ids(_json(path))
    except (AttributeError, TypeError, IndexError, KeyError):  # whatever is not where it belongs
        refuse(str(path), "its vocabulary or its added tokens are none", "bad-config", "copy the file again")


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
    if tokenizer.template and (found := problem(tokenizer.template, tokenizer.special)):
        yield f"the chat template fails on a plain conversation: {found}"
