"""How alike two names are, and what a step may be called.

Takes forms, returns numbers and words; knows nothing of shapes but whether a matrix is square.
"""

from __future__ import annotations

import re

from compiler.draft.tensor_roles import NameFamily


def square(form: NameFamily) -> bool:
    """Whether it is a square matrix of a layer."""
    return form.level > 0 and len(form.shape) == 2 and form.shape[0] == form.shape[1]


def label(form: NameFamily) -> str:
    """A name for a step."""
    words = {"q": "query", "k": "key", "v": "value", "o": "output", "other": ""}
    name = words.get(form.role, form.role) or slug(form.text)
    return name + ("_bias" if form.part == "bias" else "")


def slug(text: str) -> str:
    """A tensor's name as the name of a step."""
    return re.sub(r"\W+|_?\{.\}", "_", text.lower()).strip("_")


def likeness(a: NameFamily, b: NameFamily) -> float:
    """How many words two names share, the later ones counting more."""
    one, other = _words(a.text), _words(b.text)
    shared = sum(1.0 + n / 10 for n, word in enumerate(one) if word in other)
    return shared / max(1, len({*one, *other})) + (0.2 if a.text.rsplit(".", 1)[-1] == b.text.rsplit(".", 1)[-1] else 0)


def _words(text: str) -> list[str]:
    usual = {"attn": "attention", "att": "attention", "ffn": "feedforward", "ff": "feedforward", "mlp": "feedforward",
             "ln": "norm", "layernorm": "norm", "emb": "embedding", "embed": "embedding", "embeddings": "embedding",
             "pos": "position", "positional": "position", "positions": "position", "proj": "projection"}  # fmt: skip
    text = (
        text.lower()
        .replace("layer_norm", "layernorm")
        .replace("feed_forward", "feedforward")
        .replace("self_attn", "attn")
    )
    found = [
        word for word in re.split(r"[._{}]+|(?<=[a-z])(?=\d)", text) if word not in ("", "i", "e", "model", "weight")
    ]
    return [usual.get(word, word) for word in found]
