"""Archives of numpy: every array equal to what numpy reads, and archives that are refused."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compiler.checkpoints.checkpoint import open_checkpoint, verify
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal

NUMBERS = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "kind", ["?", "i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8", "<c8"]
)
def test_arrays_of_every_type(kind: str, tmp_path: Path) -> None:
    arrays = {"plain": NUMBERS.astype(kind), "turned": np.asfortranarray(NUMBERS.astype(kind))}
    arrays |= {"a/b.c": NUMBERS[0, 0].astype(kind), "scalar": np.array(1).astype(kind), "empty": np.zeros((0, 3), kind)}
    np.savez(tmp_path / "weights.npz", **arrays)
    checkpoint = open_checkpoint(tmp_path)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        n: a.shape for n, a in arrays.items()
    }
    for name, array in arrays.items():
        assert bytes(read_bytes(checkpoint.tensors[name])) == array.tobytes()
    assert verify(checkpoint) > 0


def archive(place: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(place / "x.npz", "w") as file:
        for name, data in records.items():
            file.writestr(name, data)
    return place / "x.npz"


def array_bytes(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)  # type: ignore[arg-type]
    return buffer.getvalue()


GOOD = array_bytes(NUMBERS.astype("<f4"))


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (array_bytes(NUMBERS.astype(">f4")), "unsupported-tensor", "the type '>f4'"),
        (array_bytes(NUMBERS.astype("<f2").view("V2")), "unsupported-tensor", "numpy has no bfloat16"),
        (array_bytes(np.array([{}])), "unsupported-tensor", "is not a plain array"),
        (array_bytes(np.zeros(2, [("a", "<f4")])), "unsupported-tensor", "is not a plain array"),
        (GOOD[:-4], "damaged-file", "its shape needs 96 bytes"),
        (GOOD.replace(b"(2, 3, 4)", b"(2, 3, 9)"), "damaged-file", "its shape needs 216 bytes"),
        (GOOD.replace(b"(2, 3, 4)", b"(-2, 3,4)"), "unsupported-tensor", "is not a plain array"),
        (GOOD[:8] + b"\xff\xff" + GOOD[10:], "damaged-file", "does not begin like an array"),
        (b"\x93NUMPY", "damaged-file", "does not begin like an array"),
    ],
)
def test_records_that_are_refused(data: bytes, kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        open_checkpoint(archive(tmp_path, {"w.npy": data}))
    assert refused.value.diagnostics[0].kind == kind
    assert says in str(refused.value)


def test_a_compressed_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros((50, 50)))
    with pytest.raises(Refusal, match="is compressed"):
        open_checkpoint(tmp_path / "x.npz")


def test_a_changed_byte(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=NUMBERS.astype("<f4"))
    tensor = open_checkpoint(tmp_path / "x.npz").tensors["w"]
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[tensor.parts[0].offset] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(Refusal, match="the bytes of w do not match their checksum"):
        verify(open_checkpoint(tmp_path / "x.npz"))


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=NUMBERS.astype("<f4"), v=NUMBERS[0])
    good, numbers = (tmp_path / "x.npz").read_bytes(), random.Random(3)
    for _ in range(400):
        data = bytearray(good)
        for _ in range(numbers.randint(1, 4)):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        (tmp_path / "y.npz").write_bytes(data[: numbers.choice([len(data), numbers.randrange(len(data))])])
        try:
            open_checkpoint(tmp_path / "y.npz")
        except Refusal:
            continue


def test_an_array_of_too_many_axes(tmp_path: Path) -> None:
    def record(axes: int) -> bytes:
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'1, ' * axes}), }}"
        head = head.replace(", )", ",)") + " " * (-(len(head) + 10) % 64) + "\n"
        return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(4)

    assert open_checkpoint(archive(tmp_path, {"w.npy": record(64)})).tensors["w"].shape == (1,) * 64
    with pytest.raises(Refusal, match="w: it has too many axes"):
        open_checkpoint(archive(tmp_path, {"w.npy": record(65)}))


def test_an_archive_without_arrays(tmp_path: Path) -> None:
    """It begins like one, and its table of contents is empty."""
    path = archive(tmp_path, {"w.npy": bytes(200)})
    data = path.read_bytes()
    table = data.index(b"PK\1\2")
    path.write_bytes(data[:table] + b"PK\5\6" + bytes(12) + table.to_bytes(4, "little") + bytes(2))
    with pytest.raises(Refusal, match=r"an archive without arrays \[missing-weights\]"):
        open_checkpoint(path)
