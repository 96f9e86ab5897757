"""The tokenizer as key-values of a GGUF file, from a folder's own files.

Takes the tokenizer files and the ids of the model's special tokens; returns key -> type and value. The runtime of such
files has no normalizer, no flags of added tokens and a fixed set of ways to split a text, so a tokenizer that needs more
would give other ids there: it is refused, or reported where the difference is small. Raises Refusal:
`unsupported-tokenizer`, `bad-config`.

Source: the C++ runtime of such files (its file of vocabularies, October 2026), for what it does with each value, and the
package tokenizers 0.23, for how it numbers added tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from compiler.checkpoints.formats.gguf_header import STRING
from compiler.diagnostics import listed, refuse
from compiler.output.gguf_layout import BOOL, FLOAT32, INT32, UINT32, Typed
from compiler.resources import gguf_tokenizers_path
from compiler.tokenizer.bpe_merges import unreachable
from compiler.tokenizer.find import SENTENCEPIECE, TOKENIZER_JSON
from compiler.tokenizer.sentencepiece_model import BPE, SentencePieceModel, read_pieces
from compiler.tokenizer.tokenizer_json import content as text_of
from compiler.tokenizer.tokenizer_json import json_object

Say = Callable[[str], None]
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # kinds of tokens
_LOWEST = -1000.0  # a score
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space in a piece
_ROLES = ("bos", "eos")


@dataclass(frozen=True)
class _Added:
    """An added token of tokenizer.json; `flags`: what it does beside being matched as it is."""

    number: int
    text: str
    special: bool
    flags: tuple[str, ...]


@dataclass(frozen=True)
class _TokenizerJson:
    """A tokenizer.json whose parts have the types that they must have."""

    path: Path
    fields: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    merges: Sequence[tuple[str, str]] = ()
    added: Sequence[_Added] = ()

    def refuse(self, reason: str, hint: str | None = None) -> NoReturn:
        hint = hint or "leave the tokenizer out (--tokenizer takes another), or change tokenizer.json"
        refuse(str(self.path), f"a GGUF file cannot hold this tokenizer: {reason}", "unsupported-tokenizer", hint)


def tokenizer_values(
    texts: Mapping[str, str], copies: Mapping[str, Path], rows: int, ids: Mapping[str, Sequence[int]], say: Say
) -> dict[str, Typed]:
    """The key-values of the tokenizer in these files. `rows`: of the embedding; those without a token are unused tokens.
    `ids`: role (bos, eos) -> the ids that the model's config has."""

    def read(name: str) -> tuple[Path, dict[str, Any]]:
        path = copies.get(name, Path(name))
        data = texts[name].encode() if name in texts else path.read_bytes() if name in copies else b"{}"
        return path, json_object(path, data)

    _, settings = read("tokenizer_config.json")
    content = _checked(*read(TOKENIZER_JSON))
    if SENTENCEPIECE in copies and content.fields.get("pre_tokenizer") is None:
        values = _pieces(copies[SENTENCEPIECE], content, rows)
    elif content.fields:
        values = _merges(content, rows, say)
    else:
        say("there is no tokenizer next to the source: the GGUF file has none, and only takes ids")
        return {"tokenizer.ggml.model": (STRING, _names("models")["none"]), **_role_ids(ids)}
    flagged = [token.text for token in content.added if token.flags]
    if flagged:
        say(f"a GGUF file has no flags of added tokens (lstrip, rstrip, single_word), so {listed(flagged, 4)} may take "
            "other spaces or parts of words")  # fmt: skip
    tokens: list[str] = values["tokenizer.ggml.tokens"][1]
    if content.fields:
        values |= _surroundings(content, settings, tokens, ids, say)
    else:  # what a sentencepiece model of this kind does without a tokenizer.json
        begins, ends = settings.get("add_bos_token"), settings.get("add_eos_token")
        values["tokenizer.ggml.add_bos_token"] = (BOOL, begins is not False)
        values["tokenizer.ggml.add_eos_token"] = (BOOL, bool(ends))
        values |= _role_ids(_known_ids(ids, settings, tokens, say))
    template = _template(texts, copies, settings)
    if template is not None:
        values["tokenizer.chat_template"] = (STRING, template)
    return values


