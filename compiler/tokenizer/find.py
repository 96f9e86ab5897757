"""Finds the files of a tokenizer: those to copy, and the one to build a `tokenizer.json` from.

Takes a folder, or one file, whose kind is read from its bytes. Refuses a named place without a tokenizer, a link that
leaves its folder (except in the Hugging Face cache, whose files are links), and an `auto_map` that points to code in
another repository: whoever loads the new folder with `trust_remote_code` would run it. Reports code that is not copied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import listed, refuse

TOKENIZER_JSON, SENTENCEPIECE, TIKTOKEN = "tokenizer.json", "tokenizer.model", "tokenizer.tiktoken"
PICKLE = "tokenizer.pkl"  # an Encoding of tiktoken
FILES = (
    TOKENIZER_JSON,
    "tokenizer_config.json",
    SENTENCEPIECE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
MODELS = (SENTENCEPIECE, "spiece.model", f"{SENTENCEPIECE}.v*", "*.tiktoken", PICKLE)  # file names that trainers use


MOST_BYTES = 128 << 20  # the largest known have 40 million


def folder_with_tokenizer(folders: Sequence[Path]) -> Path:
    """The first of the folders that has a file of a tokenizer; the first of all if none has."""
    return next((f for f in folders if _model(f) or any((f / name).is_file() for name in FILES)), folders[0])


def tokenizer_files(place: Path, say: Callable[[str], None], *, named: bool) -> dict[str, Path]:
    """Name -> file of a folder's tokenizer, or of one file; it is an error if the user `named` the place and there is
    none. Without a `tokenizer.json`, a sentencepiece model is listed as SENTENCEPIECE or under its own name, a tiktoken
    file as TIKTOKEN. Raises Refusal."""
    if named and not place.exists():
        refuse(str(place), "there is no such folder or file", "missing-tokenizer")
    files = {name: place / name for name in FILES if (place / name).is_file()}
    if TOKENIZER_JSON not in files and (model := _model(place)):
        if (kind := kind_of(model)) in (TIKTOKEN, PICKLE):
            files.pop(model.name, None)
            files[kind] = model
        elif model.name not in files:
            files[SENTENCEPIECE] = model
    if named and place.is_file():
        name = kind_of(place) or (place.name if place.name in FILES and place.name not in MODELS else "")
        files = {name: place} if name else {}
    if named and not files:
        what = "the folder has no tokenizer" if place.is_dir() else "the file is not a tokenizer"
        refuse(str(place), what, "missing-tokenizer", f"looked for {listed(FILES, 3)}")
    for file in files.values():
        check_file(file, place if place.is_dir() else place.parent)
        if file.name == "tokenizer_config.json" and (code := own_code(read_config_file(file))):
            say(f"the tokenizer has its own code, which is not copied: {listed(code)}")
    return files


def check_file(file: Path, folder: Path) -> None:
    """Refuse a file that is too large, or a link that leaves its folder. The Hugging Face cache links to its blobs."""
    if (size := file.stat().st_size) > MOST_BYTES:
        refuse(str(file), f"{size:,} bytes are too many for such a file", "bad-config", "this is some other file")
    inside, target = folder.resolve(), file.resolve()
    cached = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
    if target.parent != inside and not cached:
        refuse(str(file), "it is a link that leaves its folder", "bad-config", "copy the file itself there")


def _model(place: Path) -> Path | None:
    """The first file of a folder from which a tokenizer can be built."""
    files = (file for pattern in MODELS for file in sorted(place.glob(pattern)))
    return next((file for file in files if file.is_file() and kind_of(file)), None)


def kind_of(file: Path) -> str:
    """SENTENCEPIECE, TIKTOKEN, PICKLE or TOKENIZER_JSON by the first bytes; empty for anything else."""
    with file.open("rb") as opened:
        head = opened.read(200)
    if re.match(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n", head):
        return TIKTOKEN
    if head[:1] == b"\n" and head[2:3] == b"\n":  # the first piece of a model, and its text
        return SENTENCEPIECE
    if head[:1] == b"\x80" and b"tiktoken" in head:
        return PICKLE
    json_start = re.match(rb'\s*\{\s*"(version|model|truncation|added_tokens)"', head)
    return TOKENIZER_JSON if json_start else ""


def own_code(config: dict[str, Any]) -> list[str]:
    """The classes that a config names as its own code."""
    classes = config.get("auto_map")
    places = classes.values() if isinstance(classes, dict) else [classes] if classes else []
    each = [item for place in places for item in (place if isinstance(place, list) else [place])]
    return [str(item) for item in each if item is not None]
