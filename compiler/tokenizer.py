"""Which files of a tokenizer travel beside the weights.

Takes the folder that they lie in. Refuses a folder without any where one was named, a link
that leaves its folder (but for the Hugging Face cache, whose files are links), and a tokenizer whose code lies
elsewhere: whoever loads the new folder with `trust_remote_code` would run it. Says which code does not travel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compiler.diagnostics import listed, refuse
from compiler.settings import read_config_file

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)


def tokenizer_files(place: Path, say: Callable[[str], None], *, named: bool) -> dict[str, Path]:
    """Name -> file of what is to be copied from a folder, or a file alone such as `tokenizer.json`; `named`: the user
    asked for it, so that there must be something. Raises Refusal."""
    if named and not place.exists():
        refuse(str(place), "there is no such folder or file", "missing-tokenizer")
    found = {name: place / name for name in FILES if (place / name).is_file()}
    if named and place.is_file() and place.name in FILES:
        found = {place.name: place}
    if named and not found:
        what = "the folder holds no tokenizer" if place.is_dir() else "no file of a tokenizer is called so"
        refuse(str(place), what, "missing-tokenizer", f"looked for {listed(FILES, 3)}")
    inside = (place if place.is_dir() else place.parent).resolve()
    for file in found.values():
        target = file.resolve()
        cached = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
        if target.parent != inside and not cached:
            refuse(str(file), "it is a link that leaves its folder", "bad-config", "copy the file itself there")
        if file.name == "tokenizer_config.json" and (code := _code(read_config_file(file))):
            say(f"the tokenizer has code of its own, which does not travel with it: {listed(code)}")
    return found


def _code(config: dict[str, Any]) -> list[str]:
    """The classes that a config names as its own code."""
    classes = config.get("auto_map")
    places = classes.values() if isinstance(classes, dict) else [classes] if classes else []
    each = [item for place in places for item in (place if isinstance(place, list) else [place])]
    return [str(item) for item in each if item is not None]
