"""The values of a spec's arguments, and where each comes from.

In order of precedence, the lowest first: the default, the checkpoint itself, a config file, `--set`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.checkpoints.config_file import beside, read_config_file
from compiler.diagnostics import Diagnostic, Span, listed, refuse
from compiler.plan.notes import ChangedConstants, ConfigNextToWeights, Note
from compiler.program.environment import Given, Origin
from compiler.program.program import Program
from compiler.target import config_dialects, model_class

# Keys under which trainers store the model's arguments in the same file as the weights.
OBJECTS = ("model_args", "model_config", "config", "cfg", "hparams", "hyper_parameters", "params", "dims", "args")
# Keys of a config file that hold the model's fields, where the other fields are about training.
HOLDERS = ("model", "kwargs", *OBJECTS)
# Fields that every config of Transformers has and no conversion reads.
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
    """`given`: values by name. `unread`: fields of the config that the spec does not read. `stated`: if the config is of
    the target's own model type, its fields, which the written config must not contradict.
    """

    given: Mapping[str, Given]
    unread: tuple[str, ...]
    notes: tuple[Note, ...]
    stated: Mapping[str, Given]


def gather(
    program: Program, source: Path, objects: Mapping[str, object], config: Path | None, assigned: Mapping[str, Any]
) -> Settings:
    """Collect the values of a source's arguments. Raises Refusal for a config that cannot be read or used."""
    known = {*program.spec.arguments, *program.spec.facts}
    given: dict[str, Given] = {}
    notes: list[Note] = []
    plain = {n: v for n, v in objects.items() if n in known and isinstance(v, bool | int | float | str)}
    given |= {n: Given(v, "the checkpoint", Origin.CHECKPOINT) for n, v in plain.items()}
    for key, values in _stored_arguments(objects):
        place = f"the checkpoint's {key!r}"
        given |= {n: Given(v, place, Origin.CHECKPOINT) for n, v in values.items() if n in known}
    unread: tuple[str, ...] = ()
    stated: dict[str, Given] = {}
    path = config or beside(source, program.spec.source_config)
    if path is not None:
        whole = read_config_file(path)
        model_fields = _model_fields(whole, known)
        fields = config_dialects.read_config(whole | model_fields)
        if fields.get("use_sliding_window") is False:
            fields["sliding_window"] = None  # no layer uses it
        if config is None:
            notes.append(ConfigNextToWeights(path))

        def from_file(value: Any) -> Given:
            return Given(value, path.name, Origin.CONFIG_FILE)

        if _is_of_target(program, model_fields):
            stated = {f.name: from_file(fields[f.name]) for f in program.spec.config if f.name in fields}
            carried = {f.carried: stated[f.name] for f in program.spec.config if f.carried and f.name in stated}
            given |= {n: value for n, value in carried.items() if n not in fields}
        given |= {n: from_file(v) for n, v in fields.items() if n in known}
        read = known | BAGGAGE | stated.keys() | {"rope_parameters"}
        read |= set(config_dialects.EXPERTS) if known & set(config_dialects.EXPERTS) else set()
        unread = tuple(n for n, v in model_fields.items() if n not in read and v not in (None, [], {}, ""))
        useful = any(fields[n] is not None for n in known & fields.keys())
        if config is not None and program.spec.arguments and not (stated or useful):
            names = listed(program.spec.arguments, 12)
            refuse(
                str(path),
                f"{program.spec.name.value} reads none of its fields",
                "unread-config",
                f"its arguments are {names}",
            )
    given |= _assigned(assigned)
    return Settings(given, unread, tuple(notes), {n: value for n, value in stated.items() if n not in assigned})


def gather_reversed(
    program: Program, config: Path, assigned: Mapping[str, Any]
) -> tuple[dict[str, Given], Note | None]:
    """The arguments that a converted folder's config.json gives, and those assigned; a note if it differs from the
    constants that the spec writes. Raises Refusal."""
    fields = config_dialects.read_config(read_config_file(config))
    given = {
        f.carried or "": Given(fields[f.name], config.name, Origin.CONFIG_FILE)
        for f in program.spec.config
        if f.carried and f.name in fields
    }
    constants = [f for f in program.spec.config if f.expr is None and f.name in fields]
    changed = tuple((f.name, fields[f.name], f.constant) for f in constants if fields[f.name] != f.constant)
    return given | _assigned(assigned), ChangedConstants(changed) if changed else None


def gather_without_spec(
    source: Path, objects: Mapping[str, object], config: Path | None, assigned: Mapping[str, Any]
) -> dict[str, Any]:
    """All values that are known about a model without a spec, by name, with the same precedence. Without a `config`,
    reads the `config.json` or `params.json` next to the weights. Raises Refusal."""
    values: dict[str, Any] = {}
    for _, stored in _stored_arguments(objects):
        values |= stored
    path = config or beside(source, "config.json") or beside(source, "params.json")
    if path is not None:
        whole = read_config_file(path)
        for part in (whole, *_holders(whole)):
            values |= config_dialects.read_config(part)
    values |= assigned
    return {name: value for name, value in values.items() if name not in BAGGAGE - {"dtype"}}


def _assigned(values: Mapping[str, Any]) -> dict[str, Given]:
    return {name: Given(value, "--set", Origin.ASSIGNMENT) for name, value in values.items()}


def _stored_arguments(objects: Mapping[str, object]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings of arguments in a checkpoint, as (key, values), the lowest precedence first."""
    for key in reversed(OBJECTS):
        if isinstance(values := objects.get(key), Mapping):
            yield key, config_dialects.read_config(values)


def _holders(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The mappings in a config that may hold the model's fields."""
    return [part for key in HOLDERS if isinstance(part := whole.get(key), dict)]


def _model_fields(config: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """The config itself or the mapping in it, whichever has most of the known names."""
    return max([config, *_holders(config)], key=lambda part: len(known & part.keys()))


def _is_of_target(program: Program, config: Mapping[str, Any]) -> bool:
    """Whether it is a config of the target class, which some trainers write next to their weights."""
    model = program.spec.target.model
    return model is not None and "model_type" in config and config["model_type"] == model_class.model_type(model.value)


def contradictions(program: Program, stated: Mapping[str, Given], written: Mapping[str, Any]) -> list[Diagnostic]:
    """The fields of a config of the target's model type that the conversion would write with another value."""
    fixed = {f.name for f in program.spec.config if f.expr is None}
    return [
        Diagnostic(
            Span(value.place),
            f"{name} is {value.value!r} here, but the conversion would write {written[name]!r}",
            "config-mismatch",
            "the spec always writes this value: its rules are for such models only"
            if name in fixed
            else "pass the argument that it depends on with --set",
        )
        for name, value in stated.items()
        if value.value != written[name] and (value.value is not None or isinstance(written[name], dict))
    ]


def padding_beyond_vocabulary(written: Mapping[str, Any]) -> list[Diagnostic]:
    """A problem if the embedding has no row for the padding token: the class could not be built."""
    rows, token = written.get("vocab_size"), written.get("pad_token_id")
    if not isinstance(rows, int) or not isinstance(token, int) or token < rows:
        return []
    text = f"pad_token_id is {token}, but the vocabulary has {rows} rows"
    return [Diagnostic(Span("config.json"), text, "config-mismatch", "pass --set pad_token_id=VALUE, or null")]
