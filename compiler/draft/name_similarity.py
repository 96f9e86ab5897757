"""Similarity of tensor names, and names for the steps of a spec."""

from __future__ import annotations

import re
from itertools import groupby
from keyword import iskeyword

from compiler.draft.tensor_roles import NameFamily

# Words that are written in two parts, and the two tensors of a normalized weight as torch names them today.
_JOINED = {
    "layer_norm": "layernorm",
    "feed_forward": "feedforward",
    "self_attn": "attn",
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
# Words that never mean the same.
_OPPOSITES = ({"encoder", "decoder"}, {"vision", "text"}, {"visual", "text"})


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
    one, other = words(a.spelling or a.text), words(b.spelling or b.text)
    if any({*one} & pair and {*other} & pair and not {*one} & {*other} & pair for pair in _OPPOSITES):
        return 0.0
    shared = sum(1.0 + n / 10 for n, word in enumerate(one) if word in other)
    return shared / max(1, len({*one, *other})) + (0.2 if a.text.rsplit(".", 1)[-1] == b.text.rsplit(".", 1)[-1] else 0)


def words(text: str) -> list[str]:
    """The words of a name, as most projects write them; numbers between dots carry their position."""
    usual = {"attn": "attention", "att": "attention", "ffn": "feedforward", "ff": "feedforward", "mlp": "feedforward",
             "ln": "norm", "layernorm": "norm", "emb": "embedding", "embed": "embedding", "embeddings": "embedding",
             "pos": "position", "positional": "position", "positions": "position", "proj": "projection"}  # fmt: skip
    text = text.lower()
    for old, new in _JOINED.items():
        text = text.replace(old, new)
    numbers = 0
    found = []
    for part in text.split("."):
        if part.isdigit():  # the second number of a name never means the same as the first
            found.append(f"{numbers}:{part}")
            numbers += 1
            continue
        words = re.split(r"[_{}]+|(?<=[a-z])(?=\d)", part)
        found += [word for word in words if word not in ("", "i", "e", "model", "weight")]
    return [word for word, _ in groupby(usual.get(word, word) for word in found)]
