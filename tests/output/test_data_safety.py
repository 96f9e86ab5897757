"""No byte of a user's is lost: what a run reads is never replaced, and `--force` removes only what mapspec wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.folders import files_of
from support.synthetic import synthetic

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.prepare import Request
from compiler.output.earlier_run import written_by_mapspec
from compiler.program.loading import load_program
from compiler.program.program import Program

TENSORS = synthetic(load_program("llama"), 0, "float16", finite=True).tensors
TOKENS = {
    "version": "1.0",
    "model": {"type": "BPE", "vocab": {"<s>": 0, "</s>": 1}, "merges": []},
    "added_tokens": [],
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a sound checkpoint."""
    torch.save(dict(TENSORS), tmp_path / "model.pth")
    return tmp_path


def run(*words: object) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("out", [".", "..", "missing/.."])
def test_the_current_folder_is_not_replaced(
    out: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell in it would be left in a folder without a name."""
    inside = place / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    before = inside.stat().st_ino, place.stat().st_ino
    assert run("run", "llama", place / "model.pth", out, "--force") == 1
    assert "it is the current folder, or one above" in capsys.readouterr().err
    assert (inside.stat().st_ino, place.stat().st_ino) == before
    assert run("run", "llama", place / "model.pth", "out") == 0


# ---------------------------------------------------------------------------------------------------------------------
# What --force removes

MINE = {
    "notes.txt": "mine",
    "sub/deep.txt": "mine too",
    "eval.json": "{}",
    "README.md": "my own words",
    "model_ema.safetensors": "weights of mine",
    "modelling_notes.safetensors": "no weights at all",
    "pytorch_model.bin": "old weights of mine",
    "pytorch_model_ema.bin": "mine",
    "model-00001-of-00009.safetensors": "no index names it",
}


def write_files(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_force_removes_what_an_earlier_run_wrote_and_nothing_else(place: Path) -> None:
    out = place / "out"
    assert run("run", "llama", place / "model.pth", out, "--max-shard-size", "40KB") == 0
    assert (out / "model.safetensors.index.json").is_file()
    (out / "README.md").unlink()
    write_files(out, MINE)
    assert run("run", "llama", place / "model.pth", out, "--force") == 0
    found = files_of(out)
    assert {n: found.pop(n).decode() for n in MINE} == MINE
    assert sorted(found) == ["config.json", "generation_config.json", "mapspec.json", "model.safetensors"]
    assert sorted(p.name for p in place.iterdir()) == ["model.pth", "out"]


def test_force_renames_files_of_the_user_that_are_in_the_way(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder was not written by mapspec, or changed since."""
    out = place / "out"
    theirs = {"config.json": "their config", "config.json~": "an older one", "model.safetensors": "their weights"}
    write_files(out, {**MINE, **theirs})
    assert run("run", "llama", place / "model.pth", out, "--force", "--max-shard-size", "40KB") == 0
    assert "kept your config.json as config.json~2" in capsys.readouterr().err
    found = {name: content.decode(errors="replace") for name, content in files_of(out).items()}
    assert {n: found[n] for n in MINE} == MINE
    assert [found["config.json~2"], found["config.json~"]] == ["their config", "an older one"]
    assert found["model.safetensors~"] == "their weights"  # it would be loaded instead of the new shards
    assert "model.safetensors" not in found
    text = found["config.json"].replace('"vocab_size": 128', '"vocab_size": 129')
    (out / "config.json").write_text(text)
    assert run("run", "llama", place / "model.pth", out, "--force") == 0
    assert (out / "config.json~3").read_text() == text
    assert not list(out.glob("model-*-of-000[1-8]*"))


def test_force_on_a_folder_with_an_index_of_its_own(place: Path) -> None:
    out = place / "out"
    names = {"a": "model-1.safetensors", "b": "../out.safetensors", "c": "notes.txt", "d": "missing.safetensors"}
    index = json.dumps({"weight_map": names})
    write_files(out, {"model.safetensors.index.json": index, "model-1.safetensors": "old", "notes.txt": "mine"})
    (place / "out.safetensors").write_text("mine")
    assert run("run", "llama", place / "model.pth", out, "--force") == 0
    assert {"model-1.safetensors", "model.safetensors.index.json"}.isdisjoint(files_of(out))
    assert (out / "notes.txt").read_text() == (place / "out.safetensors").read_text() == "mine"


def test_a_state_dict_that_is_not_mapspecs_is_renamed(place: Path) -> None:
    assert run("run", "llama", place / "model.pth", place / "out") == 0
    back = ("run", "--reverse", "llama", place / "out", place / "model.pth", "--force")
    original = (place / "model.pth").read_bytes()
    assert run(*back) == 0
    assert (place / "model.pth~").read_bytes() == original
    assert (place / "model.pth").read_bytes() != original
    assert torch.load(place / "model.pth", weights_only=True).keys() == TENSORS.keys()
    assert run(*back) == 0  # over what the first one wrote
    assert sorted(p.name for p in place.iterdir()) == ["model.pth", "model.pth~", "out"]


def test_a_folder_that_is_in_the_way_is_renamed(place: Path) -> None:
    write_files(place / "out", {"config.json/mine.txt": "mine"})
    assert run("run", "llama", place / "model.pth", place / "out", "--force") == 0
    assert (place / "out" / "config.json~" / "mine.txt").read_text() == "mine"


def test_temporary_folders_of_others_are_left_alone(place: Path) -> None:
    write_files(place, {".out.mapspec-partial/mine.txt": "mine", ".out.partial/mine.txt": "mine"})
    before = files_of(place)
    assert run("run", "llama", place / "model.pth", place / "out", "--force") == 1
    assert files_of(place) == before


# ---------------------------------------------------------------------------------------------------------------------
# What is read

REVERSE = ("--reverse", "llama")
# By what name a file of `out` is read, and what is written.
WAYS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "a link": lambda p: ("llama", p / "link.safetensors", p / "out"),
    "a hard link": lambda p: ("llama", p / "hard.safetensors", p / "out"),
    "a folder of links": lambda p: ("llama", p / "folder", p / "out"),
    "a link to the folder": lambda p: ("llama", p / "alias", p / "out"),
    "the output by a link": lambda p: ("llama", p / "out", p / "alias"),
    "dots": lambda p: ("llama", p / "out" / "model.safetensors", p / "folder" / ".." / "out"),
    "a tokenizer": lambda p: ("llama", p / "model.pth", p / "out", "--tokenizer", p / "tokens"),
    "a config": lambda p: ("llama", p / "model.pth", p / "out", "--config", p / "out" / "config.json"),
    "back onto the weights": lambda p: (*REVERSE, p / "out", p / "out" / "model.safetensors"),
    "back onto the config": lambda p: (*REVERSE, p / "out", p / "out" / "config.json"),
    "back onto a link": lambda p: (*REVERSE, p / "out", p / "link.safetensors"),
    "back onto a hard link": lambda p: (*REVERSE, p / "out", p / "hard.safetensors"),
    "an unfinished output": lambda p: (
        "llama",
        p / "model.pth",
        p / "y",
        "--tokenizer",
        p / ".y.mapspec-partial" / "new",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_is_never_replaced(place: Path, way: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "out"
    write_files(place, {"tokenizer.json": json.dumps(TOKENS), "folder/config.json": '{"num_attention_heads": 8}'})
    assert run("run", "llama", place / "model.pth", out) == 0
    (place / "link.safetensors").symlink_to(out / "model.safetensors")
    (place / "hard.safetensors").hardlink_to(out / "model.safetensors")
    (place / "folder" / "model.safetensors").symlink_to(out / "model.safetensors")
    (place / "alias").symlink_to(out)
    (place / "tokens").mkdir()
    (place / "tokens" / "tokenizer.json").hardlink_to(out / "tokenizer.json")
    write_files(place / ".y.mapspec-partial", {"lock": "", "new/tokenizer.json": json.dumps(TOKENS)})
    before = files_of(place)
    capsys.readouterr()
    assert run("run", *WAYS[way](place), "--force", "--dtype", "bfloat16") == 1
    assert "[output-exists]" in capsys.readouterr().err
    assert files_of(place) == before


# ---------------------------------------------------------------------------------------------------------------------
# Random layouts

PLACES = ("model.pth", "out", "out/config.json", "out/model.safetensors", "out/model_ema.safetensors", "out/notes.txt",
          "out/sub/deep.bin", "out/README.md", "a", "a/model.safetensors", "a/config.json", "b.safetensors", "c.pth",
          "out/tokenizer.json", "t", "t/tokenizer.json", "out/mapspec.json", ".out.mapspec-partial/new",
          "out/model.safetensors.index.json", "out/model-00001-of-00002.safetensors", "x/y")  # fmt: skip
names = st.sampled_from(PLACES)
steps = st.one_of(
    st.tuples(st.sampled_from(["text", "weights", "folder", "remove", "run", "shards", "copy"]), names, names),
    st.tuples(
        st.sampled_from(["link", "hard link"]), names, st.sampled_from([p for p in PLACES if p.startswith("out")])
    ),
)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[str, str, str]], str, str]:
    """Steps that make a layout, mostly over an earlier output; what is read, mostly something that they made; the output."""
    made = draw(st.lists(steps, max_size=8))
    first = draw(st.sampled_from([[("run", "out", "model.pth")], [("shards", "out", "model.pth")], []]))
    source = draw(st.sampled_from([name for action, name, _ in made if action != "remove"] + ["model.pth", "out"]))
    return [*first, *made], source, draw(st.sampled_from(["out", "out", "out", *PLACES]))


class Layout:
    """A folder of random files and links. `mine` are the contents that no run wrote."""

    def __init__(self, root: Path, cached: Path, program: Program) -> None:
        self.root, self.cached, self.program = root, cached, program
        self.count = 0
        shutil.copyfile(cached, root / "model.pth")

    def act(self, action: str, to: str, source: str) -> None:
        path, other = self.root / to, self.root / source
        with suppress(OSError, Refusal, shutil.Error):
            if action == "remove":
                path.unlink()
                return
            if action in ("run", "shards"):
                self.convert(other, path, action == "shards", True, False, None)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            if action == "folder":
                path.mkdir()
            elif action == "weights":
                shutil.copyfile(self.cached, path)
            elif action == "text":
                self.count += 1
                path.write_text(f"{{}} mine {self.count}")
            elif action == "link":
                path.symlink_to(other)
            elif action == "hard link":
                path.hardlink_to(other)
            elif action == "copy":
                shutil.copyfile(other, path)

    def convert(
        self, source: Path, out: Path, shards: bool, force: bool, reverse: bool, tokenizer: Path | None
    ) -> None:
        size = "40KB" if shards else "5GB"
        request = Request([source], force=force, reverse=reverse, tokenizer=tokenizer, max_shard_size=size)
        convert(self.program, request, out)

    def contents(self, earlier: frozenset[bytes] = frozenset()) -> set[bytes]:
        """The contents of all files, but for those that an earlier run wrote."""
        folders = [self.root, *(p for p in self.root.rglob("*") if p.is_dir() and not p.is_symlink())]
        written = {file for folder in folders for file in written_by_mapspec(folder)}
        written |= {file for file in self.root.rglob("*") if written_by_mapspec(file) and file.is_file()}
        files = [p for p in self.root.rglob("*") if p.is_file() and not p.is_symlink() and p not in written]
        return {p.read_bytes() for p in files} - earlier


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cached") / "model.pth"
    torch.save(dict(TENSORS), path)
    return path


@given(
    layouts(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.one_of(st.none(), names),
    st.sampled_from(["", "", "write", "finish"]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_run_loses_a_byte(
    cached: Path, layout: tuple[list[tuple[str, str, str]], str, str], shards: bool, force: bool, reverse: bool,
    tokenizer: str | None, failure: str,
) -> None:  # fmt: skip
    """Whatever the layout, whether the run succeeds, is refused or fails: every content that no run wrote is still there,
    and the file that was read has its name and content."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        made, source, out = layout
        files = Layout(Path(folder), cached, load_program("llama"))
        for step in made:
            files.act(*step)
        before = files.contents()
        read = files.root / source
        content = read.read_bytes() if read.is_file() else b""
        if failure:
            _fail(patch, failure)
        with suppress(Refusal):
            place = files.root / tokenizer if tokenizer else None
            files.convert(read, files.root / out, shards, force or not failure, reverse, place)
        after = {p.read_bytes() for p in files.root.rglob("*") if p.is_file()}
        assert before <= after
        assert not content or read.read_bytes() == content


def _fail(patch: pytest.MonkeyPatch, call: str) -> None:
    """Have the disk fail in the third call that writes, or where the output would get its name."""
    real, calls = (os.pwrite, Path.replace), [0]

    def pwrite(*args: object) -> int:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(5, "Input/output error")
        return real[0](*args)  # type: ignore[arg-type]

    def replace(self: Path, target: Path) -> Path:
        if self.parent.name == "new":
            raise OSError(5, "Input/output error", str(target))
        return real[1](self, target)

    patch.setattr(os, "pwrite", pwrite) if call == "write" else patch.setattr(Path, "replace", replace)
