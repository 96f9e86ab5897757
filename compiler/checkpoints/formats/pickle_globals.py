"""Stand-ins for the names inside a pickle: nothing is imported and nothing is called.

`Global` is a name that a pickle mentions; a known one carries a `build` function of ours that makes plain data or a
`View` of stored bytes from the arguments. Every other class or function yields an `Inert` record of what it was given.
Refuses the names through which a pickle runs programs: no checkpoint has a use for them.
Source of the rebuild functions' arguments: torch/_utils.py, torch/_tensor.py.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from compiler.diagnostics import refuse
from compiler.dtypes import ITEM_SIZES

_MODULES_THAT_ACT = re.compile(
    "os|posix|nt|pty|sys|subprocess|commands|popen2|importlib|imp|runpy|socket|shutil|webbrowser|_?ctypes|multiprocessing|"
    "signal|code|codeop|_?pickle|cPickle|dill|cloudpickle|marshal|shelve|asyncio|http|urllib2?|ftplib|smtplib|telnetlib|"
    "requests|httpx|aiohttp|tempfile|pdb|bdb|timeit|c?[pP]rofile|trace|doctest|pydoc|idlelib|lib2to3|distutils|setuptools|"
    "pip|venv|ensurepip|_io"
)
_MODULES_THAT_ACT_ANYWHERE = re.compile("os|posix|nt|subprocess|sys|builtins|importlib")
_NAMES_THAT_ACT = re.compile(
    r"builtins\.(eval|exec|execfile|compile|getattr|setattr|delattr|__import__|open|input|breakpoint|globals|locals|vars|"
    r"apply|memoryview|help|exit|quit|file|reload|map|filter)|"
    r"io\.open|types\.(Function|Code|Method)Type|numpy\.load|numpy\.testing\..*runstring|"
    r"torch\.load|torch\.(serialization|hub|jit|utils\.cpp_extension)\.load"
)
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names, which protocol 2 keeps
_OLD_STORAGES = {
    "Bool": "bool",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    "QInt8": "qint8",
    "QUInt8": "quint8",
    "QInt32": "qint32",
    "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
    "Untyped": "uint8",  # bytes; the tensor has its own type
}
STORAGE_TYPES = {name + "Storage": dtype for name, dtype in _OLD_STORAGES.items()}
STORED_SIZES = ITEM_SIZES | {"complex128": 16, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1}
_OWNERS = frozenset(["torch.distributed._shard.sharded_tensor.api.ShardedTensor"])
_SCALARS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "b1": "?"}
_SCALARS |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B"}


@dataclass(slots=True, eq=False)
class Storage:
    """Bytes elsewhere in the file: `numel` elements of `dtype`, or the range `part` of them."""

    key: str
    dtype: str
    numel: int
    part: tuple[int, int] | None = None  # (first element, number of elements)


@dataclass(slots=True, eq=False)
class View:
    """A tensor: `shape` and `strides` over a storage, in elements of `dtype`, from element `offset` on. Unchecked."""

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    strides: Any


@dataclass(slots=True, eq=False)
class Unreadable:
    """A tensor of a kind that has no strided bytes; an error only if somebody wants it."""

    what: str


@dataclass(slots=True, eq=False)
class Sharded(Unreadable):
    """One rank's part of a tensor of torch.distributed, of this global shape; `state` is what its class pickles.
    `sharded_tensor` reads it. Unchecked."""

    shape: Any
    dtype: str
    state: Any


@dataclass(slots=True, eq=False, repr=False)
class Inert:
    """An instance of a class that was not loaded, or the result of a call that was not made."""

    cls: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.cls.path}>"  # its content may be deep or cyclic


@dataclass(slots=True, eq=False)
class Global:
    """A class or function that the pickle names. `build` makes its result from arguments, without calling it."""

    module: str
    name: str
    build: Callable[..., Any] | None = None
    copies: bool = False  # whether what it makes is as large as what it is given

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


class Unfit(Exception):
    """Arguments that no pickler writes; the reader turns it into a Refusal with the byte offset."""


def named(module: str, name: str, file: str) -> Global:
    """The stand-in for `module.name`. Refused where that name runs programs."""
    module = _OLD_MODULES.get(module, module)
    path = f"{module}.{name}"
    if path == "builtins.getattr":
        return Global(module, name, lambda *args: _attribute(file, *args))
    if not path.isprintable():
        raise Unfit("a malformed name")
    parts = path.split(".")
    acts = _MODULES_THAT_ACT.fullmatch(parts[0]) or _NAMES_THAT_ACT.fullmatch(path)
    # Protocol 4 walks dots inside a name, so `torch` + `os.system` reaches the same function.
    if acts or any(_MODULES_THAT_ACT_ANYWHERE.fullmatch(part) for part in parts[1:-1]):
        _refuse_hostile(file, path)
    build = _BUILDERS.get(path)
    if build is None and parts[0] == "torch" and parts[-1].startswith("_rebuild"):
        build = _unreadable(parts[-1].removeprefix("_rebuild_").replace("_", " "))
    elif build is None and parts[0] == "pathlib":
        build = _path
    return Global(module, name, build, copies=build is not None and build not in _IN_PLACE)


def _refuse_hostile(file: str, path: str) -> NoReturn:
    message = f"it would run {path} when loaded; this file is an attack or damaged"
    refuse(file, message, "hostile-pickle", "nothing was run; do not load this file with torch.load or pickle")


def _attribute(file: str, owner: Any = None, name: Any = None, *rest: Any) -> Global:
    """How a class inside of another one is named: ShardedTensor's ProcessGroupState. Any other use of getattr is refused."""
    if type(owner) is Global and owner.path in _OWNERS and name == "ProcessGroupState" and not rest:
        return Global(owner.module, f"{owner.name}.{name}")
    _refuse_hostile(file, "builtins.getattr")


