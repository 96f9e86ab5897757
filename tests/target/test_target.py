"""The target room against the installed versions of transformers: what saving writes, what a config means.

Each version answers for all classes in one process (`target_cases.py`); the tests compare the answers.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.parity import ORACLES, Job, difference, interpreters, logits_many
from support.target_cases import CASES, ROPES, config_of, misread_fields

from compiler.diagnostics import Refusal
from compiler.target import config_dialects
from compiler.target import model_class as target

needs_generation_4 = pytest.mark.skipif(
    "MAPSPEC_PYTHON_4" not in os.environ, reason="MAPSPEC_PYTHON_4 names no Python with transformers 4.57"
)
PYTHONS = [
    pytest.param("current"),
    pytest.param("MAPSPEC_PYTHON_4", marks=needs_generation_4),
    *(name for name in interpreters() if name not in ("current", "MAPSPEC_PYTHON_4")),
]
ROOT = Path(__file__).parent.parent.parent


@cache
def answers(python: str) -> dict[str, Any]:
    """What `target_cases.py` says under the interpreter of that name."""
    with TemporaryDirectory() as folder:
        command = [interpreters()[python], str(ROOT / "tests" / "support" / "target_cases.py"), folder]
        settings = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


# ---------------------------------------------------------------------------------------------------------------------
# Signatures


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("model_class", CASES)
def test_the_signature_is_what_saving_writes(model_class: str, python: str) -> None:
    found = answers(python)["signatures"].get(model_class)
    if found is None:
        pytest.skip(f"transformers {answers(python)['version']} has no {model_class}")
    assert found["got"] == found["saved"]
    aliases = {name: owner for owner, names in found["shared"].items() for name in names if name != owner}
    assert found["ties"] == aliases
    assert found["misread"] == {}
    assert found["unlisted"] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_experts_are_written_one_by_one(python: str) -> None:
    shapes = answers(python)["signatures"]["Qwen3MoeForCausalLM"]["got"]
    assert shapes["model.layers.0.mlp.experts.3.down_proj.weight"] == [32, 24]
    assert not any("gate_up_proj" in name for name in shapes)


SMALL_TIED = CASES["LlamaForCausalLM"] | {"tie_word_embeddings": True}


def test_a_tie_is_the_configs_word() -> None:
    tied = target.signature("LlamaForCausalLM", config_of("LlamaForCausalLM", SMALL_TIED))
    assert tied.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in tied.shapes
    free = target.signature(
        "LlamaForCausalLM", config_of("LlamaForCausalLM", SMALL_TIED | {"tie_word_embeddings": False})
    )
    assert free.ties == {}
    assert free.shapes["lm_head.weight"] == (96, 32)


def test_a_config_that_the_class_rejects_is_refused() -> None:
    config = config_of("LlamaForCausalLM", SMALL_TIED | {"vocab_size": -1})
    with pytest.raises(Refusal) as caught:
        target.signature("LlamaForCausalLM", config)
    assert [d.kind for d in caught.value.diagnostics] == ["unbuildable-target"]


def test_a_field_that_the_class_reads_otherwise_is_named() -> None:
    # The class drops the window unless it is told to use one.
    config = config_of(
        "Qwen3ForCausalLM", CASES["Qwen3ForCausalLM"] | {"sliding_window": 8, "use_sliding_window": False}
    )
    assert misread_fields("Qwen3ForCausalLM", config) == {"sliding_window": (8, None)}


# ---------------------------------------------------------------------------------------------------------------------
# Names and fields


@pytest.mark.parametrize(
    ("model_class", "kind"),
    [
        ("LlamaForCausalLM", "llama"),
        ("GPT2LMHeadModel", "gpt2"),
        ("Qwen3MoeForCausalLM", "qwen3_moe"),
        ("WhisperForConditionalGeneration", "whisper"),
        ("Gemma3ForConditionalGeneration", "gemma3"),
    ],
)
def test_the_model_type_is_found_without_importing_transformers(model_class: str, kind: str) -> None:
    code = (
        "import sys; from compiler.target.model_class import model_type; "
        f"assert model_type({model_class!r}) == {kind!r}; assert not {{'torch', 'transformers'}} & sys.modules.keys()"
    )
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=settings)


@pytest.mark.parametrize("model_class", CASES)
def test_the_model_type_is_that_of_the_config_class(model_class: str) -> None:
    import transformers

    if not hasattr(transformers, model_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model_class}")
    assert target.model_type(model_class) == getattr(transformers, model_class).config_class.model_type


@pytest.mark.parametrize("model_class", ["Llama4ForCausalLM", "CLIPTextModelWithProjection"])
def test_a_class_that_the_text_leaves_open_is_imported(model_class: str) -> None:
    kinds = {"Llama4ForCausalLM": "llama4_text", "CLIPTextModelWithProjection": "clip_text_model"}
    assert target.model_type(model_class) == kinds[model_class]


@pytest.mark.parametrize("name", ["LamaForCausalLM", "LlamaConfig", "AutoModelForCausalLM", "no such class", ""])
def test_an_unknown_class_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as caught:
        target.model_type(name)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.kind == "unknown-class"
    if name == "LamaForCausalLM":
        assert diagnostic.hint == "did you mean 'LlamaForCausalLM'?"


def test_without_transformers_its_record_is_read_and_a_class_cannot_be_asked() -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from compiler.diagnostics import Refusal
from compiler.target.model_class import class_of, model_type
for call in (model_type, class_of):
    for name in ("LlamaForCausalLM", "LlamaForCausalML"):
        try:
            print(call(name))
        except Refusal as refusal:
            print(refusal.diagnostics[0].kind)
"""
    # -I and -S leave the interpreter its standard library alone.
    command = [sys.executable, "-I", "-S", "-c", code, str(ROOT)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == (
        "llama\nunknown-class\nmissing-package\nmissing-package\n"
    )


def test_the_fields_of_a_config_are_known_with_their_defaults() -> None:
    fields = target.config_fields("LlamaForCausalLM")
    expected = {"hidden_size": 4096, "rms_norm_eps": 1e-6, "head_dim": None, "tie_word_embeddings": False,
                "bos_token_id": 1, "dtype": None, "rope_theta": 10000.0, "rope_scaling": None}  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    assert not fields.keys() & {"hiden_size", "n_embd", "cache_dir", "num_experts"}


def test_a_field_that_only_the_model_looks_for_is_known() -> None:
    assert "head_dim" in target.config_fields("Qwen3MoeForCausalLM")


def test_both_names_of_a_field_are_known() -> None:
    fields = target.config_fields("Qwen3MoeForCausalLM")
    assert fields["num_experts"] == fields["num_local_experts"] == 128
    assert target.config_fields("GPT2LMHeadModel")["hidden_size"] == target.config_fields("GPT2LMHeadModel")["n_embd"]
    assert {"rotary_pct", "rotary_emb_base"} <= target.config_fields("GPTNeoXForCausalLM").keys()


# ---------------------------------------------------------------------------------------------------------------------
# Dialects


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", [name for name in ROPES if not name.endswith("_inside")])
def test_either_dialect_gives_the_same_embedding_in_every_version(name: str, python: str) -> None:
    outside, inside = (answers(python)["ropes"][key] for key in (name, f"{name}_inside"))
    here = answers("current")["ropes"][name]
    assert outside["inv_freq"] == inside["inv_freq"] == pytest.approx(here["inv_freq"], rel=1e-6)
    assert outside["scale"] == inside["scale"] == pytest.approx(here["scale"])


@pytest.mark.parametrize("python", PYTHONS)
def test_the_plain_embedding_follows_the_theta_given(python: str) -> None:
    found = answers(python)["ropes"]["plain"]
    assert found["inv_freq"] == pytest.approx([54321.0 ** (-2 * i / 8) for i in range(4)], rel=1e-6)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", ROPES)
def test_a_config_that_a_version_wrote_is_read_back(name: str, python: str) -> None:
    again = answers(python)["ropes"][name]["again"]
    wanted = config_dialects.read_config(ROPES[name][1])
    assert again["rope_theta"] == 54321.0
    assert again["rope_scaling"] == wanted["rope_scaling"]
    assert again.get("partial_rotary_factor", 1.0) == wanted.get("partial_rotary_factor", 1.0)


NUMBERS = st.floats(1.0, 1e7, allow_nan=False)
SCALINGS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "dynamic"]), "factor": NUMBERS}),
    st.fixed_dictionaries({"rope_type": st.just("yarn"), "factor": NUMBERS, "beta_fast": NUMBERS}),
    st.fixed_dictionaries(
        {"type": st.just("longrope"), "short_factor": st.lists(NUMBERS), "long_factor": st.lists(NUMBERS)}
    ),
)
FIELDS = st.fixed_dictionaries(
    {"rope_theta": NUMBERS, "rope_scaling": SCALINGS},
    optional={"num_experts": st.integers(1, 99), "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
              "rope_local_base_freq": NUMBERS, "hidden_size": st.integers(1, 9999), "bos_token_id": st.integers(0, 9)},
)  # fmt: skip


