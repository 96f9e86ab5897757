"""A file of ranks (tiktoken) as a `tokenizer.json`.

Takes token -> rank, and what lies beside the file. Such a file has neither special tokens nor the pattern that cuts a
text into words: both are the spec's (`tokenizer`). Returns `Whole`. Refuses a file where the spec says nothing of it,
and special tokens that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compiler.bytepairs import merges, spelled
from compiler.special import special_names
from compiler.whole import Beside, Fields, Whole, added, added_beside, no_form, whole


def of_ranks(path: Path, ranks: Mapping[bytes, int], beside: Beside) -> Whole:
    """The tokenizer of the ranks that the file at `path` holds. Raises Refusal."""
    left_out = beside.ranks
    if left_out is None:
        no_form(
            path, "ranks without special tokens and without a pattern, of which the spec says nothing ('tokenizer')"
        )
    tokens = sorted(ranks, key=lambda token: ranks[token])
    names = [spelled(token) for token in tokens]
    special = special_names(left_out, beside.places)
    others = added_beside(path, [*names, *special], beside)
    own = {n: added(n, text) for n, text in enumerate(special, len(names))} | others
    by_id = dict(enumerate(names)) | {n: token["content"] for n, token in own.items()}
    said = {role: beside.config.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
    model: Fields = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,  # a word that is a token is not cut
        "vocab": {name: n for n, name in enumerate(names)},
        "merges": [[spelled(left), spelled(right)] for left, right in merges(tokens, ranks)],
    }
    cut: list[Fields] = [
        {"type": "Split", "pattern": {"Regex": left_out.pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return whole(
        own,
        names,
        {role: by_id[n] for role, n in said.items() if isinstance(n, int) and n in by_id},
        beside,
        f"a file of ranks ({len(names):,}) and {len(special):,} special tokens",
        begins=left_out.begins,
        normalizer={"type": left_out.normalize} if left_out.normalize else None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": cut},
        decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        model=model,
    )