def hashable(key: Any) -> Any:
    """The key itself, if it can be one; deep or long tuples and huge integers are refused: they can stall or crash."""
    kind = type(key)
    if kind is tuple:
        if len(key) > 64:
            raise Unfit("a long tuple as a key")
        for part in key:
            if type(part) is tuple:
                raise Unfit("a nested tuple as a key")
            hashable(part)
    elif kind in (list, dict, set, bytearray):
        raise Unfit(f"a {kind.__name__} as a key")
    elif kind is int and not -(1 << 63) <= key < 1 << 64:
        raise Unfit("a huge integer as a key")
    return key


def _sequence(values: Any) -> list[Any]:
    if not isinstance(values, list | tuple | set):
        raise Unfit(f"a {type(values).__name__} where a list belongs")
    return list(values)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    items = {}
    for pair in _sequence(pairs):
        key, value = _sequence(pair)
        items[hashable(key)] = value
    return items


def _set(values: Any = ()) -> set[Any]:
    return {hashable(v) for v in _sequence(values)}


def _encode(text: Any, codec: Any = "utf-8") -> bytes:
    """How protocol 2 writes bytes: as text, and the codec that turns it back."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise Unfit("text in an unexpected codec")
    return text.encode("latin-1" if str(codec).startswith("latin") else str(codec))


def _bytes(data: Any = b"", codec: Any = "latin-1") -> bytes:
    return bytes(data) if isinstance(data, bytes | bytearray) else _encode(data, codec)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A numpy scalar as a Python number, where its type is a plain one."""
    code = _SCALARS.get(dtype.args[0]) if isinstance(dtype, Inert) and dtype.args else None
    if code is None or not isinstance(data, bytes) or len(data) != struct.calcsize(code):
        return Inert(Global("numpy", "scalar"), (dtype, data))
    big = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
    return struct.unpack((">" if big else "<") + code, data)[0]


def _reconstructed(cls: Any, *_: Any) -> Inert:
    return Inert(_class(cls))


def _new(cls: Any, *args: Any) -> Inert:
    return Inert(_class(cls), args)


