"""The values of a spec's arguments, and where each comes from.

In order of precedence, the lowest first: the default, the checkpoint itself, a config file, `--set`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compiler.checkpoints.config_file import beside, read_config_file
from compiler.diagnostics import Diagnostic, Refusal, Span, listed, refuse
from compiler.plan.notes import ConfigNextToWeights, Note
from compiler.program.environment import Given, Origin
from compiler.program.program import Program
from compiler.settings import config_guard, config_inverse
from compiler.target import config_class, config_dialects, config_values
from compiler.target.config_meaning import HARMLESS, is_neutral, same_value

# Keys under which trainers store the model's arguments in the same file as the weights.
OBJECTS = ("model_args", "model_config", "config", "cfg", "hparams", "hyper_parameters", "params", "dims", "args")
# The config of a Transformers folder, which some trainers copy next to weights of their own layout.
HUB_CONFIG = "config.json"
# Fields that every saved config has, or that tensor names and shapes reveal.
STATED = frozenset(
    ["head_dim", "intermediate_size", "moe_intermediate_size", "n_head", "n_inner", "num_attention_heads",
     "num_experts_per_tok", "num_key_value_heads", "tie_word_embeddings"]
)  # fmt: skip
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
    program: Program,
    source: Path,
    objects: Mapping[str, object],
    config: Path | None,
    assigned: Mapping[str, Any],
    any_model_type: bool = False,
    recorded: Mapping[str, Given] = MappingProxyType({}),
    part: str = "",
) -> Settings:
    """Collect the values of a source's arguments. `part`: the key of the config that holds its fields, where it has that key.

    `any_model_type`: accept a config of another architecture. `recorded`: what the manifest beside the source has, which
    ranks below all else. Raises Refusal for a config that cannot be read, of another architecture, with a field of another
    type (`wrong-type`), or with a field that changes the function and that the spec neither reads nor writes.
    """
    known = {*program.spec.arguments, *program.spec.facts, *program.spec.fixed}
    wrong: list[Diagnostic] = []
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
    hub = beside(source, HUB_CONFIG)
    if path is None and hub is not None and _is_of_target(program, read_config_file(hub)):
        path = hub
    if not any_model_type:
        wrong += config_guard.architectures(program, objects, dict.fromkeys(p for p in (path, hub) if p is not None))
    if path is not None:
        whole = read_config_file(path)
        inner = whole.get(part)
        model_fields = inner if part and isinstance(inner, dict) else model_part(whole, known)
        whole = model_fields if model_fields is inner else whole
        fields = config_dialects.read_config(whole | model_fields)
        of_target = _is_of_target(program, model_fields)
        turned = {f.name for f in program.spec.config if f.carried != f.name}  # of another type in the source, maybe
        typed = {n: v for n, v in model_fields.items() if of_target or n in known - turned}
        mistyped = [*config_values.type_faults(typed)]
        if of_target:
            given_fields = {name: value for name, value in typed.items() if name in program.spec.arguments}
            mistyped += config_values.null_faults(given_fields, config_guard.target_defaults(program))
        if mistyped:
            raise Refusal([*wrong, *(fault.at(str(path)) for fault in mistyped)])
        if fields.get("use_sliding_window") is False:
            fields["sliding_window"] = None  # no layer uses it
        if config is None:
            notes.append(ConfigNextToWeights(path))

        def from_file(value: Any) -> Given:
            return Given(value, path.name, Origin.CONFIG_FILE)

        if of_target:
            stated = {f.name: from_file(fields[f.name]) for f in program.spec.config if f.name in fields}
            carried = {f.carried: stated[f.name] for f in program.spec.config if f.carried and f.name in stated}
            given = _class_defaults(program, fields, path.name) | given
            given |= {n: value for n, value in carried.items() if n not in fields}
        renamed = {} if "model_type" in model_fields else _under_target_names(program, fields)
        given |= {n: from_file(fields[name]) for n, name in renamed.items()}
        # Of a reversed folder, config.json states the target's fields, also under a name that an argument has too.
        theirs = {f.name for f in program.spec.config if f.carried != f.name} if of_target and recorded else set()
        given |= {n: from_file(v) for n, v in fields.items() if n in known - theirs}
        if of_target:
            values = {n: value.value for n, value in given.items()} | dict(assigned)
            kept = {n: value.value for n, value in recorded.items()}
            solved = config_inverse.arguments_of(program, {n: v.value for n, v in stated.items()}, values, kept)
            given |= {n: from_file(v) for n, v in solved.items() if n in program.spec.arguments}
        read = known | BAGGAGE | stated.keys() | {*renamed.values(), "rope_parameters"}
        if (known | stated.keys()) & set(config_dialects.EXPERTS):
            read |= set(config_dialects.EXPERTS)
        faults, ignored = config_guard.unconverted_fields(
            program, _part(program, fields, model_fields), read, str(path), of_target
        )
        wrong += faults
        unread = tuple(n for n in ignored if fields[n] not in (None, [], {}, ""))
        useful = any(fields[n] is not None for n in {*known, *renamed.values()} & fields.keys())
        if config is not None and program.spec.arguments and not (stated or useful):
            names = listed(program.spec.arguments, 12)
            refuse(
                str(path),
                f"{program.spec.name.value} reads none of its fields",
                "unread-config",
                f"its arguments are {names}",
            )
    given |= _assigned(assigned)
    wrong += config_guard.fixed_fields(program, given)
    if wrong:
        raise Refusal(wrong)
    return Settings(given, unread, tuple(notes), {n: value for n, value in stated.items() if n not in assigned})


def gather_without_spec(
    source: Path,
    objects: Mapping[str, object],
    config: Path | None,
    assigned: Mapping[str, Any],
    known: Collection[str],
) -> dict[str, Any]:
    """All fields of a model without a spec, by name, with the same precedence. Without a `config`, reads the `config.json`
    or `params.json` next to the weights. `known`: names of fields, which select the part of a config that describes the
    model. Raises Refusal."""
    values: dict[str, Any] = {}
    for _, stored in _stored_arguments(objects):
        values |= stored
    path = config or beside(source, "config.json") or beside(source, "params.json")
    if path is not None:
        whole = read_config_file(path)
        values |= config_dialects.read_config(whole | model_part(whole, {*known} - BAGGAGE))
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


def model_part(whole: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The part of a config that describes the model: the mapping with the most `known` fields, or all of it."""
    return max([whole, *_holders(whole)], key=lambda part: len(part.keys() & {*known}))


