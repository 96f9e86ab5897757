"""A sentencepiece model as a `tokenizer.json`.

Takes `Pieces` and what lies beside the file; returns `Whole`. Texts get the ids that sentencepiece gives them: its
normalization, its space before a text, its order of joining, its bytes for what is unknown. Refuses models of words or
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
from compiler.tokenizer.tokenizer_json import AddedTokens, Fields, TokenizerParts, added, added_beside, no_form, whole

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def of_pieces(path: Path, found: SentencePieceModel, beside: AddedTokens) -> TokenizerParts:
    """The tokenizer of the model that the file at `path` holds. Raises Refusal."""
    if found.model not in (sentencepiece_model.BPE, sentencepiece_model.UNIGRAM):
        no_form(path, "it is a model of words or of characters")
    if found.suffix:
        no_form(path, "it puts the space behind a word")
    if found.restore:
        no_form(path, "it normalizes what it decodes")
    if any(piece.kind == sentencepiece_model.UNUSED for piece in found.pieces):
        no_form(path, "some of its pieces are marked as unused")
    others = added_beside(path, [piece.text for piece in found.pieces], beside)
    names = [others[n]["content"] if n in others else piece.text for n, piece in enumerate(found.pieces)]
    # A piece that is called otherwise has its new name only; the rest is what it was.
    own = [(n, piece.kind) for n, piece in enumerate(found.pieces) if names[n] == piece.text]
    normal = [n for n, kind in own if kind == sentencepiece_model.NORMAL]
    symbols = [n for n, kind in own if kind == sentencepiece_model.USER]
    tokens = {
        n: added(n, names[n]) for n, kind in own if kind in (sentencepiece_model.CONTROL, sentencepiece_model.UNKNOWN)
    }
    tokens |= {n: added(n, names[n], normalized=True, special=False) for n in symbols} | others
    bpe = found.model == sentencepiece_model.BPE
    special = {"bos": found.bos, "eos": found.eos, "pad": found.pad, "unk": found.unk}
    space = SPACE if found.escape else " "
    return whole(
        tokens,
        names,
        {role: token for role, token in special.items() if token in names},
        beside,
        f"a sentencepiece model ({'BPE' if bpe else 'unigram'}, {len(names):,} pieces)",
        begins=bool(found.bos),
        normalizer=_normalizer(found, space, [names[n] for n in symbols]),
        decoder=_decoder(found),
        model=_joined(found, names, normal) if bpe else _added_up(found, names, normal),
    )


def _joined(found: SentencePieceModel, names: Sequence[str], normal: Sequence[int]) -> Fields:
    """BPE: neighbours are joined, the highest score first."""
    ordered = [names[n] for n in sorted(normal, key=lambda n: -found.pieces[n].score)]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(
            names[n] for n, piece in enumerate(found.pieces) if piece.kind == sentencepiece_model.UNKNOWN
        ),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": found.fallback,
        "ignore_merges": False,
        "vocab": {name: n for n, name in enumerate(names)},
        "merges": [list(pair) for pair in merges(ordered, set(ordered))],
    }


def _added_up(found: SentencePieceModel, names: Sequence[str], normal: Sequence[int]) -> Fields:
    """Unigram: the pieces whose scores add up to most."""
    scores = {n: found.pieces[n].score for n in normal}
    # What is no piece of text must never be the best way to spell one.
    never = min(scores.values(), default=0.0) - 1000
    return {
        "type": "Unigram",
        "unk_id": next(n for n, piece in enumerate(found.pieces) if piece.kind == sentencepiece_model.UNKNOWN),
        "vocab": [[name, scores.get(n, never)] for n, name in enumerate(names)],
        "byte_fallback": found.fallback,
    }


def _normalizer(found: SentencePieceModel, space: str, symbols: Collection[str]) -> Fields | None:
    """What sentencepiece does to a text, in its order. `symbols` are left alone."""
    steps: list[Fields] = []

    def replace(pattern: Fields, by: str) -> None:
        steps.append({"type": "Replace", "pattern": pattern, "content": by})

    if found.charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(found.charsmap).decode()})
    if found.shrink:
        replace({"Regex": r"\A +"}, "")
        replace({"Regex": " +"}, " ")
    if found.prefix and symbols:
        # They are looked for behind this step, which is also done to them; so it must not put a space before one.
        apart = "|".join(re.escape(text) for text in symbols)
        replace({"Regex": rf"\A(?!(?:{apart})\z)(?=[\s\S])"}, space)
    elif found.prefix:
        steps.append({"type": "Prepend", "prepend": space})
    if found.escape:
        replace({"String": " "}, SPACE)
    if found.shrink:  # what was written as U+2581 counts as a space here, and only here
        replace({"Regex": rf"{space}+\z"}, "")
    return {"type": "Sequence", "normalizers": steps} if steps else None


def _decoder(found: SentencePieceModel) -> Fields:
    steps: list[Fields] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if found.prefix or found.shrink:  # the space before a text; where spaces are folded, all there are
        steps.append({"type": "Strip", "content": " ", "start": 1000 if found.shrink else 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
