"""Hostile and broken inputs, each made by hand: archives that lie, pickles that act or swell, headers, indexes, configs,
specs, outputs and tokenizers that no honest program writes. `CASES` names them; `make` writes one into a folder.

A case is a function of the folder to write into; it returns words for the command line besides the usual ones. It says
how a conversion of it must end: `refused`, `converted`, or `either` where both are right as long as they are clean.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIELDS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8, "rope_theta": 10000.0, "tie_word_embeddings": False,
    **FIELDS,
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (32, 16),
    "model.norm.weight": (16,),
    "lm_head.weight": (32, 16),
    **{
        f"model.layers.{i}.{name}.weight": shape
        for i in (0, 1)
        for name, shape in {
            "self_attn.q_proj": (16, 16),
            "self_attn.k_proj": (8, 16),
            "self_attn.v_proj": (8, 16),
            "self_attn.o_proj": (16, 16),
            "mlp.gate_proj": (24, 16),
            "mlp.up_proj": (24, 16),
            "mlp.down_proj": (16, 24),
            "input_layernorm": (16,),
            "post_attention_layernorm": (16,),
        }.items()
    },
}
UP = "model.layers.0.mlp.up_proj.weight"
SPEC = Path(__file__).parents[2] / "specs" / "llama.yaml"


@dataclass(frozen=True)
class Case:
    """`expects` of a conversion; `says` must stand in what it says then."""

    make: Callable[[Path], Mapping[str, Any] | None]
    expects: str
    says: str


CASES: dict[str, Case] = {}


def case(name: str, expects: str = "refused", says: str = "") -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        assert name not in CASES, name
        CASES[name] = Case(make, expects, says)
        return make

    return keep


def size(shape: Iterable[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def numbers(name: str, count: int) -> bytes:
    rng = random.Random(name)
    return struct.pack(f"<{count}f", *(rng.uniform(-1, 1) for _ in range(count)))


def config(folder: Path, **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | fields))


# ---------------------------------------------------------------------------------------------------------------------
# Pickles, spelled out


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def name_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def put(number: int) -> bytes:
    return b"r" + struct.pack("<I", number)


def get(number: int) -> bytes:
    return b"j" + struct.pack("<I", number)


def tensor(
    key: str, shape: Iterable[int], *, offset: int = 0, strides: Iterable[int] | None = None, kind: str = "FloatStorage",
    count: int | None = None, function: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n", rest: bytes = b"",
) -> bytes:  # fmt: skip
    shape = tuple(shape)
    dense = tuple(size(shape[n + 1 :]) for n in range(len(shape)))
    sizes = [b"(" + b"".join(map(integer, ns)) + b"t" for ns in (shape, dense if strides is None else strides)]
    count = size(shape) if count is None else count
    saved = b"(" + text("storage") + name_of("torch", kind) + text(key) + text("cpu") + integer(count) + b"tQ"
    return function + b"(" + saved + integer(offset) + b"".join(sizes) + b"\x89" + b"}" + rest + b"tR"


def state(changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """The items of the sound state dict; `changes` are the pickles of other values, None takes a name out."""
    found = {name: tensor(str(n), shape) for n, (name, shape) in enumerate(SHAPES.items())} | dict(changes or {})
    return b"(" + b"".join(text(n) + value for n, value in found.items() if value is not None) + b"u"


def records(pickled: bytes | None = None, root: str = "archive") -> dict[str, bytes]:
    content = b"\x80\x02}" + state() + b"." if pickled is None else pickled
    storages = {f"{root}/data/{n}": numbers(name, size(shape)) for n, (name, shape) in enumerate(SHAPES.items())}
    return {f"{root}/data.pkl": content, f"{root}/byteorder": b"little", **storages, f"{root}/version": b"3\n"}


def zipped(content: Mapping[str, bytes] | Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items() if isinstance(content, Mapping) else content:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def pth(folder: Path, pickled: bytes | None = None, *, also: Mapping[str, bytes] | None = None) -> None:
    (folder / "model.pth").write_bytes(zipped(records(pickled) | dict(also or {})))
    config(folder)


def beside(value: bytes, changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """A training checkpoint: the weights under `model`, something under `args`."""
    return b"\x80\x04}(" + text("args") + value + text("model") + b"}" + state(changes) + b"u."


def called(module: str, name: str, arguments: bytes = b")") -> bytes:
    return name_of(module, name) + arguments + b"R"


# ---------------------------------------------------------------------------------------------------------------------
# Zip files


@case("a sound .pth", "converted")
def _(folder: Path) -> None:
    pth(folder)


@case("a bomb: a pickle of 2 GB in 2 MB", says="is compressed")
def _(folder: Path) -> None:
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 24)
    data = b"".join(packed.compress(zeros) for _ in range(128)) + packed.flush()
    names = {"archive/data.pkl": data}
    raw = bytearray(zipped(names))
    table = raw.index(b"PK\1\2")
    raw[8:10] = raw[table + 10 : table + 12] = struct.pack("<H", 8)
    raw[22:26] = raw[table + 24 : table + 28] = struct.pack("<I", (1 << 31) - 1)
    (folder / "model.pth").write_bytes(raw)
    config(folder)


@case("every record deflated", says="is compressed")
def _(folder: Path) -> None:
    (folder / "model.pth").write_bytes(zipped(records(), zipfile.ZIP_DEFLATED))
    config(folder)


def lied(folder: Path, change: Callable[[bytearray], None]) -> None:
    pth(folder)
    data = bytearray((folder / "model.pth").read_bytes())
    change(data)
    (folder / "model.pth").write_bytes(data)


def wide(data: bytearray, at: str, value: int) -> None:
    """Give the table's entry of a record zip64 sizes and an offset of the given size."""
    table = data.index(b"PK\1\2")
    place = data.index(at.encode(), table) - 46
    extra = struct.pack("<2H3Q", 1, 24, value, value, value)
    end = place + 46 + len(at)
    data[end:end] = extra
    data[place + 20 : place + 28] = b"\xff" * 8
    data[place + 42 : place + 46] = b"\xff" * 4
    data[place + 30 : place + 32] = struct.pack("<H", len(extra))
    tail = data.rindex(b"PK\5\6")
    length = int.from_bytes(data[tail + 12 : tail + 16], "little")
    data[tail + 12 : tail + 16] = struct.pack("<I", length + len(extra))


for exponent in (33, 62, 64):
    case(f"zip64 sizes of 2**{exponent}")(
        lambda folder, value=(1 << exponent) - 1: lied(folder, lambda data: wide(data, "archive/data/3", value))
    )


@case("a zip64 end that names a table of 2**60 bytes")
def _(folder: Path) -> None:
    def change(data: bytearray) -> None:
        tail = data.rindex(b"PK\5\6")
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 60, 0)
        data[tail:tail] = end + struct.pack("<4sIQI", b"PK\6\7", 0, tail, 1)
        data[-14:-2] = b"\xff" * 12

    lied(folder, change)


@case("a bit of a weight flipped under its checksum", says="checksum")
def _(folder: Path) -> None:
    def change(data: bytearray) -> None:
        data[data.index(numbers(UP, 24 * 16)) + 777] ^= 4

    lied(folder, change)


@case("a table of 20 GB of nothing")
def _(folder: Path) -> None:
    """Zeros that no disk holds; whoever reads them all fills the memory."""
    length = 20 << 30
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, length, 64)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, 64 + length, 1)
    with (folder / "model.pth").open("wb") as file:
        file.write(b"PK\3\4" + bytes(60))
        file.seek(64 + length)
        file.write(end + locator + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    config(folder)


@case("a byteorder of 20 GB")
def _(folder: Path) -> None:
    length, name = 20 << 30, b"archive/byteorder"
    small = zipped({n: d for n, d in records().items() if n != "archive/byteorder"})
    tail = small.rindex(b"PK\5\6")
    count, _, table = struct.unpack("<HII", small[tail + 10 : tail + 20])
    extra = struct.pack("<2H2Q", 1, 16, length, length)
    header = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra))
    sizes = (0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra), 0, 0, 0, 0, table)
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 45, 0, 0, 0, 33, *sizes) + name + extra
    start = table + len(header) + len(name) + len(extra) + length
    with (folder / "model.pth").open("wb") as file:
        file.write(small[:table] + header + name + extra)
        file.seek(start)
        contents = small[table:tail] + entry
        end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count + 1, count + 1, len(contents), start)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(contents), 1)
        file.write(contents + end + locator)
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    config(folder)


