"""The values a run is given, from the weakest word to the strongest: the checkpoint itself, a config file, `--set`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from compiler import dialects, document, target
from compiler.diagnostics import Diagnostic, Span, listed, refuse
from compiler.environment import Given
from compiler.program import Program

MOST_BYTES = 16 << 20  # of a config; the largest known have a few hundred thousand
# Where trainers put the arguments of their model beside the weights.
OBJECTS = ("model_args", "model_config", "config", "cfg", "hparams", "hyper_parameters", "params", "dims", "args")
# Where a config file keeps them, whose other fields are those of the training.
HOLDERS = ("model", "kwargs", *OBJECTS)
# What every config of Transformers carries and no conversion reads.
BAGGAGE = frozenset(
    [
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
    ]
)


@dataclass(frozen=True)
class Settings:
    """`given` values by name, `unread` fields of the config that the spec does not know, `notes` to print.

    `stated`: the fields of a config of the target's own kind, which what is written must not contradict.
    """

    given: Mapping[str, Given]
    unread: tuple[str, ...]
    notes: tuple[str, ...]
    stated: Mapping[str, Given]


def gather(
    program: Program, source: Path, objects: Mapping[str, object], config: Path | None, assigned: Mapping[str, Any]
) -> Settings:
    """Everything that is said about a source's arguments. Raises Refusal for a config that cannot be read."""
    known = {*program.spec.arguments, *program.spec.facts}
    given: dict[str, Given] = {}
    notes: list[str] = []
    plain = {n: v for n, v in objects.items() if n in known and isinstance(v, bool | int | float | str)}
    given |= {n: Given(v, "the checkpoint") for n, v in plain.items()}
    for key in reversed(OBJECTS):
        found = objects.get(key)
        if isinstance(found, Mapping):
            given |= {
                n: Given(v, f"the checkpoint's {key!r}") for n, v in dialects.read_config(found).items() if n in known
            }
    unread: tuple[str, ...] = ()
    stated: dict[str, Given] = {}
    path = config or beside(source, program.spec.source_config)
    if path is not None:
        whole = read_config_file(path)
        held = _held(whole, known)
        fields = dialects.read_config(whole | held)
        if fields.get("use_sliding_window") is False:
            fields["sliding_window"] = None  # a width that no layer uses
        if config is None:
            notes.append(f"read {path.name} beside the weights")
        if _of_the_target(program, held):
            stated = {f.name: Given(fields[f.name], path.name) for f in program.spec.config if f.name in fields}
            carried = {f.carried: stated[f.name] for f in program.spec.config if f.carried and f.name in stated}
            given |= {n: value for n, value in carried.items() if n not in fields}
        given |= {n: Given(v, path.name) for n, v in fields.items() if n in known}
        read = known | BAGGAGE | stated.keys() | {"rope_parameters"}
        read |= set(dialects.EXPERTS) if known & set(dialects.EXPERTS) else set()
        unread = tuple(n for n, v in held.items() if n not in read and v not in (None, [], {}, ""))
        heard = any(fields[n] is not None for n in known & fields.keys())
        if config is not None and program.spec.arguments and not (stated or heard):
            names = listed(program.spec.arguments, 12)
            refuse(
                str(path),
                f"none of its fields means anything to {program.spec.name.value}",
                "unread-config",
                f"the spec reads {names}",
            )
    given |= {n: Given(v, "--set") for n, v in assigned.items()}
    return Settings(given, unread, tuple(notes), {n: value for n, value in stated.items() if n not in assigned})


