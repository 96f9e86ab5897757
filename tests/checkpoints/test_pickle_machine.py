"""The pickle reader on opcodes that no pickler writes: each is refused, and none costs more memory than its file."""

from __future__ import annotations

import pytest

from compiler.checkpoints.formats import pickle_machine
from compiler.checkpoints.formats.pickle_machine import load
from compiler.diagnostics import Refusal

LIST, DICT, SET, TUPLE, NONE, NUMBER, TEXT = b"]", b"}", b"\x8f", b")", b"N", b"K\x07", b"X\x01\x00\x00\x00a"
INSTANCE, CLASS = b"cmodule\nName\n)\x81", b"cmodule\nName\n"
TENSOR_LIKE = b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R"
KINDS = {"list": LIST, "dict": DICT, "set": SET, "tuple": TUPLE, "None": NONE, "number": NUMBER, "text": TEXT,
         "instance": INSTANCE, "class": CLASS, "tensor": TENSOR_LIKE}  # fmt: skip


def refusal(opcodes: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        load(b"\x80\x04" + opcodes + b".", "x")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("opcodes", "fit", "says"),
    [
        (b"(K\x01\x90", ["set"], "an addition to something that is not a set"),
        (b"(K\x01e", ["list", "instance"], "an append to something that is not a list"),
        (b"K\x01a", ["list", "instance"], "an append to something that is not a list"),
        (b"K\x01K\x02s", ["dict", "instance"], "an item for something that is not a dictionary"),
        (b"(K\x01K\x02u", ["dict", "instance"], "an item for something that is not a dictionary"),
        (b")\x81", ["class"], "an instance of something that is not a class"),
        (b")R", ["class"], "a call of something that is not a function"),
    ],
    ids=["ADDITEMS", "APPENDS", "APPEND", "SETITEM", "SETITEMS", "NEWOBJ", "REDUCE"],
)
def test_an_opcode_on_the_wrong_kind_of_value(kind: str, opcodes: bytes, fit: list[str], says: str) -> None:
    if kind in fit:
        load(b"\x80\x04" + KINDS[kind] + opcodes + b".", "x")
    else:
        text = refusal(KINDS[kind] + opcodes)
        assert says in text
        assert "[damaged-file]" in text


@pytest.mark.parametrize("name", ["list", "tuple", "set", "bytes", "dict"])
@pytest.mark.parametrize("call", [b"R", b"\x81"], ids=["REDUCE", "NEWOBJ"])
def test_copies_of_one_long_value_are_bounded(name: str, call: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with a long value costs its maker four bytes each time."""
    values = b"".join(b"K" + bytes([n % 200]) for n in range(1000))
    long = b"B\xe8\x03\x00\x00" + bytes(1000) if name == "bytes" else b"](" + values + b"e"
    if name == "dict":
        long = b"](" + b"".join(b"M" + n.to_bytes(2, "little") + b"N\x86" for n in range(1000)) + b"e"
    start = b"cbuiltins\n" + name.encode() + b"\nq\x01" + long + b"q\x02"
    once = b"h\x01h\x02\x85" + call + b"0"
    monkeypatch.setattr(pickle_machine, "_LEAST_COPIED", 100_000)
    if name != "set":
        load(b"\x80\x04" + start + b"0" + once * 50 + b".", "x")  # the class stays, the long value goes
    assert "its values expand beyond the file's size" in refusal(start + once * 200)


def test_sets_count_for_more_than_their_opcode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "_LEAST_COPIED", 1000)
    assert "its values expand beyond the file's size" in refusal(b"]" + b"\x8fa" * 200)


@pytest.mark.parametrize(
    ("opcodes", "says"),
    [
        (b"cbuiltins\nlist\nK\x07\x85R", "a int where a list belongs"),
        (b"ccopyreg\n_reconstructor\nK\x07cbuiltins\nobject\nN\x87R", "an instance of something that is not a class"),
        (b"ccopyreg\n__newobj__\nK\x07\x85R", "an instance of something that is not a class"),
        (b"ctorch._utils\n_rebuild_parameter\nK\x07\x85R", "a parameter without a tensor"),
    ],
)
def test_a_call_with_the_wrong_kind_of_value(opcodes: bytes, says: str) -> None:
    text = refusal(opcodes)
    assert says in text
    assert "[damaged-file]" in text


def test_an_instance_made_by_copyreg() -> None:
    made, _ = load(b"\x80\x04ccopyreg\n__newobj__\ncmodule\nName\nK\x07\x86R.", "x")
    assert (made.cls.path, made.args) == ("module.Name", (7,))
