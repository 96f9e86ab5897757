"""`.nemo` archives: the weights are read in place, and every tar archive of another form is refused."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from compiler.checkpoints import packed_folder
from compiler.checkpoints.checkpoint import open_checkpoint, verify
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.checkpoints.formats.tar_directory import read_tar
from compiler.diagnostics import Refusal

WEIGHTS = {"model.a": torch.arange(12.0).reshape(3, 4), "model.b": torch.ones(5, dtype=torch.bfloat16)}
CONFIG = b"num_layers: 2\nrotary_base: 10000.0\ntokenizer: {model: 'nemo:x.model'}\n"


def pickled(tensors: Mapping[str, torch.Tensor] = WEIGHTS) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def archive(
    files: Mapping[str, bytes],
    form: int = tarfile.PAX_FORMAT,
    change: Callable[[tarfile.TarInfo], None] = lambda i: None,
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a fraction needs a pax header
            change(info)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def stored(place: Path, data: bytes) -> Path:
    (place / "m.nemo").write_bytes(data)
    return place / "m.nemo"


GOOD = {"./model_config.yaml": CONFIG, "./model_weights.ckpt": pickled(), "./x_tokenizer.model": b"abc"}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("prefix", ["./", "", f"{'long' * 30}/{'name' * 20}/"])
def test_the_weights_of_an_archive(form: int, prefix: str, tmp_path: Path) -> None:
    files = {prefix + name.removeprefix("./"): data for name, data in GOOD.items()}
    path = stored(tmp_path, archive(files, form))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.files == (path,)
    assert checkpoint.tensors.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        assert checkpoint.tensors[name].shape == tensor.shape
        assert bytes(read_bytes(checkpoint.tensors[name])) == tensor.contiguous().view(torch.uint8).numpy().tobytes()
    assert checkpoint.objects["model_config"] == {
        "num_layers": 2, "rotary_base": 10000.0, "tokenizer": {"model": "nemo:x.model"},
    }  # fmt: skip
    assert any("x_tokenizer.model" in note for note in checkpoint.notes)
    assert verify(checkpoint) > 0


def test_the_members_are_those_of_the_standard_library(tmp_path: Path) -> None:
    path = stored(tmp_path, archive(GOOD | {"sub/other": b"x" * 1025}))
    with tarfile.open(path) as tar:
        expected = {i.name.removeprefix("./"): (i.offset_data, i.size) for i in tar if i.isfile()}
    assert {name: (member.start, member.size) for name, member in read_tar(path).items()} == expected


def test_a_changed_weight_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = stored(tmp_path, archive(GOOD))
    data = bytearray(path.read_bytes())
    data[open_checkpoint(path).tensors["model.a"].parts[0].offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refusal, match=r"the bytes of model\.a do not match their checksum"):
        verify(open_checkpoint(path))


def link(info: tarfile.TarInfo) -> None:
    if info.name.endswith("ckpt"):
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def sparse(info: tarfile.TarInfo) -> None:
    info.pax_headers = {"GNU.sparse.major": "1"}


def huge(info: tarfile.TarInfo) -> None:
    info.pax_headers = {"size": "9" * 18}


PACKED = archive(GOOD)
END_OF_MEMBERS = PACKED.index(b"./x_tokenizer.model") + 1024


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (archive({"a.txt": b""}), "unknown-format", "a tar archive; it holds a.txt"),
        (archive({"model_weights.ckpt": b"\x80\x02}."}), "unknown-format", "is not a zip file of torch.save"),
        (archive({"mp_rank_00/model_weights.ckpt": b"", "mp_rank_01/model_weights.ckpt": b""}), "missing-part", "of 2 ranks"),
        (archive({"model_weights/.metadata": b""}), "missing-part", "a distributed checkpoint"),
        (archive(GOOD, change=link), "unsupported-tensor", "model_weights.ckpt in it is no plain file"),
        (archive(GOOD, change=sparse), "unsupported-tensor", "is no plain file"),
        (archive(GOOD, change=huge), "damaged-file", "reaches to byte"),
        (archive({"../model_weights.ckpt": pickled()}), "damaged-file", "no relative path"),
        (archive({"/model_weights.ckpt": pickled()}), "damaged-file", "no relative path"),
        (archive({"model_weights.ckpt": pickled(), "./model_weights.ckpt": b""}), "damaged-file", "twice"),
        (PACKED[:END_OF_MEMBERS], "damaged-file", "cut short"),
        (PACKED[: END_OF_MEMBERS - 600], "damaged-file", "cut short"),
        (archive(GOOD | {"./model_config.yaml": b"a: 1\na: 2\n"}), "duplicate-key", "duplicate key 'a'"),
        (archive(GOOD | {"./model_config.yaml": b"- 1\n"}), "bad-config", "must be a mapping"),
        (archive(GOOD | {"./model_config.yaml": b"\xff"}), "yaml-syntax", "not Unicode"),
    ],
)  # fmt: skip
def test_archives_that_are_refused(data: bytes, kind: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=says) as refused:
        open_checkpoint(stored(tmp_path, data))
    assert refused.value.diagnostics[0].kind == kind


def test_a_config_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_folder, "MOST_BYTES", len(CONFIG))
    assert open_checkpoint(stored(tmp_path, PACKED)).objects
    monkeypatch.setattr(packed_folder, "MOST_BYTES", len(CONFIG) - 1)
    with pytest.raises(Refusal, match="a config of more than"):
        open_checkpoint(tmp_path / "m.nemo")


def test_a_header_whose_checksum_is_wrong(tmp_path: Path) -> None:
    data = bytearray(PACKED)
    data[data.index(b"./model_weights.ckpt")] = ord("x")
    with pytest.raises(Refusal, match=r"the header at byte .* is malformed"):
        open_checkpoint(stored(tmp_path, bytes(data)))


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    good, numbers = PACKED, random.Random(3)
    path = tmp_path / "m.nemo"
    opened = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(numbers.randint(1, 4)):
            data[numbers.randrange(4096)] = numbers.randrange(256)
        path.write_bytes(data[: numbers.choice([len(data), numbers.randrange(len(data))])])
        try:
            checkpoint = open_checkpoint(path)
        except Refusal:
            continue
        opened += 1
        size = path.stat().st_size
        assert all(part.extent[1] <= size for tensor in checkpoint.tensors.values() for part in tensor.parts)
    assert opened < 200
