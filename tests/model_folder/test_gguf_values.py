"""GGUF files that `--to gguf` writes: read by the package gguf and by mapspec's own reader, tensors, key-values and tokenizer."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support.oracle_cases import Case
from support.parity import ORACLES
from support.synthetic import image, synthetic

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.diagnostics import Refusal
from compiler.executor.apply_rule import loaded
from compiler.jobs.convert import convert
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.model_folder import gguf_tokenizer
from compiler.model_folder.gguf_tokenizer import tokenizer_values
from compiler.model_folder.gguf_values import model_values, token_ids
from compiler.ops.kernels import quantize_q8_0
from compiler.plan.notes import Note, Remark
from compiler.program.loading import load_program
from compiler.tokenizer.sentencepiece_model import NORMAL, USER, SentencePiece, read_pieces

TESTS = Path(__file__).parent.parent
CASE = Case(ORACLES / "minimind" / "dense_trained")
SETTINGS: dict[str, Any] = {"config": CASE.request.config, "tokenizer": TESTS / "data" / "tokenizer", "check": False}
SPLIT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"


@pytest.mark.parametrize(("dtype", "kind"), [("float32", 0), ("float16", 1), ("bfloat16", 32)])
def test_both_readers_read_it(tmp_path: Path, dtype: str, kind: int) -> None:
    """The tensors are those of the source under llama.cpp's names; vectors are in float32 whatever the dtype."""
    convert(CASE.program, Request(CASE.request.source, dtype=dtype, to="gguf", **SETTINGS), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert (values["general.architecture"], values["general.file_type"]) == ("qwen3", kind)
    assert values["qwen3.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    vocabulary = json.loads((TESTS / "data" / "tokenizer" / "tokenizer.json").read_text())
    assert values["tokenizer.ggml.tokens"][: len(vocabulary["model"]["vocab"])] == [*vocabulary["model"]["vocab"]]
    assert len(values["tokenizer.ggml.merges"]) == len(vocabulary["model"]["merges"])
    assert (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert values["tokenizer.ggml.token_type"][:3] == [3, 3, 3]
    assert "<|im_start|>" in values["tokenizer.chat_template"]
    ours = open_checkpoint(tmp_path / "m.gguf")
    source = open_checkpoint(CASE.request.source[0])
    for tensor in reader.tensors:
        mine = loaded(ours.tensors[tensor.name])
        assert mine.dtype == (torch.float32 if mine.dim() == 1 else getattr(torch, dtype))
        if dtype != "bfloat16":
            assert np.array_equal(mine.numpy().reshape(-1), np.asarray(tensor.data).reshape(-1))
    embedding = loaded(source.tensors["model.embed_tokens.weight"]).to(getattr(torch, dtype))
    assert torch.equal(loaded(ours.tensors["token_embd.weight"]), embedding)
    norm = loaded(source.tensors["model.norm.weight"]).to(getattr(torch, dtype)).float()
    assert torch.equal(loaded(ours.tensors["output_norm.weight"]), norm)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_q8_0(tmp_path: Path, dtype: str | None) -> None:
    """Matrices have the blocks that the package gguf makes of the source's numbers, vectors are float32."""
    source = CASE.request.source
    if dtype:
        tensors = {name: t.to(torch.float16) for name, t in torch.load(source[0], weights_only=True).items()}
        torch.save(tensors, tmp_path / "half.pth")
        source = [tmp_path / "half.pth"]
    notes: list[Note] = []
    plan = convert(
        CASE.program, Request(source, dtype="q8_0", to="gguf", **SETTINGS), tmp_path / "m.gguf", notes.append
    )
    convert(CASE.program, Request(source, to="gguf", **SETTINGS), tmp_path / "plain.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert (values["general.file_type"], values["general.quantization_version"]) == (7, 2)
    plain = {name: loaded(tensor) for name, tensor in open_checkpoint(tmp_path / "plain.gguf").tensors.items()}
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds.keys() == plain.keys()
    assert {target.name: target.dtype for target in plan.targets} == {
        n: {"Q8_0": "q8_0", "F32": "float32"}[k] for n, k in kinds.items()
    }
    assert {kinds[name] for name, tensor in plain.items() if tensor.dim() > 1} == {"Q8_0"}
    for tensor in reader.tensors:
        wanted = plain[tensor.name].float().numpy()
        assert list(reversed(tensor.shape)) == [*wanted.shape]
        if wanted.ndim > 1:
            wanted = gguf.quants.quantize(wanted, gguf.GGMLQuantizationType.Q8_0)
        assert np.array_equal(tensor.data, wanted), tensor.name
    assert not any(isinstance(note, Remark) and "blocks" in note.text for note in notes)
    back = {name: loaded(tensor) for name, tensor in open_checkpoint(tmp_path / "m.gguf").tensors.items()}
    assert back.keys() == plain.keys()
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in back.items():
        wanted = plain[name].float().numpy()
        if wanted.ndim > 1:
            wanted = gguf.quants.dequantize(gguf.quants.quantize(wanted, kind), kind)
        assert np.array_equal(tensor.numpy(), wanted), name


def test_rows_that_are_no_blocks_are_float16(tmp_path: Path) -> None:
    program = load_program("torchtitan_llama")
    values = program.spec.examples[0]
    narrower = {**values, "intermediate_size": (80, values["intermediate_size"][1])}
    made = synthetic(replace(program, spec=replace(program.spec, examples=(narrower,))), finite=True)
    request = Request([made.save(tmp_path, "*.pt")], assigned=made.arguments, to="gguf", check=False, dtype="q8_0")
    notes: list[Note] = []
    plan = convert(program, request, tmp_path / "m.gguf", notes.append)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    narrow = {t.name for t in plan.targets if len(t.shape) > 1 and t.shape[-1] % 32}
    assert len(narrow) == values["n_layers"][0]
    assert {name for name, kind in kinds.items() if kind == "F16"} == narrow
    assert any("float16: " in note.text for note in notes if isinstance(note, Remark))


def test_q8_0_without_a_gguf_file(tmp_path: Path) -> None:
    for to, out in ((None, "out"), ("litgpt", "lit"), ("gguf", "m.pth")):
        with pytest.raises(Refusal, match="wrong-usage"):
            convert(CASE.program, Request(CASE.request.source, dtype="q8_0", to=to, **SETTINGS), tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_the_blocks_of_the_package_gguf() -> None:
    """Scales of every size, also those that are 0 in float16; zeros, and halves between two integers."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(4096, 64, generator=generator) * 2.0 ** torch.randint(-115, 20, (4096, 1), generator=generator)
    rows[0] = 0
    rows[1] = torch.arange(64) - 32.0
    rows[2, :32] = torch.cat([torch.tensor([127.0]), torch.arange(31) - 15.5])  # a scale of 1
    wanted = gguf.quants.quantize(rows.numpy(), gguf.GGMLQuantizationType.Q8_0)
    packed = quantize_q8_0(rows).numpy()
    assert np.array_equal(packed, wanted)
    assert packed[2, 2:4].view(np.int8).tolist() == [127, -16]
    assert not np.array_equal(quantize_q8_0(-rows).numpy(), wanted)
    assert not quantize_q8_0(torch.full((1, 32), 1e-45)).any()  # whose inverse scale is infinite


def test_there_and_back(tmp_path: Path) -> None:
    """A GGUF file converts by itself back into the first trainer's layout, bit for bit; vectors are cast back from float32."""
    convert(CASE.program, Request(CASE.request.source, to="gguf_qwen3", **SETTINGS), tmp_path / "m.gguf")
    request = Request([tmp_path / "m.gguf"], to="qwen3", dtype="float16", check=False)
    convert(load_program("gguf_qwen3"), request, tmp_path / "back.pth")
    source = open_checkpoint(CASE.request.source[0])
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert image(back) == image({name: loaded(source.tensors[name]) for name in back})
    assert source.tensors.keys() - back.keys() == set()


def test_the_rotary_divisors_of_llama_3(tmp_path: Path) -> None:
    """rope_freqs.weight against the formula that Transformers applies to the inverse frequencies."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    program = load_program("torchtitan_llama")
    made = synthetic(program, finite=True)
    request = Request([made.save(tmp_path, "*.pt")], assigned=made.arguments, to="gguf", check=False)
    convert(program, request, tmp_path / "m.gguf")
    divisors = next(t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight").data
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    config = LlamaConfig(hidden_size=64, num_attention_heads=8, head_dim=8, max_position_embeddings=131072,
                         rope_theta=500000.0, rope_scaling=scaling)  # fmt: skip
    wanted = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    plain = 1.0 / 500000.0 ** (torch.arange(0, 8, 2).float() / 8)
    torch.testing.assert_close(torch.tensor(divisors), plain / wanted, rtol=1e-5, atol=0)
    assert not math.isclose(float(divisors[-1]), 1.0)

    settings = {"rope_freq_base": 500000.0, "attention_head_count": 8, "context_length": 64}
    for factor, fits in ((8.0, True), (32.0, False)):  # the file does not name its factor, but what it divides by
        back = Request([tmp_path / "m.gguf"], assigned={**settings, "llama3_factor": factor}, check=False)
        if fits:
            assert prepare(load_program("gguf_llama"), back).plan.config["rope_scaling"]["factor"] == factor
            continue
        with pytest.raises(Refusal, match=r"rope_freqs\.weight of the checkpoint is not what .*llama3_factor = 32\.0"):
            prepare(load_program("gguf_llama"), back)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers


def byte_level(pattern: str | None = None, **rest: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "ByteLevel", "use_regex": pattern is None, "add_prefix_space": False}]
    if pattern is not None:
        steps = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}, *steps]
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    return {"model": model, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, **rest}


def framed(before: str, after: str) -> dict[str, Any]:
    def token(text: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": text}}] if text else []

    single = [*token(before), {"Sequence": {"id": "A"}}, *token(after)]
    special = {text: {"ids": [number]} for number, text in enumerate("ab")}
    return {"type": "TemplateProcessing", "single": single, "special_tokens": special}


def values(content: dict[str, Any], rows: int = 4, said: list[str] | None = None, **texts: str) -> dict[str, Any]:
    files = {"tokenizer.json": json.dumps(content)} | {name.replace("_json", ".json"): t for name, t in texts.items()}
    said = [] if said is None else said
    made = tokenizer_values(files, {}, rows, {"bos": [0], "eos": [1]}, said.append)
    return {key.removeprefix("tokenizer.ggml."): value for key, (_, value) in made.items()}


def test_rows_without_a_token_are_unused() -> None:
    found = values(byte_level(SPLIT, added_tokens=[{"id": 2, "content": "ab", "special": True}]))
    assert found["pre"] == "qwen2"
    assert found["tokens"] == ["a", "b", "ab", "[PAD3]"]
    assert found["token_type"] == [1, 1, 3, 5]
    assert found["merges"] == ["a b"]
    assert (found["add_bos_token"], found["bos_token_id"], found["eos_token_id"]) == (False, 0, 1)


def test_tokens_around_a_text() -> None:
    """The post-processor decides, as it does for Transformers 5; what tokenizer_config.json states otherwise is reported."""
    content = byte_level(post_processor={"type": "Sequence", "processors": [{"type": "ByteLevel"}, framed("a", "")]})
    assert (values(content)["add_bos_token"], values(content)["add_eos_token"]) == (True, False)
    settings = json.dumps({"add_bos_token": False, "chat_template": [{"name": "default", "template": "{{ 1 }}"}]})
    said: list[str] = []
    found = values(content, said=said, tokenizer_config_json=settings)
    assert (found["add_bos_token"], found["tokenizer.chat_template"]) == (True, "{{ 1 }}")
    assert "add_bos_token = false" in said[0]
    found = values(byte_level(post_processor=framed("", "b")))
    assert (found["add_bos_token"], found["add_eos_token"]) == (False, True)
    found = values(byte_level(post_processor=framed("b", "")), said=said)
    assert (found["bos_token_id"], "as its bos token" in said[-1]) == (1, True)


SPLITTER = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated"}
LEVEL = {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}
OTHER_MODEL = {"vocab": {"a": 0, "b": 1, "abc": 2}, "merges": [["a", "b"]], "type": "BPE"}


@pytest.mark.parametrize(
    "content",
    [
        byte_level("[a-z]+"),
        {"model": {"type": "Unigram", "vocab": []}, "pre_tokenizer": {"type": "Metaspace"}},
        byte_level() | {"pre_tokenizer": {"type": "Digits"}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}},
        byte_level(normalizer={"type": "Lowercase"}),
        byte_level(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}),
        byte_level() | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        byte_level()
        | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLITTER | {"behavior": "Removed"}, LEVEL]}},
        byte_level() | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLITTER | {"invert": True}, LEVEL]}},
        byte_level() | {"model": OTHER_MODEL | {"end_of_word_suffix": "</w>"}},
        byte_level() | {"model": OTHER_MODEL | {"dropout": 0.1}},
        byte_level() | {"model": OTHER_MODEL | {"ignore_merges": True}},
        byte_level(post_processor=framed("a", "") | {"single": [{"SpecialToken": {"id": "a"}}] * 2}),
        byte_level(post_processor={"type": "RobertaProcessing"}),
        byte_level(added_tokens=[{"id": 9, "content": "<x>"}]),
    ],
)
def test_a_tokenizer_that_the_format_cannot_hold(content: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="unsupported-tokenizer"):
        values(content, rows=12)


def test_a_word_that_no_merge_makes(tmp_path: Path) -> None:
    """With merges alone, a token that they do not make is never met, whichever side takes it for a whole word."""
    assert values(byte_level() | {"model": OTHER_MODEL})["pre"] == "gpt-2"
    same = byte_level(SPLIT) | {"model": byte_level()["model"] | {"ignore_merges": True}}
    assert values(same)["pre"] == "qwen2"
    llama = SPLIT.replace("\\p{N}|", "\\p{N}{1,3}|", 1)
    assert values(byte_level(llama))["pre"] == "llama-bpe"
    with pytest.raises(Refusal, match="do not make the token 'abc'"):
        values(byte_level(llama) | {"model": OTHER_MODEL})
    assert values(byte_level(llama) | {"model": OTHER_MODEL | {"ignore_merges": True}})["pre"] == "llama-bpe"


@pytest.mark.parametrize(
    "change",
    [
        {"vocab": {"a": "0"}},
        {"vocab": {"a": -1}},
        {"vocab": [["a", 0]]},
        {"merges": [1]},
        {"merges": [["a"]]},
    ],
)
def test_a_malformed_vocabulary(change: dict[str, Any]) -> None:
    content = byte_level()
    with pytest.raises(Refusal, match="bad-config"):
        values(content | {"model": content["model"] | change})
    for added in (None, [{"content": "x"}], [{"id": 3}], 5):
        with pytest.raises(Refusal, match="bad-config"):
            values(content | {"added_tokens": added})


def test_what_is_said_of_a_tokenizer() -> None:
    said: list[str] = []
    added = [{"id": 3, "content": "<x>", "lstrip": True}]
    values(byte_level(normalizer={"type": "NFC"}, added_tokens=added), said=said)
    assert ("NFC" in said[0], "<x>" in said[1], len(said)) == (True, True, 2)
    content = json.dumps(byte_level())
    said.clear()
    made = tokenizer_values({"tokenizer.json": content}, {}, 4, {"eos": [1, 2]}, said.append)
    assert made["tokenizer.ggml.eos_token_id"][1] == 1
    assert "left out: 'ab'" in said[0]
    said.clear()
    made = tokenizer_values({"tokenizer.json": content}, {}, 4, {}, said.append)
    assert "tokenizer.ggml.eos_token_id" not in made
    assert "no end-of-text" not in said[0]
    assert "generation may stop at any token" in said[0]
    named = {"tokenizer.json": content, "tokenizer_config.json": '{"eos_token": {"content": "ab"}}'}
    assert tokenizer_values(named, {}, 4, {}, said.append)["tokenizer.ggml.eos_token_id"][1] == 2


def test_a_tokenizer_of_another_model() -> None:
    with pytest.raises(Refusal, match="has the id 2, but the embedding has 2 rows"):
        values(byte_level(), rows=2)


def test_a_sentencepiece_model() -> None:
    """Pieces, scores and kinds are those that the package sentencepiece gives, as the vocabularies' recorder wrote them."""
    models = TESTS / "data" / "vocabularies"
    found = tokenizer_values({}, {"tokenizer.model": models / "bpe.model"}, 2000, {}, lambda _: None)
    assert found["tokenizer.ggml.model"][1] == "llama"
    assert found["tokenizer.ggml.token_type"][1][:3] == [2, 3, 3]  # unknown, and two control tokens
    assert len(found["tokenizer.ggml.scores"][1]) == len(found["tokenizer.ggml.tokens"][1]) == 2000
    assert found["tokenizer.ggml.add_bos_token"][1] is True
    for name in ("folded", "unigram"):  # the runtime fails on a character that the first has no bytes for
        with pytest.raises(Refusal, match="unsupported-tokenizer"):
            tokenizer_values({}, {"tokenizer.model": models / f"{name}.model"}, 2000, {}, lambda _: None)
    content = byte_level() | {"pre_tokenizer": None}
    with pytest.raises(Refusal, match=r"is not made of the tokenizer\.model|is not made of the bpe\.model"):
        tokenizer_values(
            {"tokenizer.json": json.dumps(content)}, {"tokenizer.model": models / "bpe.model"}, 2000, {}, lambda _: None
        )


def test_symbols_of_a_sentencepiece_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime finds symbols in a text as it is. Where it puts spaces before a text, it puts one behind each symbol too,
    as a tokenizer.json does that splits them off first, but not sentencepiece."""
    models = TESTS / "data" / "vocabularies"

    def found(name: str, texts: dict[str, str]) -> list[str]:
        files = {"tokenizer.model": models / name}
        made = tokenizer_values(texts, files, 2000, {}, lambda _: None)["tokenizer.ggml.tokens"][1]
        assert isinstance(made, list)
        return made

    own = [piece for piece in pieces("symbols.model") if piece.kind == USER]
    tokens = found("symbols.model", {})
    assert [text for text in tokens if text.strip(" ") == ""] == ["  ", "    "]
    assert {piece.text.replace("\u2581", " ") for piece in own} <= {*tokens}
    assert any(text.startswith("\u2581") for text in tokens)  # other pieces keep their mark
    with pytest.raises(Refusal, match=r"puts a space behind its symbols, not before: \[UNUSED_1\], \[UNUSED_2\]"):
        found("prefixed.model", {})

    listed = pieces("prefixed.model")
    content: dict[str, Any] = {
        "model": {"type": "BPE", "vocab": {piece.text: n for n, piece in enumerate(listed)}, "merges": []},
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
        "added_tokens": [
            {"id": n, "content": piece.text, "special": False, "normalized": False}
            for n, piece in enumerate(listed) if piece.kind == USER
        ],
    }  # fmt: skip
    with pytest.raises(Refusal, match="not before: \u2581\u2581"):
        found("prefixed.model", {"tokenizer.json": json.dumps(content)})
    whole = read_pieces("", (models / "prefixed.model").read_bytes())
    assert whole is not None
    others = [replace(piece, kind=NORMAL) if piece.text == "\u2581\u2581" else piece for piece in whole.pieces]
    monkeypatch.setattr(gguf_tokenizer, "read_pieces", lambda *_: replace(whole, pieces=tuple(others)))
    assert "[UNUSED_1]" in found("prefixed.model", {"tokenizer.json": json.dumps(content)})
    content["added_tokens"][0]["normalized"] = True
    with pytest.raises(Refusal, match=r"not before: \[UNUSED_1\]"):
        found("prefixed.model", {"tokenizer.json": json.dumps(content)})


def pieces(name: str) -> Sequence[SentencePiece]:
    model = read_pieces(name, (TESTS / "data" / "vocabularies" / name).read_bytes())
    assert model is not None
    return model.pieces


def test_without_a_tokenizer() -> None:
    said: list[str] = []
    found = tokenizer_values({}, {}, 10, {}, said.append)
    assert (found["tokenizer.ggml.model"][1], len(said)) == ("no_vocab", 1)


# ---------------------------------------------------------------------------------------------------------------------
# Values

FIELDS = {"general_architecture": "llama", "context_length": 64, "embedding_length": 8, "block_count": 2}


@pytest.mark.parametrize(
    "change",
    [
        {"context_length": 2**40},
        {"context_length": 64.0},
        {"context_length": -1},
        {"context_length": True},
        {"rope_freq_base": 1e300},
        {"attention_layer_norm_rms_epsilon": 1e-60},
        {"rope_scaling_type": 5},
    ],
)
def test_a_value_that_its_key_cannot_hold(change: dict[str, Any]) -> None:
    assert model_values(FIELDS, "m", "float32")["llama.context_length"][1] == 64
    with pytest.raises(Refusal, match="unwritable-value"):
        model_values(FIELDS | change, "m", "float32")


def test_a_key_that_the_runtime_needs() -> None:
    with pytest.raises(Refusal, match=r"set context_length=VALUE"):
        model_values({n: value for n, value in FIELDS.items() if n != "context_length"}, "m", "float32")


@pytest.mark.parametrize("value", [-1, 2**40, "2", 2.0, [1, None]])
def test_an_id_that_is_none(value: object) -> None:
    assert token_ids({"tokenizer_ggml_eos_token_id": []}) == {"bos": [], "eos": []}
    assert token_ids({"tokenizer_ggml_eos_token_id": [2, 5]})["eos"] == [2, 5]
    with pytest.raises(Refusal, match="unwritable-value"):
        token_ids({"tokenizer_ggml_eos_token_id": value})
