"""GGUF files: what their own package writes is read back; what is damaged, rounded or lies about itself is refused."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.parity import ORACLES
from support.portion import portion

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.jobs.compile import build
from mapspec import convert

CASES = sorted((ORACLES / "gguf").iterdir())
TYPES = (np.float32, np.float16, np.float64, np.int8, np.int32)


def write(path: Path, tensors: dict[str, np.ndarray], alignment: int = 32, **values: object) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, value in values.items():
        writer.add_key_value(name.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(Refusal) as caught:
        open_checkpoint(path)
    return str(caught.value)


@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=5),
    kinds=st.lists(st.sampled_from(TYPES), min_size=5, max_size=5),
    alignment=st.sampled_from([8, 32, 64]),
    value=st.one_of(st.integers(0, 1000), st.text(max_size=9), st.booleans()),
)
@settings(max_examples=40, deadline=None)
def test_what_the_package_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], kinds: list[type], alignment: int, value: object
) -> None:
    path = tmp_path_factory.mktemp("gguf") / "x"
    tensors = {
        f"t{n}": np.arange(np.prod(shape)).reshape(shape).astype(kind)
        for n, (shape, kind) in enumerate(zip(shapes, kinds, strict=False))
    }
    checkpoint = open_checkpoint(write(path, tensors, alignment, llama__some__thing=value, other__key=7))
    assert list(checkpoint.tensors) == list(tensors)
    for name, tensor in tensors.items():
        found = checkpoint.tensors[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype.name)
        assert read_bytes(found) == tensor.tobytes()
    values = checkpoint.objects["config"]
    assert isinstance(values, dict)
    assert (values["some_thing"], values["other_key"], values["general_architecture"]) == (value, 7, "llama")


def test_bfloat16_lists_and_floats(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e5)
    writer.add_rope_dimension_sections([1, 2, 3, 4])
    writer.add_token_list([f"word {n}" for n in range(100)])
    writer.add_token_scores([0.5] * 100)
    stored = torch.randn(3, 4).bfloat16()
    data = stored.view(torch.uint8).numpy()
    writer.add_tensor("t", data, raw_shape=data.shape, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    tensor = checkpoint.tensors["t"]
    assert (tensor.dtype, tensor.shape) == ("bfloat16", (3, 4))
    assert read_bytes(tensor) == stored.view(torch.uint8).numpy().tobytes()
    values = checkpoint.objects["config"]
    assert isinstance(values, dict)
    assert values["attention_layer_norm_rms_epsilon"] == 1e-5  # which float32 is not
    assert values["rope_freq_base"] == 5e5
    assert values["rope_dimension_sections"] == [1, 2, 3, 4]
    assert not {"tokenizer_ggml_tokens", "tokenizer_ggml_scores"} & values.keys()  # too long for values of a model


def test_damage_is_refused_wherever_it_lies(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.gguf", {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}).read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(4, len(whole)):
        path.write_bytes(whole[:length])
        padding = length >= len(whole) - (-8 % 32)  # the last tensor has 8 bytes; the rest fills the file up
        if not padding:
            assert "[damaged-file]" in refusal(path), length


def fields_of(data: bytes) -> list[tuple[int, int, str]]:
    """(first byte, end, what) of each field of the header of a file with one key-value and two tensors."""
    found, at = [], 4

    def field(length: int, what: str) -> int:
        nonlocal at
        found.append((at, at + length, what))
        at += length
        return int.from_bytes(data[at - length : at], "little")

    field(4, "version")
    count, pairs = field(8, "count"), field(8, "count")
    for _ in range(pairs):
        field(field(8, "length"), "key")
        assert field(4, "kind") == 8
        field(field(8, "length"), "value")
    for n in range(count):
        field(field(8, "length"), f"name {n}")
        for _ in range(field(4, f"axes {n}")):
            field(8, f"size {n}")
        field(4, f"dtype {n}")
        field(8, f"offset {n}")
    return found


def test_a_flipped_bit_changes_what_its_field_says_and_nothing_else(tmp_path: Path) -> None:
    """Where the file is not refused, only the name, shape, type or place that was changed is another one, and what is
    read lies where the header says."""
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}
    path = write(tmp_path / "x.gguf", tensors)
    whole = path.read_bytes()
    before = list(open_checkpoint(path).tensors.values())
    begin = min(t.offset for t in before)
    read = 0
    for first, end, what in fields_of(whole):
        for at in range(first, end):
            for bit in range(8):
                path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
                try:
                    found = list(open_checkpoint(path).tensors.values())
                except Refusal:
                    continue
                read += 1
                kind, _, number = what.partition(" ")
                changed = [n for n, (old, new) in enumerate(zip(before, found, strict=True)) if old != new]
                assert changed in ([], [int(number)]) if number else changed == [], (what, at, bit)
                for n in changed:
                    parts = {
                        "name": found[n].name,
                        "size": found[n].shape,
                        "dtype": found[n].dtype,
                        "offset": found[n].offset,
                    }
                    old = {
                        "name": before[n].name,
                        "size": before[n].shape,
                        "dtype": before[n].dtype,
                        "offset": before[n].offset,
                    }
                    assert {k for k in parts if parts[k] != old[k]} == {kind} or kind == "axes"
                    assert begin <= found[n].offset <= found[n].extent[1] <= len(whole)
                    assert found[n].extent[1] - found[n].extent[0] == found[n].nbytes
    assert read > 50


def entry(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        struct.pack("<Q", len(name)) + name + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)
    )


HEAD = b"GGUF" + struct.pack("<I", 3)
LIES = {
    "a tensor twice": ((HEAD + struct.pack("<QQ", 2, 0) + 2 * entry(b"a", (2,), 0, 0)), "occurs twice"),
    "an overlap": (
        HEAD + struct.pack("<QQ", 2, 0) + entry(b"a", (16,), 0, 0) + entry(b"b", (2,), 0, 32),
        "'a' and 'b' overlap",
    ),
    "no alignment": (HEAD + struct.pack("<QQ", 1, 0) + entry(b"a", (2,), 0, 4), "reaches from byte"),
    "too far": (HEAD + struct.pack("<QQ", 1, 0) + entry(b"a", (2,), 0, 1 << 40), "reaches from byte"),
    "too large": (HEAD + struct.pack("<QQ", 1, 0) + entry(b"a", (1 << 40, 1 << 40), 0, 0), "has the sizes"),
    "five axes": (HEAD + struct.pack("<QQ", 1, 0) + entry(b"a", (1, 1, 1, 1, 1), 0, 0), "has 5 axes"),
    "a new type": (HEAD + struct.pack("<QQ", 1, 0) + entry(b"a", (32,), 99, 0), "type 99 ('a')"),
    "many tensors": (HEAD + struct.pack("<QQ", 1 << 60, 0), "claims 1,152,921,504,606,846,976 tensors"),
    "a long text": (HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 50), "a text of"),
    "no tensors": (HEAD + struct.pack("<QQ", 0, 0), "a GGUF file without tensors"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(tmp_path: Path, lie: str) -> None:
    data, message = LIES[lie]
    path = tmp_path / "x.gguf"
    path.write_bytes(data + bytes(400))
    assert message in refusal(path)


@pytest.mark.parametrize("case", portion(CASES, 2), ids=lambda path: path.name)
def test_the_converter_reads_the_same_file(tmp_path: Path, case: Path) -> None:
    source = case / "source" / "model.gguf"
    spec = "gguf_" + case.name.split("_tied")[0].split("_grouped")[0]
    convert(spec, source, tmp_path / "ours")
    for name, text in build(spec, prove=False).items():
        script = tmp_path / Path(name).name
        script.write_text(text)
        subprocess.run([sys.executable, script, source, tmp_path / "alone"], check=True)
    ours, alone = (load_file(tmp_path / which / "model.safetensors") for which in ("ours", "alone"))
    assert ours.keys() == alone.keys()
    assert all(torch.equal(ours[name], alone[name]) for name in ours)
    assert (tmp_path / "ours/config.json").read_text() == (tmp_path / "alone/config.json").read_text()


def test_scaled_frequencies_need_a_word(tmp_path: Path) -> None:
    """`rope_freqs.weight` says that there is a scaling; which, only the model's version does."""
    source = ORACLES / "gguf" / "llama_grouped" / "source" / "model.gguf"
    reader = gguf.GGUFReader(source)
    waves = 2 * np.pi * 500000.0 ** (np.arange(0, 8, 2) / 8)
    share = np.clip((8192 / waves - 1) / 3, 0, 1)
    divisors = {"rope_freqs.weight": (1 / ((1 - share) / 32 + share)).astype(np.float32)}
    tensors = {t.name: np.array(t.data) for t in reader.tensors} | divisors
    kept = ("context_length", "attention.head_count", "attention.layer_norm_rms_epsilon", "rope.freq_base")
    values = {f"llama.{key}": reader.fields[f"llama.{key}"].contents() for key in kept}
    scaled = write(tmp_path / "scaled.gguf", tensors, **{key.replace(".", "__"): v for key, v in values.items()})
    with pytest.raises(Refusal, match="give llama3_factor"):
        convert("gguf_llama", scaled, tmp_path / "out")
    with pytest.raises(Refusal, match=r"rope_freqs\.weight of the checkpoint is not what"):
        convert("gguf_llama", scaled, tmp_path / "out", arguments={"llama3_factor": 8.0})
    convert("gguf_llama", scaled, tmp_path / "out", arguments={"llama3_factor": 32.0})
    assert '"factor": 32.0' in (tmp_path / "out/config.json").read_text()


