"""The header of a safetensors file: every tensor and where its bytes lie.

Takes a path; returns the tensors, in the order of the header, and the file's metadata. As strict as the format's own
reader: the tensors fill the file's data section without a hole, an overlap or a rest.
Source: https://github.com/huggingface/safetensors, README `Format` and safetensors/src/tensor.rs `Metadata::validate`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from compiler import strict_json
from compiler.checkpoints.formats.stored_tensor import Tensor, dense_strides
from compiler.diagnostics import refuse
from compiler.dtypes import ITEM_SIZES, NAMES_BY_CODE

MAX_HEADER = 100_000_000
MAX_VALUES = 4_000_000  # in a header: some 400,000 tensors


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor by name, and the strings of `__metadata__`."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > MAX_HEADER or 8 + length > size:
            _refuse(path, f"its header claims {length:,} bytes, the file has {max(0, size - 8):,} for it")
        header = _parse(path, file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _refuse(path, "its __metadata__ is not a table of strings")
    tensors = {name: _tensor(path, name, entry, 8 + length, size) for name, entry in header.items()}
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: t.extent):
        if tensor.extent[0] != end:
            what = "overlaps what lies before it" if tensor.extent[0] < end else "leaves a hole before it"
            _refuse(path, f"the tensor {tensor.name!r} {what}")
        end = tensor.extent[1]
    if end != size:
        _refuse(path, f"its tensors end at byte {end:,}, the file at {size:,}")
    return tensors, metadata


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = strict_json.parse(text, MAX_VALUES)
    except ValueError as error:
        _refuse(path, f"its header is not valid JSON ({str(error)[:120]})")
    if not text.startswith(b"{") or not isinstance(header, dict):
        _refuse(path, "its header is not a JSON object")
    return header


def _tensor(path: Path, name: str, entry: Any, base: int, size: int) -> Tensor:
    entry = entry if isinstance(entry, dict) else {}
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(code, str) or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        _refuse(path, f"the entry of {name!r} needs a dtype, a shape and two data_offsets, all of them sizes")
    if code not in NAMES_BY_CODE:
        hint = f"known are {', '.join(NAMES_BY_CODE)}"
        refuse(str(path), f"the tensor {name!r} has the element type {code[:20]!r}", "unsupported-tensor", hint)
    dtype, (start, end) = NAMES_BY_CODE[code], offsets
    needed = math.prod(shape) * ITEM_SIZES[dtype]
    if needed >= 1 << 63 or end - start != needed:
        _refuse(
            path, f"the tensor {name!r} needs {needed:,} bytes for its shape, its data_offsets give {end - start:,}"
        )
    if base + end > size:
        _refuse(path, f"the tensor {name!r} ends {base + end - size:,} bytes after the file; it was cut short")
    dims = tuple(shape)
    return Tensor(name, dtype, dims, dense_strides(dims), path, base + start, (base + start, base + end))


def _sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and len(values) <= 64 and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _refuse(path: Path, problem: str) -> NoReturn:
    refuse(str(path), f"a damaged safetensors file: {problem}", "damaged-file", "download or copy it again")
