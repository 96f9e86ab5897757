"""Similarity of tensor names, and names for the steps of a spec."""

from __future__ import annotations

import re
from keyword import iskeyword

from compiler.draft.tensor_roles import NameFamily


def square(family: NameFamily) -> bool:
    """Whether the family is a square matrix of a layer."""
    return family.level > 0 and len(family.shape) == 2 and family.shape[0] == family.shape[1]


def label(family: NameFamily) -> str:
    """A name for the step that makes this target tensor."""
    words = {"q": "query", "k": "key", "v": "value", "o": "output", "other": ""}
    name = words.get(family.role, family.role) or slug(family.text)
    return slug(name + ("_bias" if family.part == "bias" else ""))


def slug(text: str) -> str:
    """A tensor's name as the name of a step."""
    name = re.sub(r"\W+|_?\{.\}", "_", text.lower(), flags=re.ASCII).strip("_")
    return name if name[:1].isalpha() and not iskeyword(name) else f"step_{name}".rstrip("_")


def similarity(a: NameFamily, b: NameFamily) -> float:
    """The share of words that two names have in common, later words weighing more; between 0 and about 2."""
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
    numbers = 0
    found = []
    for part in text.split("."):
        if part.isdigit():  # the second number of a name never means the same as the first
            found.append(f"{numbers}:{part}")
            numbers += 1
            continue
        words = re.split(r"[_{}]+|(?<=[a-z])(?=\d)", part)
        found += [word for word in words if word not in ("", "i", "e", "model", "weight")]
    return [usual.get(word, word) for word in found]
