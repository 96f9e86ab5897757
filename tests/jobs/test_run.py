"""`compile run` as a user meets it, mostly when something is wrong: one clear message with the way out, the right exit
status, and nothing left behind.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.folders import files_of
from support.parity import ORACLES
from support.synthetic import folder_image, image, synthetic
from torch import Tensor

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.cli.main import main
from compiler.executor import execute
from compiler.program.loading import load_program

ROOT = Path(__file__).parent.parent.parent
TENSORS = synthetic(load_program("llama"), 0, "float16", finite=True).tensors
CONFIG = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 2}


@dataclass(frozen=True)
class Ending:
    status: int
    out: str
    err: str

    @property
    def kinds(self) -> list[str]:
        """The kinds of the problems printed."""
        return re.findall(r"^\S.* \[([a-z-]+)\]$", self.err, re.MULTILINE)


Run = Callable[..., Ending]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`compile WORDS` in this process."""

    def call(*words: object) -> Ending:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        said = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Ending(caught.value.code, said.out, said.err)

    return call


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a sound checkpoint."""
    torch.save(dict(TENSORS), tmp_path / "model.pth")
    return tmp_path


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def refused(run: Run, place: Path, *words: object, kind: str, says: str, status: int = 1) -> Ending:
    """The run ends with one problem of that kind, says how to go on, and changes nothing in `place`."""
    before, content = everything(place), files_of(place)
    end = run("run", *words)
    assert end.status == status, end.err
    assert end.kinds == [kind], end.err
    assert re.search(says, end.err), end.err
    assert "Traceback" not in end.err
    assert end.out == ""
    assert everything(place) == before
    assert files_of(place) == content
    return end


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no checkpoint

HTML = b"<!DOCTYPE html>\n<html><body>404: not found</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 100\n"


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (HTML, "web page"),
        (POINTER, "git lfs"),
        (b"\x93NUMPY\x01\x00v\x00", r"not a checkpoint|NumPy|npy"),
    ],
    ids=["empty", "html", "lfs", "numpy"],
)
def test_not_a_checkpoint(run: Run, tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    kind = "unknown-format" if content[:1] == b"\x93" else "damaged-file"
    end = refused(run, tmp_path, "llama", tmp_path / name, tmp_path / "out", kind=kind, says=says)
    assert "hint:" in end.err


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_truncated(run: Run, place: Path, kept: float) -> None:
    whole = (place / "model.pth").read_bytes()
    (place / "model.pth").write_bytes(whole[: int(len(whole) * kept)])
    refused(run, place, "llama", place / "model.pth", place / "out", kind="damaged-file", says="cut short")


def test_damage_is_found_while_it_is_read_and_all_of_it_is_named(run: Run, place: Path) -> None:
    source = place / "model.pth"
    data, there = bytearray(source.read_bytes()), open_checkpoint(source).tensors
    names = [name for name in there if name.endswith("q_proj.weight")]
    for name in names:
        data[there[name].parts[0].offset] ^= 1
    source.write_bytes(data)
    words = ["run", "llama", source, place / "out"]
    ending = run(*words)
    assert (ending.status, ending.kinds, len(names)) == (1, ["damaged-file"] * 2, 2)
    assert all(f"the bytes of {name} do not match their checksum" in ending.err for name in names)
    assert everything(place) == [source]
    assert run(*words, "--no-checksums").status == 0


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2)], 7, "text"], ids=["numbers", "list", "int", "str"])
def test_without_weights(run: Run, tmp_path: Path, content: object) -> None:
    file = saved(tmp_path / "model.pth", content)
    refused(run, tmp_path, "llama", file, tmp_path / "out", kind="missing-weights", says="hint: ")


def test_no_such_file(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path, "llama", tmp_path / "x.pth", tmp_path / "out", kind="unreadable-file", says="x.pth")


def test_no_such_spec(run: Run, place: Path) -> None:
    refused(run, place, "lama", place / "model.pth", place / "out", kind="unreadable-file", says="lama")


# ---------------------------------------------------------------------------------------------------------------------
# Values


def test_a_value_that_nothing_tells(run: Run, tmp_path: Path) -> None:
    source = synthetic(load_program("phi3_llama"), 0).save(tmp_path, "*.safetensors")
    end = run("run", "phi3_llama", source, tmp_path / "out")
    assert (end.status, set(end.kinds)) == (1, {"missing-argument"})
    assert "--set num_attention_heads=VALUE" in end.err
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("words", "kind", "says", "status"),
    [
        (["rope_teta=1"], "unknown-argument", "did you mean 'rope_theta'", 1),
        (["zzz=1"], "unknown-argument", "its arguments are", 1),
        (["num_attention_heads=many"], "wrong-type", r"num_attention_heads = 'many' \(--set\)", 1),
        (["num_attention_heads=7.5"], "wrong-type", "an integer", 1),
        (["num_attention_heads=true"], "wrong-type", "an integer", 1),
        (["tie_word_embeddings=1"], "wrong-type", "true or false", 1),
        (["rope_theta=[1]"], "wrong-type", "a number", 1),
        (["hidden_act=[silu"], "yaml-syntax", "--set", 1),
        (["vocab_size=99"], "config-mismatch", "the checkpoint has 128", 1),
        (["rope_theta"], "wrong-usage", "NAME=VALUE", 2),
        (["=3"], "wrong-usage", "NAME=VALUE", 2),
        (["rope_theta=1", "rope_theta=2"], "wrong-usage", "set twice", 2),
    ],
)
def test_a_wrong_set(run: Run, place: Path, words: list[str], kind: str, says: str, status: int) -> None:
    given = [word for text in words for word in ("--set", text)]
    refused(run, place, "llama", place / "model.pth", place / "out", *given, kind=kind, says=says, status=status)


@pytest.mark.parametrize("heads", ["0", "-8", "3", "16", "999999999999"])
def test_heads_that_do_not_fit(run: Run, place: Path, heads: str) -> None:
    before = everything(place)
    end = run("run", "llama", place / "model.pth", place / "out", "--set", f"num_attention_heads={heads}")
    assert end.status == 1
    assert set(end.kinds) <= {"unmet-requirement", "expression-value", "config-mismatch"}
    assert "heads" in end.err
    assert everything(place) == before


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ('{"hidden_size": 64,}', "json-syntax", r"config\.json:1:\d+"),
        ('{"hidden_size": NaN}', "not-finite", "NaN"),
        ('{"hidden_size": 64, "hidden_size": 64}', "duplicate-key", "hidden_size"),
        ("[1]", "bad-config", "a mapping"),
        ("\x00\x01", "json-syntax", "not JSON"),
        ('{"hidden_size": 32}', "config-mismatch", "the checkpoint has 64"),
        ('{"num_hidden_layers": 3}', "config-mismatch", r"model\.layers\.2\.input_layernorm"),
        ('{"num_hidden_layers": 1}', "config-mismatch", "the checkpoint has 2"),
        ('{"rope_theta": "high"}', "wrong-type", r'rope_theta is "high", but must be a positive number'),
        ('{"auto_map": {"AutoConfig": "../../x.Y"}}', "bad-config", "outside"),
        ('{"use_moe": true}', "unmet-requirement", r"specs/minimind2\.yaml"),
    ],
)
def test_a_wrong_config(run: Run, place: Path, text: str, kind: str, says: str) -> None:
    config = place / "config.json"
    config.write_text(text)
    refused(run, place, "llama", place / "model.pth", place / "out", "--config", config, kind=kind, says=says)


def test_what_is_not_carried_over_is_said_once(run: Run, place: Path) -> None:
    strange = {"dropout": 0.5, "flash_attn": True, "empty": None, "torch_dtype": "float16", "novel": 1}
    (place / "config.json").write_text(json.dumps(CONFIG | strange))
    end = run("run", "llama", place / "model.pth", place / "out", "--config", place / "config.json")
    assert end.status == 0
    assert [line for line in end.err.splitlines() if "does not read" in line] == [
        "note: config fields that the spec does not read: novel"
    ]
    assert "rope_theta=1000000.0" in next(line for line in end.err.splitlines() if "defaults used" in line)


def test_a_config_may_be_yaml(run: Run, place: Path) -> None:
    (place / "args.yaml").write_text("num_attention_heads: 4\nnum_key_value_heads: 1\nrope_theta: 1e4\n")
    end = run("run", "llama", place / "model.pth", place / "out", "--config", place / "args.yaml")
    assert end.status == 0, end.err
    written = json.loads((place / "out" / "config.json").read_text())
    assert (written["num_attention_heads"], written["rope_theta"]) == (4, 10000.0)
    assert written["rope_parameters"]["rope_theta"] == 10000.0


# ---------------------------------------------------------------------------------------------------------------------
# Tensors


def changed(tensors: Mapping[str, Tensor], **more: Tensor) -> dict[str, Tensor]:
    return {**tensors, **more}


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda t: {n: x for n, x in t.items() if ".layers.0." not in n}, "missing-tensor", r"layers\.0\."),
        (lambda t: {n: x for n, x in t.items() if "1.mlp.up" not in n}, "missing-tensor", r"layers\.1\.mlp\.up_proj"),
        (lambda t: {n: x for n, x in t.items() if ".k_proj" not in n}, "missing-tensor", r"k_proj"),
        (lambda t: {n.replace("layers.1.", "layers.2."): x for n, x in t.items()}, "index-gap", r"layers\.1"),
        (lambda t: t | {"model.layers.2.mlp.up_proj.weight": t["model.norm.weight"]}, "missing-tensor", r"layers\.2\."),
        (lambda t: t | {"score.weight": torch.ones(2)}, "unclaimed-tensor", r"score\.weight"),
        (lambda t: t | {"model.Norm.weight": torch.ones(64)}, "unclaimed-tensor", "did you mean 'model.norm.weight'"),
        (lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1}, "untied-weights", "tie_word_embeddings=false"),
        (lambda t: {n.replace("layers.1.", "layers.01."): x for n, x in t.items()}, "padded-index", r"01"),
        (lambda t: {("module." if "1" in n else "") + n: x for n, x in t.items()}, "mixed-prefix", "module"),
    ],
    ids=["layer", "tensor", "rule", "gap", "extra", "unclaimed", "case", "untied", "padded", "mixed"],
)
def test_tensors_that_do_not_fit(
    run: Run, tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], kind: str, says: str
) -> None:
    file = saved(tmp_path / "model.pth", change(dict(TENSORS)))
    before = everything(tmp_path)
    end = run("run", "llama", file, tmp_path / "out")
    assert end.status == 1
    assert set(end.kinds) == {kind}, end.err
    assert re.search(says, end.err), end.err
    assert everything(tmp_path) == before


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_wrapped_model_is_unwrapped_and_it_says_so(run: Run, place: Path, prefix: str) -> None:
    file = saved(place / "wrapped.pth", {prefix + n: t for n, t in TENSORS.items()})
    assert run("run", "llama", place / "model.pth", place / "plain").status == 0
    end = run("run", "llama", file, place / "out")
    assert end.status == 0, end.err
    assert f"note: stripped the prefix '{prefix}'" in end.err
    told = ("README.md", "mapspec.json")  # they name the file that they come from
    wrapped, plain = ({n: t for n, t in files_of(place / f).items() if n not in told} for f in ("out", "plain"))
    assert wrapped == plain


@pytest.mark.parametrize("words", [["model"], ["state_dict"], ["checkpoint", "model", "state_dict"]], ids=".".join)
def test_a_nested_model_is_opened_and_it_says_so(run: Run, place: Path, words: list[str]) -> None:
    content: dict[str, Any] = dict(TENSORS)
    for word in reversed(words):
        content = {word: content, "epoch": 1}
    content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3)}}}
    end = run("run", "llama", saved(place / "nested.pth", content), place / "out")
    assert end.status == 0, end.err
    for word in words:
        assert f"opened {word!r}" in end.err
    assert folder_image(place / "out") == image({n: t for n, t in TENSORS.items() if n != "lm_head.weight"})


# ---------------------------------------------------------------------------------------------------------------------
# Another kind of checkpoint

OTHERS = [
    ("minimind2/moe_shared", "minimind2"),
    ("minimind/dense_trained", "qwen3"),
    ("minimind/dense_small", "qwen3"),
    ("minimind/moe_trained", "qwen3"),
    ("minimind_v2_early/dense", "minimind1_llama"),
]


@pytest.mark.parametrize(("case", "fits"), OTHERS)
@pytest.mark.parametrize("with_config", [False, True], ids=["alone", "config"])
def test_another_kind_is_refused_and_the_spec_that_fits_is_named(
    run: Run, tmp_path: Path, case: str, fits: str, with_config: bool
) -> None:
    source = ORACLES / case / "source"
    config = source / "minimind_config_resolved.json"
    words = ["--config", config] if with_config and config.is_file() else []
    end = run("run", "llama", next(source.glob("*.pth")), tmp_path / "out", *words)
    assert end.status == 1
    assert set(end.kinds) == {"unmet-requirement"}, end.err
    assert f"specs/{fits}.yaml" in end.err
    assert everything(tmp_path) == []


def test_every_spec_that_a_message_names_is_there() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "specs").glob("*.yaml")}
    named = {(name, word) for name, text in texts.items() for word in re.findall(r"specs/(\w+\.yaml)", text)}
    assert named
    assert sorted((name, word) for name, word in named if word not in texts) == []


# ---------------------------------------------------------------------------------------------------------------------
# The output


def test_a_folder_that_is_not_empty(run: Run, place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "notes.txt").write_text("mine")
    refused(run, place, "llama", place / "model.pth", place / "out", kind="output-exists", says="--force")


def test_an_empty_folder_will_do(run: Run, place: Path) -> None:
    (place / "out").mkdir()
    assert run("run", "llama", place / "model.pth", place / "out").status == 0
    assert (place / "out" / "model.safetensors").is_file()


def test_a_forced_run_that_fails_leaves_the_old_folder(run: Run, place: Path) -> None:
    assert run("run", "llama", place / "model.pth", place / "out").status == 0
    bad = saved(place / "bad.pth", dict(TENSORS) | {"score.weight": torch.ones(2)})
    refused(run, place, "llama", bad, place / "out", "--force", kind="unclaimed-tensor", says="score")


def test_the_source_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    save_file({n: t.clone() for n, t in TENSORS.items()}, tmp_path / "model.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        refused(run, tmp_path, "llama", source, tmp_path, "--force", kind="output-exists", says="the run reads this")


def test_a_parent_that_is_a_file(run: Run, place: Path) -> None:
    out = place / "model.pth" / "out"
    refused(run, place, "llama", place / "model.pth", out, kind="output-unwritable", says="a file, not a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_may_not_be_written(run: Run, place: Path) -> None:
    (place / "locked").mkdir(mode=0o500)
    out = place / "locked" / "out"
    refused(run, place, "llama", place / "model.pth", out, kind="output-unwritable", says="permissions")


@pytest.mark.parametrize("tokenizer", ["missing", "."])
def test_a_tokenizer_that_is_not_there(run: Run, place: Path, tokenizer: str) -> None:
    """New parents of the output do not stay either."""
    words = [place / "model.pth", place / "new" / "deep" / "out", "--tokenizer", place / tokenizer]
    refused(run, place, "llama", *words, kind="missing-tokenizer", says="folder")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
def test_a_device_that_is_not_there(run: Run, place: Path) -> None:
    words = [place / "model.pth", place / "out", "--device", "cuda", "--dtype", "float32"]
    before = everything(place)
    end = run("run", "llama", *words)
    assert (end.status, end.kinds) == (1, ["no-device"])
    assert everything(place) == before


def failing(error: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


def test_a_full_disk(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(OSError(errno.ENOSPC, "No space left on device")))
    before = everything(place)
    end = run("run", "llama", place / "model.pth", place / "out")
    assert (end.status, end.kinds) == (1, ["disk-full"])
    assert everything(place) == before


def test_an_interrupted_run(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "write_folder", failing(KeyboardInterrupt()))
    before = everything(place)
    end = run("run", "llama", place / "model.pth", place / "out")
    assert end.status == 130
    assert "nothing was written" in end.err
    assert everything(place) == before


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["run"],
        ["run", "llama"],
        ["run", "llama", "a", "b", "--dtype", "int3"],
        ["run", "llama", "a", "b", "--strange"],
        ["run", "llama", "a", "b", "--max-shard-size", "big"],
        ["run", "llama", "a", "b", "--max-shard-size", "0"],
        ["run", "llama", "a", "b", "--max-shard-size", "-1GB"],
    ],
    ids=" ".join,
)
def test_wrong_usage(run: Run, words: list[str]) -> None:
    assert run(*words).status == 2


def test_shards_with_an_index_load(run: Run, place: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert run("run", "llama", place / "model.pth", place / "one").status == 0
    assert run("run", "llama", place / "model.pth", place / "many", "--max-shard-size", "40KB").status == 0
    shards = list((place / "many").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (place / "many" / "model.safetensors").exists()
    assert all(sum(t.nbytes for t in load_file(p).values()) <= 40_000 for p in shards)
    assert folder_image(place / "many") == folder_image(place / "one")
    model, info = AutoModelForCausalLM.from_pretrained(place / "many", output_loading_info=True, dtype=torch.float16)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert image({n: t for n, t in model.state_dict().items() if n in TENSORS}) == image(TENSORS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_casts_what_is_floating(run: Run, place: Path, dtype: str) -> None:
    end = run("run", "llama", place / "model.pth", place / "out", "--dtype", dtype)
    assert end.status == 0, end.err
    kind = getattr(torch, dtype)
    assert folder_image(place / "out") == image({n: t.to(kind) for n, t in TENSORS.items() if n != "lm_head.weight"})
    assert json.loads((place / "out" / "config.json").read_text())["dtype"] == dtype


def test_json_is_for_programs(run: Run, place: Path) -> None:
    done = run("run", "llama", place / "model.pth", place / "out", "--json")
    told = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert (told["spec"], told["tensors"]) == ("llama", len(TENSORS) - 1)
    assert any("defaults" in note for note in told["notes"])
    assert told["bytes"] == sum(t.nbytes for n, t in TENSORS.items() if n != "lm_head.weight")
    failed = run("run", "llama", place / "model.pth", place / "out", "--json")
    assert (failed.status, failed.err) == (1, "")
    assert [d["kind"] for d in json.loads(failed.out)["diagnostics"]] == ["output-exists"]


def test_the_same_run_gives_the_same_bytes(run: Run, place: Path) -> None:
    for name in ("a", "b"):
        assert run("run", "llama", place / "model.pth", place / name).status == 0
    assert files_of(place / "a") == files_of(place / "b")


def test_there_and_back(run: Run, place: Path) -> None:
    assert run("run", "llama", place / "model.pth", place / "out").status == 0
    end = run("run", "llama", place / "out", place / "back.pth", "--reverse")
    assert end.status == 0, end.err
    assert image(torch.load(place / "back.pth", weights_only=True)) == image(TENSORS)
