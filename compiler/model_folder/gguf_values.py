"""The key-values of a GGUF file: the model's from the fields of its spec, the tokenizer's from its own files.

Takes the fields of `source.reverse` (underscores in place of dots) and the tokenizer files; returns key -> type and value.
Refuses a tokenizer that the format cannot express. Source: the package gguf 0.19 (constants.py), and of the names of
pre-tokenizers and kinds of tokens the C++ runtime of such files (its file of vocabularies).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compiler.checkpoints.formats.gguf_header import STRING
from compiler.diagnostics import Diagnostic, Refusal, Span, refuse
from compiler.dtypes import BLOCKS
from compiler.output.gguf_layout import BOOL, FLOAT32, INT32, UINT32, Typed
from compiler.resources import gguf_tokenizers_path
from compiler.tokenizer.find import SENTENCEPIECE, TOKENIZER_JSON
from compiler.tokenizer.sentencepiece_model import BPE, read_pieces

# Keys of the model, which begin with the architecture's name in the file.
_KEYS: dict[str, int] = {
    "context_length": UINT32,
    "embedding_length": UINT32,
    "block_count": UINT32,
    "feed_forward_length": UINT32,
    "expert_feed_forward_length": UINT32,
    "expert_count": UINT32,
    "expert_used_count": UINT32,
    "vocab_size": UINT32,
    "attention.head_count": UINT32,
    "attention.head_count_kv": UINT32,
    "attention.key_length": UINT32,
    "attention.value_length": UINT32,
    "attention.layer_norm_rms_epsilon": FLOAT32,
    "attention.layer_norm_epsilon": FLOAT32,
    "attention.sliding_window": UINT32,
    "rope.dimension_count": UINT32,
    "rope.freq_base": FLOAT32,
    "rope.scaling.type": STRING,
    "rope.scaling.factor": FLOAT32,
    "rope.scaling.original_context_length": UINT32,
}
_TOKENS = ("bos", "eos")
_FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}
_QUANTIZATION_VERSION = 2  # of the layouts of blocks
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # kinds of tokens
_LOWEST = -1000.0  # a score


def model_values(fields: Mapping[str, Any], name: str, dtype: str) -> dict[str, Typed]:
    """The key-values that describe the model. `name` is shown to people; `dtype`: of most matrices. Raises Refusal for a field without a key."""
    architecture = fields["general_architecture"]
    values: dict[str, Typed] = {
        "general.architecture": (STRING, architecture),
        "general.type": (STRING, "model"),
        "general.name": (STRING, name),
        "general.file_type": (UINT32, _FILE_TYPES.get(dtype, 0)),
    }
    if dtype in BLOCKS:
        values["general.quantization_version"] = (UINT32, _QUANTIZATION_VERSION)
    keys = {key.replace(".", "_"): key for key in _KEYS}
    for field, value in fields.items():
        if field in keys:
            key = keys[field]
            values[f"{architecture}.{key}"] = (_KEYS[key], value)
        elif field != "general_architecture" and not field.startswith("tokenizer_"):
            refuse("general.architecture", f"a GGUF file has no key for {field!r}", "unconverted-field")
    for role in _TOKENS:
        token = fields.get(f"tokenizer_ggml_{role}_token_id")
        token = token[0] if isinstance(token, list) else token
        if token is not None:
            values[f"tokenizer.ggml.{role}_token_id"] = (UINT32, token)
    return values


def tokenizer_values(
    texts: Mapping[str, str], copies: Mapping[str, Path], rows: int, say: Callable[[str], None]
) -> dict[str, Typed]:
    """The key-values of the tokenizer in these files. `rows`: of the embedding; tokens that it has beyond the vocabulary are
    unused ones. Raises Refusal: `unsupported-tokenizer`."""

    def read(name: str) -> dict[str, Any]:
        text = texts.get(name) or (copies[name].read_text(encoding="utf-8") if name in copies else "{}")
        content: dict[str, Any] = json.loads(text)
        return content

    settings, content = read("tokenizer_config.json"), read(TOKENIZER_JSON)
    if SENTENCEPIECE in copies and content.get("pre_tokenizer") is None:
        values = _pieces(copies[SENTENCEPIECE], content, rows)
    elif content:
        values = _merges(copies.get(TOKENIZER_JSON, Path(TOKENIZER_JSON)), content, rows)
    else:
        say("there is no tokenizer next to the source: the GGUF file has none, and only takes ids")
        return {"tokenizer.ggml.model": (STRING, _names("models")["none"])}
    begins = settings.get("add_bos_token")
    if begins is None:
        begins = _begins(content.get("post_processor") or {})
    values["tokenizer.ggml.add_bos_token"] = (BOOL, bool(begins))
    template = texts.get("chat_template.jinja") or settings.get("chat_template")
    if template is None and "chat_template.jinja" in copies:
        template = copies["chat_template.jinja"].read_text(encoding="utf-8")
    if isinstance(template, str):
        values["tokenizer.chat_template"] = (STRING, template)
    return values


def _names(table: str) -> dict[str, str]:
    names: dict[str, str] = json.loads(gguf_tokenizers_path().read_text(encoding="utf-8"))[table]
    return names


def _merges(path: Path, content: Mapping[str, Any], rows: int) -> dict[str, Typed]:
    """Of byte-level BPE."""
    model = content.get("model") or {}
    steps = _steps(content.get("pre_tokenizer") or {})
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    splits = [step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Split"]
    own = [""] * any(step.get("use_regex", True) for step in levels)
    patterns, names = [*splits, *own], _names("splits")
    plain = model.get("type") == "BPE" and len(levels) + len(splits) == len(steps) and bool(levels)
    if not plain or len(patterns) != 1 or patterns[0] not in names:
        reason = "a GGUF file can hold byte-level BPE with a known way to split a text, or a sentencepiece model"
        hint = "a tokenizer.model next to the source is used if tokenizer.json is made of it"
        raise Refusal([Diagnostic(Span(str(path)), reason, "unsupported-tokenizer", hint)])
    tokens = {number: text for text, number in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, _NORMAL)
    _add(tokens, kinds, content)
    texts, types = _listed(path, tokens, kinds, rows)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "tokenizer.ggml.model": (STRING, _names("models")["merges"]),
        "tokenizer.ggml.pre": (STRING, names[patterns[0]]),
        "tokenizer.ggml.tokens": (STRING, texts),
        "tokenizer.ggml.token_type": (INT32, types),
        "tokenizer.ggml.merges": (STRING, merges),
    }


def _pieces(path: Path, content: Mapping[str, Any], rows: int) -> dict[str, Typed]:
    """Of a sentencepiece model of BPE; the kinds of its pieces have the same numbers in both formats."""
    model = read_pieces(str(path), path.read_bytes())
    if model is None or model.model != BPE:
        raise Refusal([Diagnostic(Span(str(path)), "it is not a sentencepiece model of BPE", "unsupported-tokenizer")])
    tokens = {number: piece.text for number, piece in enumerate(model.pieces)}
    kinds = {number: piece.kind for number, piece in enumerate(model.pieces)}
    _add(tokens, kinds, content)
    texts, types = _listed(path, tokens, kinds, rows)
    scores = [piece.score for piece in model.pieces] + [_LOWEST] * (len(texts) - len(model.pieces))
    return {
        "tokenizer.ggml.model": (STRING, _names("models")["pieces"]),
        "tokenizer.ggml.pre": (STRING, "default"),
        "tokenizer.ggml.tokens": (STRING, texts),
        "tokenizer.ggml.scores": (FLOAT32, scores),
        "tokenizer.ggml.token_type": (INT32, types),
        "tokenizer.ggml.add_space_prefix": (BOOL, model.prefix),
    }


def _steps(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pre-tokenizers of tokenizer.json in their order."""
    if node.get("type") == "Sequence":
        return [step for part in node.get("pretokenizers") or () for step in _steps(part)]
    return [node] if node else []


