"""A model class of Transformers: its model type, the tensors it writes to disk, the fields of its config.

The layout of a target is what `save_pretrained` writes. In generation 5 that differs from the model in memory, whose
experts are fused on loading and split again on saving. So the class is built on the meta device, without memory for
its weights, and its names go through the conversion that saving uses. Raises Refusal for unknown classes and for
configs that the class rejects.

torch and transformers are imported where they are used. The last section has what differs between generations; it
follows `modeling_utils.py`, `configuration_utils.py` and `core_model_loading.py` of transformers 4.57.6, 5.0.0 and
5.24.0.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from compiler import packages
from compiler.diagnostics import nearest, refuse
from compiler.target import class_registry, memory_layout, rotary_reading
from compiler.target.class_signature import ClassSignature, ConfigSchema
from compiler.target.config_dialects import EXPERTS, SHARE, THETA, config_json, json_text, read_config
from compiler.target.declared_fields import assigned, declared

# Fields that any config may hold although newer base classes leave them to the model's own.
COMMON_FIELDS = {
    "architectures": None, "auto_map": None, "bos_token_id": None, "decoder_start_token_id": None, "dtype": None,
    "eos_token_id": None, "model_type": None, "pad_token_id": None, "tie_word_embeddings": True, "torch_dtype": None,
    "num_labels": 2, "transformers_version": None, "use_cache": True,
}  # fmt: skip
# A model may read fields that its config class does not declare.
_LOOKED_FOR = re.compile(r"""(?:get|has)attr\(\s*(?:self\.)?config,\s*["'](\w+)["']""")
# In generation 5: `self.intermediate_size = int(self.expand * self.hidden_size)`, which config.json cannot set.
_COMPUTED = re.compile(r"self\.(\w+) \* ")
# Fields for training, generation and initialization: their defaults do not change what a converted model computes.
_UNNEEDED = re.compile(
    r"initial|_std$|_range$|dropout|drop_path|drop_rate|layerdrop|pdrop|^init_|_token(_id)?$|^use_cache$|loss|^tie_|pretraining"
)
_COUNT = re.compile(r"(^|_)(layers?|blocks?|experts|depths?)$|^n_layers?$")
MOST_MODULES = 10_000


# ---------------------------------------------------------------------------------------------------------------------
# Without importing transformers


def model_type(model_class: str) -> str:
    """The `model_type` of the config that the class `model_class` takes.

    Read from the source of the installed transformers, or from `class_registry`; a class that the text leaves open is imported.
    Raises Refusal: `missing-package`, `unknown-class`.
    """
    found = model_types_by_class().get(model_class, ())
    recorded = class_registry.record()
    if len(found) > 1 and recorded:
        found = (recorded["types"].get(model_class) or found[0],)
    elif len(found) > 1:
        # Other families borrow a class: the type meant is the one whose own folder defines it.
        homes = tuple(name for name in found if _defines(name.replace("-", "_"), model_class))
        found = () if any(other.startswith(f"{home}_") for home in homes for other in found) else homes
    if len(found) == 1:
        return found[0]
    if not found and recorded:
        text = f"transformers {recorded['release']} has no model class of this name that its auto classes list"
        refuse(model_class, text, "unknown-class", nearest(model_class, model_types_by_class()) or packages.INSTALL)
    declared: str = class_of(model_class).config_class.model_type
    return declared


@cache
def package_folder() -> Path:
    """The folder of the installed transformers, found without importing it. Raises Refusal: `missing-package`."""
    # find_spec finds a top-level package without running it.
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise packages.absence("a target class", ["transformers"])
    return Path(spec.origin).parent


@cache
def model_types_by_class() -> Mapping[str, tuple[str, ...]]:
    """Class name -> the model types that the auto classes map to it; recorded ones without Transformers."""
    if recorded := class_registry.record():
        return {name: tuple(kinds) for name, kinds in recorded["classes"].items()}
    found: defaultdict[str, list[str]] = defaultdict(list)
    tree = ast.parse((package_folder() / "models/auto/modeling_auto.py").read_text(encoding="utf-8"))
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=table)], value=ast.Call(args=[ast.List(elts=pairs)])):
                pass
            case _:
                continue
        for pair in pairs if table.endswith("_MAPPING_NAMES") else ():
            match pair:
                case ast.Tuple(elts=[ast.Constant(value=str(kind)), classes]):
                    items = classes.elts if isinstance(classes, ast.Tuple) else [classes]
                    for name in [str(item.value) for item in items if isinstance(item, ast.Constant)]:
                        if kind not in found[name]:
                            found[name].append(kind)
    return {name: tuple(kinds) for name, kinds in found.items()}


def model_types() -> frozenset[str]:
    """Every model type of the installed transformers. Raises Refusal: `missing-package`."""
    return frozenset(kind for kinds in model_types_by_class().values() for kind in kinds)


def _defines(folder: str, model_class: str) -> bool:
    files = (package_folder() / "models" / folder).glob("modeling_*.py")
    return any(f"\nclass {model_class}(" in file.read_text(encoding="utf-8") for file in files)


