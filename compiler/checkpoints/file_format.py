"""Determine the format of a file from its bytes, never from its name.

Takes a path; returns the word for its format. Refuses every other file and names what it is:
an empty file, an error page, a Git LFS pointer, another framework's format.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NoReturn

from compiler.checkpoints.array_files.flax_msgpack import is_flax
from compiler.checkpoints.formats.gguf_header import MAGIC as GGUF_MAGIC
from compiler.checkpoints.formats.numpy_archive import SUFFIX as NPY
from compiler.checkpoints.formats.safetensors_header import MAX_HEADER
from compiler.checkpoints.formats.tar_directory import is_tar
from compiler.checkpoints.formats.torch_save import LEGACY_MAGIC
from compiler.diagnostics import refuse

Format = Literal["zip", "npz", "legacy", "safetensors", "gguf", "tar", "flax", "index"]
_HEAD = 4096
_TABLE_END = bytes.fromhex("57fb808b247547db")  # of LevelDB: table/format.h, kTableMagicNumber
_MAGIC: dict[bytes, tuple[str, str]] = {
    b"\x89HDF": ("an HDF5 file (Keras or h5py)", "export the weights with torch.save or safetensors"),
    b"\x93NUMPY": ("a numpy array (.npy)", "save named tensors with torch.save or safetensors"),
    b"\x1f\x8b": ("gzip-compressed", "unpack it first"),
    b"BZh": ("bzip2-compressed", "unpack it first"),
    b"\xfd7zXZ": ("xz-compressed", "unpack it first"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", "unpack it first"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it first"),
    b"Rar!": ("a RAR archive", "unpack it first"),
    b"PK\5\6": ("an empty zip file", "download or copy it again"),
}


def sniff(path: Path) -> Format:
    """The format of a file, by its content."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        size = file.seek(0, 2)
    if not head:
        _refuse(path, "an empty file", "the download or copy failed; do it again", "damaged-file")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= min(MAX_HEADER, size - 8):
        return (
            "safetensors"  # checked first, because its length may look like another format's magic: 640 is a pickle's
        )
    if head.startswith(b"PK\3\4"):
        if path.suffix == ".safetensors":
            hint = "a pickle can run programs where it is loaded; rename it to .pth if you trust its origin"
            refuse(str(path), "called .safetensors, but it is a zip file as torch.save writes", "wrong-extension", hint)
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]  # the name of the first record
        return "npz" if first.endswith(NPY.encode()) else "zip"
    if head.startswith(GGUF_MAGIC):
        return "gguf"
    for magic, (what, hint) in _MAGIC.items():
        if head.startswith(magic):
            _refuse(path, what, hint)
    if head.startswith((b"sys_info\0", b"tensors\0", b"storages\0", b"pickle\0")):
        hint = "unpack it; torch before 0.1.10 saved such files: load one with that torch and save it again"
        _refuse(path, "a tar archive", hint)
    if is_tar(head):
        return "tar"
    if head.startswith(b"\x80") and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _pickle(path, head)
    if head.startswith(b"version https://git-lfs"):
        hint = "run `git lfs pull` where it was cloned to fetch the file itself"
        _refuse(path, "a Git LFS pointer, not the file itself", hint, "damaged-file")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        hint = "download it again, logged in or with the right link"
        _refuse(path, "a web page: the download was an error page", hint, "damaged-file")
    if head[8:9] == b"{" or (len(head) >= 8 and length <= MAX_HEADER and path.suffix == ".safetensors"):
        return "safetensors"
    if text.startswith(b"{"):
        return "index"
    if is_flax(head):
        return "flax"
    return _unknown(path, head, size)


def _pickle(path: Path, head: bytes) -> Format:
    """A pickle is a stream of torch.save only where the magic number comes first."""
    if LEGACY_MAGIC.to_bytes(10, "little") not in head[:32]:
        made_by = "joblib or scikit-learn" if b"joblib" in head or b"sklearn" in head else "pickle, not torch.save"
        hint = "where it was made, save named tensors with torch.save or safetensors"
        _refuse(path, f"a plain pickle, written by {made_by}", hint)
    return "legacy"


def _unknown(path: Path, head: bytes, size: int) -> NoReturn:
    if not head.strip(b"\0"):
        hint = "the download reserved its space but did not finish; do it again"
        _refuse(path, f"{size:,} bytes that begin with zeros", hint, "damaged-file")
    if head[:1] == b"\x08" and (b"onnx" in head.lower() or b"pytorch" in head):
        _refuse(path, "an ONNX model", "start from the checkpoint that it was exported from")
    if head[4:8] == b"TFL3":
        _refuse(path, "a TensorFlow Lite model", "start from the checkpoint that it was exported from")
    if _ends_with(path, size, _TABLE_END) or re.search(r"\.data-\d{5}-of-\d{5}$", path.name):
        hint = "where TensorFlow is installed, save its variables with numpy.savez; mapspec reads .npz"
        _refuse(path, "a TensorFlow checkpoint (.index and .data)", hint)
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = head[: error.start].decode() if error.start >= len(head) - 3 else ""
    if text and all(c.isprintable() or c.isspace() for c in text):
        what = "a JSON file" if text.lstrip().startswith("[") else "a text file"
        _refuse(
            path, f"{what} that begins {text.strip()[:60]!r}", "a checkpoint is .pth, .pt, .bin, .ckpt or .safetensors"
        )
    if path.suffix == ".safetensors":
        _refuse(path, "called .safetensors, but its header is malformed", "download or copy it again", "damaged-file")
    _refuse(
        path,
        f"of an unknown format; it begins with {head[:8].hex(' ')}",
        "supported are torch.save, safetensors, GGUF, npz, .nemo and Flax's msgpack files",
    )


def _ends_with(path: Path, size: int, mark: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, size - len(mark)))
        return file.read(len(mark)) == mark


def _refuse(path: Path, what: str, hint: str, kind: str = "unknown-format") -> NoReturn:
    refuse(
        str(path), f"not a checkpoint but {what}" if what.startswith("a") else f"not a checkpoint: {what}", kind, hint
    )