def _begins(node: Mapping[str, Any]) -> bool:
    """Whether the post-processor of tokenizer.json puts a special token before a text."""
    if node.get("type") == "Sequence":
        return any(_begins(part) for part in node.get("processors") or ())
    single = node.get("single") if node.get("type") == "TemplateProcessing" else None
    return bool(single and "SpecialToken" in single[0])


def _add(tokens: dict[int, str], kinds: dict[int, int], content: Mapping[str, Any]) -> None:
    """The added tokens of tokenizer.json, where the vocabulary does not have them in another role."""
    for token in content.get("added_tokens") or ():
        number = token["id"]
        if kinds.get(number, _NORMAL) == _NORMAL:
            kinds[number] = _CONTROL if token.get("special") else _USER
        tokens[number] = token["content"]


def _listed(path: Path, tokens: Mapping[int, str], kinds: Mapping[int, int], rows: int) -> tuple[list[str], list[int]]:
    """The texts and kinds of all rows of the embedding. Raises Refusal for a token without a row."""
    if beyond := [number for number in tokens if number >= rows]:
        message = f"the token {tokens[beyond[0]]!r} has the id {beyond[0]}, but the embedding has {rows} rows"
        raise Refusal(
            [Diagnostic(Span(str(path)), message, "unsupported-tokenizer", "this is the tokenizer of another model")]
        )
    texts = [tokens.get(number, f"[PAD{number}]") for number in range(rows)]
    return texts, [kinds.get(number, _UNUSED) for number in range(rows)]