def _held(whole: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """The part of a config that tells most of the model: the whole, or a mapping in it."""
    parts = [whole, *(part for key in HOLDERS if isinstance(part := whole.get(key), dict))]
    return max(parts, key=lambda part: len(known & part.keys()))


def _of_the_target(program: Program, config: Mapping[str, Any]) -> bool:
    """Whether it is a config of the target's class, which may lie beside a source that has none of its own."""
    model = program.spec.target.model
    return model is not None and "model_type" in config and config["model_type"] == target.model_type(model.value)


def contradictions(program: Program, stated: Mapping[str, Given], written: Mapping[str, Any]) -> list[Diagnostic]:
    """The fields that a config of the target's own kind states and the conversion would write otherwise."""
    fixed = {f.name for f in program.spec.config if f.expr is None}
    return [
        Diagnostic(
            Span(value.origin),
            f"{name} is {value.value!r} here, and {written[name]!r} is what would be written",
            "config-mismatch",
            "the spec writes nothing else: its rules are for models that have it so"
            if name in fixed
            else "an argument of the spec decides it: give it with --set",
        )
        for name, value in stated.items()
        if value.value != written[name] and (value.value is not None or isinstance(written[name], dict))
    ]


def rowless(written: Mapping[str, Any]) -> list[Diagnostic]:
    """The padding token, where the embedding has no row for it: the class could not be built."""
    rows, token = written.get("vocab_size"), written.get("pad_token_id")
    if not isinstance(rows, int) or not isinstance(token, int) or token < rows:
        return []
    text = f"pad_token_id is {token}, and the vocabulary has {rows} rows"
    return [Diagnostic(Span("config.json"), text, "config-mismatch", "give it with --set pad_token_id=VALUE, or null")]


def beside(source: Path, name: str) -> Path | None:
    """The config file that lies in the source's folder under the name that the spec gives."""
    if not name:
        return None
    folder = source if source.is_dir() else source.parent
    found = sorted(folder.glob(name))
    return found[0] if found else None


def read_config_file(path: Path) -> dict[str, Any]:
    """The fields of a config: JSON (Transformers' config.json, Meta's params.json) or YAML. Raises Refusal."""
    if os.path.isdir(path) and (path / "config.json").is_file():
        path = path / "config.json"
    name = str(path)
    stamp = path.stat() if os.path.isfile(path) else None
    fields = _fields(path, stamp and (stamp.st_ino, stamp.st_size, stamp.st_mtime_ns))
    if not isinstance(fields, dict):
        refuse(name, f"a config is a mapping of fields, here is {type(fields).__name__}", "bad-config")
    classes = fields.get("auto_map")
    for value in classes.values() if isinstance(classes, dict) else [classes]:
        if any(part in str(value) for part in ("/", "\\", "..", "--")):  # -- stands after another repository's name
            refuse(
                name,
                f"auto_map points outside the folder: {value!r}",
                "bad-config",
                "this config is an attack or damaged",
            )
    return dict(fields)


@lru_cache(8)  # a choice among specs reads one config for each
def _fields(path: Path, stamp: object) -> Any:
    """What a file says that has this stamp: its place, its size and the time of its last change."""
    if path.suffix in (".yaml", ".yml"):
        return document.plain(document.read_document(path))
    return _json(path)


def _json(path: Path) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for key, value in found:
            if key in fields:
                refuse(str(path), f"the key {key!r} stands twice", "duplicate-key")
            fields[key] = value
        return fields

    def constant(text: str) -> NoReturn:
        refuse(str(path), f"{text} is not a number that JSON has", "not-finite")

    def number(text: str) -> float:
        return float(text) if math.isfinite(float(text)) else constant(text)

    try:
        if not path.is_file() and path.exists():
            refuse(str(path), "it is no file", "unreadable-file")
        if path.stat().st_size > MOST_BYTES:
            refuse(str(path), f"a config of more than {MOST_BYTES:,} bytes", "bad-config", "this is some other file")
        text = path.read_text(encoding="utf-8-sig")
        fields = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
        if not _shallow(fields):
            refuse(str(path), f"nested deeper than {document.MAX_DEPTH} levels", "bad-config")
        return fields
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if error.lineno <= len(text.splitlines()) else ""
        refuse(Span(str(path), error.lineno, error.colno, 1, line), f"not JSON: {error.msg}", "json-syntax")
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        refuse(str(path), f"not JSON: {error}", "json-syntax")
    except OSError as error:
        refuse(str(path), f"cannot be read: {error.strerror}", "unreadable-file")


def _shallow(value: Any) -> bool:
    """Whether a value is nested no deeper than a document may be, so that whoever shows it comes to an end."""
    level = [value]
    for _ in range(document.MAX_DEPTH):
        level = [item for held in level if isinstance(held, dict | list) for item in
                 (held.values() if isinstance(held, dict) else held)]  # fmt: skip
    return not level


def parse_assignments(texts: list[str]) -> dict[str, Any]:
    """`--set NAME=VALUE`: the value is read as YAML 1.2 or JSON. Raises Refusal."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            refuse("--set", f"{text!r} assigns nothing", "wrong-usage", "write NAME=VALUE")
        if name.strip() in found:
            refuse("--set", f"{name.strip()!r} is set twice", "wrong-usage")
        found[name.strip()] = document.plain(document.read_document("--set", value)) if value.strip() else None
    return found
