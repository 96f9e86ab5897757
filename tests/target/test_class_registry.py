"""What is known of Transformers' classes without importing them: from their source text, or from the record without it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compiler.diagnostics import Refusal, refuse
from compiler.target import class_registry, config_class, config_values, model_class, record_classes
from compiler.target.declared_fields import declared

CACHES = (
    model_class.package_folder,
    model_class.model_types_by_class,
    config_class.known_model_types,
    config_class.config_defaults,
)
GENERATION_4 = """
class SmallConfig(PretrainedConfig):
    model_type = "small"
    WIDTHS = (1, 2)

    def __init__(self, vocab_size, hidden_size=64, rotary_emb_base=20000, act=gelu(), ratio=-0.5, **kwargs):
        pass
"""


@pytest.fixture
def forgotten() -> Iterator[None]:
    """No answer of before, and none for later."""
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> class_registry.Record:
    """As if Transformers were not installed."""
    found = class_registry.stored()
    monkeypatch.setattr(class_registry, "record", lambda: found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail(f"{name} is looked for"))
    return found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> Path:
    """A package with one config class, as generation 4 writes them."""
    for module in (model_class, config_values):
        monkeypatch.setattr(module, "package_folder", lambda: tmp_path)
    for folder in ("auto", "small"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    mapping = 'CONFIG_MAPPING_NAMES = OrderedDict([("small", "SmallConfig"), ("gone", "GoneConfig")])\n'
    (tmp_path / "models" / "auto" / "configuration_auto.py").write_text(mapping)
    (tmp_path / "models" / "small" / "configuration_small.py").write_text(GENERATION_4)
    return tmp_path


def test_the_record_answers_without_transformers(recorded: class_registry.Record) -> None:
    assert model_class.model_type("LlamaForCausalLM") == "llama"
    assert "llama" in model_class.model_types_by_class()["LlamaForCausalLM"]
    assert config_class.known_model_types()["llama"] == "LlamaConfig"
    assert config_class.config_defaults("llama")["hidden_size"] == 4096
    assert config_class.config_defaults("no such type") == {}
    assert {"silu", "gelu"} <= config_values.table_keys("ACT2CLS")
    shared = next(name for name, kinds in recorded["classes"].items() if len(kinds) > 1 and name in recorded["types"])
    assert model_class.model_type(shared) == recorded["types"][shared]


def test_an_unknown_class_names_the_release_of_the_record(recorded: class_registry.Record) -> None:
    with pytest.raises(Refusal) as caught:
        model_class.model_type("LlamaForCausalML")
    (problem,) = caught.value.diagnostics
    wanted = f"transformers {recorded['release']} has no model class of this name that its auto classes list"
    assert (problem.message, problem.kind) == (wanted, "unknown-class")
    assert problem.hint == "did you mean 'LlamaForCausalLM'?"
    with pytest.raises(Refusal) as caught:
        model_class.model_type("nothing like it")
    assert "pip install" in caught.value.diagnostics[0].hint


def test_without_transformers_its_folder_is_missing(monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refusal) as caught:
        model_class.package_folder()
    assert caught.value.diagnostics[0].kind == "missing-package"


def test_the_record_leaves_out_a_type_that_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = [name for name, kinds in model_class.model_types_by_class().items() if len(kinds) > 1]

    def kind(name: str) -> str:
        if name == shared[0]:
            refuse(name, "it needs another package", "unbuildable-target")
        return "some"

    monkeypatch.setattr(model_class, "model_type", kind)
    assert record_classes.record(["llama"])["types"] == dict.fromkeys(sorted(shared[1:]), "some")


def test_the_defaults_of_a_constructor(package: Path) -> None:
    """Literals only, and the rotary base under the name of both generations."""
    assert config_class.known_model_types() == {"small": "SmallConfig", "gone": "GoneConfig"}
    wanted = {"hidden_size": 64, "rotary_emb_base": 20000, "rope_theta": 20000, "ratio": -0.5}
    assert config_class.config_defaults("small") == wanted
    assert config_class.config_defaults("gone") == {}


def test_a_release_without_a_table_knows_no_values(package: Path) -> None:
    """And no value is a fault because of that."""
    assert config_values.table_keys("ACT2CLS") == frozenset()
    (package / "activations.py").write_text("OTHER = {'gelu': 1}\n")
    assert config_values.table_keys("ACT2CLS") == frozenset()
    assert list(config_values.value_faults({"hidden_act": "nonsense"})) == []
    (package / "activations.py").write_text("OTHER = {'relu': 1}\nACT2CLS = {'gelu': 1}\n")
    config_values._table_keys.cache_clear()
    assert [fault.path for fault in config_values.value_faults({"hidden_act": "nonsense"})] == [("hidden_act",)]


def test_the_fields_that_one_class_declares() -> None:
    class Generation4:
        def __init__(self, width: int = 4, depth: Any = None, *, names: Any, **kwargs: Any) -> None: ...

    @dataclasses.dataclass
    class Generation5:
        width: int
        depth: int = 2
        names: list[str] = dataclasses.field(default_factory=lambda: ["a"])
        computed: int = dataclasses.field(default=3, init=False)

    class Neither(Generation4):
        pass

    assert declared(Generation4) == {"width": 4, "depth": None, "names": None}
    assert declared(Generation5) == {"width": None, "depth": 2, "names": ["a"]}
    assert declared(Neither) == {}


def test_a_tensor_that_is_saved_only_with_others_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def state_dict(self) -> dict[str, int]:
            return {"alone": 1, "fused": 2, "part": 3}

    def on_disk(_: Any, state: dict[str, int]) -> dict[str, int]:
        if "part" in state:
            raise ValueError("together with another")
        return {"a.0": 1, "a.1": 1} if "fused" in state else state

    monkeypatch.setattr(model_class, "_on_disk", on_disk)
    assert model_class.stored_names(Model()) == {"alone": ("alone",), "fused": ("a.0", "a.1"), "part": ("part",)}


def test_a_class_with_too_many_layers_is_not_built() -> None:
    found = model_class.class_of("LlamaForCausalLM")
    with pytest.raises(Refusal) as caught:
        model_class.build(found, {"model_type": "llama", "num_hidden_layers": 10**7})
    (problem,) = caught.value.diagnostics
    assert problem.message.startswith("num_hidden_layers is 10,000,000; a class is built with at most ")
    assert (problem.kind, problem.hint) == ("unbuildable-target", "compare it with the checkpoint")


def test_a_model_whose_names_cannot_be_saved_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("no\nconversion")

    monkeypatch.setattr(model_class, "_on_disk", fail)
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "vocab_size": 8,
    }
    with pytest.raises(Refusal) as caught:
        model_class.signature("LlamaForCausalLM", config)
    (problem,) = caught.value.diagnostics
    assert problem.message.startswith("the class does not accept this config: 'no")
    assert (problem.kind, problem.span.path) == ("unbuildable-target", "LlamaForCausalLM")
