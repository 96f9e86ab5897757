"""A tiktoken file, or a pickled Encoding of tiktoken, as a `tokenizer.json`.

Takes token -> rank and a `TokenizerContext`. A tiktoken file has neither special tokens nor the pattern that splits a
text into words: both come from the spec's `tokenizer` section. Returns `TokenizerParts`. Refuses a file if the spec has
no such section, and special tokens that do not fit. Source: the package
tiktoken 0.14.0, tiktoken/load.py and core.py (`Encoding.__getstate__`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.checkpoints.formats.pickle_globals import Inert
from compiler.checkpoints.formats.pickle_machine import load
from compiler.diagnostics import refuse
from compiler.language.spec import TiktokenSection
from compiler.tokenizer.bpe_merges import check_lengths, merges, spelled
from compiler.tokenizer.tokenizer_json import (
    Fields,
    TokenizerContext,
    TokenizerParts,
    added,
    added_by_other_files,
    tokenizer_parts,
    unsupported,
)

_MOST_SPECIAL = 1 << 16  # ids behind the ranks


@dataclass(frozen=True)
class TiktokenEncoding:
    """`ranks`: token -> rank; the `pattern` that splits a text into words; `special`: id -> token."""

    ranks: Mapping[bytes, int]
    pattern: str
    special: Mapping[int, str]


def from_tiktoken(path: Path, ranks: Mapping[bytes, int], context: TokenizerContext) -> TokenizerParts:
    """The tokenizer of the ranks in the file at `path`. Raises Refusal."""
    left_out = context.ranks
    if left_out is None:
        unsupported(
            path, "a tiktoken file has neither special tokens nor a pattern, and the spec has no `tokenizer` section"
        )
    special = special_names(left_out, context.places)
    encoding = TiktokenEncoding(ranks, left_out.pattern, dict(enumerate(special, len(ranks))))
    about = f"a tiktoken file ({len(ranks):,} ranks) and {len(special):,} special tokens"
    return _parts(path, encoding, context, about, left_out.normalize, left_out.begins)


def from_encoding(path: Path, encoding: TiktokenEncoding, context: TokenizerContext) -> TokenizerParts:
    """The tokenizer of a pickled Encoding, which has its own pattern and special tokens. Raises Refusal."""
    about = f"a pickled Encoding of tiktoken ({len(encoding.ranks):,} ranks)"
    return _parts(path, encoding, context, about, "", False)


def _parts(
    path: Path, encoding: TiktokenEncoding, context: TokenizerContext, about: str, normalize: str, begins: bool
) -> TokenizerParts:
    tokens = sorted(encoding.ranks, key=lambda token: encoding.ranks[token])
    names = [spelled(token) for token in tokens]
    # Other files speak of ids without a gap.
    following = [encoding.special.get(n, "") for n in range(len(names), max(encoding.special, default=0) + 1)]
    others = added_by_other_files(path, [*names, *following], context)
    own = {n: added(n, text) for n, text in encoding.special.items()} | others
    by_id = dict(enumerate(names)) | {n: token["content"] for n, token in own.items()}
    special_ids = {role: context.config.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
    model: Fields = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,  # a word that is a token is not split
        "vocab": {name: n for n, name in enumerate(names)},
        "merges": [[spelled(left), spelled(right)] for left, right in merges(tokens, encoding.ranks)],
    }
    cut: list[Fields] = [
        {"type": "Split", "pattern": {"Regex": encoding.pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return tokenizer_parts(
        own,
        names,
        {role: by_id[n] for role, n in special_ids.items() if isinstance(n, int) and n in by_id},
        context,
        about,
        begins=begins,
        normalizer={"type": normalize} if normalize else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": cut},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=model,
    )


def read_encoding(name: str, data: bytes) -> TiktokenEncoding:
    """The state of a pickled `tiktoken.Encoding`, read without running anything. Raises Refusal."""
    value, _ = load(data, name)
    state = value.state if isinstance(value, Inert) and value.cls.name == "Encoding" else None
    if isinstance(state, str):
        hint = "give the tokenizer.json of the same model with --tokenizer"
        refuse(name, f"it only names tiktoken's own encoding {state!r}", "unsupported-tokenizer", hint)
    fields = state if isinstance(state, dict) else {}
    ranks, pattern, special = (fields.get(key) for key in ("mergeable_ranks", "pat_str", "special_tokens"))
    if not (
        isinstance(pattern, str)
        and isinstance(ranks, dict)
        and all(isinstance(k, bytes) and k and type(n) is int for k, n in ranks.items())
        and isinstance(special, dict)
        and all(isinstance(k, str) and type(n) is int for k, n in special.items())
    ):
        refuse(name, "it is not a pickled Encoding of tiktoken", "damaged-file")
    check_ranks(name, ranks)
    by_id = {n: text for text, n in special.items()}
    if len(by_id) < len(special) or any(not len(ranks) <= n < len(ranks) + _MOST_SPECIAL for n in by_id):
        refuse(name, "the ids of its special tokens do not follow its ranks", "damaged-file")
    return TiktokenEncoding(ranks, pattern, by_id)


_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})")


def read_ranks(name: str, data: bytes) -> dict[bytes, int] | None:
    """Token -> rank of a tiktoken file: a line for each, its bytes in base64, a space, its rank. Raises Refusal."""
    lines = data.splitlines()
    if not lines or not _LINE.fullmatch(lines[0]):
        return None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        match = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(match[1], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if match is None or not token:
            refuse(name, f"line {number} is not a base64 token and its rank", "damaged-file")
        if token in ranks:
            refuse(name, f"line {number} repeats a token", "damaged-file")
        ranks[token] = int(match[2])
    check_ranks(name, ranks)
    return ranks


def check_ranks(name: str, ranks: Mapping[bytes, int]) -> None:
    """Refuse ranks with a gap, and those in which a byte has no token. Raises Refusal."""
    check_lengths(name, ranks)
    if sorted(ranks.values()) != list(range(len(ranks))):
        refuse(name, f"its ranks are not 0 to {len(ranks) - 1}, each once", "damaged-file", "lines may be missing")
    if missing := sum(bytes([byte]) not in ranks for byte in range(256)):
        refuse(
            name, f"{missing} of the 256 single bytes have no token, so some texts cannot be encoded", "damaged-file"
        )


def special_names(left_out: TiktokenSection, places: Mapping[str, Any]) -> list[str]:
    """The special tokens in the order of their ids, which follow the ranks. Raises Refusal."""
    taken: dict[int, str] = {}
    for text, place in places.items():
        span = left_out.named[text].span
        if place is None:
            continue
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < left_out.count:
            refuse(span, f"the place of {text} is {place!r}, not one of 0 to {left_out.count - 1}", "wrong-value")
        if place in taken:
            refuse(span, f"{text} and {taken[place]} have the same place", "wrong-value")
        taken[place] = text
    others = (left_out.others.replace("{n}", str(n)) for n in range(left_out.count))
    tokens = [taken[n] if n in taken else next(others) for n in range(left_out.count)]
    if len(set(tokens)) < len(tokens):
        refuse(left_out.span, "two special tokens have the same text", "wrong-value", "{n} counts the others")
    return tokens
