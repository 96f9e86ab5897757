"""The tokenizer's files, which travel beside the weights as they are.

Takes the folder that they lie in and the one that they go to. Refuses a folder without any where one was named, a link
that leaves its folder (but for the Hugging Face cache, whose files are links), and a tokenizer whose code lies
elsewhere: whoever loads the new folder with `trust_remote_code` would run it. Says which code does not travel.
"""

from __future__ import annotations

import shutil
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


def copy_tokenizer(source: Path, folder: Path, say: Callable[[str], None], *, named: bool) -> None:
    """Copy what there is; `named`: the user asked for it, so that there must be something. Raises Refusal."""
    if named and not source.is_dir():
        refuse(str(source), "there is no such folder", "missing-tokenizer")
    found = [source / name for name in FILES if (source / name).is_file()]
    if named and not found:
        hint = f"looked for {listed(FILES, 3)}"
        refuse(str(source), "the folder holds no tokenizer", "missing-tokenizer", hint)
    inside = source.resolve()
    for file in found:
        target = file.resolve()
        cached = inside.parent.name == "snapshots" and target.parent == inside.parent.parent / "blobs"
        if target.parent != inside and not cached:
            refuse(str(file), "it is a link that leaves its folder", "bad-config", "copy the file itself there")
        if file.name == "tokenizer_config.json" and (code := _code(read_config_file(file))):
            say(f"the tokenizer has code of its own, which does not travel with it: {listed(code)}")
    for file in found:
        shutil.copyfile(file, folder / file.name)


def _code(config: dict[str, Any]) -> list[str]:
    """The classes that a config names as its own code."""
    classes = config.get("auto_map")
    places = classes.values() if isinstance(classes, dict) else [classes] if classes else []
    each = [item for place in places for item in (place if isinstance(place, list) else [place])]
    return [str(item) for item in each if item is not None]