def _class(cls: Any) -> Global:
    if not isinstance(cls, Global):
        raise Unfit("an instance of something that is not a class")
    return cls


def _path(*parts: Any) -> str:
    return "/".join(_encode(p).decode() for p in parts).replace("//", "/")


def _device(kind: Any, index: Any = None) -> str:
    return str(kind) if index is None else f"{kind}:{index}"


def _storage_of(storage: Any) -> Storage:
    if not isinstance(storage, Storage):
        raise Unfit("a tensor without a storage")
    return storage


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View | Unreadable:
    """`rest`: requires_grad, backward_hooks, metadata; the metadata may have a pending conjugation."""
    view = View(_storage_of(storage), storage.dtype, offset, shape, strides)
    return _resolved(view, rest[2] if len(rest) > 2 else None)


def _view_as(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> View | Unreadable:
    """`rest`: requires_grad, backward_hooks, dtype, metadata. The storage counts bytes."""
    if len(rest) < 3 or not isinstance(rest[2], Global):
        raise Unfit("a tensor without an element type")
    view = View(_storage_of(storage), rest[2].name, offset, shape, strides)
    return _resolved(view, rest[3] if len(rest) > 3 else None)


def _resolved(view: View, metadata: Any) -> View | Unreadable:
    if isinstance(metadata, dict) and (metadata.get("conj") or metadata.get("neg")):
        return Unreadable("a lazily conjugated or negated tensor (save x.resolve_conj().resolve_neg())")
    if view.dtype not in ITEM_SIZES:
        return Unreadable(f"a tensor of the element type {view.dtype}")
    return view


def _same(tensor: Any, *_: Any) -> Any:
    if not isinstance(tensor, View | Unreadable):
        raise Unfit("a parameter without a tensor")
    return tensor


def _typed(function: Any, cls: Any, args: Any, *rest: Any) -> Any:
    """A tensor with attributes (left out), or of a subclass, whose bytes may mean anything. `rest`: its state."""
    wrapper = isinstance(function, Global) and function.name == "_rebuild_wrapper_subclass"
    if wrapper and _class(cls).module.startswith("torch.distributed.") and cls.name in ("DTensor", "ShardedTensor"):
        _, dtype, shape, *_ = _sequence(args)
        if not isinstance(dtype, Global) or not rest:
            raise Unfit("a sharded tensor without a type or a state")
        return Sharded(f"a tensor of the class {cls.path}", shape, dtype.name, rest[0])
    plain = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    if _class(cls).path not in plain or _class(function).build not in (_view, _view_as, _same):
        return Unreadable(f"a tensor of the class {_class(cls).path}")
    return function.build(*_sequence(args))


def _unreadable(what: str) -> Callable[..., Unreadable]:
    return lambda *_: Unreadable(f"a {what}" if what.endswith("tensor") else f"a {what} tensor")


_IN_PLACE = (_view, _view_as, _same, _reconstructed, _new, _scalar)
_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": _view_as,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _same,
    "torch._utils._rebuild_qtensor": _unreadable("quantized tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("meta tensor (it was saved without data)"),
    "torch._utils._rebuild_wrapper_subclass": _unreadable("wrapper-subclass tensor (DTensor, torchao or the like)"),
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch._tensor._rebuild_from_type": _typed,
    "torch.storage._load_from_bytes": _unreadable("doubly pickled tensor (written by pickle.dump, not torch.save)"),
    "torch.Size": lambda sizes=(): tuple(_sequence(sizes)),
    "torch.device": _device,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": lambda factory=None, pairs=(): _dict(pairs),
    "collections.deque": lambda values=(), length=None: _sequence(values),
    "builtins.dict": _dict,
    "builtins.list": lambda values=(): _sequence(values),
    "builtins.tuple": lambda values=(): tuple(_sequence(values)),
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructed,
    "copyreg.__newobj__": _new,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _reconstructed,
    "numpy._core.multiarray._reconstruct": _reconstructed,
}
