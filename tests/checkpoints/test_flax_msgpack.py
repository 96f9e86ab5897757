"""Flax's msgpack files: every array at its place, and files that are refused.

The bytes are made by `packed`, written after the specification of msgpack; a file of Flax itself is among the oracles.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.checkpoints.array_files import flax_msgpack
from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal

NUMBERS = np.arange(24).reshape(2, 3, 4)


class Raw(bytes):
    """Bytes to be written as they are."""


def sized(length: int, codes: dict[int, int]) -> bytes:
    """The code of the smallest width that fits, and the length."""
    width, code = next((width, code) for width, code in codes.items() if length < 256**width)
    return bytes([code]) + length.to_bytes(width)


def packed(value: Any) -> bytes:
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, dict):
        head = bytes([0x80 + len(value)]) if len(value) < 16 else sized(len(value), {2: 0xDE, 4: 0xDF})
        return head + b"".join(packed(key) + packed(held) for key, held in value.items())
    if isinstance(value, list | tuple):
        head = bytes([0x90 + len(value)]) if len(value) < 16 else sized(len(value), {2: 0xDC, 4: 0xDD})
        return head + b"".join(map(packed, value))
    if isinstance(value, str):
        data = value.encode()
        return (bytes([0xA0 + len(data)]) if len(data) < 32 else sized(len(data), {1: 0xD9, 2: 0xDA, 4: 0xDB})) + data
    if isinstance(value, bytes):
        return sized(len(value), {1: 0xC4, 2: 0xC5, 4: 0xC6}) + value
    if isinstance(value, np.ndarray):
        return extension(1, packed((value.shape, value.dtype.name, value.tobytes())))
    if isinstance(value, bool) or value is None:
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if value < 0:
        return struct.pack(">Bq", 0xD3, value)
    return bytes([value]) if value < 128 else sized(value, {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF})


def extension(kind: int, data: bytes) -> bytes:
    fixed = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(data))
    return (bytes([fixed]) if fixed else sized(len(data), {1: 0xC7, 2: 0xC8, 4: 0xC9})) + bytes([kind]) + data


def pieces(array: np.ndarray, size: int) -> dict[str, Any]:
    flat = array.reshape(-1)
    parts = [flat[n : n + size] for n in range(0, flat.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(n): size for n, size in enumerate(array.shape)},
        "chunks": {str(n): part for n, part in enumerate(parts)},
    }


def stored(place: Path, value: Any) -> Path:
    (place / "flax_model.msgpack").write_bytes(packed(value))
    return place / "flax_model.msgpack"


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "<i2", "<i4", "<i8", "<f2", "<f4", "<f8"])
def test_arrays_of_every_type(kind: str, tmp_path: Path) -> None:
    array = NUMBERS.astype(kind)
    many = {str(n): array[:, n % 3] for n in range(20)}
    tree = {"model": {"a": {"kernel": array}, "many": many}, "scalar": array[0, 0, 1:2].reshape(()), "empty": array[:0]}
    path = stored(tmp_path, {**tree, "step": 300, "note": "x" * 40, "raw": b"abc", "none": None, "list": [-1, 2.5]})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.files == (path,)
    expected = {"model.a.kernel": array, "scalar": array[0, 0, 1:2].reshape(()), "empty": array[:0]}
    expected |= {f"model.many.{n}": held for n, held in many.items()}
    assert checkpoint.tensors.keys() == expected.keys()
    for name, held in expected.items():
        assert checkpoint.tensors[name].shape == held.shape
        assert bytes(read_bytes(checkpoint.tensors[name])) == held.tobytes()
    assert checkpoint.objects == {
        "step": 300, "note": "x" * 40, "raw": None, "none": None, "list.0": -1, "list.1": 2.5,
    }  # fmt: skip


@pytest.mark.parametrize("size", [1, 5, 7, 12, 23, 24])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 4)])
def test_an_array_in_pieces(size: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(24, dtype="<f4").reshape(shape)
    tensor = open_checkpoint(stored(tmp_path, {"w": pieces(array, size)})).tensors["w"]
    assert tensor.shape == shape
    assert bytes(read_bytes(tensor)) == array.tobytes()


def test_the_parameters_of_a_training_state(tmp_path: Path) -> None:
    array = NUMBERS.astype("<f4")
    path = stored(tmp_path, {"params": {"w": array}, "opt_state": {"0": {"w": array}}, "step": 1})
    checkpoint = open_checkpoint(path)
    assert [*checkpoint.tensors] == ["w"]
    assert "opened 'params' (beside: opt_state, step)" in checkpoint.notes
    assert [*open_checkpoint(path, "opt_state.0").tensors] == ["w"]
    with pytest.raises(Refusal, match=r"there is no '1'"):
        open_checkpoint(path, "opt_state.1")


def test_shards_with_an_index(tmp_path: Path) -> None:
    """As Transformers 4 writes them: the names in the index have slashes."""
    array = NUMBERS.astype("<f4")
    for number, name in enumerate(("a", "b"), 1):
        (tmp_path / f"flax_model-0000{number}-of-00002.msgpack").write_bytes(
            packed({"model": {name: {"kernel": array}}})
        )
    files = {f"model/{n}/kernel": f"flax_model-0000{i}-of-00002.msgpack" for i, n in ((1, "a"), (2, "b"))}
    index = tmp_path / "flax_model.msgpack.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert {*open_checkpoint(tmp_path).tensors} == {"model.a.kernel", "model.b.kernel"}
    index.write_text(json.dumps({"weight_map": {**files, "model/c/kernel": "flax_model-00001-of-00002.msgpack"}}))
    with pytest.raises(Refusal, match=r"does not hold model\.c\.kernel"):
        open_checkpoint(tmp_path)


def array_of(shape: Any, dtype: Any, data: Any) -> Raw:
    return Raw(extension(1, packed([shape, dtype, data])))


GOOD = NUMBERS.astype("<f4")
DEEP = GOOD
for _ in range(40):
    DEEP = {"a": DEEP}  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ({"a": 1}, "missing-weights", "without arrays"),
        ({"a": array_of([2], "float32", b"1234567")}, "damaged-file", "has 7 bytes"),
        ({"a": array_of([-2], "float32", b"12345678")}, "damaged-file", "an array of the shape"),
        ({"a": array_of(["2"], "float32", b"12345678")}, "damaged-file", "an array of the shape"),
        ({"a": array_of([2**40, 2**40], "float32", b"")}, "damaged-file", "an array of the shape"),
        ({"a": array_of([1] * 65, "float32", b"1234")}, "damaged-file", "an array is malformed"),
        ({"a": array_of([1], "V2", b"12")}, "unsupported-tensor", "the type 'V2'"),
        ({"a": array_of([1], 7, b"12")}, "damaged-file", "an array is malformed"),
        ({"a": Raw(extension(1, b"x"))}, "damaged-file", "begins nothing"),
        ({"a": Raw(b"\xc6\xff\xff\xff\xff")}, "damaged-file", "it ends too early"),
        ({"a": Raw(b"\xdd\xff\xff\xff\xff")}, "damaged-file", "it claims 4,294,967,295 values"),
        ({"a": Raw(b"\xc1")}, "damaged-file", "begins nothing"),
        ({"a": Raw(b"\xa2\xff\xfe")}, "damaged-file", "not UTF-8"),
        ({"a": {1: GOOD}}, "damaged-file", "a key that is no name"),
        ({"a": Raw(b"\x82" + 2 * (packed("x") + packed(GOOD)))}, "damaged-file", "x is there twice"),
        ({"a": {"b": GOOD}, "a.b": GOOD}, "colliding-names", "two values are called a.b"),
        (DEEP, "damaged-file", "maps in too many maps"),
        ({"a": {**pieces(GOOD, 5), "shape": {"0": 5}}}, "damaged-file", "the pieces of a do not make"),
        ({"a": {**pieces(GOOD, 5), "shape": {"0": "24"}}}, "damaged-file", "the pieces of a do not make"),
        ({"a": {**pieces(GOOD, 5), "chunks": {"0": GOOD}}}, "damaged-file", "the pieces of a do not make"),
        ({"a": {**pieces(GOOD, 5), "chunks": {}}}, "damaged-file", "the pieces of a do not make"),
        ({"a": Raw(packed(GOOD) + b"\0")}, "damaged-file", "not one map of names"),
    ],
)
def test_files_that_are_refused(value: Any, kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        open_checkpoint(stored(tmp_path, value))
    assert refused.value.diagnostics[0].kind == kind
    assert says in str(refused.value)


def test_more_values_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, {"a": GOOD, "b": list(range(1000))})
    assert open_checkpoint(path).tensors
    monkeypatch.setattr(flax_msgpack, "MOST_VALUES", 1000)
    with pytest.raises(Refusal, match="too many values"):
        open_checkpoint(path)


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    good, numbers = packed({"model": {"a": {"kernel": GOOD}, "b": pieces(GOOD, 7)}, "step": 300}), random.Random(3)
    path, opened = tmp_path / "x.msgpack", 0
    for _ in range(500):
        data = bytearray(good)
        for _ in range(numbers.randint(1, 4)):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        path.write_bytes(data[: numbers.choice([len(data), numbers.randrange(len(data))])])
        try:
            checkpoint = open_checkpoint(path)
        except Refusal:
            continue
        opened += 1
        size = path.stat().st_size
        assert all(part.extent[1] <= size for tensor in checkpoint.tensors.values() for part in tensor.parts)
    assert 20 < opened < 300