def _template(texts: Mapping[str, str], copies: Mapping[str, Path], settings: Mapping[str, Any]) -> str | None:
    template = texts.get("chat_template.jinja")
    if template is None and "chat_template.jinja" in copies:
        template = copies["chat_template.jinja"].read_text(encoding="utf-8")
    template = template or settings.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _names(table: str) -> Any:
    return json.loads(gguf_tokenizers_path().read_text(encoding="utf-8"))[table]


# ---------------------------------------------------------------------------------------------------------------------
# tokenizer.json


def _checked(path: Path, fields: Mapping[str, Any]) -> _TokenizerJson:
    """The parts of a tokenizer.json. Raises Refusal if one is not what it must be."""
    content = _TokenizerJson(path, fields)
    if not fields:
        return content
    model = fields.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        content.refuse(
            f"its model is {kind}, not BPE", "a sentencepiece model (tokenizer.model) of BPE can be held too"
        )
    try:
        vocabulary, merges = model["vocab"], [_pair(one) for one in model["merges"]]
        added = [_added(token) for token in fields.get("added_tokens", [])]
        numbers = [*vocabulary.values(), *(token.number for token in added)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError
        if not all(
            isinstance(fields.get(name), dict | None) for name in ("normalizer", "pre_tokenizer", "post_processor")
        ):
            raise TypeError
    except (AttributeError, TypeError, KeyError, ValueError):
        refuse(str(path), "its vocabulary or its added tokens are malformed", "bad-config", "copy the file again")
    content = replace(content, model=model, vocabulary=vocabulary, merges=merges, added=added)
    next_number = len(vocabulary)
    for token in added:  # tokenizers numbers them by itself
        number = vocabulary.get(token.text, next_number)
        if number != token.number:
            content.refuse(f"it states the id {token.number} for {token.text!r}, but tokenizers gives it {number}")
        next_number = max(next_number, number + 1)
    return content


def _pair(one: Any) -> tuple[str, str]:
    left, right = one.split(" ") if isinstance(one, str) else one
    if not isinstance(left, str) or not isinstance(right, str):
        raise TypeError
    return left, right


def _added(token: Mapping[str, Any]) -> _Added:
    if not isinstance(token["content"], str):
        raise TypeError
    flags = tuple(flag for flag in ("lstrip", "rstrip", "single_word") if token.get(flag))
    return _Added(token["id"], token["content"], bool(token.get("special")), flags)


def _steps(node: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    """The steps of a part of tokenizer.json in their order; `parts`: the key of a sequence's own."""
    if node and node.get("type") == "Sequence":
        inner = node.get(parts)
        return [step for part in inner if isinstance(part, dict) for step in _steps(part, parts)] if inner else []
    return [node] if node else []


# ---------------------------------------------------------------------------------------------------------------------
# Byte-level BPE


def _merges(content: _TokenizerJson, rows: int, say: Say) -> dict[str, Typed]:
    name = _split_name(content)
    normalizers = {str(step.get("type")) for step in _steps(content.fields.get("normalizer"), "normalizers")}
    if normalizers == {"NFC"}:
        say("the tokenizer normalizes a text to NFC, and the runtime of GGUF files does not: other texts get other ids")
    elif normalizers:
        content.refuse(f"it normalizes a text with {listed(sorted(normalizers))}")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if content.model.get(key):
            content.refuse(f"its model has {key} = {content.model[key]!r}")
    whole = name in _names("whole_words")  # where a word that is a token is not split
    if bool(content.model.get("ignore_merges")) != whole:
        lost = unreachable(content.vocabulary, content.merges, {token.text for token in content.added})
        if lost is not None:
            other = "does" if whole else "does not"
            content.refuse(
                f"its merges do not make the token {lost!r}, and the runtime {other} take it for a whole word"
            )
    tokens, kinds = _with_added({n: text for text, n in content.vocabulary.items()}, {}, content)
    texts, types = _listed(content.path, tokens, kinds, rows)
    return {
        "tokenizer.ggml.model": (STRING, _names("models")["merges"]),
        "tokenizer.ggml.pre": (STRING, name),
        "tokenizer.ggml.tokens": (STRING, texts),
        "tokenizer.ggml.token_type": (INT32, types),
        "tokenizer.ggml.merges": (STRING, [" ".join(pair) for pair in content.merges]),
    }


def _split_name(content: _TokenizerJson) -> str:
    """The word for the way in which a text is split. An empty pattern is the one of GPT-2."""
    steps = _steps(content.fields.get("pre_tokenizer"), "pretokenizers")
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    splits = [step for step in steps if step.get("type") == "Split"]
    patterns = [step["pattern"].get("Regex") for step in splits if isinstance(step.get("pattern"), dict)]
    patterns += [""] * any(step.get("use_regex", True) for step in levels)
    names: dict[str, str] = _names("splits")
    if not levels or len(levels) + len(splits) < len(steps) or len(patterns) != 1 or patterns[0] not in names:
        hint = "a tokenizer.model next to the source is used if tokenizer.json is made of it"
        content.refuse("it is no byte-level BPE with a known way to split a text", hint)
    if any(step.get("behavior") != "Isolated" or step.get("invert") for step in splits):
        content.refuse("its pattern does not split a text into the words that it matches")
    if any(step.get("add_prefix_space", True) for step in levels):
        content.refuse("it puts a space before a text")
    return names[patterns[0]]


# ---------------------------------------------------------------------------------------------------------------------
# A sentencepiece model


def _pieces(path: Path, content: _TokenizerJson, rows: int) -> dict[str, Typed]:
    """Of BPE; the kinds of its pieces have the same numbers in both formats."""
    model = read_pieces(str(path), path.read_bytes())
    if model is None or model.model != BPE:
        refuse(str(path), "it is not a sentencepiece model of BPE", "unsupported-tokenizer")
    for wrong, what in _beyond(model):
        if wrong:
            message = f"a GGUF file cannot hold this tokenizer: {what}"
            refuse(str(path), message, "unsupported-tokenizer", "pass another with --tokenizer")
    numbers = {piece.text: number for number, piece in enumerate(model.pieces)}
    if content.fields and numbers != {text: n for text, n in content.vocabulary.items() if n < len(numbers)}:
        content.refuse(f"it is not made of the {path.name} beside it", "remove the one that is not the model's")
    normalizers = {str(step.get("type")) for step in _steps(content.fields.get("normalizer"), "normalizers")}
    if others := sorted(normalizers - {"Prepend", "Replace"}):
        content.refuse(f"it normalizes a text with {listed(others)}, which {path.name} does not")
    symbols = [piece.text for piece in model.pieces if piece.kind == _USER]
    if model.prefix and (lost := [text for text in symbols if not _stands_apart(text, content)]):
        message = f"a GGUF file cannot hold this tokenizer: the runtime puts a space behind its symbols, not before: {listed(lost, 4)}"
        refuse(str(path), message, "unsupported-tokenizer", "pass another with --tokenizer")
    tokens = {n: _as_matched(piece.text, piece.kind) for n, piece in enumerate(model.pieces)}
    tokens, kinds = _with_added(tokens, {n: piece.kind for n, piece in enumerate(model.pieces)}, content)
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


def _stands_apart(symbol: str, content: _TokenizerJson) -> bool:
    """Whether tokenizer.json splits a symbol off before it puts a space before each rest, which is what the runtime does;
    sentencepiece puts one space before a text. A symbol with spaces would be compared with other texts."""
    normalizers = {step.get("type") for step in _steps(content.fields.get("normalizer"), "normalizers")}
    added = [token for token in content.fields.get("added_tokens", []) if token["content"] == symbol]
    return "Prepend" in normalizers and _SPACE not in symbol and bool(added) and not added[0].get("normalized", True)


def _as_matched(text: str, kind: int) -> str:
    """The text of a piece; of a symbol, which the runtime finds in a text and writes as it is, with real spaces."""
    return text.replace(_SPACE, " ") if kind == _USER else text


def _beyond(model: SentencePieceModel) -> Iterator[tuple[bool, str]]:
    """What the runtime does not do: whether the model does it, and what it is."""
    yield bool(model.charsmap), "it normalizes a text"
    yield model.shrink, "it folds spaces"
    yield model.suffix, "it puts the space behind a word"
    yield not model.escape, "it leaves spaces as they are"
    yield not model.fallback, "it does not spell unknown characters in bytes"


# ---------------------------------------------------------------------------------------------------------------------
# Special tokens


def _surroundings(
    content: _TokenizerJson,
    settings: Mapping[str, Any],
    tokens: Sequence[str],
    ids: Mapping[str, Sequence[int]],
    say: Say,
) -> dict[str, Typed]:
    """The special tokens, and whether they are put around a text. The post-processor decides; a tokenizer_config.json that
    states something else is reported."""
    before, after = _frame(content)
    known = {role: [*numbers] for role, numbers in _known_ids(ids, settings, tokens, say).items()}
    for role, found, place in (("bos", before, "before"), ("eos", after, "behind")):
        if len(found) > 1:
            content.refuse(f"it puts several tokens {place} a text")
        if found and found[0] not in known.get(role, found):
            say(f"the tokenizer puts {tokens[found[0]]!r} {place} a text: the GGUF file has it as its {role} token")
        if found:
            known[role] = found
        stated = settings.get(f"add_{role}_token")
        if isinstance(stated, bool) and stated != bool(found):
            what = "it" if found else "nothing"
            say(f"tokenizer_config.json has add_{role}_token = {json.dumps(stated)}, but tokenizer.json puts {what} {place} a "
                "text, which decides")  # fmt: skip
    values = {
        "tokenizer.ggml.add_bos_token": (BOOL, bool(before)),
        "tokenizer.ggml.add_eos_token": (BOOL, bool(after)),
    }
    return values | _role_ids(known)


def _frame(content: _TokenizerJson) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and behind a text."""
    before: list[int] = []
    after: list[int] = []
    for step in _steps(content.fields.get("post_processor"), "processors"):
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") != "TemplateProcessing":
            content.refuse(f"its post-processor is {step.get('type')}")
        try:
            behind = False
            for part in step["single"]:
                if "Sequence" in part:
                    behind = True
                else:
                    numbers = step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
                    (after if behind else before).extend(int(number) for number in numbers)
        except (KeyError, TypeError, ValueError):
            refuse(str(content.path), "its post-processor is malformed", "bad-config", "copy the file again")
    return before, after


def _known_ids(
    ids: Mapping[str, Sequence[int]], settings: Mapping[str, Any], tokens: Sequence[str], say: Say
) -> dict[str, Sequence[int]]:
    """The ids by role: those of the config, else those of the tokens that tokenizer_config.json names."""
    numbers = {text: number for number, text in enumerate(tokens)}
    known: dict[str, Sequence[int]] = {}
    for role in _ROLES:
        named = numbers.get(text_of(settings.get(f"{role}_token")))
        if found := list(ids.get(role, ())) or ([] if named is None else [named]):
            known[role] = found
            if found[0] >= len(tokens):
                say(f"the {role} token {found[0]} has no row: the runtime of GGUF files takes another one")
            if len(found) > 1:
                more = listed(f"{tokens[n]!r}" for n in found[1:] if n < len(tokens))
                say(f"a GGUF file has one {role} token, {tokens[found[0]]!r}; left out: {more}")
        elif role == "eos":
            say("neither the config nor the tokenizer has an end-of-text token, and the runtime of GGUF files takes one "
                "of its own: generation may stop at any token")  # fmt: skip
    return known


def _role_ids(ids: Mapping[str, Sequence[int]]) -> dict[str, Typed]:
    return {f"tokenizer.ggml.{role}_token_id": (UINT32, numbers[0]) for role, numbers in ids.items() if numbers}


def _with_added(
    tokens: dict[int, str], kinds: dict[int, int], content: _TokenizerJson
) -> tuple[dict[int, str], dict[int, int]]:
    """Tokens and kinds with the added tokens, where the vocabulary does not have them in another role."""
    kinds = dict.fromkeys(tokens, _NORMAL) | kinds
    for token in content.added:
        if kinds.get(token.number, _NORMAL) == _NORMAL:
            kinds[token.number] = _CONTROL if token.special else _USER
    return tokens | {token.number: token.text for token in content.added}, kinds


def _listed(path: Path, tokens: Mapping[int, str], kinds: Mapping[int, int], rows: int) -> tuple[list[str], list[int]]:
    """The texts and kinds of all rows of the embedding. Raises Refusal for a token without a row."""
    if beyond := [number for number in tokens if number >= rows]:
        message = f"the token {tokens[beyond[0]]!r} has the id {beyond[0]}, but the embedding has {rows} rows"
        refuse(str(path), message, "unsupported-tokenizer", "this is the tokenizer of another model")
    texts = [tokens.get(number, f"[PAD{number}]") for number in range(rows)]
    return texts, [kinds.get(number, _UNUSED) for number in range(rows)]
