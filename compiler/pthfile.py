"""Writes a `.pth` as torch.save does, one tensor at a time.

Format: a zip without compression that holds `data.pkl` (a pickled OrderedDict whose tensors refer to storages by key)
and one record per storage under `data/`, each aligned to 64 bytes (torch/serialization.py, `_save`). The order of
the records is free, so that the pickle comes last, when every tensor is known.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any

ALIGNMENT = 64
_LOCAL_HEADER = 30
_EPOCH = (1980, 1, 1, 0, 0, 0)


class PthWriter:
    """Context manager; `add` writes a tensor's storage at once, the names follow at the end."""

    def __init__(self, path: Path) -> None:
        self.root = path.name.strip(".").split(".")[0] or "archive"
        self.zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)
        self.entries: list[tuple[str, _Storage, tuple[int, ...]]] = []

    def add(self, name: str, tensor: Any) -> None:
        """`tensor` is a torch tensor of any device; its C-contiguous bytes are written."""
        from compiler.kernels import bytes_of

        key = str(len(self.entries))
        self.record(f"data/{key}", bytes_of(tensor))
        self.entries.append(
            (name, _Storage(key, str(tensor.dtype).removeprefix("torch."), tensor.numel()), tuple(tensor.shape))
        )

    def record(self, name: str, data: bytes | memoryview) -> None:
        info = zipfile.ZipInfo(f"{self.root}/{name}", _EPOCH)
        file = self.zip.fp
        assert file is not None
        start = file.tell() + _LOCAL_HEADER + len(info.filename.encode())
        padding = -(start + 4) % ALIGNMENT
        info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding  # an extra field that readers pass over
        self.zip.writestr(info, bytes(data))

    def __enter__(self) -> PthWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.record("data.pkl", self.pickled())
            self.record("byteorder", b"little")
            self.record("version", b"3\n")
        self.zip.close()

    def pickled(self) -> bytes:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, protocol=2)
        pickler.dump(OrderedDict((name, _Tensor(storage, shape)) for name, storage, shape in self.entries))
        return buffer.getvalue()


class _Storage:
    def __init__(self, key: str, dtype: str, numel: int) -> None:
        self.key, self.dtype, self.numel = key, dtype, numel


class _Tensor:
    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self.storage, self.shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        from compiler.tensors import dense_strides

        return _rebuild_tensor_v2, (self.storage, 0, self.shape, dense_strides(self.shape), False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> tuple[Any, ...] | None:
        if not isinstance(thing, _Storage):
            return None
        import torch

        kind = torch.storage._dtype_to_storage_type_map().get(getattr(torch, thing.dtype))
        storage = getattr(torch, kind) if kind else torch.storage.UntypedStorage
        return "storage", storage, thing.key, "cpu", thing.numel