def header(*pairs: tuple[str, int, bytes], count: int = 0) -> bytes:
    """The bytes of a file with these values: key, type and content."""
    data = b"GGUF" + struct.pack("<IQQ", 3, count, len(pairs))
    for key, kind, content in pairs:
        data += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + content
    return data


NUMBER, LIST, TEXT, BYTE = 4, 9, 8, 0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("general.alignment", NUMBER, struct.pack("<I", 12))], "its alignment is 12"),
        ([("general.alignment", NUMBER, struct.pack("<I", 0))], "its alignment is 0"),
        ([("a", NUMBER, bytes(4)), ("a", NUMBER, bytes(4))], "the key 'a' occurs twice"),
        ([("a", LIST, struct.pack("<IQ", BYTE, 200_000))], "a list of 200,000 values"),
        ([("a", LIST, struct.pack("<IQ", NUMBER, 1500))], "it ends within its header"),
        ([("a", LIST, struct.pack("<IQ", TEXT, 20) + bytes(160))], "lists of more than 10 texts or lists"),
    ],
)
def test_a_header_that_cannot_be(
    pairs: list[tuple[str, int, bytes]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compiler.checkpoints.formats.gguf_header.MOST_ITEMS", 10)
    (tmp_path / "x.gguf").write_bytes(header(*pairs) + bytes(2000))
    text = refusal(tmp_path / "x.gguf")
    assert message in text
    assert "[damaged-file]" in text
