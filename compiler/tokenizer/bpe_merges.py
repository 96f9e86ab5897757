"""Byte pair encoding as two kinds of files say it: by the rank of each token (tiktoken), or by the score of each piece.

Both join, of all neighbours whose concatenation is a token, the best one first, whatever the two are. `tokenizer.json`
has a list of pairs instead: `merges` lists every pair that can be joined. Takes the bytes of a file or a vocabulary;
returns ranks, pairs, or None where the bytes are no file of ranks. Refuses one that contradicts itself.
Source: https://pypi.org/project/tiktoken 0.14.0, tiktoken/load.py `load_tiktoken_bpe` and src/lib.rs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from compiler.diagnostics import refuse

Token = TypeVar("Token", str, bytes)
_MOST_WORK = 1_000_000_000  # letters; 250,000 tokens of 60


def check_lengths(name: str, tokens: Iterable[Sized]) -> None:
    """Refuse tokens whose pairs nobody could list: their number is that of all letters, its work that of their squares."""
    if sum(len(token) ** 2 for token in tokens) > _MOST_WORK:
        refuse(name, "its tokens are longer than those of any text", "damaged-file", "copy the file again")


def merges(tokens: Iterable[Token], parts: Container[Token]) -> Iterator[tuple[Token, Token]]:
    """Every pair of `parts` that makes a token; those of one token stand together, tokens in the order given: best first.

    Where two pairs that overlap make the same token (`aa|a` and `a|aa` in `aa a aa`), the left one is joined in both
    kinds of encoding. A list cannot say so; it has the pair with the longer left part first, since runs are joined
    from the left and leave what is shorter behind.
    """
    for token in tokens:
        for cut in range(len(token) - 1, 0, -1):
            left, right = token[:cut], token[cut:]
            if left in parts and right in parts:
                yield left, right


def _alphabet() -> Sequence[str]:
    """The character that stands for each byte in byte-level vocabularies: itself where it can be seen in Latin-1, else
    the next from U+0100 on. Source: GPT-2, src/encoder.py `bytes_to_unicode`."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]


ALPHABET = _alphabet()


def spelled(token: bytes) -> str:
    """A token of bytes in the characters of `ALPHABET`."""
    return "".join([ALPHABET[byte] for byte in token])
