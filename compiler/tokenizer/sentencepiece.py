"""A sentencepiece model as a `tokenizer.json`.

Takes a `SentencePieceModel` and a `TokenizerContext`; returns `TokenizerParts`. Texts get the same ids as from
sentencepiece: its normalization, its space before a text, its merge order, its byte fallback. Refuses models of words or
of characters, and three settings that `tokenizer.json` cannot express.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from compiler.tokenizer import sentencepiece_model
from compiler.tokenizer.bpe_merges import merges
from compiler.tokenizer.sentencepiece_model import SentencePieceModel
from compiler.tokenizer.tokenizer_json import (
    Fields,
    TokenizerContext,
    TokenizerParts,
    added,
    added_by_other_files,
    tokenizer_parts,
    unsupported,
)

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def from_sentencepiece(path: Path, model: SentencePieceModel, context: TokenizerContext) -> TokenizerParts:
    """The tokenizer of the model in the file at `path`. Raises Refusal."""
    if model.model not in (sentencepiece_model.BPE, sentencepiece_model.UNIGRAM):
        unsupported(path, "its model type is word or char, not BPE or unigram")
    if model.suffix:
        unsupported(path, "it puts the space after a word (treat_whitespace_as_suffix)")
    if model.restore:
        unsupported(path, "it has a denormalizer")
    if any(piece.kind == sentencepiece_model.UNUSED for piece in model.pieces):
        unsupported(path, "some of its pieces are marked as unused")
    others = added_by_other_files(path, [piece.text for piece in model.pieces], context)
    names = [others[n]["content"] if n in others else piece.text for n, piece in enumerate(model.pieces)]
    # A piece that another file renames keeps only its new name.
    own = [(n, piece.kind) for n, piece in enumerate(model.pieces) if names[n] == piece.text]
    normal = [n for n, kind in own if kind == sentencepiece_model.NORMAL]
    symbols = [n for n, kind in own if kind == sentencepiece_model.USER]
    tokens = {
        n: added(n, names[n]) for n, kind in own if kind in (sentencepiece_model.CONTROL, sentencepiece_model.UNKNOWN)
    }
    tokens |= {n: added(n, names[n], normalized=True, special=False) for n in symbols} | others
    bpe = model.model == sentencepiece_model.BPE
    special = {"bos": model.bos, "eos": model.eos, "pad": model.pad, "unk": model.unk}
    space = SPACE if model.escape else " "
    return tokenizer_parts(
        tokens,
        names,
        {role: token for role, token in special.items() if token in names},
        context,
        f"a sentencepiece model ({'BPE' if bpe else 'unigram'}, {len(names):,} pieces)",
        begins=bool(model.bos),
        normalizer=_normalizer(model, space, [names[n] for n in symbols]),
        decoder=_decoder(model),
        model=_joined(model, names, normal) if bpe else _added_up(model, names, normal),
    )


def _joined(model: SentencePieceModel, names: Sequence[str], normal: Sequence[int]) -> Fields:
    """BPE: neighbours are merged, the highest score first."""
    ordered = [names[n] for n in sorted(normal, key=lambda n: -model.pieces[n].score)]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(
            names[n] for n, piece in enumerate(model.pieces) if piece.kind == sentencepiece_model.UNKNOWN
        ),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": model.fallback,
        "ignore_merges": False,
        "vocab": {name: n for n, name in enumerate(names)},
        "merges": [list(pair) for pair in merges(ordered, set(ordered))],
    }


def _added_up(model: SentencePieceModel, names: Sequence[str], normal: Sequence[int]) -> Fields:
    """Unigram: the pieces whose scores add up to most."""
    scores = {n: model.pieces[n].score for n in normal}
    # Pieces that are not text must never win over those that are.
    never = min(scores.values(), default=0.0) - 1000
    return {
        "type": "Unigram",
        "unk_id": next(n for n, piece in enumerate(model.pieces) if piece.kind == sentencepiece_model.UNKNOWN),
        "vocab": [[name, scores.get(n, never)] for n, name in enumerate(names)],
        "byte_fallback": model.fallback,
    }


def _normalizer(model: SentencePieceModel, space: str, symbols: Collection[str]) -> Fields | None:
    """The normalization steps of sentencepiece in their order; user-defined `symbols` are exempt."""
    steps: list[Fields] = []

    def replace(pattern: Fields, by: str) -> None:
        steps.append({"type": "Replace", "pattern": pattern, "content": by})

    if model.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.charsmap).decode()})
    if model.shrink:
        replace({"Regex": r"\A +"}, "")
        replace({"Regex": " +"}, " ")
    if model.prefix and symbols:
        # The symbols are matched after this step, which is applied to them as well; so it must not put a space before one.
        apart = "|".join(re.escape(text) for text in symbols)
        replace({"Regex": rf"\A(?!(?:{apart})\z)(?=[\s\S])"}, space)
    elif model.prefix:
        steps.append({"type": "Prepend", "prepend": space})
    if model.escape:
        replace({"String": " "}, SPACE)
    if model.shrink:  # here, and only here, a written U+2581 counts as a space
        replace({"Regex": rf"{space}+\z"}, "")
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(model: SentencePieceModel) -> Fields:
    steps: list[Fields] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.prefix or model.shrink:  # the space before a text; all leading spaces if spaces are folded
        steps.append({"type": "Strip", "content": " ", "start": 1000 if model.shrink else 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