@case("data.pkl twice", says="twice")
def _(folder: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (folder / "model.pth").write_bytes(zipped([*records().items(), ("archive/data.pkl", b"\x80\x02}.")]))
    config(folder)


@case("two roots")
def _(folder: Path) -> None:
    pth(folder, also=records(root="other"))


@case("no data.pkl")
def _(folder: Path) -> None:
    (folder / "model.pth").write_bytes(zipped({n: d for n, d in records().items() if "pkl" not in n}))


for what, odd in {"a line": "a\nb", "an escape": "a\x1b[2J", "a NUL": "a\1b", "right to left": "a\u202eb"}.items():

    @case(f"a record whose name holds {what}")
    def _(folder: Path, odd: str = odd) -> None:
        pth(folder, also={f"archive/{odd}": b"x"})
        if "\1" in odd:
            data = (folder / "model.pth").read_bytes()
            (folder / "model.pth").write_bytes(data.replace(b"a\1b", b"a\0b"))


@case("records called as if they climbed", "either")
def _(folder: Path) -> None:
    pth(folder, also={"archive/../../../../tmp/pwned": b"x", "/etc/pwned": b"x", "C:\\pwned": b"x"})


@case("a big-endian machine", says="big-endian")
def _(folder: Path) -> None:
    pth(folder, also={"archive/byteorder": b"big"})


@case("an unknown byteorder")
def _(folder: Path) -> None:
    pth(folder, also={"archive/byteorder": b"little\n"})


@case("a version and a format of nonsense", "either")
def _(folder: Path) -> None:
    pth(
        folder,
        also={"archive/version": b"9" * 99, "archive/.format_version": b"\xff", "archive/.data/serialization_id": b""},
    )


@case("a TorchScript archive", says="TorchScript")
def _(folder: Path) -> None:
    pth(folder, also={"archive/constants.pkl": b"\x80\x02).", "archive/code/__torch__.py": b"import os"})


@case("a zip behind a safetensors header")
def _(folder: Path) -> None:
    st(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(zipped(records()))


@case("a comment that holds another archive's end")
def _(folder: Path) -> None:
    inner = zipped(records())
    tail = bytearray(inner[inner.rindex(b"PK\5\6") :])
    outer = bytearray(inner)
    outer[-2:] = struct.pack("<H", len(tail))
    (folder / "model.pth").write_bytes(bytes(outer + tail))
    config(folder)


@case("a storage whose record is another's")
def _(folder: Path) -> None:
    def change(data: bytearray) -> None:
        table = data.index(b"PK\1\2")
        one, other = (data.index(f"archive/data/{n}".encode(), table) - 46 for n in (3, 4))
        data[other + 42 : other + 46] = data[one + 42 : one + 46]

    lied(folder, change)


def cuts(data: bytes) -> list[int]:
    """Every place where one part of a zip ends and the next begins."""
    marks = [b"PK\3\4", b"PK\1\2", b"PK\5\6", b"archive/"]
    found = {at for mark in marks for at in range(len(data)) if data.startswith(mark, at)}
    return sorted(found | {len(data) - 1, len(data) // 2, 1, 3})


CUT = len(cuts(zipped(records())))
for number in range(0, CUT, 5):

    @case(f"cut at place {number}")
    def _(folder: Path, number: int = number) -> None:
        data = zipped(records())
        (folder / "model.pth").write_bytes(data[: cuts(data)[number]])
        config(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Pickles that act

ACT = text("touch pwned") + b"\x85R"
for what, code in {
    "GLOBAL": name_of("os", "system") + ACT,
    "GLOBAL of another case": name_of("posix", "system") + ACT,
    "STACK_GLOBAL": text("os") + text("system") + b"\x93" + ACT,
    "STACK_GLOBAL from the memo": text("os") + b"\x940" + b"h\x00" + text("popen") + b"\x93" + ACT,
    "a dotted STACK_GLOBAL": text("torch") + text("serialization.os.system") + b"\x93" + ACT,
    "INST": b"(" + text("touch pwned") + b"ios\nsystem\n",
    "OBJ": b"(" + name_of("os", "system") + text("touch pwned") + b"o",
    "NEWOBJ": name_of("subprocess", "Popen") + text("touch pwned") + b"\x85\x81",
    "NEWOBJ_EX": name_of("subprocess", "Popen") + text("touch pwned") + b"\x85}\x92",
    "getattr": name_of("builtins", "getattr") + name_of("os", "system") + text("__call__") + b"\x86R",
    "eval": called("builtins", "eval", text("open('pwned', 'w')") + b"\x85"),
    "Python 2's eval": called("__builtin__", "eval", text("open('pwned', 'w')") + b"\x85"),
    "code": called("types", "CodeType", b")"),
    "ctypes": called("ctypes", "CDLL", text("libc.so.6") + b"\x85"),
    "pickle in pickle": called("_pickle", "loads", b"C\x01.\x85"),
    "torch.hub": called("torch.hub", "load", text("a/b") + text("c") + b"\x86"),
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pos.system\n",
    "a persistent id that is text": text("os.system") + b"Q",
    "a persistent id of many parts": b"(" + text("storage") * 40 + b"tQ",
    "a storage of the type os.system": b"(" + text("storage") + name_of("os", "system") + text("0") + text("cpu") + b"K\x01tQ",
    "NEXT_BUFFER": b"\x97",
}.items():  # fmt: skip

    @case(f"a pickle that acts: {what}")
    def _(folder: Path, code: bytes = code) -> None:
        pth(folder, beside(code))


for what, code in {
    "functools.partial": called("functools", "partial", name_of("operator", "attrgetter") + b"\x85"),
    "BUILD with __setstate__": called("mylib", "Thing") + b"}" + text("__setstate__") + text("os.system") + b"sb",
    "BUILD with __class__": called("argparse", "Namespace") + b"}" + text("__class__") + text("x") + b"sb",
    "BUILD of a list": b"]}" + text("append") + b"Nsb",
    "__reduce__ of a lambda": called("mylib", "<lambda>"),
    "an object of no module": called("", "x"),
    "a class called like a path": called("../../x", "y"),
    "surrogates": text("\ud800\udfff"),
    "numpy": called("numpy.core.multiarray", "_reconstruct", name_of("numpy", "ndarray") + b"K\x00\x85C\x01b\x87"),
    "a numpy scalar of nonsense": called("numpy.core.multiarray", "scalar", text("f8") + b"C\x01b\x86"),
}.items():

    @case(f"a pickle that could act: {what}", "either")
    def _(folder: Path, code: bytes = code) -> None:
        pth(folder, beside(code))


# ---------------------------------------------------------------------------------------------------------------------
# Pickles that swell

DOUBLED = b")" + b"2\x86" * 200  # a tuple of twice itself, two hundred times
BIG = b"](" + b"N" * 200_000 + b"e"
for what, swell in {
    "a tuple doubled 200 times": lambda: DOUBLED,
    "nested 2,000,000 times": lambda: b")" + b"\x85" * 2_000_000,
    "a long list copied 50,000 times": lambda: BIG + put(1) + b"0](" + (name_of("builtins", "list") + get(1) + b"\x85R") * 50_000 + b"e",
    "a long list made a set 50,000 times": lambda: BIG + put(1) + b"0](" + (called("builtins", "set", get(1) + b"\x85") + b"0") * 50_000 + b"Ne",
    "a path doubled 60 times": lambda: text("x" * 999) + (put(1) + b"0" + called("pathlib", "PosixPath", get(1) + get(1) + b"\x86")) * 60,
    "a text of 1 MB encoded 100,000 times": lambda: text("x" * 1_000_000) + put(1) + b"0](" + called("_codecs", "encode", get(1) + text("latin1") + b"\x86") * 100_000 + b"e",
    "bytes of 1 MB copied 100,000 times": lambda: b"B" + struct.pack("<I", 1_000_000) + bytes(1_000_000) + put(1) + b"0](" + called("builtins", "bytes", get(1) + b"\x85") * 100_000 + b"e",
    "a long list under 50,000 keys": lambda: BIG + put(1) + b"0}(" + b"".join(integer(n) + get(1) for n in range(50_000)) + b"u",
    "a dictionary copied 50,000 times": lambda: b"}(" + b"".join(integer(n) + b"N" for n in range(50_000)) + b"u" + put(1) + b"0](" + called("collections", "OrderedDict", get(1) + b"\x85") * 50_000 + b"e",
    "3,000,000 marks": lambda: b"(" * 3_000_000 + b"1" * 3_000_000 + b"N",
    "5,000,000 dictionaries": lambda: b"](" + b"}" * 5_000_000 + b"e",
    "19,000,000 lists": lambda: b"](" + b"]" * 19_000_000 + b"e",
    "21,000,000 numbers": lambda: b"](" + b"N" * 21_000_000 + b"e",
    "5,000,000 names": lambda: name_of("a", "b") + b"0" + (name_of("a", "b") + b"0") * 1_000_000 + b"N",
}.items():  # fmt: skip

    @case(f"a pickle that swells: {what}", "either")
    def _(folder: Path, swell: Callable[[], bytes] = swell) -> None:
        pth(folder, beside(swell()))


@case("a pickle that swells: a long tuple as a key 50,000 times", "either")
def _(folder: Path) -> None:
    long = b"(" + b"N" * 200_000 + b"t" + put(1) + b"0"
    pth(folder, beside(long + b"](" + (b"}" + get(1) + b"Ns") * 50_000 + b"e"))


@case("a pickle that swells: long texts in a key beside the weights", "either")
def _(folder: Path) -> None:
    key = text("x" * 1_000_000) + put(1) + b"0(" + get(1) * 20_000 + b"t"
    pth(folder, b"\x80\x04}(" + key + b"N" + text("model") + b"}" + state() + b"u.")


@case("a pickle that swells: a long list under 50,000 keys beside the weights", "either")
def _(folder: Path) -> None:
    keys = b"".join(text(f"k{n}") + get(1) for n in range(50_000))
    pth(folder, b"\x80\x04" + BIG + put(1) + b"0}(" + keys + text("model") + b"}" + state() + b"u.")


@case("weights inside of themselves", "refused")
def _(folder: Path) -> None:
    """`model` is the dictionary that it lies in."""
    held = text("x") + b"]" + tensor("0", (32, 16)) + b"a"
    pth(folder, b"\x80\x02}" + put(1) + b"(" + text("model") + get(1) + held + b"u.")


@case("weights inside of each other", "refused")
def _(folder: Path) -> None:
    held = text("x") + b"]" + tensor("0", (32, 16)) + b"a"
    inner = b"}(" + text("model") + get(1) + held + b"u"
    pth(folder, b"\x80\x02}" + put(1) + b"(" + text("model") + inner + b"u.")


@case("weights 100,000 dictionaries deep", "refused")
def _(folder: Path) -> None:
    deep = b"".join(b"}" + text("model") for _ in range(100_000)) + b"}" + state() + b"s" * 100_000
    pth(folder, b"\x80\x02" + deep + b".")


@case("dictionaries shared 10 ways, 16 deep", "refused")
def _(folder: Path) -> None:
    level = b"}" + text("w") + tensor("0", (32, 16)) + b"s" + put(0) + b"0"
    for n in range(16):
        level += b"}(" + b"".join(text(f"k{k}") + get(n) for k in range(10)) + b"u" + put(n + 1) + b"0"
    pth(folder, b"\x80\x02" + level + get(16) + b".")


@case("a name of 10 MB", "refused")
def _(folder: Path) -> None:
    pth(folder, b"\x80\x02}" + state({"x" * 10_000_000: tensor("0", (32, 16))}) + b".")


@case("20,000 names that are alike and long", "refused")
def _(folder: Path) -> None:
    more = {f"model.layers.0.mlp.{'up_proj.' * 30}{n}.weight": tensor("0", (32, 16)) for n in range(20_000)}
    pth(folder, b"\x80\x02}" + state(more) + b".")


@case("350,000 tensors of one storage", "refused")
def _(folder: Path) -> None:
    one = tensor("0", (32, 16)) + put(1) + b"0"
    pth(folder, b"\x80\x02" + one + b"}(" + b"".join(text(f"t{n}") + get(1) for n in range(350_000)) + b"u.")


for what, name in {
    "a NUL": "a\0b", "a line": "a\nb", "no letter": "", "dots": "..", "a path": "../../x", "an escape": "\x1b[31m", "a surrogate": "\ud800",
    "a Greek o": "model.n\u03bfrm.weight", "no width": "model.norm\u200b.weight", "right to left": "\u202emodel",
}.items():  # fmt: skip

    @case(f"a tensor whose name holds {what}")
    def _(folder: Path, name: str = name) -> None:
        pth(folder, b"\x80\x02}" + state({name: tensor("0", (32, 16))}) + b".")


@case("names that no dictionary of weights has", "either")
def _(folder: Path) -> None:
    odd = b"N" + tensor("0", (32, 16)) + b"K\x07" + tensor("0", (32, 16)) + b"C\x01b" + tensor("0", (32, 16))
    pth(folder, b"\x80\x04}" + state() + b"(" + odd + b"u.")


# ---------------------------------------------------------------------------------------------------------------------
# Tensors

KEY, GATE = (str(list(SHAPES).index(UP.replace("up", name))) for name in ("up", "gate"))
CLASS = b"ctorch._tensor\n_rebuild_from_type_v2\n("
BYTES = tensor(KEY, (24, 16))
PLAIN = BYTES[BYTES.index(b"(") : -1]
for what, code in {
    "negative strides": tensor(KEY, (24, 16), strides=(-16, 1)),
    "a negative offset": tensor(KEY, (24, 16), offset=-1),
    "a negative size": tensor(KEY, (-24, 16)),
    "an offset past the end": tensor(KEY, (24, 16), offset=1),
    "an offset of 2**62": tensor(KEY, (24, 16), offset=1 << 62),
    "strides past the end": tensor(KEY, (24, 16), strides=(17, 1)),
    "a size of 2**62": tensor(KEY, (1 << 62, 16), count=384),
    "sizes whose product overflows": tensor(KEY, (1 << 32, 1 << 32), strides=(0, 0), count=384),
    "a storage of 2**62 numbers": tensor(KEY, (24, 16), count=1 << 62),
    "a storage of -1 numbers": tensor(KEY, (24, 16), count=-1),
    "no such storage": tensor("99", (24, 16)),
    "a storage of another folder": tensor("../data/5", (24, 16)),
    "no rebuild function": b"ctorch._utils\n_rebuild_nonsense\n)R",
    "a meta tensor": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R",
    "a sparse tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n)R",
    "a quantized tensor": b"ctorch._utils\n_rebuild_qtensor\n)R",
    "a nested tensor": b"ctorch._utils\n_rebuild_nested_tensor\n)R",
    "a DTensor": CLASS + name_of("torch", "Tensor") + name_of("torch.distributed.tensor", "DTensor") + PLAIN + b"NtR",
    "a FakeTensor": CLASS + name_of("torch._utils", "_rebuild_tensor_v2") + name_of("torch._subclasses.fake_tensor", "FakeTensor") + PLAIN + b"NtR",
    "a subclass of its own": called("mylib", "MyTensor", PLAIN),
    "complex numbers": tensor(KEY, (24, 8), kind="ComplexFloatStorage"),
    "truths": tensor(KEY, (24, 64), kind="BoolStorage"),
    "bytes": tensor(KEY, (24, 64), kind="ByteStorage"),
    "integers without a scale": tensor(KEY, (24, 64), kind="CharStorage"),
    "a storage itself": b"(" + text("storage") + name_of("torch", "FloatStorage") + text(KEY) + text("cpu") + integer(384) + b"tQ",
    "a text": text("weight"),
    "70 axes": tensor(KEY, (1,) * 68 + (24, 16)),
    "a shape that is a list": PLAIN and b"ctorch._utils\n_rebuild_tensor_v2\n(" + BYTES[BYTES.index(b"(") + 1 : BYTES.index(b"tQ") + 2] + b"K\x00]]\x89}tR",
}.items():  # fmt: skip

    @case(f"a weight that is {what}")
    def _(folder: Path, code: bytes = code) -> None:
        pth(folder, b"\x80\x02}" + state({UP: code}) + b".")


for what, code in {
    "expanded": tensor(KEY, (24, 16), strides=(0, 0), count=384),
    "transposed": tensor(KEY, (24, 16), strides=(1, 24), count=384),
    "another tensor's bytes": tensor(GATE, (24, 16)),
}.items():

    @case(f"a weight that is {what}", "converted")
    def _(folder: Path, code: bytes = code) -> None:
        pth(folder, b"\x80\x02}" + state({UP: code}) + b".")


for what, code in {
    "another number of axes": tensor(KEY, (24, 16, 1)),
    "no number": tensor(KEY, (0, 16), count=384),
    "one number": tensor(KEY, (), count=384),
}.items():

    @case(f"a weight that is {what}", "either", "differ in shape|has shape")
    def _(folder: Path, code: bytes = code) -> None:
        pth(folder, b"\x80\x02}" + state({UP: code}) + b".")


@case("tensors that share parts of one storage", "converted")
def _(folder: Path) -> None:
    pth(folder, b"\x80\x02}" + state({UP: tensor(KEY, (24, 16), offset=0, strides=(8, 1), count=384)}) + b".")


@case("two types of one storage")
def _(folder: Path) -> None:
    pth(folder, b"\x80\x02}" + state({UP: tensor(GATE, (24, 16), kind="IntStorage")}) + b".")


@case("an expanded embedding of 4 TB")
def _(folder: Path) -> None:
    huge = tensor("0", (1 << 36, 16), strides=(0, 1), count=512)
    pth(folder, b"\x80\x02}" + state({"model.embed_tokens.weight": huge, "lm_head.weight": huge}) + b".")
    config(folder, vocab_size=1 << 36)


@case("an expanded embedding of NaN", "refused")
def _(folder: Path) -> None:
    """Refused for want of room; looking at its values must not fill the memory first."""
    huge = tensor("0", (1 << 36, 16), strides=(0, 1), count=512)
    content = records(b"\x80\x02}" + state({"model.embed_tokens.weight": huge, "lm_head.weight": huge}) + b".")
    content["archive/data/0"] = struct.pack("<f", float("nan")) * 512
    (folder / "model.pth").write_bytes(zipped(content))
    config(folder, vocab_size=1 << 36)


# ---------------------------------------------------------------------------------------------------------------------
# Old files


def legacy(pickled: bytes, keys: Iterable[str], *, rest: bytes = b"") -> bytes:
    magic = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
    system = b"\x80\x02}(" + text("little_endian") + b"\x88u."
    listed = b"\x80\x02](" + b"".join(map(text, keys)) + b"e."
    return magic + b"\x80\x02M\xe9\x03." + system + pickled + listed + rest


def old_tensor(key: str, shape: Iterable[int]) -> bytes:
    return tensor(key, shape).replace(b"tQ", b"NtQ")


def stored(counts: Mapping[str, int] | None = None) -> bytes:
    rest = b""
    for name, shape in SHAPES.items():
        count = size(shape)
        rest += struct.pack("<Q", (counts or {}).get(name, count)) + numbers(name, count)
    return rest


OLD = {name: old_tensor(str(n), shape) for n, (name, shape) in enumerate(SHAPES.items())}
KEYS = [str(n) for n in range(len(SHAPES))]


@case("a sound old file", "converted")
def _(folder: Path) -> None:
    (folder / "model.pth").write_bytes(legacy(b"\x80\x02}" + state(OLD) + b".", KEYS, rest=stored()))
    config(folder)


for what, change in {
    "too few keys": lambda: legacy(b"\x80\x02}" + state(OLD) + b".", KEYS[:-1], rest=stored()),
    "a key twice": lambda: legacy(b"\x80\x02}" + state(OLD) + b".", [*KEYS[:-1], "0"], rest=stored()),
    "a size that lies": lambda: legacy(b"\x80\x02}" + state(OLD) + b".", KEYS, rest=stored({UP: 1 << 62})),
    "its end missing": lambda: legacy(b"\x80\x02}" + state(OLD) + b".", KEYS, rest=stored()[:-9]),
    "something behind it": lambda: legacy(b"\x80\x02}" + state(OLD) + b".", KEYS, rest=stored() + b"x"),
    "no object": lambda: legacy(b"", [], rest=b""),
    "no storages": lambda: legacy(b"\x80\x02}" + state(OLD) + b".", KEYS),
    "a pickle that acts": lambda: legacy(b"\x80\x02}" + text("x") + name_of("os", "system") + ACT + b"s.", KEYS),
    "only its magic": lambda: legacy(b"", [])[:14],
}.items():

    @case(f"an old file with {what}")
    def _(folder: Path, change: Callable[[], bytes] = change) -> None:
        (folder / "model.pth").write_bytes(change())
        config(folder)


@case("a tar file of the first torch")
def _(folder: Path) -> None:
    import tarfile

    with tarfile.open(folder / "model.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors


def header(entries: Mapping[str, Any]) -> bytes:
    return json.dumps(entries).encode()


def entries() -> tuple[dict[str, Any], bytes]:
    found: dict[str, Any] = {}
    body = b""
    for name, shape in SHAPES.items():
        data = numbers(name, size(shape))
        found[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return found, body


def st(
    folder: Path, change: Callable[[dict[str, Any]], Any] = lambda e: None, *, words: bytes | None = None,
    length: int | None = None, rest: bytes = b"", name: str = "model.safetensors",
) -> None:  # fmt: skip
    found, body = entries()
    change(found)
    head = header(found) if words is None else words
    (folder / name).write_bytes(struct.pack("<Q", len(head) if length is None else length) + head + body + rest)
    config(folder)


@case("a sound safetensors file", "converted")
def _(folder: Path) -> None:
    st(folder)


def edit(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found[UP].update(fields)


for what, change in {
    "a size of 1.0": edit(shape=[24.0, 16]),
    "a size of true": edit(shape=[True, 384]),
    "a size of '24'": edit(shape=["24", 16]),
    "a size of -24": edit(shape=[-24, -16]),
    "a size of 2**64": edit(shape=[1 << 64, 16]),
    "a size of NaN": edit(shape=[float("nan"), 16]),
    "a size of infinity": edit(shape=[float("inf"), 16]),
    "a size of 10**400": edit(shape=[10**400, 16]),
    "a type in small letters": edit(dtype="f32"),
    "a type of later": edit(dtype="F4"),
    "a type that is a list": edit(dtype=["F32"]),
    "a type of 1 MB": edit(dtype="F" * 1_000_000),
    "a shape that is a number": edit(shape=384),
    "offsets the wrong way round": lambda e: e[UP]["data_offsets"].reverse(),
    "three offsets": lambda e: e[UP]["data_offsets"].append(0),
    "offsets of another": lambda e: e[UP].update(data_offsets=e["model.norm.weight"]["data_offsets"]),
    "NaN where nobody looks": edit(note=float("nan")),
    "metadata that is a list": lambda e: e.update(__metadata__=["pt"]),
    "metadata that is nested": lambda e: e.update(__metadata__={"a": {"b": "c"}}),
    "metadata that is a number": lambda e: e.update(__metadata__={"a": 1}),
    "an entry that is a list": lambda e: e.update(x=[]),
    "a name of 10 MB": lambda e: e.update({"x" * 10_000_000: e.pop(UP)}),
    "a name with a NUL": lambda e: e.update({"a\0b": e.pop(UP)}),
    "a name with a surrogate": lambda e: e.update({"\ud800": e.pop(UP)}),
    "no name": lambda e: e.update({"": e.pop(UP)}),
    "a Greek o": lambda e: e.update({"m\u03bfdel.norm.weight": e.pop("model.norm.weight")}),
    "a case variant": lambda e: e.update({"Model.Norm.weight": e.pop("model.norm.weight")}),
    "FP8 without scales": lambda e: e[UP].update(dtype="F8_E4M3", shape=[24, 64]),
    "complex numbers": lambda e: e[UP].update(dtype="C64", shape=[24, 8]),
    "truths": lambda e: e[UP].update(dtype="BOOL", shape=[24, 64]),
    "a name that is reserved": lambda e: e.update({"__metadata__": e.pop(UP)}),
    "numbered from one": lambda e: [e.update({n.replace(".1.", ".2.").replace(".0.", ".1."): e.pop(n)}) for n in list(e)],
    "a gap in the layers": lambda e: [e.update({n.replace(".1.", ".5."): e.pop(n)}) for n in list(e)],
    "padded layers": lambda e: [e.update({n.replace(".1.", ".01."): e.pop(n)}) for n in list(e)],
    "layers in Arabic digits": lambda e: [e.update({n.replace(".1.", ".\u0661."): e.pop(n)}) for n in list(e)],
    "a layer of 10**4000": lambda e: [e.update({n.replace(".1.", f".{10**4000}."): e.pop(n)}) for n in list(e)],
    "a minus layer": lambda e: [e.update({n.replace(".1.", ".-1."): e.pop(n)}) for n in list(e)],
}.items():  # fmt: skip

    @case(f"safetensors with {what}")
    def _(folder: Path, change: Callable[[dict[str, Any]], Any] = change) -> None:
        st(folder, change)


@case("safetensors with whole numbers", "refused", "weights that are integers: " + UP)
def _(folder: Path) -> None:
    st(folder, edit(dtype="I32"))


ONE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
for what, words in {
    "a byte order mark": b"\xef\xbb\xbf" + ONE,
    "blanks before": b"  " + ONE,
    "UTF-16": ONE.decode().encode("utf-16"),
    "bytes that are no UTF-8": ONE.replace(b"a", b"\xff"),
    "a comma too many": ONE[:-1] + b",}",
    "a comment": b"{/* */" + ONE[1:],
    "a name twice": ONE[:-1] + b"," + ONE[1:],
    "a key twice within": ONE.replace(b'"shape"', b'"dtype":"F32","shape"'),
    "100,000 lists": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nothing": b"",
    "a NUL at its end": ONE + b"\0",
    "an escape that breaks off": b'{"\\u12',
}.items():

    @case(f"a safetensors header with {what}")
    def _(folder: Path, words: bytes = words) -> None:
        st(folder, words=words)


@case("a safetensors header with 30,000,000 lists")
def _(folder: Path) -> None:
    st(folder, words=b'{"a":[' + b"[]," * 30_000_000 + b"0]}")


@case("a safetensors header with 90 MB of blanks")
def _(folder: Path) -> None:
    st(folder, words=b"{" + b" " * 90_000_000 + b"}")


for what, length in {"nothing": 0, "2**63": 1 << 63, "2**64 - 1": (1 << 64) - 1, "100 MB": 100_000_000, "10 less": -10, "10 more": 10}.items():  # fmt: skip

    @case(f"a safetensors header that claims {what}")
    def _(folder: Path, length: int = length) -> None:
        st(folder, length=length if abs(length) > 10 or not length else len(header(entries()[0])) + length)


@case("safetensors with something behind it")
def _(folder: Path) -> None:
    st(folder, rest=b"x")


@case("safetensors with empty tensors in its midst", "refused", "not claimed|unclaimed|claims")
def _(folder: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 16], "data_offsets": [2048, 2048]}
    st(folder, lambda e: e.update({"a": empty, "b": empty}))


for number in (400_000, 1_000_000):

    @case(f"safetensors of {number:,} tensors")
    def _(folder: Path, number: int = number) -> None:
        found = {f"t{n}": {"dtype": "U8", "shape": [], "data_offsets": [n, n + 1]} for n in range(number)}
        words = header(found)
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(words)) + words + bytes(number))
        config(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Indexes


def index(
    folder: Path, change: Callable[[dict[str, Any]], Any] = lambda i: None, text: str | bytes | None = None
) -> dict[str, Any]:
    """Two shards, and an index of them that is changed or replaced."""
    found, body = entries()
    names = list(found)
    shards = {name: f"model-0000{1 + (n > 5)}-of-00002.safetensors" for n, name in enumerate(names)}
    for shard in dict.fromkeys(shards.values()):
        part: dict[str, Any] = {}
        data = b""
        for name in (n for n in names if shards[n] == shard):
            start, end = found[name]["data_offsets"]
            part[name] = found[name] | {"data_offsets": [len(data), len(data) + end - start]}
            data += body[start:end]
        words = header(part)
        (folder / shard).write_bytes(struct.pack("<Q", len(words)) + words + data)
    content = {"metadata": {"total_size": len(body)}, "weight_map": shards}
    change(content)
    config(folder)
    data = json.dumps(content).encode() if text is None else text.encode() if isinstance(text, str) else text
    (folder / "model.safetensors.index.json").write_bytes(data)
    return {"source": folder}


@case("sound shards", "converted")
def _(folder: Path) -> dict[str, Any]:
    return index(folder)


SECOND = "model-00002-of-00002.safetensors"


def moved(shard: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda i: i["weight_map"].update({n: shard for n, s in i["weight_map"].items() if s == SECOND})


for what, change in {
    "a path out": moved("../other.safetensors"),
    "an absolute path": moved("/etc/hostname"),
    "a path within": moved("./" + SECOND),
    "a drive": moved("C:\\" + SECOND),
    "a NUL": moved(SECOND + "\0"),
    "a line": moved("a\nb"),
    "a missing shard": moved("model-00003-of-00002.safetensors"),
    "a shard that is the folder": moved("."),
    "a shard that is the index": moved("model.safetensors.index.json"),
    "a shard that is the config": moved("config.json"),
    "a shard that is a number": moved(7),
    "a shard that is null": moved(None),
    "a shard of 10 MB of name": moved("x" * 10_000_000),
    "a size of NaN": lambda i: i["metadata"].update(total_size=float("nan")),
    "one name too few": lambda i: i["weight_map"].pop(UP),
    "one name too many": lambda i: i["weight_map"].update(x=SECOND),
    "an odd name": lambda i: i["weight_map"].update({"\x1b[2J": SECOND}),
    "a name in the wrong shard": lambda i: i["weight_map"].update({"model.embed_tokens.weight": SECOND}),
    "a map that is a list": lambda i: i.update(weight_map=list(i["weight_map"])),
    "200,000 names of nothing": lambda i: i["weight_map"].update({f"x{n}": SECOND for n in range(200_000)}),
    "200,000 shards of nothing": lambda i: i["weight_map"].update({f"x{n}": f"{n}.safetensors" for n in range(200_000)}),
}.items():  # fmt: skip

    @case(f"an index with {what}")
    def _(folder: Path, change: Callable[[dict[str, Any]], Any] = change) -> dict[str, Any]:
        return index(folder, change)


for what, words in {
    "a list": "[]",
    "a number": "7",
    "nothing": "",
    "a name twice": '{"weight_map": {"a": "b", "a": "c"}}',
    "bytes that are no UTF-8": b'{"weight_map": {"\xff": "a"}}',
    "a byte order mark": b'\xef\xbb\xbf{"weight_map": {}}',
    "100,000 lists": '{"weight_map":' + "[" * 100_000,
}.items():

    @case(f"an index that is {what}")
    def _(folder: Path, words: str | bytes = words) -> dict[str, Any]:
        return index(folder, text=words)


def replaced(folder: Path, make: Callable[[Path], Any]) -> dict[str, Any]:
    words = index(folder)
    (folder / SECOND).unlink()
    make(folder / SECOND)
    return words


for what, make in {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link out": lambda path: path.symlink_to("/etc/hostname"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a .pth": lambda path: path.write_bytes(zipped(records())),
    "empty": lambda path: path.write_bytes(b""),
    "a Git LFS pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
}.items():  # fmt: skip

    @case(f"a shard that is {what}")
    def _(folder: Path, make: Callable[[Path], Any] = make) -> dict[str, Any]:
        return replaced(folder, make)


# ---------------------------------------------------------------------------------------------------------------------
# Things that are no files

for what, make in {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a folder": Path.mkdir,
    "a socket": lambda path: __import__("socket").socket(__import__("socket").AF_UNIX).bind(str(path)),
}.items():

    @case(f"a checkpoint that is {what}")
    def _(folder: Path, make: Callable[[Path], Any] = make) -> None:
        make(folder / "model.pth")
        config(folder)

    @case(f"a config that is {what}")
    def _(folder: Path, make: Callable[[Path], Any] = make) -> dict[str, Any]:
        pth(folder)
        (folder / "config.json").unlink()
        make(folder / "config.json")
        return {"config": folder / "config.json"}

    @case(f"a config in YAML that is {what}")
    def _(folder: Path, make: Callable[[Path], Any] = make) -> dict[str, Any]:
        pth(folder)
        (folder / "config.json").unlink()
        make(folder / "config.yaml")
        return {"config": folder / "config.yaml"}

    @case(f"a spec that is {what}")
    def _(folder: Path, make: Callable[[Path], Any] = make) -> dict[str, Any]:
        pth(folder)
        make(folder / "spec.yaml")
        return {"spec": folder / "spec.yaml"}

    @case(f"a tokenizer that is {what}")
    def _(folder: Path, make: Callable[[Path], Any] = make) -> dict[str, Any]:
        pth(folder)
        (folder / "tokenizer").mkdir()
        make(folder / "tokenizer" / "tokenizer.json")
        return {"options": ["--tokenizer", str(folder / "tokenizer")]}


@case("a name that no file has", "refused")
def _(folder: Path) -> dict[str, Any]:
    config(folder)
    return {"source": folder / ("x" * 300)}


@case("a name that is no Unicode", "converted")
def _(folder: Path) -> dict[str, Any]:
    pth(folder)
    (folder / "model.pth").rename(folder / "model\udcff.pth")
    return {"source": folder / "model\udcff.pth", "out": folder / "out\udcfe"}


@case("an assignment that is no Unicode", "either")
def _(folder: Path) -> dict[str, Any]:
    pth(folder)
    return {"options": ["--set", "hidden_act=\udcff"]}


@case("files that seem to be 10**12 parts", "either")
def _(folder: Path) -> dict[str, Any]:
    pth(folder)
    for n in (0, 10**12):
        (folder / "model.pth").rename(folder / f"consolidated.{n}.pth") if not n else (
            folder / f"consolidated.{n}.pth"
        ).write_bytes(b"")
    return {"source": folder, "spec": "meta_llama"}


@case("one file twice")
def _(folder: Path) -> dict[str, Any]:
    pth(folder)
    return {"options": [str(folder / "model.pth")]}


@case("a folder of links to itself")
def _(folder: Path) -> dict[str, Any]:
    (folder / "again").symlink_to(folder)
    (folder / "latest").write_text("again")
    return {"source": folder}


# ---------------------------------------------------------------------------------------------------------------------
# Configs

for what, fields in {
    "1e9 layers": {"num_hidden_layers": 10**9},
    "no layers": {"num_hidden_layers": 0},
    "-1 layers": {"num_hidden_layers": -1},
    "2.5 layers": {"num_hidden_layers": 2.5},
    "layers that are a text": {"num_hidden_layers": "2"},
    "layers that are a list": {"num_hidden_layers": [2]},
    "layers that are true": {"num_hidden_layers": True},
    "1e999 layers": {"num_hidden_layers": 10**999},
    "no heads": {"num_attention_heads": 0},
    "-2 heads": {"num_attention_heads": -2},
    "heads that are true": {"num_attention_heads": True},
    "heads that are a mapping": {"num_attention_heads": {}},
    "10**300 heads": {"num_attention_heads": 10**300},
    "no key heads": {"num_key_value_heads": 0},
    "a head of no size": {"head_dim": 0},
    "an infinite theta": {"rope_theta": float("inf")},
    "a theta that is no number": {"rope_theta": float("nan")},
    "a theta that is a text": {"rope_theta": "10000"},
    "a theta that is a list": {"rope_theta": [10000.0]},
    "a scaling that is a list": {"rope_scaling": [1]},
    "parameters that are a text": {"rope_parameters": "linear"},
    "two thetas": {"rope_parameters": {"rope_theta": 5.0, "rope_type": "default"}},
    "ties that are a text": {"tie_word_embeddings": "no"},
    "a tie of what differs": {"tie_word_embeddings": True},
    "code elsewhere": {"auto_map": {"AutoModel": "../../evil.Model"}},
    "code of another repository": {"auto_map": {"AutoModel": "their--evil.Model"}},
    "code in a list": {"auto_map": {"AutoTokenizer": ["/evil.Model", None]}},
    "code in a list alone": {"auto_map": ["../evil.Model"]},
    "code in a text": {"auto_map": "../evil.Model"},
    "another vocabulary": {"vocab_size": 33},
}.items():

    @case(f"a config with {what}")
    def _(folder: Path, fields: dict[str, Any] = fields) -> None:
        pth(folder)
        config(folder, **fields)


def deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


for what in ("hidden_act", "rope_scaling", "num_hidden_layers", "auto_map", "eos_token_id"):

    @case(f"a config whose {what} is 900 lists deep")
    def _(folder: Path, what: str = what) -> None:
        pth(folder)
        config(folder, **{what: deep(900)})


for what, fields in {
    "a beginning that is a text": {"bos_token_id": "x"},
    "a beginning that is a mapping": {"bos_token_id": {"a": [1] * 1000}},
    "an end of 2**70": {"eos_token_id": 1 << 70},
    "an end of many": {"eos_token_id": list(range(100_000))},
    "a type that is none": {"torch_dtype": "float99", "dtype": "float99"},
    "a type that is a number": {"torch_dtype": 5},
    "a surrogate": {"hidden_act": "\ud800", "rope_scaling": None},
    "a field that nobody reads": {"x" * 100_000: 1, "\x1b[2J": 2, "\ud800": 3},
    "a model inside": {"model": {"model": {"num_hidden_layers": 2}}},
}.items():

    @case(f"a config with {what}", "either")
    def _(folder: Path, fields: dict[str, Any] = fields) -> None:
        pth(folder)
        config(folder, **fields)


for what, words in {
    "nothing": b"",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"7",
    "null": b"null",
    "a key twice": b'{"vocab_size": 32, "vocab_size": 32}',
    "a comma too many": b'{"vocab_size": 32,}',
    "UTF-16": json.dumps(CONFIG).encode("utf-16"),
    "bytes that are no UTF-8": b'{"a": "\xff"}',
    "100,000 lists": b'{"a": ' + b"[" * 100_000,
    "YAML": b"vocab_size: 32\n",
    "5,000 digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "a NUL": b'{"a": 1}\0',
}.items():

    @case(f"a config that is {what}")
    def _(folder: Path, words: bytes = words) -> None:
        pth(folder)
        (folder / "config.json").write_bytes(words)


@case("a config that is 5,000,000 lists")
def _(folder: Path) -> None:
    pth(folder)
    (folder / "config.json").write_bytes(b'{"a": [' + b"[]," * 5_000_000 + b"0]}")


@case("a config with a byte order mark", "converted")
def _(folder: Path) -> None:
    pth(folder)
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(CONFIG).encode())


for what, words in {
    "a tag": "vocab_size: !!python/object/apply:os.system [touch pwned]",
    "an alias": "a: &a [1, 1]\nb: [*a, *a]",
    "an alias of itself": "a: &a\n  b: *a",
    "a bomb": "a: &a [x, x]\n" + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(20)),
    "two documents": "a: 1\n---\nb: 2",
    "a number of 5,000 digits": "vocab_size: " + "9" * 5000,
    "a merge": "a: &a {b: 1}\nc:\n  <<: *a",
    "100,000 lists": "a: " + "[" * 100_000,
    "2 MB": "a: " + "x" * 2_000_000,
    "infinity": "rope_theta: .inf",
    "a tab": "a:\n\tb: 1",
    "a control character": "a: \x07",
}.items():  # fmt: skip

    @case(f"a config in YAML with {what}")
    def _(folder: Path, words: str = words) -> dict[str, Any]:
        pth(folder)
        (folder / "config.json").unlink()
        (folder / "c.yaml").write_text(words)
        return {"config": folder / "c.yaml"}


PARAMS = {
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "vocab_size": 32,
    "multiple_of": 8,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
for what, fields in {
    "a multiple of nothing": {"multiple_of": 0},
    "a multiple of less": {"multiple_of": -8},
    "a factor without end": {"ffn_dim_multiplier": 1e308},
    "no heads": {"n_heads": 0},
    "heads that are a text": {"n_heads": "2"},
    "no width": {"dim": 0},
    "no epsilon": {"norm_eps": None},
    "1e9 layers": {"n_layers": 10**9},
    "one word too many": {"__class__": "x", "rope_theta": {}},
}.items():

    @case(f"params.json with {what}")
    def _(folder: Path, fields: dict[str, Any] = fields) -> dict[str, Any]:
        meta = {
            "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
            "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
            "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        }  # fmt: skip
        items = b""
        for n, (name, shape) in enumerate(SHAPES.items()):
            called = name
            for old, new in meta.items():
                called = called.replace(old, new)
            items += text(called) + tensor(str(n), shape)
        content = records(b"\x80\x02}(" + items + b"u.")
        (folder / "consolidated.00.pth").write_bytes(zipped(content))
        (folder / "params.json").write_text(json.dumps(PARAMS | fields))
        return {"source": folder, "spec": "meta_llama", "config": folder / "params.json"}


# ---------------------------------------------------------------------------------------------------------------------
# Specs


def spec(folder: Path, change: Callable[[str], str]) -> dict[str, Any]:
    pth(folder)
    before = SPEC.read_text()
    after = change(before)
    assert after != before
    (folder / "llama.yaml").write_text(after)
    return {"spec": folder / "llama.yaml"}


def field(value: str) -> Callable[[str], str]:
    """Another expression for a fact."""
    return lambda text: text.replace('dim("model.embed_tokens.weight", 0)', value, 1)


for what, change in {
    "a tag": lambda text: text.replace("spec: 1", "spec: !!python/object/apply:os.system [touch pwned]"),
    "a local tag": lambda text: text.replace("spec: 1", "spec: !x 1"),
    "an alias": lambda text: text.replace("spec: 1", "spec: &a 1") + "\nx: *a\n",
    "a bomb": lambda text: text + "\nx: &a [1]\ny: &b [*a, *a]\n",
    "a second document": lambda text: text + "\n---\nspec: 1\n",
    "a key twice": lambda text: text + "\nspec: 1\n",
    "a version of 10**29": lambda text: text.replace("spec: 1", "spec: 1" + "0" * 29),
    "a version of 10**5000": lambda text: text.replace("spec: 1", "spec: 1" + "0" * 5000),
    "a tower of powers": field("9**9**9**9"),
    "a long product": field("*".join(["999999999"] * 500)),
    "a deep expression": field("(" * 500 + "1" + ")" * 500),
    "a long expression": field("+".join(["1"] * 50_000)),
    "a shift": field("1 << 10**9"),
    "a text times 10**9": field("'x' * 10**9"),
    "a call": field("__import__('os').system('touch pwned')"),
    "an attribute": field("(1).__class__.__bases__"),
    "a comprehension": field("[x for x in (1,)]"),
    "a lambda": field("(lambda: 1)()"),
    "a walrus": field("(x := 1)"),
    "an f-string": field("f'{1}'"),
    "a division by nothing": field("1 // 0"),
    "infinity": field("1e308 * 10"),
    "a NUL": field("1\0"),
    "a pattern that explodes": lambda text: text + '\nignore: {"/^(a|a)*$/": x, "/^(a+)+b$/": y}\n',
    "a pattern of 1 MB": lambda text: text.replace("keep:", "keep:\n  - " + "x" * 900_000, 1),
    "10,000 alternatives": lambda text: text.replace("keep:", "keep:\n  - a{p:" + "|".join(f"x{n}" for n in range(10_000)) + "}", 1),
    "300 holes": lambda text: text.replace("keep:", "keep:\n  - " + ".".join(f"{{h{n}}}" for n in range(300)), 1),
    "a name that climbs": lambda text: text.replace("name: llama", "name: ../../llama"),
    "a name that is code": lambda text: text.replace("name: llama", 'name: "llama\\nimport os"'),
    "a class that is code": lambda text: text.replace("LlamaForCausalLM", "os.system"),
    "weights that climb": lambda text: text.replace('weights: "*.pth"', 'weights: "../../*"', 1),
    "weights of everything": lambda text: text.replace('weights: "*.pth"', 'weights: "/**/*"', 1),
}.items():  # fmt: skip

    @case(f"a spec with {what}", "refused" if "weights" not in what else "either")
    def _(folder: Path, change: Callable[[str], str] = change) -> dict[str, Any]:
        return spec(folder, change)


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def into(folder: Path, out: Path) -> dict[str, Any]:
    pth(folder)
    return {"out": out}


@case("an output that is a file", says="exists")
def _(folder: Path) -> dict[str, Any]:
    (folder / "x").write_text("mine")
    return into(folder, folder / "x")


@case("an output below a file")
def _(folder: Path) -> dict[str, Any]:
    (folder / "x").write_text("mine")
    return into(folder, folder / "x" / "y" / "z")


@case("an output that is a link to itself")
def _(folder: Path) -> dict[str, Any]:
    (folder / "x").symlink_to(folder / "x")
    return into(folder, folder / "x")


@case("an output that is the source")
def _(folder: Path) -> dict[str, Any]:
    return into(folder, folder / "model.pth")


@case("an output that is the source, by force")
def _(folder: Path) -> dict[str, Any]:
    return into(folder, folder / "model.pth") | {"options": ["--force"]}


@case("an output that is the source's folder")
def _(folder: Path) -> dict[str, Any]:
    return into(folder, folder)


@case("an output that is the sharded source, by force")
def _(folder: Path) -> dict[str, Any]:
    return index(folder) | {"out": folder, "options": ["--force"]}


@case("an output that is the folder of the only file, by force")
def _(folder: Path) -> dict[str, Any]:
    st(folder)
    return {"source": folder, "out": folder, "options": ["--force"]}


@case("an output inside of the source's folder", "converted")
def _(folder: Path) -> dict[str, Any]:
    return into(folder, folder / "x")


for length in (240, 255, 256, 5000):

    @case(f"an output of {length} letters", "refused")
    def _(folder: Path, length: int = length) -> dict[str, Any]:
        return into(folder, folder / ("x" * length))


@case("an output below 3,000 folders", "refused")
def _(folder: Path) -> dict[str, Any]:
    return into(folder, folder / "/".join(["x"] * 3000))


for what, place in {"a device": "/dev/null", "a full device": "/dev/full", "below a device": "/dev/null/x", "the root": "/", "below /proc": "/proc/x", "below /sys": "/sys/x"}.items():  # fmt: skip

    @case(f"an output that is {what}")
    def _(folder: Path, place: str = place) -> dict[str, Any]:
        return into(folder, Path(place))


@case("an output that is a pipe")
def _(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "x")
    return into(folder, folder / "x")


@case("an output that is a pipe, by force", "refused")
def _(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "x")
    return into(folder, folder / "x") | {"options": ["--force"]}


@case("an output that is a file, by force", "refused")
def _(folder: Path) -> dict[str, Any]:
    (folder / "x").write_text("mine")
    return into(folder, folder / "x") | {"options": ["--force"]}


@case("a hidden place that is a link elsewhere", "refused")
def _(folder: Path) -> dict[str, Any]:
    (folder / "theirs" / "new").mkdir(parents=True)
    (folder / "theirs" / "new" / "mine.txt").write_text("mine")
    (folder / ".x.mapspec-partial").symlink_to(folder / "theirs")
    return into(folder, folder / "x")


@case("a hidden place that is a file", "refused")
def _(folder: Path) -> dict[str, Any]:
    (folder / ".x.mapspec-partial").write_text("mine")
    return into(folder, folder / "x")


@case("a lock that is a link elsewhere", "refused")
def _(folder: Path) -> dict[str, Any]:
    (folder / "mine.txt").write_text("mine")
    (folder / ".x.mapspec-partial").mkdir()
    (folder / ".x.mapspec-partial" / "lock").symlink_to(folder / "mine.txt")
    return into(folder, folder / "x")


@case("a lock that is a pipe", "refused")
def _(folder: Path) -> dict[str, Any]:
    (folder / ".x.mapspec-partial").mkdir()
    os.mkfifo(folder / ".x.mapspec-partial" / "lock")
    return into(folder, folder / "x")


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def tokenizer(folder: Path, files: Mapping[str, str | bytes]) -> dict[str, Any]:
    pth(folder)
    place = folder / "tokenizer"
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return {"options": ["--tokenizer", str(place)]}


WHOLE = '{"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": []}'
for what, files in {
    "a list": {"tokenizer.json": "[]"},
    "no JSON": {"tokenizer.json": "{"},
    "a model that is a list": {"tokenizer.json": '{"model": [1]}'},
    "a vocabulary that is a text": {"tokenizer.json": '{"model": {"vocab": "abc"}}'},
    "a vocabulary of numbers": {"tokenizer.json": '{"model": {"vocab": [1, 2]}}'},
    "a vocabulary of nothing": {"tokenizer.json": '{"model": {"vocab": [[]]}}'},
    "tokens that are numbers": {"tokenizer.json": '{"added_tokens": [1]}'},
    "tokens that are a number": {"tokenizer.json": '{"added_tokens": 7}'},
    "an id of 2**70": {"tokenizer.json": f'{{"model": {{"vocab": {{"a": {1 << 70}}}}}}}'},
    "ids that are true": {"tokenizer.json": '{"model": {"vocab": {"a": true}}}'},
    "a config that is a list": {"tokenizer.json": WHOLE, "tokenizer_config.json": "[]"},
    "a special token that is a list": {"tokenizer.json": WHOLE, "tokenizer_config.json": '{"eos_token": [1]}'},
    "a special token of nothing": {"tokenizer.json": WHOLE, "tokenizer_config.json": '{"eos_token": {"content": null}}'},
    "a surrogate": {"tokenizer.json": WHOLE, "tokenizer_config.json": '{"eos_token": "\\ud800", "chat_template": "\\ud800"}'},
    "an escape": {"tokenizer.json": WHOLE, "tokenizer_config.json": '{"eos_token": "\\u001b[2J", "bos_token": "a\\nb"}'},
    "a template that is no text": {"tokenizer.json": WHOLE, "chat_template.jinja": b"\xff\xfe"},
    "a template that is a mapping": {"tokenizer.json": WHOLE, "tokenizer_config.json": '{"chat_template": {"a": 1}}'},
    "a template that counts for ever": {"tokenizer.json": WHOLE, "chat_template.jinja": "{% for a in range(99999) %}" * 5 + "{% endfor %}" * 5},
    "a template of 10 GB": {"tokenizer.json": WHOLE, "chat_template.jinja": "{{ 'x' * 10000000000 }}"},
    "a template that doubles": {"tokenizer.json": WHOLE, "chat_template.jinja": "{% set ns = namespace(x='x' * 1000) %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"},
    "a template of a great number": {"tokenizer.json": WHOLE, "chat_template.jinja": "{{ 9 ** 9 ** 9 }}"},
    "a template that calls itself": {"tokenizer.json": WHOLE, "chat_template.jinja": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"},
    "a template that reaches out": {"tokenizer.json": WHOLE, "chat_template.jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
    "a template that opens files": {"tokenizer.json": WHOLE, "chat_template.jinja": "{% include '/etc/hostname' %}"},
    "a template of 100,000 brackets": {"tokenizer.json": WHOLE, "chat_template.jinja": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}"},
    "a template that breaks off": {"tokenizer.json": WHOLE, "chat_template.jinja": "{% for a in"},
}.items():  # fmt: skip

    @case(f"a tokenizer with {what}", "either")
    def _(folder: Path, files: dict[str, str | bytes] = files) -> dict[str, Any]:
        return tokenizer(folder, files)


def bit_number(value: int) -> bytes:
    """As protocol buffers write one."""
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return bit_number(number << 3 | 2) + bit_number(len(data)) + data


def piece(text: bytes, kind: int = 1, score: float = 0.0) -> bytes:
    return message(1, message(1, text) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))


SOUND = piece(b"<unk>", 2) + piece(b"a") + piece(b"b") + message(2, b"\x18\x02")
RANKS = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))
for what, name, content in [
    ("nothing behind its first byte", "tokenizer.model", lambda: b"\x0a"),
    ("a length of 2**63", "tokenizer.model", lambda: b"\x0a" + b"\xff" * 9 + b"\x01" + SOUND),
    ("a number without an end", "tokenizer.model", lambda: b"\x0a" + b"\xff" * 40),
    ("a piece of 1 MB", "tokenizer.model", lambda: piece(b"x" * 1_000_000) + SOUND),
    ("20,000 pieces of 1,000 letters", "tokenizer.model", lambda: b"".join(piece(b"%d" % n * 250) for n in range(20_000)) + SOUND),
    ("5,000,000 pieces", "tokenizer.model", lambda: b"".join(piece(b"%d" % n) for n in range(5_000_000)) + SOUND),
    ("a score that is no number", "tokenizer.model", lambda: piece(b"x", score=float("nan")) + SOUND),
    ("a piece that is no text", "tokenizer.model", lambda: piece(b"\xff") + SOUND),
    ("two unknown pieces", "tokenizer.model", lambda: piece(b"x", 2) + SOUND),
    ("a charsmap of nonsense", "tokenizer.model", lambda: SOUND + message(3, message(2, b"\xff" * 9))),
    ("a piece of escapes", "tokenizer.model", lambda: piece(b"\x1b[2J") + SOUND),
    ("ranks that are no base64", "tokenizer.tiktoken", lambda: b"a 0\n" + RANKS),
    ("a rank twice", "tokenizer.tiktoken", lambda: RANKS + RANKS),
    ("a rank of 10**9", "tokenizer.tiktoken", lambda: RANKS + b"YWE= 999999999\n"),
    ("a rank of 5,000 digits", "tokenizer.tiktoken", lambda: RANKS + b"YWE= " + b"9" * 5000),
    ("a token of 1 MB", "tokenizer.tiktoken", lambda: RANKS + base64.b64encode(b"x" * 1_000_000) + b" 256\n"),
    ("20,000,000 lines", "tokenizer.tiktoken", lambda: RANKS + b"\n" * 20_000_000),
]:  # fmt: skip

    @case(f"a tokenizer with {what}", "either")
    def _(folder: Path, name: str = name, content: Callable[[], bytes] = content) -> dict[str, Any]:
        return tokenizer(folder, {name: content()})


@case("a tokenizer of 20 GB")
def _(folder: Path) -> dict[str, Any]:
    told = tokenizer(folder, {"tokenizer.json": WHOLE})
    with (folder / "tokenizer" / "tokenizer.json").open("ab") as file:
        file.truncate(20 << 30)
    return told


@case("a tokenizer with code elsewhere")
def _(folder: Path) -> dict[str, Any]:
    return tokenizer(
        folder, {"tokenizer.json": WHOLE, "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["a--b.C", null]}}'}
    )


@case("a tokenizer of 40 MB of brackets", "either")
def _(folder: Path) -> dict[str, Any]:
    return tokenizer(folder, {"tokenizer.json": '{"a": [' + "[]," * 13_000_000 + "0]}"})


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


def gguf_text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: str, kind: int, value: bytes) -> bytes:
    return gguf_text(key.encode()) + struct.pack("<I", kind) + value


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
GGUF_VALUES = [
    pair("general.architecture", 8, gguf_text(b"llama")),
    pair("llama.attention.head_count", 4, struct.pack("<I", 2)),
    pair("llama.attention.head_count_kv", 4, struct.pack("<I", 1)),
    pair("llama.context_length", 4, struct.pack("<I", 64)),
    pair("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
    pair("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
]


def gguf(
    folder: Path, *, values: Iterable[bytes] = (), pairs: int | None = None, count: int | None = None, version: int = 3,
    change: Callable[[bytes, list[int], int, int], tuple[bytes, list[int], int, int]] = lambda *entry: entry,
    rest: bytes = b"", cut: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A file of GGUF; `change` makes another entry (name, sizes, type, offset) of that of the up projection."""
    told = [*GGUF_VALUES, *values]
    table, body = [], b""
    for name, shape in SHAPES.items():
        called = name
        for old, new in GGUF_NAMES.items():
            called = called.replace(old, new)
        entry = (called.encode(), [*reversed(shape)], 0, len(body))
        entry = change(*entry) if name == UP else entry
        axes = struct.pack(f"<{len(entry[1])}Q", *entry[1])
        table.append(gguf_text(entry[0]) + struct.pack("<I", len(entry[1])) + axes + struct.pack("<IQ", *entry[2:]))
        data = numbers(name, size(shape))
        body += data + bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(table) if count is None else count, len(told) if pairs is None else pairs
    )
    head += b"".join(told) + b"".join(table)
    whole = head + bytes(-len(head) % 32) + body + rest
    (folder / "model.gguf").write_bytes(whole[:cut])
    return {"source": folder / "model.gguf", "spec": "gguf_llama"}


@case("a sound GGUF file", "converted")
def _(folder: Path) -> dict[str, Any]:
    return gguf(folder)


@case("GGUF with an axis too few", "either", "differ in shape|has shape")
def _(folder: Path) -> dict[str, Any]:
    return gguf(folder, change=lambda n, s, k, o: (n, s[:1], k, o))


LIST = struct.pack("<IQ", 8, 1 << 40)
for what, words in {
    "2**60 tensors": {"count": 1 << 60},
    "one tensor too many": {"count": len(SHAPES) + 1},
    "2**60 values": {"pairs": 1 << 60},
    "one value too many": {"pairs": len(GGUF_VALUES) + 1},
    "a version of 99": {"version": 99},
    "a version of a big-endian machine": {"version": 3 << 24},
    "a key twice": {"values": [pair("general.architecture", 8, gguf_text(b"llama"))]},
    "a value of an unknown type": {"values": [pair("x", 99, b"")]},
    "a text of 2**62 bytes": {"values": [pair("x", 8, struct.pack("<Q", 1 << 62))]},
    "a text that is no UTF-8": {"values": [pair("x", 8, gguf_text(b"\xff"))]},
    "a list of 2**40 texts": {"values": [pair("x", 9, LIST)]},
    "a list of 2**62 numbers": {"values": [pair("x", 9, struct.pack("<IQ", 4, 1 << 62))]},
    "lists in lists": {"values": [pair("x", 9, struct.pack("<IQ", 9, 1) * 50)]},
    "an alignment of nothing": {"values": [pair("general.alignment", 4, struct.pack("<I", 0))]},
    "an alignment of 7": {"values": [pair("general.alignment", 4, struct.pack("<I", 7))]},
    "an alignment of 2**31": {"values": [pair("general.alignment", 4, struct.pack("<I", 1 << 31))]},
    "an alignment that is a text": {"values": [pair("general.alignment", 8, gguf_text(b"32"))]},
    "2**31 axes": {"change": lambda n, s, k, o: (n, [1] * 40, k, o)},
    "a size of 2**62": {"change": lambda n, s, k, o: (n, [1 << 62, 24], k, o)},
    "a tensor past the end": {"change": lambda n, s, k, o: (n, s, k, 1 << 40)},
    "an offset of 2**64 - 32": {"change": lambda n, s, k, o: (n, s, k, (1 << 64) - 32)},
    "an offset of 1": {"change": lambda n, s, k, o: (n, s, k, 1)},
    "tensors over each other": {"change": lambda n, s, k, o: (n, s, k, o - 32)},
    "a name twice": {"change": lambda n, s, k, o: (b"output_norm.weight", s, k, o)},
    "a name with an escape": {"change": lambda n, s, k, o: (b"\x1b[2J", s, k, o)},
    "a name that is no UTF-8": {"change": lambda n, s, k, o: (b"\xff", s, k, o)},
    "a name of 1 MB": {"change": lambda n, s, k, o: (b"x" * 1_000_000, s, k, o)},
    "a quantised type": {"change": lambda n, s, k, o: (n, s, 2, o)},
    "a type of 2**31": {"change": lambda n, s, k, o: (n, s, 1 << 31, o)},
    "its end missing": {"cut": -100},
    "its header cut": {"cut": 300},
    "only its name": {"cut": 4},
}.items():  # fmt: skip

    @case(f"GGUF with {what}")
    def _(folder: Path, words: dict[str, Any] = words) -> dict[str, Any]:
        return gguf(folder, **words)


@case("GGUF whose theta is no number")
def _(folder: Path) -> dict[str, Any]:
    told = gguf(folder)
    data = (folder / "model.gguf").read_bytes()
    at = data.index(b"rope.freq_base") + 18
    (folder / "model.gguf").write_bytes(data[:at] + struct.pack("<f", float("nan")) + data[at + 4 :])
    return told


for what, start in {
    "texts": struct.pack("<QQ", 0, 1) + pair("x", 9, struct.pack("<IQ", 8, 2 << 30)),
    "tensors": struct.pack("<QQ", 700_000_000, 0),
}.items():

    @case(f"20 GB of {what} in GGUF")
    def _(folder: Path, start: bytes = start) -> dict[str, Any]:
        with (folder / "model.gguf").open("wb") as file:
            file.write(b"GGUF" + struct.pack("<I", 3) + start)
            file.truncate(20 << 30)
        return {"source": folder / "model.gguf", "spec": "gguf_llama"}


# ---------------------------------------------------------------------------------------------------------------------
# Distributed checkpoints


def instance(name: str, **fields: bytes) -> bytes:
    module = "torch.distributed.checkpoint." + ("filesystem" if name == "_StorageInfo" else "metadata")
    items = b"".join(text(key) + value for key, value in fields.items())
    return name_of(module, name) + b")\x81}(" + items + b"ub"


def sizes_of(values: Iterable[int]) -> bytes:
    return name_of("torch", "Size") + b"(" + b"".join(map(integer, values)) + b"t\x85R"


def dcp(
    folder: Path, *, file: str = "__0_0.distcp", extent: Callable[[int, int], tuple[int, int]] = lambda *e: e,
    chunk: Callable[[tuple[int, ...]], list[tuple[Iterable[int], Iterable[int]]]] = lambda shape: [((0,) * len(shape), shape)],
    path: Callable[[str], bytes] = lambda name: b"(" + text(name) + b"t", objects: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The sound weights as torch.distributed.checkpoint stores them, but for what is changed of the up projection."""
    place = folder / "dcp"
    place.mkdir()
    entries = stored = paths = b"("
    body = b""
    for name, shape in SHAPES.items():
        archive = {"archive/data.pkl": b"\x80\x02" + tensor("0", shape) + b".", "archive/byteorder": b"little"}
        item = zipped(archive | {"archive/data/0": numbers(name, size(shape))})
        extents = (len(body), len(item))
        chunks: list[tuple[Iterable[int], Iterable[int]]] = [((0,) * len(shape), shape)]
        if name == UP:
            chunks, extents = chunk(shape), extent(*extents)
        boxes = (
            b"]("
            + b"".join(instance("ChunkStorageMetadata", offsets=sizes_of(o), sizes=sizes_of(s)) for o, s in chunks)
            + b"e"
        )
        properties = (
            name_of("torch.distributed.checkpoint.metadata", "TensorProperties")
            + b")\x81("
            + name_of("torch", "float32")
            + b"tb"
        )
        entries += text(name) + instance(
            "TensorStorageMetadata", properties=properties, size=sizes_of(shape), chunks=boxes
        )
        for offsets, _ in chunks:
            index_ = instance("MetadataIndex", fqn=text(name), offset=sizes_of(offsets), index=b"N")
            stored += index_ + instance(
                "_StorageInfo", relative_path=text(file if name == UP else "__0_0.distcp"), offset=integer(extents[0]),
                length=integer(extents[1]), transform_descriptors=b"N",
            )  # fmt: skip
        paths += text(name) + (path(name) if name == UP else b"(" + text(name) + b"t")
        body += item
    for number in range(objects):
        entries += text(f"object{number}") + instance("BytesStorageMetadata")
        index_ = instance("MetadataIndex", fqn=text(f"object{number}"), offset=b"N", index=b"N")
        stored += index_ + instance(
            "_StorageInfo",
            relative_path=text("objects.distcp"),
            offset=integer(0),
            length=integer(len(OBJECT())),
            transform_descriptors=b"N",
        )
    if objects:
        (place / "objects.distcp").write_bytes(OBJECT())
    (place / "__0_0.distcp").write_bytes(body)
    metadata = instance(
        "Metadata",
        state_dict_metadata=b"}" + entries + b"u",
        planner_data=b"}" + paths + b"u",
        storage_data=b"}" + stored + b"u",
    )
    (place / ".metadata").write_bytes(b"\x80\x02" + metadata + b".")
    config(folder)
    return {"source": place}


def OBJECT() -> bytes:
    return zipped({"archive/data.pkl": b"\x80\x02](" + b"]" * 2_000_000 + b"e.", "archive/byteorder": b"little"})


@case("a sound distributed checkpoint", "converted")
def _(folder: Path) -> dict[str, Any]:
    return dcp(folder)


for what, words in {
    "a file outside": {"file": "../model.pth"},
    "an absolute file": {"file": "/etc/hostname"},
    "a missing file": {"file": "__9_0.distcp"},
    "a file that is the metadata": {"file": ".metadata"},
    "an item past the end": {"extent": lambda start, length: (1 << 40, length)},
    "an item of nothing": {"extent": lambda start, length: (start, 0)},
    "an item that is another's": {"extent": lambda start, length: (0, length)},
    "a negative place": {"extent": lambda start, length: (-1, length)},
    "a chunk too few": {"chunk": lambda shape: [((0, 0), (12, 16))]},
    "no chunks": {"chunk": lambda shape: []},
    "a hole": {"chunk": lambda shape: [((0, 0), (8, 16)), ((16, 0), (8, 16))]},
    "an overlap": {"chunk": lambda shape: [((0, 0), (16, 16)), ((8, 0), (16, 16))]},
    "a chunk of negative size": {"chunk": lambda shape: [((0, 0), (-24, 16))]},
    "a chunk of 2**61": {"chunk": lambda shape: [((0, 0), (1 << 61, 16))]},
    "a chunk of other axes": {"chunk": lambda shape: [((0,), (384,))]},
    "10,000 chunks": {"chunk": lambda shape: [((n, 0), (1, 16)) for n in range(10_000)]},
    "a path inside of a tensor": {"path": lambda name: b"(" + text("model.norm.weight") + text("x") + b"t"},
    "the path of another": {"path": lambda name: b"(" + text("model.norm.weight") + b"t"},
    "a path of 10,000 words": {"path": lambda name: b"(" + text("x") * 10_000 + b"t"},
}.items():  # fmt: skip

    @case(f"a distributed checkpoint with {what}")
    def _(folder: Path, words: dict[str, Any] = words) -> dict[str, Any]:
        return dcp(folder, **words)


@case("a distributed checkpoint with 5,000 objects that are one", "either")
def _(folder: Path) -> dict[str, Any]:
    return dcp(folder, objects=5_000)


for what, words in {"nothing": b"", "a pickle that acts": b"\x80\x02" + name_of("os", "system") + ACT + b".", "a text": b"hello", "another pickle": b"\x80\x02}."}.items():  # fmt: skip

    @case(f"a distributed checkpoint whose metadata is {what}")
    def _(folder: Path, words: bytes = words) -> dict[str, Any]:
        told = dcp(folder)
        (folder / "dcp" / ".metadata").write_bytes(words)
        return told
