"""What the readers refuse, and that each message names the trouble and the way out; nothing in a file ever runs."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.formats.pickle_globals import Unreadable
from compiler.checkpoints.formats.pickle_machine import load
from compiler.diagnostics import Refusal

DATA = Path(__file__).parent.parent / "data" / "readers"


def refused(path: Path | list[Path], root: str | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        open_checkpoint(path, root)
    text = str(caught.value)
    assert "Traceback" not in text
    return text


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"))
    return buffer.getvalue()


def zipped(names: dict[str, bytes], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def good() -> dict[str, bytes]:
    """The records of a file of torch.save, to be changed and zipped again."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


ACCIDENTS = {
    "empty": (b"", "an empty file"),
    "page": (b"\n<!DOCTYPE html><html>404", "a web page: the download was an error page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "gguf": (b"GGUF\3\0\0\0", "a damaged GGUF file: it ends within its header"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "npy": (b"\x93NUMPY\1\0", "a numpy array"),
    "gzip": (gzip.compress(b"x"), "gzip-compressed"),
    "tar": (tar(), "a tar archive"),
    "tensorflow": (b"\0\1" * 40 + bytes.fromhex("57fb808b247547db"), "a TensorFlow checkpoint"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x05", "an ONNX model"),
    "json": (b'{"a": 1}', "a JSON file"),
    "json list": (b"[1, 2]", "a JSON file"),
    "text": (b"Repository not found", "begins 'Repository not found'"),
    "zeros": (bytes(100), "begin with zeros"),
    "noise": (b"\xde\xad\xbe\xef" * 9, "begins with de ad be ef"),
    "pickle": (pickle.dumps({"a": 1}), "a plain pickle"),
    "joblib": (pickle.dumps({"joblib": 1}), "joblib"),
    "npz": (zipped({"a.npy": b""}), "a: it does not begin like an array of numpy"),
    "other zip": (zipped({"model/weights.pth": b""}), "not one of torch.save; it holds model/weights.pth"),
    "empty zip": (zipped({}), "an empty zip file"),
    "deflated": (zipped(good(), compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "exported": (zipped({"m/archive_format": b"pt2"}), "a package of torch.export"),
    "cut zip": (zipped(good())[:-30], "it was cut short"),
    "zip and more": (zipped(good()) + b"x", "there are stray bytes after its end"),
    "shifted zip": (b"PK\3\4" + zipped(good()), "its table of contents is not at its stated offset"),
}


@pytest.mark.parametrize("case", ACCIDENTS)
def test_the_usual_accidents_are_called_by_name(case: str, tmp_path: Path) -> None:
    data, message = ACCIDENTS[case]
    (tmp_path / "model.pth").write_bytes(data)
    text = refused(tmp_path / "model.pth")
    assert message in text
    assert "hint: " in text


def test_a_pickle_called_safetensors(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    assert "called .safetensors, but it is a zip file" in refused(tmp_path / "model.safetensors")
    (tmp_path / "short.safetensors").write_bytes(struct.pack("<Q", 4))
    assert "a damaged safetensors file" in refused(tmp_path / "short.safetensors")


def test_files_of_other_programs() -> None:
    assert "it would run posix.system when loaded" in refused(DATA / "pickle_os_system.pth")
    assert "a TorchScript archive" in refused(DATA / "torchscript_archive.pth")


@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("posix system", ("touch pwned",)),
        ("nt system", ("x",)),
        ("__builtin__ eval", ("1",)),
        ("builtins getattr", (1, "x")),
        ("builtins __import__", ("os",)),
        ("subprocess Popen", ("x",)),
        ("importlib import_module", ("os",)),
        ("runpy run_path", ("x",)),
        ("torch.serialization os.system", ("x",)),
        ("torch.hub load", ("x",)),
        ("pickle loads", (b"",)),
        ("webbrowser open", ("x",)),
        ("numpy.testing._private.utils runstring", ("x", {})),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_names_that_act_are_refused(function: str, args: tuple[Any, ...], old: bool, tmp_path: Path) -> None:
    call = b"c" + function.replace(" ", "\n").encode() + b"\n" + pickle.dumps(args, 2)[2:-1] + b"R0"
    if old:
        torch.save({"w": torch.ones(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
        data = (tmp_path / "x.pth").read_bytes()
        at = data.index(b"}q\x00X\x01\x00\x00\x00w")
        (tmp_path / "x.pth").write_bytes(data[:at] + call + data[at:])
    else:
        records = good()
        records["archive/data.pkl"] = b"\x80\x02" + call + records["archive/data.pkl"][2:]
        (tmp_path / "x.pth").write_bytes(zipped(records))
    text = refused(tmp_path / "x.pth")
    assert "when loaded; this file is an attack or damaged [hostile-pickle]" in text


def test_an_unknown_call_becomes_a_record(tmp_path: Path) -> None:
    """The callable need not exist: it is never looked up."""
    records = good()
    call = b"X\x01\x00\x00\x00xcno.such.module\nThing\n(K\x07tR"
    assert records["archive/data.pkl"].endswith(b"s.")
    at = records["archive/data.pkl"].index(b"}q\x00") + 3
    head, rest = records["archive/data.pkl"][:at], records["archive/data.pkl"][at:]
    records["archive/data.pkl"] = head + call + b"s" + rest
    (tmp_path / "x.pth").write_bytes(zipped(records))
    checkpoint = open_checkpoint(tmp_path / "x.pth")
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.objects == {"x": {"__class__": "no.such.module.Thing", "__args__": [7]}}
    assert checkpoint.notes == ("skipped entries that are not tensors: x (no.such.module.Thing)",)


BOMBS = {
    "long text": b"\x80\x02X\xff\xff\xff\x7f.",
    "very long text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.",
    "huge integer": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 100,
    "memo far away": b"\x80\x02Nr\xff\xff\xff\x7fj\xfe\xff\xff\x7f.",
    "frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "underflow": b"\x80\x02R.",
    "no end": b"\x80\x02}",
    "open mark": b"\x80\x02(N.",
    "two results": b"\x80\x02NN.",
    "deep key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "list as a key": b"\x80\x02}]Ns.",
    "huge key": b"\x80\x02}\x8a\x0a" + b"\x01" * 10 + b"Ns.",
    "set of itself": b"\x80\x04\x8f\x94(h\x00\x90.",
    "key twice": b"\x80\x02}(X\x01\x00\x00\x00aNX\x01\x00\x00\x00aNu.",
    "protocol 0": b"(dp0\nS'a'\nI1\ns.",
    "protocol 9": b"\x80\x09N.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02NQ.",
    "call of a number": b"\x80\x02K\x01)R.",
    "wrong arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "bytes of a number": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "escape codes": b"\x80\x02cos\x1b[2J\nsystem\n.",
    "long key": b"\x80\x02}(" + b"N" * 65 + b"tNs.",
    "path doubled": b"\x80\x02X\x01\x00\x00\x00x" + b"q\x000cpathlib\nPath\nh\x00h\x00\x86R" * 30 + b".",
    "list copied": b"\x80\x02](" + b"N" * 9999 + b"eq\x000](" + b"cbuiltins\nlist\nh\x00\x85R" * 300 + b"e.",
    "sets": b"\x80\x04](" + b"\x8f" * 80_000 + b"e.",
    "names": b"\x80\x02](" + b"".join(b"cm\nn%d\n" % n for n in range(10_001)) + b"e.",
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_hostile_or_broken_pickle_ends_in_one_message(case: str) -> None:
    with pytest.raises(Refusal, match="pickle") as caught:
        load(BOMBS[case], "x.pth")
    assert str(caught.value).replace("\n", "").isprintable()


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    deep, position = load(b"\x80\x02)" + b"\x85" * 500_000 + b".", "x.pth")
    assert position == 500_004
    assert isinstance(deep, tuple)
    records = good()
    at = records["archive/data.pkl"].index(b"}q\x00") + 3
    head, rest = records["archive/data.pkl"][:at], records["archive/data.pkl"][at:]
    records["archive/data.pkl"] = head + b"X\x01\x00\x00\x00x)" + b"\x85" * 500_000 + b"s" + rest
    (tmp_path / "x.pth").write_bytes(zipped(records))
    assert list(open_checkpoint(tmp_path / "x.pth").tensors) == ["w"]


def test_a_rebuild_function_given_to_itself_is_not_followed() -> None:
    call = b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00ctorch\nTensor\n)NtR."
    assert isinstance(load(call, "x.pth")[0], Unreadable)


def test_too_large_a_memo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.checkpoints.formats.pickle_machine.MAX_MEMO", 1000)
    monkeypatch.setattr("compiler.checkpoints.formats.pickle_machine._STRETCH", 100)
    puts = b"".join(b"r" + struct.pack("<I", n) for n in range(2000))
    with pytest.raises(Refusal, match="unsupported-pickle"):
        load(b"\x80\x02N" + puts + b".", "x.pth")


def test_too_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.checkpoints.formats.pickle_machine.MAX_OPCODES", 1000)
    with pytest.raises(Refusal, match="more than 1,000 steps"):
        load(b"\x80\x02" + b"}0" * 1000 + b"N.", "x.pth")


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "big-endian": (lambda r: r.update({"archive/byteorder": b"big"}), "big-endian machine"),
    "short record": (lambda r: r.update({"archive/data/0": bytes(12)}), "has 12 bytes, but 4 elements of 4"),
    "long record": (lambda r: r.update({"archive/data/0": bytes(20)}), "has 20 bytes, but 4 elements of 4"),
    "no record": (lambda r: r.pop("archive/data/0"), "the record of storage '0' is missing"),
    "two pickles": (lambda r: r.update({"other/data.pkl": b""}), "not one of torch.save"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_zip_that_contradicts_its_pickle(case: str, tmp_path: Path) -> None:
    change, message = CHANGES[case]
    records = good()
    change(records)
    (tmp_path / "x.pth").write_bytes(zipped(records))
    assert message in refused(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x00K\x04\x85q\x08", b"K\x01K\x04\x85q\x08", "it reaches byte 20 of a storage of 16"),
        (b"K\x00K\x04\x85q\x08", b"K\x00K\x05\x85q\x08", "it reaches byte 20 of a storage of 16"),
        (b"K\x01\x85q\x09", b"K\x02\x85q\x09", "it reaches byte 28 of a storage of 16"),
        (b"K\x01\x85q\x09", b"J\xff\xff\xff\xff\x85q\x09", "not sizes"),
        (b"K\x00K\x04\x85q\x08", b"J\xff\xff\xff\xffK\x04\x85q\x08", "not sizes"),
        (b"K\x04\x85q\x08", b"K\x02K\x02\x86q\x08", "do not fit each other"),
        (b"K\x04\x85q\x08", b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85q\x08", "not sizes"),
    ],
)
def test_a_view_that_leaves_its_storage(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    records = good()
    assert records["archive/data.pkl"].count(old) == 1
    records["archive/data.pkl"] = records["archive/data.pkl"].replace(old, new)
    (tmp_path / "x.pth").write_bytes(zipped(records))
    assert message in refused(tmp_path / "x.pth")


def test_names_twice_and_records_over_each_other(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in good().items():
            archive.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data/0", bytes(16))
    (tmp_path / "x.pth").write_bytes(buffer.getvalue())
    assert "it holds 'archive/data/0' twice" in refused(tmp_path / "x.pth")
    data = bytearray(zipped(good()))
    table = data.index(b"PK\1\2")
    second = data.index(b"PK\1\2", table + 4)
    data[second + 42 : second + 46] = data[table + 42 : table + 46]  # both records at one header
    (tmp_path / "x.pth").write_bytes(data)
    assert "runs into the record after it" in refused(tmp_path / "x.pth")
    data = bytearray(zipped(good()))
    data[table + 8] |= 1
    (tmp_path / "x.pth").write_bytes(data)
    assert "is encrypted" in refused(tmp_path / "x.pth")
    data = bytearray(zipped(good()))
    data[data.index(b"X\x01\x00\x00\x00w") + 5] ^= 1
    (tmp_path / "x.pth").write_bytes(data)
    assert "the checksum of 'archive/data.pkl' does not match its bytes" in refused(tmp_path / "x.pth")


def sparse() -> torch.Tensor:
    return torch.eye(2).to_sparse()


UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: {"w": sparse()}, "'w' is a sparse tensor"),
    "csr": (lambda: {"w": torch.eye(2).to_sparse_csr()}, "'w' is a sparse"),
    "meta": (lambda: {"w": torch.empty(2, device="meta")}, "'w' is a meta tensor"),
    "complex128": (lambda: {"w": torch.zeros(2, dtype=torch.complex128)}, "of the element type complex128"),
    "conjugated": (lambda: {"w": torch.zeros(2, dtype=torch.complex64).conj()}, "lazily conjugated"),
    "numpy": (lambda: {"w": np.zeros(2), "v": torch.ones(1)}, "'w' is a numpy array, not a tensor"),
    "list of tensors": (
        lambda: {"w": [torch.ones(1)], "v": torch.ones(1)},
        "'w' is not a tensor but a list that holds tensors",
    ),
    "list": (lambda: [torch.ones(1)], "a list with tensors without names"),
    "one tensor": (lambda: torch.ones(1), "one tensor without a name"),
    "nothing": (lambda: {}, "no named tensors in it"),
    "numbers": (lambda: {"a": 1}, "no named tensors in it"),
    "text": (lambda: "hello", "a str with no tensor"),
    "optimizer": (
        lambda: {"optimizer": {"s": torch.ones(1)}},
        "no named tensors in it outside the training state",
    ),
    "module": (lambda: torch.nn.Linear(2, 2), "a whole pickled model (torch.nn.modules.linear.Linear)"),
    "nested module": (lambda: {"model": torch.nn.Linear(2, 2)}, "a whole pickled model"),
    "two": (
        lambda: {"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}},
        "more than one dictionary of tensors: 'a', 'b'",
    ),
    "two known": (lambda: {"model": {"w": torch.ones(1)}, "net": {"w": torch.ones(1)}}, "tensors: 'model', 'net'"),
    "mixed levels": (lambda: {"w": torch.ones(2), "model": {"w": torch.ones(1)}}, "its own tensors and 'model'"),
    "mixed prefix": (lambda: {"module.a": torch.ones(1), "b": torch.ones(1)}, "prefix (module.a), others not (b)"),
    "two prefixes": (
        lambda: {"module.a": torch.ones(1), "_orig_mod.b": torch.ones(1)},
        "begin with a wrapper's prefix",
    ),
    "collision": (lambda: {"a.module.w": torch.ones(1), "a.w": torch.zeros(1)}, "both become 'a.w'"),
    "odd name": (lambda: {"a\x1b[2J": torch.ones(1)}, r"unprintable names: 'a\x1b[2J'"),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.parametrize("case", UNSUPPORTED)
def test_contents_that_are_no_state_dict(case: str, how: str, tmp_path: Path) -> None:
    make, message = UNSUPPORTED[case]
    torch.save(make(), tmp_path / "x.pth", _use_new_zipfile_serialization=how == "zip")
    assert message in refused(tmp_path / "x.pth")


def test_a_quantized_tensor(tmp_path: Path) -> None:
    # torch.quantize_per_tensor is gone in new versions of torch; the pickle of one is plain.
    records = good()
    pickled = (
        records["archive/data.pkl"].replace(b"_rebuild_tensor_v2", b"_rebuild_qtensor").replace(b"Float", b"QInt8")
    )
    records["archive/data.pkl"] = pickled
    (tmp_path / "x.pth").write_bytes(zipped(records))
    assert "'w' is a quantized tensor" in refused(tmp_path / "x.pth")


def test_an_unreadable_tensor_beside_the_weights_is_nobodys_trouble(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "optimizer": {"s": sparse()}}, tmp_path / "x.pth")
    assert list(open_checkpoint(tmp_path / "x.pth").tensors) == ["w"]


def test_an_expanded_tensor_that_no_memory_holds(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 45)}, tmp_path / "x.pth")
    assert "it expands 4 stored bytes to 140,737,488,355,328" in refused(tmp_path / "x.pth")


def test_a_storage_with_two_sizes(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    buffer = io.BytesIO()
    torch.save({"w": shared, "v": shared[:2]}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = {n: archive.read(n) for n in archive.namelist()}
    head, claim, rest = records["archive/data.pkl"].rpartition(b"K\x04tq")
    records["archive/data.pkl"] = head + b"K\x03tq" + rest
    assert claim
    (tmp_path / "x.pth").write_bytes(zipped(records))
    assert "is claimed with two types or sizes" in refused(tmp_path / "x.pth")


def test_headers_that_contradict_the_table(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    name = data.index(b"x/data/0")
    for at, new, message in (
        (name - 2, b"\xff\xff", "'x/data/0' runs into the record after it"),
        (name + 7, b"1", "the header of 'x/data/0' contradicts the table"),
        (name - 30, b"PK\1\2", "the header of 'x/data/0' contradicts the table"),
        (data.index(b"PK\6\6"), b"PK\6\5", "its zip64 end contradicts its end"),
        (data.index(b"PK\6\7") + 8, b"\xff\xff\xff\xff", "its zip64 end is missing"),
    ):
        (tmp_path / "x.pth").write_bytes(data[:at] + new + data[at + len(new) :])
        assert message in refused(tmp_path / "x.pth")


def test_old_files_that_are_cut_or_lie(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    for changed, message in (
        (data[:-1], "the file is cut short there"),
        (data + b"x", "1 stray bytes follow its last storage"),
        (data[:-24] + struct.pack("<Q", 5) + data[-16:], "has 5 elements of 4"),
        (data.replace(b"M\xe9\x03.", b"M\xea\x03."), "an unknown version"),
        (data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-endian machine"),
        (data[:100], "a damaged pickle"),
        (data.replace(b"K\x04Ntq", b"K\x04(X\1\0\0\0vK\x03K\x02ttq"), "its storage view exceeds the storage"),
    ):
        assert changed != data
        path.write_bytes(changed)
        assert message in refused(path)


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, end: int, shape: Any = (2,), dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS = {
    "length": (struct.pack("<Q", 1 << 40) + b"{", "its header claims 1,099,511,627,776 bytes"),
    "no object": (header(b"[1]"), "not a JSON object"),
    "no number": (header(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"x":NaN}}', b"x"), "NaN is not a number"),
    "many values": (header(b'{"a":[' + b"0," * 4_000_000 + b"0]}"), "more than 4,000,000 values"),
    "broken": (header(b"{,}"), "not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
    "endless": (header(b'{"a":{"x":1e999}}'), "1e999 is not a number"),
    "deep": (header(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "not UTF-8": (header(b'{"\xff":1}'), "not valid JSON"),
    "key twice": (
        header(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":1}', b"x"),
        "the key 'a' occurs twice",
    ),
    "inner key twice": (header(b'{"a":{"dtype":"U8","dtype":"U8"}}'), "the key 'dtype' occurs twice"),
    "metadata": (header({"__metadata__": {"a": 1}}), "not a table of strings"),
    "no tensor": (header({}), "without tensors"),
    "no entry": (header({"a": 1}), "the entry of 'a' needs"),
    "negative": (header({"a": entry(-2, 0)}), "the entry of 'a' needs"),
    "truth": (header({"a": entry(0, 1, [True])}, b"x"), "the entry of 'a' needs"),
    "type": (header({"a": entry(0, 2, dtype="F4")}, b"xx"), "has the element type 'F4'"),
    "size": (header({"a": entry(0, 3)}, b"xxx"), "needs 2 bytes for its shape, its data_offsets give 3"),
    "overflow": (header({"a": entry(0, 2, [1 << 62, 1 << 62])}, b"xx"), "needs 21,267"),
    "many dims": (header({"a": entry(0, 2, [1] * 99 + [2])}, b"xx"), "the entry of 'a' needs"),
    "cut": (header({"a": entry(0, 2)}, b"x"), "ends 1 bytes after the file; it was cut short"),
    "rest": (header({"a": entry(0, 2)}, b"xxx"), "its tensors end at byte"),
    "hole": (header({"a": entry(0, 2), "b": entry(3, 5)}, b"xxxxx"), "'b' leaves a hole before it"),
    "overlap": (header({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"), "'b' overlaps"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_a_safetensors_file_that_lies(case: str, tmp_path: Path) -> None:
    data, message = SAFETENSORS[case]
    (tmp_path / "x.safetensors").write_bytes(data)
    assert message in refused(tmp_path / "x.safetensors")


def test_all_that_is_wrong_with_an_index_at_once(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "b": torch.ones(1), "x": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "2.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}}))
    text = refused(path)
    assert "2.safetensors does not hold c" in text
    assert "2.safetensors and another shard both hold b" in text
    assert "it lacks tensors that 1.safetensors holds: x" in text
    names = ["../x", "/etc/hostname", "a/b", "..", "a\\b", "", "missing.safetensors"]
    path.write_text(json.dumps({"weight_map": {str(i): name for i, name in enumerate(names)}}))
    text = refused(path)
    assert text.count("it was not opened") == 6
    assert "its shard 'missing.safetensors' is missing" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "twice"),
        ('{"weight_map": ["a"]}', "its weight_map is a list"),
        ('{"weight_map": {"a": 1}}', "names no file for a"),
        ('{"weight_map": {}}', "its weight_map is empty"),
        ("{}", "its weight_map is missing"),
    ],
)
def test_a_malformed_index(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert message in refused(tmp_path)


def test_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    (folder / "1.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    assert "is a link that leaves the folder" in refused(folder)


def test_paths(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path / "none.pth")
    assert "in this folder" in refused(tmp_path)
    assert "no checkpoint was given" in refused([])
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    text = refused(tmp_path)
    assert "consolidated.00.pth, consolidated.01.pth" in text
    assert "tensor-parallel" in text
    assert "both hold a" in refused(sorted(tmp_path.iterdir()))
    torch.save({"model": {"a": torch.ones(1)}, "x": 1}, tmp_path / "x.pth")
    assert "did you mean 'model'?" in refused(tmp_path / "x.pth", "modle")
    assert "is not a dictionary of tensors" in refused(tmp_path / "x.pth", "x")


@pytest.mark.parametrize(
    ("name", "content", "message", "kind"),
    [
        ("x.tflite", b"\x1c\0\0\0TFL3" + bytes(40), "not a checkpoint but a TensorFlow Lite model", "unknown-format"),
        ("x.safetensors", b"\xff" * 40, "not a checkpoint: called .safetensors, but its header is malformed", "damaged-file"),
        ("x.bin", b"\xff" * 40, "not a checkpoint: of an unknown format; it begins with ff ff ff ff ff ff ff ff", "unknown-format"),
    ],
)  # fmt: skip
def test_a_file_of_another_format(name: str, content: bytes, message: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}: {message}" in (text := refused(tmp_path / name))
    assert f"[{kind}]" in text


@pytest.mark.parametrize(
    ("module", "limit", "message"),
    [
        ("compiler.checkpoints.formats.torch_save", "MAX_BYTES", "its data.pkl has "),
        ("compiler.checkpoints.formats.zip_directory", "_MOST_TABLE", "its table of contents has "),
    ],
)
def test_more_than_any_checkpoint_has(
    module: str, limit: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pth")
    open_checkpoint(tmp_path / "x.pth")
    monkeypatch.setattr(f"{module}.{limit}", 10)
    assert message in refused(tmp_path / "x.pth")


def test_an_index_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert list(open_checkpoint(tmp_path).tensors) == ["w"]
    monkeypatch.setattr("compiler.checkpoints.folder._MOST_INDEX_BYTES", 10)
    assert "an index of more than 200 MB [bad-index]" in refused(tmp_path)
