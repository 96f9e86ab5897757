"""A reader of pickles that calls nothing: a small machine of our own instead of Python's unpickler.

Takes bytes and where a pickle starts in them; returns the object it holds, made of plain data and of the stand-ins of
`compiler.checkpoints.formats.pickle_globals`, and where it ends. No name is imported and no callable of the file is ever invoked; the machine has
no way to. Memory and time stay in proportion to the file, up to the limits below.
Refuses damaged pickles, pickle protocols 0 and 1, and names through which a pickle runs programs.
Source of the opcodes: the standard library's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import repeat
from typing import Any, NoReturn

from compiler.checkpoints.formats.pickle_globals import Global, Inert, Unfit, Unreadable, View, hashable, named
from compiler.checkpoints.formats.pickle_plain import shown
from compiler.diagnostics import refuse

MAX_OPCODES = 12_000_000  # some 350,000 tensors
MAX_MEMO = 5_000_000
MAX_NAMES = 10_000  # of classes and functions
MAX_BYTES = 256 << 20
_STRETCH = 100_000  # opcodes between two looks at the memo
_LEAST_COPIED, _SET_SIZE = 1_000_000, 16  # elements: what may always be made of others; what a set counts for

_ERRORS = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, Unfit)
_SIZED = (str, bytes, bytearray, list, tuple, dict, set)
Persistent = Callable[[Any], Any]


def load(data: Any, file: str, persistent: Persistent | None = None, start: int = 0) -> tuple[Any, int]:
    """The object pickled at `start` of `data` (bytes or a memory map), and the offset behind it.

    `persistent` turns a persistent id, a tuple of plain data, into the thing that it names.
    """
    machine = _Machine(data, file, persistent or _no_persistent, start)
    try:
        return machine.run(), machine.position
    except _ERRORS as error:
        why = f" ({error})" if isinstance(error, Unfit) else ""
        message = f"a damaged pickle: it makes no sense at byte {machine.position}{why}"
        refuse(file, message, "damaged-file", "download or copy it again")


def _no_persistent(_: Any) -> Any:
    raise Unfit("a persistent id")


class _Machine:
    def __init__(self, data: Any, file: str, persistent: Persistent, start: int) -> None:
        self.data, self.file, self.persistent, self.position = data, file, persistent, start
        self.limit = min(len(data), start + MAX_BYTES)
        self.left = self.limit - start + _LEAST_COPIED  # elements that may still be made of others
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.names: dict[tuple[str, str], Global] = {}

    def run(self) -> Any:
        """Run to the STOP opcode. The dozen opcodes that make up nearly all of a state dict come first, inline."""
        data, memo, cold = self.data, self.memo, _COLD
        position = self.position
        stretch = min(_STRETCH, MAX_OPCODES)
        for _ in repeat(None, MAX_OPCODES // stretch):
            if len(memo) > MAX_MEMO:
                break
            for _ in repeat(None, stretch):
                stack = self.stack
                op = data[position]
                position += 1
                if op == 0x71:  # BINPUT
                    memo[data[position]] = stack[-1]
                    position += 1
                elif op == 0x68:  # BINGET
                    stack.append(memo[data[position]])
                    position += 1
                elif op == 0x72:  # LONG_BINPUT
                    memo[int.from_bytes(data[position : position + 4], "little")] = stack[-1]
                    position += 4
                elif op == 0x4B:  # BININT1
                    stack.append(data[position])
                    position += 1
                elif op == 0x28:  # MARK
                    self.marks.append(stack)
                    self.stack = []
                elif op == 0x74:  # TUPLE
                    self.stack = self.marks.pop()
                    self.stack.append(tuple(stack))
                elif op == 0x52:  # REDUCE
                    args = stack.pop()
                    function = stack[-1]
                    self.position = position
                    if type(function) is not Global or type(args) is not tuple:
                        raise Unfit("a call of something that is not a function")
                    if function.copies or len(args) > 16:
                        self.count_copies(args)
                    stack[-1] = function.build(*args) if function.build else Inert(function, args)
                elif op == 0x58:  # BINUNICODE
                    end = position + 4 + int.from_bytes(data[position : position + 4], "little")
                    self.position = position
                    stack.append(self.text(position + 4, end))
                    position = end
                elif op == 0x4D:  # BININT2
                    stack.append(data[position] | data[position + 1] << 8)
                    position += 2
                elif op == 0x86:  # TUPLE2
                    last = stack.pop()
                    stack[-1] = (stack[-1], last)
                elif op == 0x85:  # TUPLE1
                    stack[-1] = (stack[-1],)
                elif op == 0x51:  # BINPERSID
                    self.position = position
                    stack[-1] = self.persistent(stack[-1])
                elif op == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif op == 0x89:  # NEWFALSE
                    stack.append(False)
                elif op == 0x2E:  # STOP
                    self.position = position
                    if self.marks or len(stack) != 1:
                        raise Unfit("something is left over at its end")
                    return stack[0]
                else:
                    self.position = position
                    handler = cold.get(op)
                    if handler is None:
                        self.refuse_opcode(op)
                    handler(self)
                    position = self.position
        hint = "no state dict is that large; if this one is, split it"
        return refuse(self.file, f"a pickle of more than {MAX_OPCODES:,} steps", "unsupported-pickle", hint)

    def refuse_opcode(self, op: int) -> NoReturn:
        import pickletools

        known = next((o.name for o in pickletools.opcodes if o.code == chr(op)), None)
        if known is None:
            raise Unfit(f"{op:#04x} is not an opcode")
        message = f"a pickle with {known} at byte {self.position - 1}, which torch.save does not write"
        hint = "load it where it was made and save it again with torch.save and its default protocol"
        refuse(self.file, message, "unsupported-pickle", hint)

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self.limit:
            raise Unfit("a value runs past the end")
        taken = self.data[self.position : end]
        self.position = end
        return bytes(taken)

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self, start: int, end: int) -> str:
        if end > self.limit:
            raise Unfit("a text runs past the end")
        return self.data[start:end].decode("utf-8", "surrogatepass")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """What was pushed since the last mark; the stack is again the one below it."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        target = target.values if isinstance(target, Inert) else target
        if type(target) is not list:
            raise Unfit("an append to something that is not a list")
        target.extend(values)

    def add(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not set:
            raise Unfit("an addition to something that is not a set")
        target.update(hashable(v) for v in values)

    def new_set(self, values: list[Any]) -> None:
        self.count(_SET_SIZE)
        self.push({hashable(v) for v in values})

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Inert) else target
        if type(target) is not dict or len(items) % 2:
            raise Unfit("an item for something that is not a dictionary")
        for i in range(0, len(items), 2):
            key = items[i]
            if type(key) is not str:
                hashable(key)
            if key in target:
                raise Unfit(f"the key {shown(key)[:80]!r} twice in one dictionary")
            target[key] = items[i + 1]

    def new_object(self, args: Any) -> None:
        cls = self.stack.pop()
        if type(cls) is not Global or type(args) is not tuple:
            raise Unfit("an instance of something that is not a class")
        self.count_copies(args)
        self.push(cls.build(*args) if cls.build else Inert(cls, args))

    def set_state(self, state: Any) -> None:
        """Give an object its attributes. Those of plain containers (`_metadata` of a state dict) are left out."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, View | Unreadable):
            raise Unfit("a tensor that is changed after it was made")

    def global_line(self) -> str:
        end = self.data.find(b"\n", self.position, min(self.limit, self.position + 1000))
        if end < 0:
            raise Unfit("a name without an end")
        line = self.data[self.position : end].decode()
        self.position = end + 1
        return line

    def skip_frame(self) -> None:
        if self.number(8) > self.limit - self.position:
            raise Unfit("a frame runs past the end")

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise Unfit("a name that is not text")
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        if (module, name) not in self.names:
            if len(self.names) >= MAX_NAMES:
                raise Unfit(f"more than {MAX_NAMES:,} classes and functions")
            self.names[module, name] = named(module, name, self.file)
        self.push(self.names[module, name])

    def count_copies(self, args: tuple[Any, ...]) -> None:
        """Count the elements of `args`: a short pickle can name one long value many times, and copies must stay bounded."""
        self.count(len(args) + sum(len(a) for a in args if isinstance(a, _SIZED)))

    def count(self, elements: int) -> None:
        self.left -= elements
        if self.left < 0:
            raise Unfit("its values expand beyond the file's size")

    def tuple3(self) -> None:
        first, second, third = self.stack[-3:]
        self.stack[-3:] = [(first, second, third)]

    def old_text(self, count: int) -> None:
        """A `str` of Python 2: text or bytes; torch writes only text."""
        self.push(self.take(count).decode("utf-8", "surrogateescape"))

    def long_text(self, count: int) -> None:
        self.push(self.take(count).decode("utf-8", "surrogatepass"))

    def check_protocol(self) -> None:
        if self.number(1) > 5:
            raise Unfit("an unknown pickle protocol")


_COLD: dict[int, Callable[[_Machine], Any]] = {
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    0x8F: lambda m: m.new_set([]),  # EMPTY_SET
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),  # NEWTRUE
    0x87: _Machine.tuple3,
    ord("u"): lambda m: m.set_items(m.marked()),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("e"): lambda m: m.append(m.marked()),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    0x90: lambda m: m.add(m.marked()),  # ADDITEMS
    0x91: lambda m: m.new_set(m.marked()),  # FROZENSET
    ord("c"): lambda m: m.push_name(m.global_line(), m.global_line()),
    0x93: _Machine.stack_global,
    ord("b"): lambda m: m.set_state(m.stack.pop()),  # BUILD
    0x81: lambda m: m.new_object(m.stack.pop()),  # NEWOBJ
    0x92: lambda m: m.new_object((m.stack.pop(), m.stack.pop())[1]),  # NEWOBJ_EX, keywords left out
    0x94: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),  # MEMOIZE
    ord("j"): lambda m: m.push(m.memo[m.number(4)]),  # LONG_BINGET
    ord("J"): lambda m: m.push(int.from_bytes(m.take(4), "little", signed=True)),  # BININT
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number(1)), "little", signed=True)),  # LONG1
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),  # BINFLOAT
    0x8C: lambda m: m.long_text(m.number(1)),  # SHORT_BINUNICODE
    0x8D: lambda m: m.long_text(m.number(8)),  # BINUNICODE8
    ord("U"): lambda m: m.old_text(m.number(1)),  # SHORT_BINSTRING
    ord("T"): lambda m: m.old_text(m.number(4)),  # BINSTRING
    ord("C"): lambda m: m.push(m.take(m.number(1))),  # SHORT_BINBYTES
    ord("B"): lambda m: m.push(m.take(m.number(4))),  # BINBYTES
    0x8E: lambda m: m.push(m.take(m.number(8))),  # BINBYTES8
    0x96: lambda m: m.push(m.take(m.number(8))),  # BYTEARRAY8
    0x95: _Machine.skip_frame,
    0x80: _Machine.check_protocol,
    ord("0"): lambda m: m.stack.pop(),
    ord("1"): _Machine.marked,  # POP_MARK
    ord("2"): lambda m: m.push(m.stack[-1]),  # DUP
}
