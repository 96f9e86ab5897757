"""Reads a `.nemo` file: a tar archive of a folder with a `model_config.yaml` and the weights, which are read in place.

The state dict is the file of torch.save called `model_weights.ckpt`; the config becomes the object `model_config`. Nothing is
unpacked. Refuses an archive whose weights are in several files (one for each rank, or a distributed checkpoint) and
says how to unpack those; and every other tar archive.
Source: NeMo, nemo/core/connectors/save_restore_connector.py (`SaveRestoreConnector.save_to`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from compiler.checkpoints.config_file import MOST_BYTES, mapping_of_fields
from compiler.checkpoints.folder import METADATA
from compiler.checkpoints.formats.tar_directory import Member, read_tar
from compiler.checkpoints.opened import Opened
from compiler.checkpoints.state_dict_search import open_contents
from compiler.diagnostics import listed, refuse
from compiler.language import document

WEIGHTS, CONFIG = "model_weights.ckpt", "model_config.yaml"
_ZIP = b"PK\3\4"
_TOKENIZERS = (".model", ".vocab", ".bpe", "tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


def open_packed(path: Path, root: str | None = None, nested: bool = False) -> Opened:
    """The weights and the config in an archive. Raises Refusal."""
    members = read_tar(path)
    weights = _the_one(members, WEIGHTS)
    if weights is None:
        _refuse_weights(path, members)
    with path.open("rb") as file:
        file.seek(weights.start)
        head = file.read(min(weights.size, len(_ZIP)))
    if head != _ZIP:
        hint = f"unpack it with `tar -xf {path.name}`; torch before 1.6 saved such files"
        refuse(str(path), f"{weights.name} in it is not a zip file of torch.save", "unknown-format", hint)
    contents, places = open_contents(path, root, nested, (weights.start, weights.size))
    opened = Opened({n: places.locate(n, view) for n, view in contents.named.items()}, contents.objects,
                    [f"read {weights.name} in the archive", *contents.notes], [path], places.checksums)  # fmt: skip
    if config := _the_one(members, CONFIG):
        opened.objects["model_config"] = _fields(path, config)
    if others := [name for name in members if name.endswith(_TOKENIZERS)]:
        opened.notes.append(f"not read: {listed(others)}; unpack what the tokenizer needs and pass it with --tokenizer")
    return opened


def _refuse_weights(path: Path, members: Mapping[str, Member]) -> NoReturn:
    """Reject an archive that does not have one file of weights, and say what it has."""
    unpack = f"unpack it with `mkdir X && tar -xf {path.name} -C X`"
    if parts := [name for name in members if name.rpartition("/")[2] == WEIGHTS]:
        hint = f"{unpack}, then pass the files of all ranks in order, and --config X/{CONFIG}"
        refuse(str(path), f"it has the weights of {len(parts)} ranks: {listed(parts)}", "missing-part", hint)
    if metadata := next((name for name in members if name.rpartition("/")[2] in (METADATA, ".zmetadata")), None):
        hint = f"{unpack}, then pass the folder X/{metadata.rpartition('/')[0]}, and --config X/{CONFIG}"
        refuse(str(path), "the weights in it are a distributed checkpoint", "missing-part", hint)
    what = f"a tar archive; it holds {listed(list(members)) or 'nothing'}"
    hint = f"unpack it first; of archives, those are read that have one {WEIGHTS}"
    refuse(str(path), f"not a checkpoint but {what}", "unknown-format", hint)


def _the_one(members: Mapping[str, Member], name: str) -> Member | None:
    """The member of that name, in whatever folder; None if several folders have one, or none has."""
    found = [member for member in members.values() if member.name.rpartition("/")[2] == name]
    return found[0] if len(found) == 1 else None


def _fields(path: Path, config: Member) -> object:
    """The config in an archive as plain values. Raises Refusal."""
    where = f"{path}/{config.name}"
    if config.size > MOST_BYTES:
        refuse(where, f"a config of more than {MOST_BYTES:,} bytes", "bad-config")
    with path.open("rb") as file:
        file.seek(config.start)
        data = file.read(config.size)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        refuse(where, "not Unicode text", "yaml-syntax")
    return mapping_of_fields(where, document.plain(document.read_document(where, text)))
