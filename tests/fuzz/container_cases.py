"""Hostile inputs in the containers of other programs: tar archives (`.nemo`) and msgpack files of Flax. Adds to `CASES`."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import Any

from cases import SHAPES, case, config, numbers, records, size, zipped

CONFIG = b"num_layers: 2\n"


def tarred(folder: Path, files: list[tuple[str, bytes]], **fields: Any) -> dict[str, Any]:
    with tarfile.open(folder / "m.nemo", "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    config(folder)
    return {"source": folder / "m.nemo"}


def weights() -> tuple[str, bytes]:
    return "./model_weights.ckpt", zipped(records())


@case("a sound archive with weights in it", "converted")
def _(folder: Path) -> dict[str, Any]:
    return tarred(folder, [("./model_config.yaml", CONFIG), weights()])


for what, files in {
    "its config twice": [("model_config.yaml", CONFIG), ("./model_config.yaml", CONFIG), weights()],
    "a name that leaves it": [("../model_weights.ckpt", b""), weights()],
    "a name of the root": [("/etc/passwd", b""), weights()],
    "an escape in a name": [("\x1b[31m", b""), weights()],
    "a config that swells": [("model_config.yaml", b"a: &a [x, x]\nb: [*a, *a]\n"), weights()],
    "a config that acts": [("model_config.yaml", b"a: !!python/object/apply:os.system [touch pwned]\n"), weights()],
    "a deep config": [("model_config.yaml", b"[" * 10_000), weights()],
    "no weights": [("model_config.yaml", CONFIG)],
    "the weights of two ranks": [("mp_rank_00/model_weights.ckpt", b""), ("mp_rank_01/model_weights.ckpt", b"")],
    "weights that are another archive": [("model_weights.ckpt", b"x" * 257 + b"ustar\x0000")],
}.items():

    @case(f"an archive with {what}")
    def _(folder: Path, files: list[tuple[str, bytes]] = files) -> dict[str, Any]:
        return tarred(folder, files)


for what, fields in {
    "links": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard links": {"type": tarfile.LNKTYPE, "linkname": "model_config.yaml"},
    "devices": {"type": tarfile.CHRTYPE},
    "a sparse file": {"pax_headers": {"GNU.sparse.realsize": "1" * 12}},
    "a size of 18 digits": {"pax_headers": {"size": "9" * 18}},
    "a negative size": {"pax_headers": {"size": "-1"}},
}.items():

    @case(f"an archive with {what}")
    def _(folder: Path, fields: dict[str, Any] = fields) -> dict[str, Any]:
        return tarred(folder, [weights()], **fields)


@case("an archive with 200,000 empty members")
def _(folder: Path) -> dict[str, Any]:
    return tarred(folder, [(f"m{n}", b"") for n in range(200_000)])


@case("an archive that is cut short")
def _(folder: Path) -> dict[str, Any]:
    told = tarred(folder, [weights()])
    data = (folder / "m.nemo").read_bytes()
    (folder / "m.nemo").write_bytes(data[: len(data) // 2])
    return told


# ---------------------------------------------------------------------------------------------------------------------
# msgpack


def name(text: str) -> bytes:
    return b"\xda" + struct.pack(">H", len(text)) + text.encode()


def many(code: int, count: int) -> bytes:
    return bytes([code]) + struct.pack(">I", count)


def array(data: bytes, shape: tuple[int, ...], dtype: str = "float32") -> bytes:
    sizes = b"".join(b"\xd3" + struct.pack(">q", n) for n in shape)
    body = b"\x93" + many(0xDD, len(shape)) + sizes + name(dtype) + many(0xC6, len(data)) + data
    return many(0xC9, len(body)) + b"\x01" + body


def packed(folder: Path, values: dict[str, bytes]) -> dict[str, Any]:
    """A map of flat names, as a file of Flax may have them."""
    data = many(0xDF, len(values)) + b"".join(name(key) + value for key, value in values.items())
    (folder / "flax_model.msgpack").write_bytes(b"\x81\xa1x" + data)
    config(folder)
    return {"source": folder / "flax_model.msgpack"}


def sound() -> dict[str, bytes]:
    return {key: array(numbers(key, size(shape)), shape) for key, shape in SHAPES.items()}


@case("a sound msgpack file", "converted")
def _(folder: Path) -> dict[str, Any]:
    return packed(folder, sound())


for what, value in {
    "a negative size": array(b"1234", (-1,)),
    "a size of 2**62": array(b"1234", (1 << 62, 1 << 62)),
    "bytes too few": array(b"123", (1,)),
    "an unknown type": array(b"1234", (1,), "object"),
    "70 axes": array(b"1234", (1,) * 70),
    "bytes that the file lacks": many(0xC6, 0xFFFFFFFF),
    "a list of 2**32": many(0xDD, 0xFFFFFFFF),
    "a map of 2**32": many(0xDF, 0xFFFFFFFF),
    "a map in itself": b"\x81\xa1a" * 100_000,
    "pieces of nothing": b"\x81" + name("__msgpack_chunked_array__") + b"\xc3",
    "a key that is a map": b"\x81\x80\x01",
    "an escape in a key": b"\x81" + name("\x1b[31m") + array(b"1234", (1,)),
    "a byte that is nothing": b"\xc1",
}.items():

    @case(f"a msgpack file with {what}")
    def _(folder: Path, value: bytes = value) -> dict[str, Any]:
        return packed(folder, {**sound(), "model.odd": value})


@case("a msgpack file of 3,000,000 numbers")
def _(folder: Path) -> dict[str, Any]:
    return packed(folder, {**sound(), "model.odd": many(0xDD, 3_000_000) + b"\x01" * 3_000_000})