def gather_reversed(
    program: Program, whole: dict[str, Any], path: Path, assigned: Mapping[str, Any], any_model_type: bool
) -> tuple[dict[str, Any], dict[str, Given], tuple[str, ...]]:
    """The flat fields of a folder's config, `whole` as its file at `path` has it, the arguments and facts that they give,
    and the fields that nothing reads.

    Raises Refusal for a config of another architecture, or with a field that changes the function and that the spec
    does not write.
    """
    fields = config_dialects.read_config(whole)
    if fields.get("use_sliding_window") is False:
        fields["sliding_window"] = None
    wrong = [] if any_model_type else config_guard.other_architecture(program, whole, str(path), reverse=True)
    read = BAGGAGE | {"rope_parameters"}
    if {field.name for field in program.spec.config} & set(config_dialects.EXPERTS):
        read |= set(config_dialects.EXPERTS)
    part = _part(program, fields, whole)
    faults, ignored = config_guard.unconverted_fields(program, part, {*read}, str(path), True, reverse=True)
    wrong += faults
    if wrong:
        raise Refusal(wrong)
    given = _class_defaults(program, fields, path.name)
    carried = {f.carried: fields[f.name] for f in program.spec.config if f.carried and f.name in fields}
    given |= {n: Given(v, path.name, Origin.CONFIG_FILE) for n, v in carried.items() if n}
    unread = tuple(n for n in ignored if fields[n] not in (None, [], {}, ""))
    return fields, given | _assigned(assigned), unread


