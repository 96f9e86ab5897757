"""The arguments of a run and where each comes from. In order of precedence, lowest first: the checkpoint itself, a
config file, `--set`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.checkpoints.config_file import beside, read_config_file
from compiler.diagnostics import Diagnostic, Span, listed, refuse
from compiler.program.environment import Given
from compiler.program.program import Program
from compiler.target import config_dialects, model_class

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
                n: Given(v, f"the checkpoint's {key!r}")
                for n, v in config_dialects.read_config(found).items()
                if n in known
            }
    unread: tuple[str, ...] = ()
    stated: dict[str, Given] = {}
    path = config or beside(source, program.spec.source_config)
    if path is not None:
        whole = read_config_file(path)
        held = model_part(whole, known)
        fields = config_dialects.read_config(whole | held)
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
        read |= set(config_dialects.EXPERTS) if known & set(config_dialects.EXPERTS) else set()
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


def model_part(whole: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The part of a config that describes the model: the mapping with most of the known fields, or the whole."""
    parts = [whole, *(part for key in HOLDERS if isinstance(part := whole.get(key), dict))]
    return max(parts, key=lambda part: len(part.keys() & {*known}))


def _of_the_target(program: Program, config: Mapping[str, Any]) -> bool:
    """Whether it is a config of the target's class, which may lie beside a source that has none of its own."""
    model = program.spec.target.model
    return model is not None and "model_type" in config and config["model_type"] == model_class.model_type(model.value)


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
