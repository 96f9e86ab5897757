"""Transformers' own common model tests, run on the rendered models.

    python tests/ecosystem/common_model_tests.py transformers-5.24.0 [pytest options, such as -k moe]

The argument is the unpacked source distribution of the installed Transformers release: it has
`tests/test_modeling_common.py`, which the wheel lacks. Needs `parameterized` besides what the tests need. The source
distribution lacks the mixins of the generation and export tests, which are left out; tests/render has such tests.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "MAPSPEC_TRANSFORMERS_SDIST"
ROOT = Path(__file__).parent.parent.parent
MISSING = {
    "tests.exporters.test_export": "ExportTesterMixin",
    "tests.generation.test_utils": "GenerationTesterMixin",
}
SIZES: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Dense": ("minimind", {"num_key_value_heads": 2}),
    "Moe": ("minimind", {"num_key_value_heads": 2, "use_moe": True, "num_experts_per_tok": 2}),
    "SharedMoe": ("minimind2", {"num_key_value_heads": 2, "use_moe": True}),
    "Gpt": ("nanogpt", {}),
}
TASKS = {
    "Model": "MODEL_MAPPING_NAMES",
    "ForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "ForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "ForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "ForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}


class Tester:
    """What the common tests ask of a `model_tester`: sizes, configs and inputs."""

    __test__ = False  # by its name pytest would collect it
    batch_size, seq_length, is_training = 13, 7, True

    def __init__(self, parent: Any, config_class: type, sizes: dict[str, Any], causal_lm_class: type) -> None:
        self.parent, self.config_class, self.sizes = parent, config_class, SIZES | sizes
        self.causal_lm_class = causal_lm_class
        self.__dict__ |= self.sizes

    def get_config(self) -> Any:
        return self.config_class(**self.sizes)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        import torch

        shape = (self.batch_size, self.seq_length)
        ids = torch.randint(2, self.sizes["vocab_size"], shape)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rendered(name: str, folder: Path) -> types.ModuleType:
    """The rendered model module of one architecture, known to the auto classes."""
    from support.custom_models import MODELS
    from transformers import AutoConfig
    from transformers.models.auto import auto_factory, modeling_auto

    from compiler.render.remote_code.render import render_custom

    model = MODELS[name]
    package = folder / f"common_{name}"
    package.mkdir()
    for file, text in {"__init__.py": "", **render_custom(model)}.items():
        (package / file).write_text(text)
    module = importlib.import_module(f"{package.name}.model_{name}")
    config_class = getattr(module, model.config_class)
    AutoConfig.register(name, config_class)
    prefix = model.model_class.removesuffix("ForCausalLM")
    for suffix, table in TASKS.items():
        getattr(modeling_auto, table)[name] = prefix + suffix
        auto = getattr(modeling_auto, f"Auto{'Model' if suffix == 'Model' else 'Model' + suffix}")
        assert isinstance(auto._model_mapping, auto_factory._LazyAutoMapping)
        auto.register(config_class, getattr(module, prefix + suffix))
    return module


def define() -> None:
    """Define one test class per variant in this module."""
    import unittest

    sys.path[:0] = [os.environ[VARIABLE], str(ROOT / "tests"), str(ROOT)]
    for path, mixin in MISSING.items():
        parent = path.rpartition(".")[0]
        sys.modules.setdefault(parent, types.ModuleType(parent))
        stub = types.ModuleType(path)
        setattr(stub, mixin, type(mixin, (), {}))
        sys.modules[path] = stub
    common = importlib.import_module("tests.test_modeling_common")
    training = importlib.import_module("tests.test_training_mixin")
    folder = Path(tempfile.mkdtemp(prefix="mapspec_common_"))
    sys.path.insert(0, str(folder))
    modules = {name: rendered(name, folder) for name in {name for name, _ in VARIANTS.values()}}
    from support.custom_models import MODELS

    for variant, (name, sizes) in VARIANTS.items():
        module, model = modules[name], MODELS[name]
        prefix = model.model_class.removesuffix("ForCausalLM")
        classes = tuple(getattr(module, prefix + suffix) for suffix in TASKS)
        config_class = getattr(module, model.config_class)

        def prepare(self: Any, of: type = config_class, sizes: Any = sizes, causal: type = classes[1]) -> None:
            self.model_tester = Tester(self, of, sizes, causal)

        bases = (
            common.ModelTesterMixin,
            common.GenerationTesterMixin,
            training.TrainingTesterMixin,
            unittest.TestCase,
        )
        members = {
            "all_model_classes": classes,
            "setUp": prepare,
            "model_tester": None,
            # An expert without tokens has no gradient.
            "test_all_params_have_gradient": not sizes.get("use_moe", False),
            "__module__": __name__,
        }
        if not sizes.get("use_moe", False):  # its output class has a field for router logits, and it has no router
            members["test_output_router_logits_from_config"] = None
        globals()[f"{variant}Test"] = type(f"{variant}Test", bases, members)


if __name__ == "__main__":
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / "tests" / "test_modeling_common.py").is_file():
        sys.exit(__doc__)
    os.environ[VARIABLE] = str(Path(sys.argv[1]).resolve())
    sys.exit(
        pytest.main([__file__, "-q", "-p", "no:cacheprovider", "--rootdir", str(Path(__file__).parent), *sys.argv[2:]])
    )
elif VARIABLE in os.environ:
    define()