def _part(program: Program, fields: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The flat fields of the model's part of a config, without second names for the same value."""
    names = {*part}
    if "rope_parameters" in part:
        spec, share = program.spec, {*config_dialects.SHARE}
        converted = {field.name for field in spec.config} | {*spec.arguments, *spec.facts, *spec.fixed}
        names |= {*config_dialects.ROTARY} - (share if share & converted else set())
    return {name: value for name, value in fields.items() if name in names}


def _under_target_names(program: Program, fields: Mapping[str, Any]) -> dict[str, str]:
    """Argument -> the target's config field that it becomes, if the config has the value under that name only."""
    names = {f.carried or "": f.name for f in program.spec.config if f.name in fields}
    return {n: name for n, name in names.items() if n in program.spec.arguments and n not in fields}


def _class_defaults(program: Program, fields: Mapping[str, Any], place: str) -> dict[str, Given]:
    """The class's defaults for fields that a config of the target class does not have, for every argument that becomes a
    field unchanged. Not for sizes: every saved config has them."""
    defaults = config_guard.target_defaults(program)
    arguments = program.spec.arguments
    absent = {f.carried or "": f.name for f in program.spec.config if f.name in defaults and f.name not in fields}
    return {
        carried: Given(defaults[name], f"{place}, by the class's default,", Origin.CONFIG_FILE)
        for carried, name in absent.items()
        if carried in arguments and name not in STATED
    }


def _is_of_target(program: Program, config: Mapping[str, Any]) -> bool:
    """Whether it is a config of the target class, which some trainers write next to their weights."""
    rendered = program.spec.target.remote_code is not None
    kind = config.get("model_type")
    return not rendered and isinstance(kind, str) and kind in config_guard.target_types(program)


def contradictions(program: Program, stated: Mapping[str, Given], written: Mapping[str, Any]) -> list[Diagnostic]:
    """The fields of a config of the target's model type that the conversion would write with another value."""
    fixed = {f.name for f in program.spec.config if f.expr is None}
    types = config_guard.target_types(program)
    written = config_dialects.read_config(written)
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
        if not _same_field(name, value.value, written[name], types)
        and (value.value is not None or isinstance(written[name], dict))
    ]


def _same_field(name: str, stated: Any, written: Any, types: Iterable[str]) -> bool:
    """Whether two values mean the same; in a part with a class of its own, a field that one lacks has its default.

    A part of which the conversion writes no type is of the target's own family: `sam_vision_model` of `sam`.
    """
    if not (isinstance(stated, dict) and isinstance(written, dict) and "model_type" in stated):
        return same_value(name, stated, written)
    kind = str(stated["model_type"])
    stated, written = (config_dialects.read_config(part) for part in (stated, written))
    family = tuple(of.replace("-", "_") for of in types)
    if written["model_type"] != kind if "model_type" in written else not kind.startswith(family):
        return False
    defaults = config_class.config_defaults(kind)
    for field in {*stated, *written} - {"model_type"}:
        one, other = (fields.get(field, defaults.get(field)) for fields in (stated, written))
        unheard = field not in {*written, *defaults} and is_neutral(field, one, stated, defaults) is not False
        if not (unheard or field in HARMLESS or same_value(field, one, other)):
            return False
    return True


def padding_beyond_vocabulary(written: Mapping[str, Any]) -> list[Diagnostic]:
    """A problem if the embedding has no row for the padding token: the class could not be built."""
    rows, token = written.get("vocab_size"), written.get("pad_token_id")
    if not isinstance(rows, int) or not isinstance(token, int) or token < rows:
        return []
    text = f"pad_token_id is {token}, but the vocabulary has {rows} rows"
    return [Diagnostic(Span("config.json"), text, "config-mismatch", "pass --set pad_token_id=VALUE, or null")]


def tokens_beyond_vocabulary(written: Mapping[str, Any]) -> list[str]:
    """A sentence for each token id that no row of the embedding belongs to: such a model loads, and cannot generate."""
    rows = written.get("vocab_size")
    ids = {name: written.get(name) for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id")}
    return [
        f"{name} is {token}, but the vocabulary has {rows} rows; pass --set {name}=VALUE"
        for name, given in ids.items()
        for token in (given if isinstance(given, list) else [given])
        if isinstance(rows, int) and isinstance(token, int) and token >= rows
    ]
