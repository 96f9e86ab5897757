"""Checkpoints that are well formed and wrong: each is refused or told by name, where loading would say nothing.

The cases are those of a set written by hand for this purpose; each is made here from one sound model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.cli.options import Notes
from compiler.diagnostics import Refusal
from compiler.dtypes import FLOATING
from compiler.executor import nonfinite_values
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.program.loading import load_program

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8, "rope_theta": 10000.0, "tie_word_embeddings": False,
    **HEADS,
}  # fmt: skip
Tensors = dict[str, Tensor]


def model() -> Tensors:
    random = torch.Generator().manual_seed(3)
    shapes = {"model.embed_tokens": (32, 16), "model.norm": (16,), "lm_head": (32, 16)}
    for i in (0, 1):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}self_attn.{p}_proj": (n, 16) for p, n in zip("qkvo", (16, 8, 8, 16), strict=True)}
        shapes |= {f"{layer}mlp.{p}_proj": (24, 16) for p in ("gate", "up")} | {f"{layer}mlp.down_proj": (16, 24)}
        shapes |= {f"{layer}{n}_layernorm": (16,) for n in ("input", "post_attention")}
    return {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}


def run(tmp_path: Path, tensors: Any, config: Any = CONFIG, **options: Any) -> list[str]:
    """What a conversion says. Raises Refusal; then there is no output."""
    torch.save(tensors, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    notes = Notes(silent=True)
    request = Request([tmp_path / "model.pth"], config=tmp_path / "config.json", **options)
    try:
        convert(load_program("llama"), request, tmp_path / "out", notes)
    except Refusal:
        assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.pth"]
        raise
    return notes.lines()


def refusal(tmp_path: Path, *args: Any, **options: Any) -> tuple[set[str], str]:
    with pytest.raises(Refusal) as caught:
        run(tmp_path, *args, **options)
    return {d.kind for d in caught.value.diagnostics}, str(caught.value)


def renamed(tensors: Tensors, change: Callable[[str], str]) -> Tensors:
    return {change(name): tensor for name, tensor in tensors.items()}


UP = "model.layers.0.mlp.up_proj.weight"
EXTRA = {name.replace("layers.1.", "layers.2."): t for name, t in model().items() if "layers.1." in name}
FP8 = torch.float8_e4m3fn
# name -> what is done to the tensors, the fields of the config that change, the kind, a word of the message
CASES: dict[str, tuple[Callable[[Tensors], Any], dict[str, Any], str, str]] = {
    "a layer is missing": (lambda t: {n: x for n, x in t.items() if "layers.1." not in n}, {}, "config-mismatch", "layers.1."),
    "a layer too many": (lambda t: t | EXTRA, {}, "config-mismatch", "the checkpoint has 3"),
    "a gap": (lambda t: renamed(t, lambda n: n.replace("layers.1.", "layers.3.")), {}, "index-gap", "layers.1"),
    "padded indices": (lambda t: renamed(t, lambda n: n.replace("layers.1.", "layers.01.")), {}, "padded-index", "01"),
    "an index of 5000 digits": (lambda t: t | {UP.replace("0", "9" * 5000): t[UP]}, {}, "padded-index", "999"),
    "an index of 9 digits": (lambda t: t | {UP.replace("0", "9" * 9): t[UP]}, {}, "index-gap", "layers.2"),
    "case variants": (lambda t: t | {"Model.Norm.Weight": t["model.norm.weight"]}, {}, "unclaimed-tensor", "Model.Norm"),
    "two sources of one name": (lambda t: t | {"module.lm_head.weight": t["lm_head.weight"] + 1}, {}, "mixed-prefix", "lm_head"),
    "half of the names wrapped": (lambda t: renamed(t, lambda n: "module." * ("1" in n) + n), {}, "mixed-prefix", "module"),
    "tied config, other weights": (lambda t: t, {"tie_word_embeddings": True}, "untied-weights", "lm_head.weight"),
    "a padded vocabulary": (lambda t: t, {"vocab_size": 30}, "config-mismatch", "the checkpoint has 32"),
    "wrong ffn": (lambda t: t, {"intermediate_size": 48}, "config-mismatch", "the checkpoint has 24"),
    "heads that do not divide": (lambda t: t, {"num_attention_heads": 3}, "unmet-requirement", "num_attention_heads"),
    "heads that are many": (lambda t: t, {"num_attention_heads": 10**18}, "unmet-requirement", "num_attention_heads"),
    "10**40 layers": (lambda t: t, {"num_hidden_layers": 10**40}, "config-mismatch", "num_hidden_layers"),
    "a number as text": (lambda t: t, {"num_hidden_layers": "2"}, "wrong-type", '"2"'),
    "fp8 without scales": (lambda t: t | {UP: t[UP].to(FP8)}, {}, "quantized-weights", "float8_e4m3fn"),
    "int8 without its scale": (lambda t: t | {UP: t[UP].to(torch.int8)}, {}, "quantized-weights", "int8"),
    "int32 as a weight": (lambda t: t | {UP: t[UP].to(torch.int32)}, {}, "quantized-weights", f"{UP} (int32)"),
    "int64 as a norm": (lambda t: t | {"model.norm.weight": t["model.norm.weight"].long()}, {}, "quantized-weights", "int64"),
    "int8 beside its scale": (lambda t: t | {UP: t[UP].to(torch.int8), "SCB": torch.ones(24)}, {}, "quantized-weights", UP),
    "a sparse tensor": (lambda t: t | {UP: t[UP].to_sparse()}, {}, "unsupported-tensor", "sparse"),
    "a list": (lambda t: list(t.values()), {}, "missing-weights", "without names"),
    "tensors of no rule": (lambda t: t | {"logit_scale": torch.tensor(1.0), "none": torch.ones(0, 4)}, {}, "unclaimed-tensor", "logit_scale"),
    "code elsewhere": (lambda t: t, {"auto_map": {"AutoModel": "../../evil.Model"}}, "bad-config", "evil"),
    "code of another repository": (lambda t: t, {"auto_map": {"AutoModel": "their--evil.Model"}}, "bad-config", "evil"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, fields, kind, word = CASES[case]
    kinds, text = refusal(tmp_path, change(model()), CONFIG | fields)
    assert kind in kinds, text
    assert word in text
    assert len(text) < 5000


def test_a_layer_of_another_shape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        Refusal, match=r"has shape \[20, 16\], but must have \[intermediate_size = 24, hidden_size = 16\]"
    ):
        run(tmp_path, model() | {UP: torch.ones(20, 16)} | EXTRA, CONFIG | {"num_hidden_layers": 3})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"rope_theta": 1e999}', "not-finite"),
        ('{"rope_theta": -Infinity}', "not-finite"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "json-syntax"),
        ("[" * 100_000, "json-syntax"),
        ('{"a": ' * 100_000, "json-syntax"),
        ("{" + ", ".join(f'"k{n}": {n}' for n in range(200_000)) + ', "k0": 1}', "duplicate-key"),
        ('{"x": "' + "y" * (17 << 20) + '"}', "bad-config"),
        ('{"a": 1} {"b": 2}', "json-syntax"),
        ('{"a": "\ud800"}'.encode("utf-8", "surrogatepass").decode("latin-1"), ""),
    ],
    ids=["1e999", "infinity", "digits", "lists", "mappings", "many keys", "size", "two", "bytes"],
)
def test_a_config_that_is_an_attack(tmp_path: Path, text: str, kind: str) -> None:
    if not kind:
        run(tmp_path, model(), text[:-1] + "," + json.dumps(CONFIG)[1:])
        return
    kinds, message = refusal(tmp_path, model(), text)
    assert kinds == {kind}
    assert len(message) < 2000


@pytest.mark.parametrize("field", ["num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size"])
def test_the_way_back_holds_the_config_against_the_weights(tmp_path: Path, field: str) -> None:
    run(tmp_path, model())
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: 10**9}))
    with pytest.raises(Refusal) as caught:
        convert(load_program("llama"), Request([tmp_path / "out"], reverse=True), tmp_path / "back.pth")
    assert f"{field} = 1000000000" in str(caught.value)
    assert not (tmp_path / "back.pth").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Values


def spoiled(where: str, *found: float) -> Tensors:
    tensors = model()
    tensors[where].view(-1)[: len(found)] = torch.tensor(found)
    return tensors


def told(said: list[str], word: str) -> list[str]:
    return [line for line in said if word in line]


def test_nan_and_infinity_are_counted_and_their_bits_kept(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    said = run(tmp_path, spoiled(UP, nan, nan, inf, -inf, inf))
    (line,) = told(said, "NaN")
    assert f"{UP} (2 NaN and 3 infinite)" in line
    written = load_file(tmp_path / "out" / "model.safetensors")[UP]
    assert torch.equal(written.view(torch.int32), spoiled(UP, nan, nan, inf, -inf, inf)[UP].view(torch.int32))


def test_nothing_is_said_of_finite_numbers(tmp_path: Path) -> None:
    said = run(tmp_path, spoiled(UP, 3.4028234e38, -65504.0, 1e-45), dtype="bfloat16")
    assert not told(said, "NaN")


def test_what_float16_cannot_hold_is_counted(tmp_path: Path) -> None:
    said = run(tmp_path, spoiled(UP, 65504.0, 65519.0, 65520.0, -1e38, float("inf")), dtype="float16")
    (line,) = told(said, "too large for float16")
    assert f"{UP} (2 infinite)" in line
    assert f"{UP} (1 infinite)" in told(said, "NaN or infinity")[0]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert not told(run_again(tmp_path, dtype="bfloat16"), "too large")


def test_what_float16_cannot_hold_is_counted_on_the_way_back(tmp_path: Path) -> None:
    run(tmp_path, spoiled(UP, 1e9))
    notes = Notes(silent=True)
    words = Request([tmp_path / "out"], reverse=True, dtype="float16")
    convert(load_program("llama"), words, tmp_path / "back.pth", notes)
    assert f"{UP} (1 infinite)" in told(notes.lines(), "too large for float16")[0]


def run_again(tmp_path: Path, **options: Any) -> list[str]:
    notes = Notes(silent=True)
    words = Request([tmp_path / "model.pth"], config=tmp_path / "config.json", **options)
    convert(load_program("llama"), words, tmp_path / "again", notes)
    return notes.lines()


def test_a_large_tensor_is_sampled_or_read_whole(tmp_path: Path) -> None:
    """One bad value in 32 MiB is seen where all are read; a run of them longer than the distance of samples always."""
    numbers = torch.zeros(8 << 20)
    numbers[3_000_000] = float("nan")
    save_file({"a": numbers}, tmp_path / "a.safetensors")
    numbers[: (8 << 20) // 4] = float("inf")
    save_file({"a": numbers}, tmp_path / "b.safetensors")
    one, many = (open_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab")
    assert nonfinite_values.survey(one, ["a"], whole=False) == {}
    assert nonfinite_values.survey(one, ["a"], whole=True) == {"a": nonfinite_values.Count(nan=1)}
    assert nonfinite_values.survey(many, ["a"], whole=False) == {"a": nonfinite_values.Count(nan=1, infinite=2 << 20)}


def strided() -> list[tuple[str, Tensor, nonfinite_values.Count]]:
    base = torch.zeros(64, 64)
    base[:, 1] = float("nan")
    return [
        ("its own", base.t()[1], nonfinite_values.Count(nan=64)),
        ("another's", base[:, 2:4], nonfinite_values.Count()),
        ("of both", base[:, :2].t().expand(3, 2, 64), nonfinite_values.Count(nan=192)),
        ("expanded", base[0, 1].expand(5, 7), nonfinite_values.Count(nan=35)),
    ]


@pytest.mark.parametrize(("name", "tensor", "expected"), strided(), ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("piece", [64 << 20, 100])
@pytest.mark.parametrize("whole", [True, False])
def test_views_are_counted_for_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tensor: Tensor, expected: nonfinite_values.Count, whole: bool,
    piece: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(nonfinite_values, "_PIECE", piece)
    torch.save({"x": tensor}, tmp_path / "x.pth")
    found = nonfinite_values.survey(open_checkpoint(tmp_path / "x.pth"), ["x"], whole)
    assert found == ({"x": expected} if expected else {})


@pytest.mark.parametrize("dtype", sorted(FLOATING - {"float8_e8m0fnu"}))
def test_every_bit_pattern_is_judged_as_torch_does(dtype: str) -> None:
    kind = getattr(torch, dtype)
    size = torch.empty(0, dtype=kind).element_size()
    if size <= 2:
        bits = np.arange(1 << 8 * size, dtype=f"<u{size}")
    else:
        bits = np.random.default_rng(0).integers(0, 1 << 63, 50_000, dtype=np.uint64).view(f"<u{size}")
        bits[:5] = (
            torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, 1.0], dtype=kind).numpy().view(f"<u{size}")
        )
    wide = torch.frombuffer(bytearray(bits.tobytes()), dtype=kind).to(torch.float64)
    expected = nonfinite_values.Count(int(wide.isnan().sum()), int(wide.isinf().sum()))
    assert expected
    assert nonfinite_values.count(bits.tobytes(), dtype) == expected


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ({"AutoTokenizer": ["their--evil.Tokenizer", None]}, "bad-config"),
        ({"AutoTokenizer": ["../evil.Tokenizer", None]}, "bad-config"),
        ({"AutoTokenizer": ["own.Tokenizer", None]}, ""),
    ],
    ids=["repository", "path", "own"],
)
def test_code_of_a_tokenizer_never_comes_along(tmp_path: Path, place: dict[str, Any], kind: str) -> None:
    folder = tmp_path / "work"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "own.py").write_text("raise SystemExit")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"auto_map": place}))
    words = {"tokenizer": folder / "tokenizer"}
    if kind:
        torch.save(model(), folder / "model.pth")
        with pytest.raises(Refusal, match="auto_map points outside"):
            convert(
                load_program("llama"),
                Request([folder / "model.pth"], assigned=HEADS | {"tie_word_embeddings": False}, **words),
                folder / "out",
            )  # type: ignore[arg-type]
        assert not (folder / "out").exists()
        return
    assert told(run(folder, model(), **words), "own.Tokenizer")
    assert not (folder / "out" / "own.py").exists()


def test_a_tokenizer_that_links_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "tokenizer" / "tokenizer.json").symlink_to("../secret")
    torch.save(model(), tmp_path / "model.pth")
    words = Request(
        [tmp_path / "model.pth"], assigned=HEADS | {"tie_word_embeddings": False}, tokenizer=tmp_path / "tokenizer"
    )
    with pytest.raises(Refusal, match="leaves its folder"):
        convert(load_program("llama"), words, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")

    def locked(source: Any, target: Any) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr("shutil.copyfile", locked)
    torch.save(model(), tmp_path / "model.pth")
    words = Request(
        [tmp_path / "model.pth"], assigned=HEADS | {"tie_word_embeddings": False}, tokenizer=tmp_path / "tokenizer"
    )
    with pytest.raises(Refusal, match=r"vocab\.json: cannot be read: Permission denied \[unreadable-file\]"):
        convert(load_program("llama"), words, tmp_path / "out")
    assert not (tmp_path / "out").exists()