def write(fields: dict[str, Any], dtype: str = "float16") -> dict[str, Any]:
    return config_dialects.config_json(fields, model_class="AnyModel", model_type="any", dtype=dtype)


@given(FIELDS)
def test_what_is_written_is_read_from_both_dialects_and_from_either(fields: dict[str, Any]) -> None:
    both = write(fields)
    assert json.loads(config_dialects.json_text(both)) == both
    old = {key: value for key, value in both.items() if key not in ("rope_parameters", "num_local_experts", "dtype")}
    gone = ("rope_theta", "rope_scaling", "num_experts", "torch_dtype", "partial_rotary_factor", "rope_local_base_freq")
    new = {key: value for key, value in both.items() if key not in gone}
    for config in (both, old, new):
        read = config_dialects.read_config(config)
        assert {key: read[key] for key in fields} == fields
        assert read["dtype"] == "float16"
        assert "rope_parameters" not in read
        assert "torch_dtype" not in read


@given(FIELDS)
def test_reading_and_writing_settle_after_one_round(fields: dict[str, Any]) -> None:
    once = write(config_dialects.read_config(write(fields)))
    assert config_dialects.json_text(write(config_dialects.read_config(once))) == config_dialects.json_text(once)
    assert list(once) == sorted(once)


def test_both_dialects_are_written() -> None:
    config = write({"rope_theta": 1e6, "num_experts": 4})
    assert config == {
        "architectures": ["AnyModel"],
        "dtype": "float16",
        "model_type": "any",
        "num_experts": 4,
        "num_local_experts": 4,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": 1e6,
        "torch_dtype": "float16",
    }
    assert config_dialects.config_json({}, model_class="A", model_type="a", dtype="float32").keys() == {
        "architectures", "dtype", "model_type", "torch_dtype",
    }  # fmt: skip


