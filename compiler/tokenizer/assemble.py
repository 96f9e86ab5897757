"""The tokenizer of a converted folder: its files, its chat template in both places, and whether it fits the model.

Takes the files; returns which to copy, which texts to write instead, and warnings. Without a `tokenizer.json`, one is
built from a sentencepiece model or a tiktoken file. Otherwise only the chat template is added, because old and new
programs read it from different files. Refuses files that are not JSON, and tokenizers that cannot be built.
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
from compiler.tokenizer.chat_template import problem
from compiler.tokenizer.find import MODELS, PICKLE, TIKTOKEN, TOKENIZER_JSON, kind_of
from compiler.tokenizer.sentencepiece import from_sentencepiece
from compiler.tokenizer.sentencepiece_model import read_pieces
from compiler.tokenizer.tiktoken import from_encoding, from_tiktoken, read_encoding, read_ranks
from compiler.tokenizer.tokenizer_json import TokenizerContext, TokenizerParts, content, json_object, unsupported

CONFIG, TEMPLATE, SPECIAL, ADDED = (
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
# The fields of a tokenizer_config.json that mean the same for any tokenizer class.
PORTABLE = re.compile(
    r"(add_)?\w+_token|additional_special_tokens|chat_template|model_max_length|(padding|truncation)_side|clean_up_\w+"
)
ROLES = {"bos": "begins a text with", "eos": "ends a text with", "pad": "pads with"}


@dataclass(frozen=True)
class Tokenizer:
    """`copies`: name -> file to copy; `texts`: name -> text to write; `ids`: token -> id, if a file has them;
    `special`: role -> token; `template` of chats, or empty."""

    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    ids: Mapping[str, int]
    special: Mapping[str, str]
    template: str

    @property
    def names(self) -> list[str]:
        return [*self.copies, *self.texts]


def read_tokenizer(files: Mapping[str, Path], config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of some files. `config` is that of the model, whose ids name the special tokens where there is
    nothing but a `tokenizer.json`. Raises Refusal."""
    fields = _json(files[CONFIG]) if CONFIG in files else {}
    ids = _read_ids(files[TOKENIZER_JSON]) if TOKENIZER_JSON in files else {}
    tokens = {id_: token for token, id_ in ids.items()}
    texts: dict[str, str] = {}
    if TOKENIZER_JSON in files and CONFIG not in files:
        named = {role: tokens.get(config.get(f"{role}_token_id")) for role in ROLES}  # type: ignore[arg-type]
        fields = _plain_config({role: token for role, token in named.items() if token is not None})
        texts[CONFIG] = _text(fields)
    return _tokenizer(files, fields, ids, texts)


def complete_tokenizer(
    files: Mapping[str, Path],
    config: Mapping[str, Any],
    ranks: TiktokenSection | None,
    places: Mapping[str, Any],
    say: Callable[[str], None],
    *,
    named: bool,
) -> Tokenizer:
    """The tokenizer of some files, with a `tokenizer.json` built if there is none.

    `ranks` is the spec's `tokenizer` section, `places` maps its special tokens to their offsets behind the ranks. A
    file that cannot be built is an error if the user `named` it, and is copied as it is if it was only found next to
    the weights. Raises Refusal.
    """
    path = next((files[name] for name in (TIKTOKEN, *MODELS) if name in files and kind_of(files[name])), None)
    if TOKENIZER_JSON in files or path is None:
        return read_tokenizer(files, config)
    try:
        tokenizer, about = _built(path, files, config, ranks, places)
    except Refusal as refusal:
        if named:
            raise
        for diagnostic in refusal.diagnostics:
            say(f"cannot build {TOKENIZER_JSON} from {path.name}: {diagnostic.message}")
        rest = {name: file for name, file in files.items() if name not in (TIKTOKEN, PICKLE)}
        return read_tokenizer(rest | ({path.name: path} if path.name != PICKLE else {}), config)
    say(f"built {TOKENIZER_JSON} from {path.name}, {about}")
    return tokenizer


def _built(
    path: Path,
    files: Mapping[str, Path],
    config: Mapping[str, Any],
    ranks: TiktokenSection | None,
    places: Mapping[str, Any],
) -> tuple[Tokenizer, str]:
    """The tokenizer, and a description of the file that it was built from. Raises Refusal."""
    settings = _json(files[CONFIG]) if CONFIG in files else {}
    special_map = _json(files[SPECIAL]) if SPECIAL in files else {}
    added = _json(files[ADDED]) if ADDED in files else {}
    context = TokenizerContext(
        special_map | settings, {t: n for t, n in added.items() if isinstance(n, int)}, config, ranks, places
    )
    parts = _read_parts(path, context)
    fields = _plain_config(parts.special) | {n: v for n, v in settings.items() if PORTABLE.fullmatch(n)}
    texts = {TOKENIZER_JSON: json.dumps(parts.fields, ensure_ascii=False) + "\n", CONFIG: _text(fields)}
    rest = {name: file for name, file in files.items() if name not in (TIKTOKEN, PICKLE, SPECIAL, ADDED)}
    return _tokenizer(rest, fields, _ids(parts.fields), texts), parts.about


