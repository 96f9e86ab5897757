"""Reads a sentencepiece model without sentencepiece: its pieces and its normalization.

Takes the bytes of a file; returns a `SentencePieceModel`, or None if they are not one. Refuses a model that contradicts
itself. Only the fields that affect how a text becomes ids are read.
Source: the package sentencepiece 0.2, src/sentencepiece_model.proto; protobuf's wire format is described at
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from compiler.diagnostics import refuse
from compiler.tokenizer.bpe_merges import check_lengths

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)
_MOST_PIECES = 1_000_000
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5


@dataclass(frozen=True)
class SentencePiece:
    """`kind` is one of NORMAL ... BYTE. Unigram models add `score`s up; BPE joins what has the highest first."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A model. The id of a piece is its position. `bos`, `eos` and `pad` are texts of pieces, empty if there is no such piece.

    `charsmap` is the compiled normalization, empty for the identity; `prefix` puts a space before a text, `shrink`
    takes away spaces at its ends and all but one inside, `escape` writes a space as U+2581, `suffix` has the space
    behind the word; `fallback` spells unknown characters in bytes; `restore` is a normalization when decoding.
    """

    pieces: tuple[SentencePiece, ...]
    model: int
    fallback: bool
    suffix: bool
    charsmap: bytes
    prefix: bool
    shrink: bool
    escape: bool
    restore: bool
    unk: str
    bos: str
    eos: str
    pad: str


def read_pieces(name: str, data: bytes) -> SentencePieceModel | None:
    """The model that `data` holds. `name` is that of the file, for messages. Raises Refusal."""
    if data[:1] != b"\x0a":  # the first field of the first piece
        return None
    try:
        pieces: list[SentencePiece] = []
        parts: dict[int, dict[int, int | bytes]] = {}
        for number, value in _fields(data):
            if number == _PIECES:
                pieces.append(_piece(dict(_fields(_as_bytes(value)))))
                if len(pieces) > _MOST_PIECES:
                    refuse(name, f"it has more than {_MOST_PIECES:,} pieces", "damaged-file")
            elif number in (_TRAINER, _NORMALIZER, _DENORMALIZER):
                parts.setdefault(number, {}).update(_fields(_as_bytes(value)))
    except ValueError:
        return None
    if _TRAINER not in parts:
        return None
    kinds = {piece.text: piece.kind for piece in pieces}
    check_lengths(name, kinds)
    if len(kinds) < len(pieces):
        refuse(name, "two of its pieces have the same text", "damaged-file")
    if not all(math.isfinite(piece.score) for piece in pieces):
        refuse(name, "one of its scores is not a number", "damaged-file")
    if sum(piece.kind == UNKNOWN for piece in pieces) != 1:
        refuse(name, "it must have exactly one unknown piece", "damaged-file")
    return _model(pieces, kinds, parts[_TRAINER], parts.get(_NORMALIZER, {}), parts.get(_DENORMALIZER, {}))


def _model(
    pieces: list[SentencePiece],
    kinds: Mapping[str, int],
    trainer: Mapping[int, int | bytes],
    normalizer: Mapping[int, int | bytes],
    denormalizer: Mapping[int, int | bytes],
) -> SentencePieceModel:
    def role(number: int, default: str) -> str:
        """The text of a special piece; empty if no control piece has that text."""
        piece = trainer.get(number)
        text = piece.decode(errors="replace") if isinstance(piece, bytes) else default
        return text if kinds.get(text) == CONTROL else ""

    def flag(fields: Mapping[int, int | bytes], number: int, default: bool) -> bool:
        return bool(fields.get(number, default))

    charsmap, restore = normalizer.get(2, b""), denormalizer.get(2, b"")
    model = trainer.get(3, UNIGRAM)
    return SentencePieceModel(
        tuple(pieces),
        model if isinstance(model, int) else 0,
        fallback=flag(trainer, 35, False),
        suffix=flag(trainer, 24, False),
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        prefix=flag(normalizer, 3, True),
        shrink=flag(normalizer, 4, True),
        escape=flag(normalizer, 5, True),
        restore=bool(restore),
        unk=next(piece.text for piece in pieces if piece.kind == UNKNOWN),
        bos=role(46, "<s>"),
        eos=role(47, "</s>"),
        pad=role(48, "<pad>"),
    )


def _piece(fields: Mapping[int, int | bytes]) -> SentencePiece:
    text, score, kind = fields.get(1, b""), fields.get(2, bytes(4)), fields.get(3, NORMAL)
    if not isinstance(kind, int) or not NORMAL <= kind <= BYTE or not text:
        raise ValueError("no piece")
    (value,) = struct.unpack("<f", _as_bytes(score))
    return SentencePiece(_as_bytes(text).decode(), value, kind)


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where bytes belong")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: number, and an integer or bytes. Raises ValueError if the message is malformed."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if number == 0:
            raise ValueError("a field without a number")
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            if wire == _BYTES:
                length, at = _varint(data, at)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise ValueError("a group or an unknown form")
            if at + length > end:
                raise ValueError("it ends too early")
            value, at = data[at : at + length], at + length
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and its end."""
    value = shift = 0
    while shift < 70 and at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