# ---------------------------------------------------------------------------------------------------------------------
# With it


def signature(model_class: str, config: Mapping[str, Any]) -> ClassSignature:
    """Names and shapes of what `save_pretrained` of `model_class` writes when built from `config`, a config.json.

    Raises Refusal: `unknown-class`; `unbuildable-target` where the class does not accept the config.
    """
    with _quiet():
        found = class_of(model_class)
        return dataclasses.replace(signature_of(found, config), **_rotary_reading(found, config))


def _rotary_reading(found: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """`added` and `misread` of a signature."""
    kind, held = found.config_class.model_type, rotary_reading.held(_configure(found, config))
    added = rotary_reading.complete(config, held.fields, held.own)
    written = config_json({**config, **added}, model_class=found.__name__, model_type=kind, dtype="float32")
    knows = hasattr(found.config_class, "convert_rope_params_to_dict")
    misread = rotary_reading.misread(config, held, rotary_reading.held(_configure(found, written)), knows)
    return {"added": added, "misread": misread}


def signature_of(found: Any, config: Mapping[str, Any]) -> ClassSignature:
    """`signature` of a class object."""
    with _quiet():
        model = build(found, config)
        try:
            return _signature(model)
        except Exception as error:
            _unbuildable(found.__name__, error)


def config_fields(model_class: str) -> Mapping[str, Any]:
    """Every field that the config of `model_class` accepts, with the class's default (None if it is computed).

    Both dialects are included: where the class has `rope_parameters`, also `rope_theta` and `rope_scaling`.
    Raises Refusal: `unknown-class`.
    """
    cls = class_of(model_class)
    return dict.fromkeys(_looked_for(cls)) | _declared_fields(cls.config_class)


def config_schema(model_class: str) -> ConfigSchema:
    """The fields of the config of `model_class` and of its nested configs. Raises Refusal: `unknown-class`."""
    cls = class_of(model_class)
    with _quiet():
        return _schema(cls.config_class, _looked_for(cls))


def _schema(config_class: Any, looked_for: Iterable[str]) -> ConfigSchema:
    every = _declared_fields(config_class)
    bases = config_class.__mro__[:-1]
    common = {name for base in bases if ".models." not in base.__module__ for name in declared(base)}
    own = {name for base in bases for name in declared(base)} - common
    nested = {}
    for name, sub in (getattr(config_class, "sub_configs", None) or {}).items():
        # `AutoConfig` stands for any class; the default is an instance of the one that is usual.
        known = sub if hasattr(sub, "attribute_map") else type(getattr(config_class(), name, None))
        if hasattr(known, "attribute_map"):
            nested[name] = _schema(known, [*looked_for, *_looked_for(known)])
    return ConfigSchema(
        class_name=config_class.__name__,
        model_type=config_class.model_type,
        declared=tuple(sorted(every)),
        looked_for=tuple(sorted({*looked_for} - every.keys())),
        needed=tuple(sorted(name for name in own if name not in nested and not _UNNEEDED.search(name))),
        synonyms=dict(config_class.attribute_map),
        nested=nested,
    )


def _looked_for(cls: Any) -> list[str]:
    try:  # of a config class, the module of its models
        module = importlib.import_module(cls.__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return []
    return _LOOKED_FOR.findall(inspect.getsource(module))


def _declared_fields(config_class: Any) -> dict[str, Any]:
    fields: dict[str, Any] = dict(COMMON_FIELDS)
    for base in reversed(config_class.__mro__[:-1]):
        fields |= {name: fields.get(name) for name in assigned(base)} | declared(base)
    pairs = [*config_class.attribute_map.items(), *([EXPERTS] if fields.keys() & set(EXPERTS) else [])]
    for one, other in pairs:
        value = fields.get(one) if fields.get(one) is not None else fields.get(other)
        fields |= {one: value, other: value}
    if fields.keys() & {"rope_parameters", *THETA}:
        with _quiet():
            flat = read_config(config_class().to_dict())
        words = ("rope_parameters", "rope_scaling", THETA[0], SHARE[0])
        known = {*words, *(fields.keys() & {THETA[1], SHARE[1]})}
        fields |= {name: flat.get(name) for name in sorted(known) if fields.get(name) is None}
    return fields


def different(held: Any, config: Mapping[str, Any]) -> Mapping[str, tuple[Any, Any]]:
    """Field -> (what `config` says, what the config object that a class made of it holds), for those that differ."""
    wanted, flat = read_config(config), read_config(held.to_dict())
    got = {name: flat.get(name, getattr(held, name, None)) for name in wanted if name != "dtype"}
    return {name: (wanted[name], value) for name, value in got.items() if not _holds(value, wanted[name])}


def _holds(value: Any, wanted: Any) -> bool:
    """Whether `value` equals `wanted`, or is a nested config that contains it."""
    if isinstance(value, Mapping) and isinstance(wanted, Mapping):
        return all(_holds(value.get(key), item) for key, item in wanted.items())
    return bool(value == wanted)


def class_of(model_class: str) -> Any:
    packages.need("a target class")
    import transformers

    found = getattr(transformers, model_class, None)
    if getattr(found, "config_class", None) is None:
        hint = (
            nearest(model_class, model_types_by_class())
            or "it is the name of a class, as in a config's `architectures`"
        )
        message = f"transformers {transformers.__version__} has no model class of this name"
        refuse(model_class, message, "unknown-class", hint)
    return found


def _configure(found: Any, config: Mapping[str, Any]) -> Any:
    try:
        # As from a file: some classes edit nested values in place.
        return found.config_class.from_dict(json.loads(json_text(config)))
    except Exception as error:
        _unbuildable(found.__name__, error)


def build(found: Any, config: Mapping[str, Any]) -> Any:
    """A model of the class on the meta device. Raises Refusal."""
    import torch

    held = _configure(found, config)
    for name, value in _counts(held.to_dict()):
        if value > MOST_MODULES:
            refuse(found.__name__, f"{name} is {value:,}; a class is built with at most {MOST_MODULES:,} layers or experts",
                   "unbuildable-target", "compare it with the checkpoint")  # fmt: skip
    try:
        with torch.device("meta"):
            model = found(held)
        # Some versions leave a model on the meta device untied.
        model.tie_weights()
        return model
    except Exception as error:
        _unbuildable(found.__name__, error)


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The numbers of layers and experts in a config, also in its nested configs: each is so many modules to build."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif isinstance(value, int) and _COUNT.search(name):
            yield name, value


def _signature(model: Any) -> ClassSignature:
    unsaved = model._keys_to_ignore_on_save or ()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in unsaved}
    ties = memory_layout.shared_names(model, state, _tied_patterns(model))
    kept = {name: tensor for name, tensor in state.items() if name not in ties}
    written = _on_disk(model, kept)
    # An alias has no tensor to convert; its name is converted on its own.
    names = {name: next(iter(_on_disk(model, {name: state[name]}))) for pair in ties.items() for name in pair}
    return ClassSignature(
        shapes={name: tuple(tensor.shape) for name, tensor in sorted(written.items())},
        ties={names[alias]: names[owner] for alias, owner in sorted(ties.items())},
        memory=tuple(memory_layout.memory_tensors(state, written, lambda tensors: _on_disk(model, tensors))),
        unsaved=tuple(memory_layout.unsaved_names(model)),
    )


def _unbuildable(model_class: str, error: Exception) -> NoReturn:
    text = " ".join(str(error).split()) or type(error).__name__
    refuse(model_class, f"the class does not accept this config: {text}", "unbuildable-target",
           "the message comes from Transformers; compare the fields with its config class")  # fmt: skip


def complete_config(model_class: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the config that the class builds from `config`, with the fields of nested configs.

    Raises Refusal: `unknown-class`; `unbuildable-target` where the class does not accept the config.
    """
    with _quiet():
        found = class_of(model_class)
        fields: dict[str, Any] = json.loads(json.dumps(_configure(found, config).to_dict(), default=str))
        return fields


def fields_read(model_class: str) -> frozenset[str]:
    """The names of config fields that the module of the class reads, as `config.NAME` or by `getattr`, and those from which
    its config class computes others."""
    cls = class_of(model_class)
    text = inspect.getsource(sys.modules[cls.__module__])
    computed = _COMPUTED.findall(inspect.getsource(cls.config_class))
    return frozenset(re.findall(r"config\.(\w+)", text)) | frozenset(_LOOKED_FOR.findall(text)) | frozenset(computed)


# ---------------------------------------------------------------------------------------------------------------------
# What differs between generations


def _tied_patterns(model: Any) -> Iterable[str]:
    """Patterns of the names that a class declares as aliases: a list in generation 4, the keys of a dict in 5."""
    from transformers.modeling_utils import _get_tied_weight_keys

    patterns: Iterable[str] = _get_tied_weight_keys(model)
    return patterns


def _on_disk(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` as saving writes it, which reverses what loading renames. Names of submodels keep the level that generation 5
    drops: that reads both, 4 only these."""
    renamed: dict[str, Any] = dict(state)
    if hasattr(model, "_fix_state_dict_keys_on_save"):
        mapping = memory_layout.undone_on_saving(model, sys.modules["transformers.modeling_utils"])
        return {memory_layout.saved_name(n, mapping): t for n, t in model._fix_state_dict_keys_on_save(renamed).items()}
    from transformers import core_model_loading

    if hasattr(core_model_loading, "PrefixChange"):
        from transformers.conversion_mapping import get_model_conversion_mapping

        changes = get_model_conversion_mapping(model, add_legacy=False)
        model._weight_conversions = [change for change in changes if memory_layout.keeps_level(change)]
    return dict(core_model_loading.revert_weight_conversion(model, renamed))


def stored_names(model: Any) -> dict[str, tuple[str, ...]]:
    """Each name in the model's state_dict -> the names under which `save_pretrained` writes that tensor."""
    found: dict[str, tuple[str, ...]] = {}
    for name, tensor in model.state_dict().items():
        try:
            found[name] = tuple(_on_disk(model, {name: tensor}))
        except Exception:  # a tensor that is written only together with others
            found[name] = (name,)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the warnings of Transformers."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