def test_layers_of_two_kinds_are_nested() -> None:
    config = write(
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    )
    assert config["rope_parameters"] == {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    assert write({"rope_parameters": config["rope_parameters"]}) == config
    # 5.0 writes what it takes for missing fields beside the kinds.
    beside = {"rope_type": "default", "rope_theta": None}
    assert write({"rope_parameters": config["rope_parameters"] | beside}) == config


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "contradictory-field"),
        ({"num_experts": 4, "num_local_experts": 8}, "contradictory-field"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 1.0,
          "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "contradictory-field"),
        ({"x": math.nan}, "unwritable-value"),
        ({"x": [1, {"y": -math.inf}]}, "unwritable-value"),
        ({"x": {1, 2}}, "unwritable-value"),
        ({"x": b"bytes"}, "unwritable-value"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(fields: dict[str, Any], kind: str) -> None:
    with pytest.raises(Refusal) as caught:
        write(fields)
    assert [d.kind for d in caught.value.diagnostics] == [kind]


def test_generation_json_holds_the_token_ids_and_nothing_else() -> None:
    fields = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": None, "hidden_size": 8}
    assert config_dialects.generation_json(fields) == {"bos_token_id": 1, "eos_token_id": [2, 3]}
    assert config_dialects.generation_json({"hidden_size": 8}) == {}


# ---------------------------------------------------------------------------------------------------------------------
# One folder means the same everywhere

GOLDEN = {"minimind/dense_small": "Qwen3ForCausalLM", "minimind/dense_yarn": "Qwen3ForCausalLM",
          "minimind/moe_trained": "Qwen3MoeForCausalLM", "minimind2/dense": "LlamaForCausalLM"}  # fmt: skip


def convert(case: str, folder: Path) -> None:
    """These cases have the target's names already: all a folder needs is the config."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(ORACLES / case / "source/model.pth", weights_only=True)
    save_file(
        {name: t.contiguous() for name, t in state.items() if name != "lm_head.weight"}, folder / "model.safetensors"
    )
    fields = json.loads((ORACLES / case / "expected/config.json").read_text())
    config = config_of(
        GOLDEN[case], {key: value for key, value in fields.items() if key not in ("dtype", "torch_dtype")}
    )
    (folder / "config.json").write_text(config_dialects.json_text(config))


@pytest.mark.parametrize("python", PYTHONS)
def test_a_folder_gives_the_logits_of_the_original_in_every_version(python: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    jobs = []
    for i, case in enumerate(GOLDEN):
        (tmp_path / str(i)).mkdir()
        convert(case, tmp_path / str(i))
        ids = load_file(ORACLES / case / "expected/golden_logits.safetensors")["input_ids"]
        jobs.append(Job(tmp_path / str(i), ids, dirty=True))
    *found, control = logits_many([*jobs, Job(lost_theta(tmp_path / "0"), jobs[0].inputs)], interpreters()[python])
    goldens = [ORACLES / case / "expected/golden_logits.safetensors" for case in GOLDEN]
    apart = [difference(got, golden) for got, golden in zip(found, goldens, strict=True)]
    assert max(apart) < 1e-4, dict(zip(GOLDEN, apart, strict=True))
    assert difference(control, goldens[0]) > 1e-2


def lost_theta(folder: Path) -> Path:
    """The negative control: the same folder, with the theta that the class falls back to."""
    other = folder.with_name("lost")
    shutil.copytree(folder, other)
    config = json.loads((folder / "config.json").read_text())
    parameters = config["rope_parameters"] | {"rope_theta": 1e4}
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 1e4, "rope_parameters": parameters}))
    return other
