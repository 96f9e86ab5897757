"""Which files of a tokenizer travel beside the weights, and of which a `tokenizer.json` is built.

Takes the folder that they lie in, or one file, whose kind its bytes tell. Refuses a folder without any where one was
named, a file that is none, a link
that leaves its folder (but for the Hugging Face cache, whose files are links), and a tokenizer whose code lies
elsewhere: whoever loads the new folder with `trust_remote_code` would run it. Says which code does not travel.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import listed, refuse

WHOLE, PIECES, RANKS = "tokenizer.json", "tokenizer.model", "tokenizer.tiktoken"
FILES = (
    WHOLE,
    "tokenizer_config.json",
    PIECES,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
MODELS = (PIECES, "spiece.model", f"{PIECES}.v*", "*.tiktoken")  # what trainers call a model or ranks


MOST_BYTES = 128 << 20  # the largest known have 40 million


def tokenizer_files(place: Path, say: Callable[[str], None], *, named: bool) -> dict[str, Path]:
    """Name -> file of what is to travel from a folder, or of a file alone; `named`: the user asked for it, so that there
    must be something. Without a `tokenizer.json` there may be a sentencepiece model (PIECES, or by its own name) or a file
    of ranks (RANKS) to build one of. Raises Refusal."""
    if named and not place.exists():
        refuse(str(place), "there is no such folder or file", "missing-tokenizer")
    found = {name: place / name for name in FILES if (place / name).is_file()}
    if WHOLE not in found and (model := _model(place)):
        if kind_of(model) == RANKS:
            found.pop(model.name, None)
            found[RANKS] = model
        elif model.name not in found:
            found[PIECES] = model
    if named and place.is_file():
        name = kind_of(place) or (place.name if place.name in FILES and place.name not in MODELS else "")
        found = {name: place} if name else {}
    if named and not found:
        what = "the folder holds no tokenizer" if place.is_dir() else "the file is no tokenizer"
        refuse(str(place), what, "missing-tokenizer", f"looked for {listed(FILES, 3)}")
    inside = (place if place.is_dir() else place.parent).resolve()
    for file in found.values():
        if (size := file.stat().st_size) > MOST_BYTES:
            refuse(str(file), f"a file of a tokenizer of {size:,} bytes", "bad-config", "this is some other file")
        target = file.resolve()
        cached = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
        if target.parent != inside and not cached:
            refuse(str(file), "it is a link that leaves its folder", "bad-config", "copy the file itself there")
        if file.name == "tokenizer_config.json" and (code := _code(read_config_file(file))):
            say(f"the tokenizer has code of its own, which does not travel with it: {listed(code)}")
    return found


def _model(place: Path) -> Path | None:
    """The first file of a folder that a tokenizer can be built of."""
    files = (file for pattern in MODELS for file in sorted(place.glob(pattern)))
    return next((file for file in files if file.is_file() and kind_of(file)), None)


def kind_of(file: Path) -> str:
    """PIECES, RANKS or WHOLE by the first bytes; empty where they belong to none."""
    with file.open("rb") as opened:
        head = opened.read(200)
    if re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", head):
        return RANKS
    if head[:1] == b"\n" and head[2:3] == b"\n":  # the first piece of a model, and its text
        return PIECES
    whole = re.match(rb'\s*\{\s*"(version|model|truncation|added_tokens)"', head)
    return WHOLE if whole else ""


def _code(config: dict[str, Any]) -> list[str]:
    """The classes that a config names as its own code."""
    classes = config.get("auto_map")
    places = classes.values() if isinstance(classes, dict) else [classes] if classes else []
    each = [item for place in places for item in (place if isinstance(place, list) else [place])]
    return [str(item) for item in each if item is not None]