def _read_parts(path: Path, context: TokenizerContext) -> TokenizerParts:
    data = path.read_bytes()
    if kind_of(path) == PICKLE:
        return from_encoding(path, read_encoding(str(path), data), context)
    if (ranks := read_ranks(str(path), data)) is not None:
        return from_tiktoken(path, ranks, context)
    if (pieces := read_pieces(str(path), data)) is not None:
        return from_sentencepiece(path, pieces, context)
    return unsupported(path, "it is neither a sentencepiece model nor a tiktoken file")


def _plain_config(special: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer_config.json that adds to a `tokenizer.json` only which tokens are special; role -> token."""
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    # By default there would be token types, which generation does not take.
    fields["model_input_names"] = ["input_ids", "attention_mask"]
    return fields | {f"{role}_token": token for role, token in special.items()}


def _tokenizer(
    files: Mapping[str, Path], fields: dict[str, Any], ids: Mapping[str, int], texts: dict[str, str]
) -> Tokenizer:
    """Combine the files: the template in both places, the special tokens."""
    old = fields.get("chat_template")
    # If both places have a template, programs use the file.
    template = _template(files[TEMPLATE]) if TEMPLATE in files else old if isinstance(old, str) else ""
    if template and TEMPLATE not in files:
        texts[TEMPLATE] = template
    if template and fields and old != template and not isinstance(old, list):
        texts[CONFIG] = _text(fields | {"chat_template": template})
    special_map = _json(files[SPECIAL]) if SPECIAL in files else {}
    special = {role: content(fields.get(f"{role}_token") or special_map.get(f"{role}_token")) for role in ROLES}
    return Tokenizer(
        {name: path for name, path in files.items() if name not in texts},
        texts,
        ids,
        {role: token for role, token in special.items() if token},
        template,
    )


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        refuse(str(path), f"it is not UTF-8 text: {error.reason} at byte {error.start}", "bad-config")


def _json(path: Path) -> dict[str, Any]:
    return json_object(path, path.read_bytes())


def _text(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _read_ids(path: Path) -> dict[str, int]:
    try:
        return _ids(_json(path))
    except (AttributeError, TypeError, IndexError, KeyError):  # whatever is not where it belongs
        refuse(str(path), "its vocabulary or its added tokens are malformed", "bad-config", "copy the file again")


def _ids(tokenizer_json: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id of a `tokenizer.json`; a vocabulary is a mapping, or a list of pairs in the order of ids."""
    vocabulary = (tokenizer_json.get("model") or {}).get("vocab") or {}
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((v[0], n) for n, v in enumerate(vocabulary))
    added = ((t.get("content"), t.get("id")) for t in tokenizer_json.get("added_tokens") or ())
    return {str(token): number for token, number in (*pairs, *added) if isinstance(number, int)}


# ---------------------------------------------------------------------------------------------------------------------
# Does it fit?


def generation_fields(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """Fields of generation_config.json that config.json lacks: ids of special tokens that only the tokenizer has."""
    known = {f"{role}_token_id": tokenizer.ids.get(token) for role, token in tokenizer.special.items()}
    return {name: number for name, number in known.items() if number is not None and config.get(name) is None}


def lint(tokenizer: Tokenizer, config: Mapping[str, Any]) -> Iterator[str]:
    """Warnings: ids beyond the embedding, special tokens that differ between two files, a template that fails."""
    rows = config.get("vocab_size")
    if tokenizer.ids and isinstance(rows, int):
        highest = max(tokenizer.ids.values())
        beyond = sorted((n, t) for t, n in tokenizer.ids.items() if n >= rows)
        if beyond:
            some = listed((f"{t!r} ({n})" for n, t in beyond), 4)
            yield f"the embedding has {rows} rows, but the tokenizer has ids up to {highest}: {some} would fail"
    for role, what in ROLES.items():
        config_id, token = config.get(f"{role}_token_id"), tokenizer.special.get(role)
        if token is None:
            if tokenizer.names and config_id is None and role == "eos":
                yield "neither the tokenizer nor the config has an end-of-text token: generation will not stop"
            continue
        number = tokenizer.ids.get(token)
        if tokenizer.ids and number is None:
            yield f"the tokenizer {what} {token!r}, which is not in its vocabulary"
        elif (
            number is not None
            and config_id is not None
            and number not in (config_id if isinstance(config_id, list) else [config_id])
        ):
            late = "; generation would not stop there" if role == "eos" else ""
            yield f"the tokenizer {what} {token!r} ({number}), the config with {config_id}{late}"
    if tokenizer.template and (failure := problem(tokenizer.template, tokenizer.special)):
        yield f"the chat template fails on a plain conversation: {failure}"
