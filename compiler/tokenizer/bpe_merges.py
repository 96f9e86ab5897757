"""The merge list of a byte pair encoding that is stored by rank (tiktoken) or by score (sentencepiece).

Both encoders merge, of all neighbours whose concatenation is a token, the one of lowest rank or highest score first.
`tokenizer.json` needs a list of pairs instead: `merges` lists every pair that can be merged. Takes a vocabulary;
returns pairs. Refuses tokens too long to list.
Source: the package tiktoken 0.14.0, tiktoken/load.py `load_tiktoken_bpe` and src/lib.rs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence, Sized
from itertools import pairwise
from typing import TypeVar

from compiler.diagnostics import refuse

Token = TypeVar("Token", str, bytes)
_MOST_WORK = 1_000_000_000  # letters; 250,000 tokens of 60


def check_lengths(name: str, tokens: Iterable[Sized]) -> None:
    """Refuse tokens so long that listing their pairs takes too long: the work grows with the square of their length."""
    if sum(len(token) ** 2 for token in tokens) > _MOST_WORK:
        refuse(name, "its tokens are too long to list their merges", "damaged-file", "copy the file again")


def merges(tokens: Iterable[Token], parts: Container[Token]) -> Iterator[tuple[Token, Token]]:
    """Every pair of `parts` that forms a token, grouped by token, in the order of `tokens` (best first).

    Where two overlapping pairs form the same token (`aa|a` and `a|aa` in `aa a aa`), both encoders merge the left one.
    A list cannot express that; it has the pair with the longer left part first, since runs are merged from the left
    and leave the shorter part behind.
    """
    for token in tokens:
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                yield left, right


def unreachable(vocabulary: Iterable[str], pairs: Iterable[tuple[str, str]], except_for: Container[str]) -> str | None:
    """The first token that its own text does not become by merging its characters; None if every token is reached."""
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    for token in vocabulary:
        parts = [*token]
        while len(parts) > 1:
            ranked = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
            best = min(range(len(ranked)), key=ranked.__getitem__)
            if ranked[best] == len(ranks):
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) > 1 and token not in except_for:
            return token
    return None


def _alphabet() -> Sequence[str]:
    """The character for each byte in byte-level vocabularies: the byte itself where Latin-1 has a visible character,
    otherwise the next one from U+0100. Source: GPT-2, src/encoder.py `bytes_to_unicode`."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]


ALPHABET = _alphabet()


def spelled(token: bytes) -> str:
    """The bytes of a token in the characters of `ALPHABET`."""
    return "".join([ALPHABET[byte] for byte in token])
