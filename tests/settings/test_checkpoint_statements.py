"""What a checkpoint states besides its tensors is read, listed as harmless, reported or refused."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support.parity import ORACLES

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.cli.options import Notes
from compiler.diagnostics import Refusal
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.settings.checkpoint_statements import neutral_values, unread_statements

GGUF = {"gguf_llama": "llama_grouped", "gguf_qwen3": "qwen3", "gguf_qwen3_moe": "qwen3_moe"}


def gguf_file(path: Path, case: str, **values: object) -> Path:
    """The recorded file of a case with more key-values; `rope__scaling__factor` is `ARCHITECTURE.rope.scaling.factor`."""
    checkpoint = open_checkpoint(ORACLES / "gguf" / case / "source" / "model.gguf")
    stated = checkpoint.objects["config"]
    assert isinstance(stated, dict)
    architecture = stated.pop("general_architecture")
    writer = gguf.GGUFWriter(path, architecture)
    names = [
        line.split('"')[1] for line in Path(gguf.constants.__file__).read_text().splitlines() if '"{arch}.' in line
    ]
    keys = {name.removeprefix("{arch}.").replace(".", "_"): name for name in names}
    for name, value in {**stated, **values}.items():
        key = keys[name].format(arch=architecture) if name in keys else name.replace("__", ".")
        kind = gguf.GGUFValueType.FLOAT32 if isinstance(value, float) else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key if "." in key or name in keys else key.replace("_ggml_", ".ggml."), value, kind)
    for name, tensor in checkpoint.tensors.items():
        writer.add_tensor(name, np.frombuffer(read_bytes(tensor), tensor.dtype).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def planned(spec: str, source: Path, **assigned: object) -> tuple[dict[str, Any], list[str]]:
    """The config that would be written, and the notes."""
    notes = Notes(silent=True)
    prepared = prepare(load_program(spec), Request([source], assigned=assigned, compare=False), notes)
    return dict(prepared.plan.config), notes.lines()


def refusal(spec: str, source: Path) -> str:
    with pytest.raises(Refusal) as caught:
        planned(spec, source)
    return str(caught.value)


@pytest.mark.parametrize("spec", GGUF)
def test_a_factor_without_a_type_is_linear(tmp_path: Path, spec: str) -> None:
    """As llama.cpp has it; `rope.scale_linear` is the factor's first name."""
    architecture = {"gguf_llama": "llama", "gguf_qwen3": "qwen3", "gguf_qwen3_moe": "qwen3moe"}[spec]
    for n, values in enumerate([{"rope_scaling_factor": 4.0}, {f"{architecture}__rope__scale_linear": 4.0}]):
        config, _ = planned(spec, gguf_file(tmp_path / f"{n}.gguf", GGUF[spec], **values))
        assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    for n, values in enumerate([{}, {"rope_scaling_factor": 0.0}, {"rope_scaling_type": "linear"}]):
        config, _ = planned(spec, gguf_file(tmp_path / f"none{n}.gguf", GGUF[spec], **values))
        assert config.get("rope_scaling") is None
    yarn = {"rope_scaling_type": "yarn", "rope_scaling_factor": 4.0, "rope_scaling_original_context_length": 16}
    config, _ = planned(spec, gguf_file(tmp_path / "yarn.gguf", GGUF[spec], **yarn))
    assert config["rope_scaling"]["rope_type"] == "yarn"


@pytest.mark.parametrize("spec", GGUF)
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"rope_scaling_attn_factor": 0.5}, "unread-statement"),
        ({"attention_max_alibi_bias": 8.0}, "unread-statement"),
        ({"final_logit_softcapping": 30.0}, "unread-statement"),
        ({"logit_scale": 0.25}, "unread-statement"),
        ({"block_count": 3}, "unmet-requirement"),
        ({"embedding_length": 64}, "unmet-requirement"),
        ({"vocab_size": 127}, "unmet-requirement"),
        ({"attention_value_length": 24}, "unmet-requirement"),
        ({"rope_scaling_type": "longrope", "rope_scaling_factor": 2.0}, "unmet-requirement"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_key_that_changes_the_model_is_refused(tmp_path: Path, spec: str, values: dict[str, Any], kind: str) -> None:
    text = refusal(spec, gguf_file(tmp_path / "x.gguf", GGUF[spec], **values))
    assert f"[{kind}]" in text
    assert next(iter(values)) in text


def test_other_keys_are_reported_once(tmp_path: Path) -> None:
    values = {"general__name": "a name", "general__file_type": 1, "llama__novel__thing": 7, "other__key": "x"}
    _, notes = planned("gguf_llama", gguf_file(tmp_path / "x.gguf", "llama_grouped", **values))
    assert [note for note in notes if "of the checkpoint" in note] == [
        "fields of the checkpoint that the spec does not read: novel_thing, other_key"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# A trainer's args

DENSE = ORACLES / "megatron_mcore" / "llama31_scaled" / "source" / "mp_rank_00" / "model_optim_rng.pt"
EXPERTS = ORACLES / "megatron_mcore" / "qwen3_moe" / "source" / "mp_rank_00" / "model_optim_rng.pt"


def with_args(path: Path, source: Path, **args: object) -> Path:
    content = torch.load(source, weights_only=False)
    content["args"] = Namespace(**{**vars(content["args"]), **args})
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "args",
    [
        {"glu_linear_offset": 1.0},
        {"activation_func_clamp_value": 7.0},
        {"attention_output_gate": True},
        {"softmax_type": "learnable"},
        {"window_size": (127, 0)},
        {"multi_latent_attention": True},
    ],
    ids=lambda args: next(iter(args)),
)
def test_an_argument_that_changes_the_model_is_refused(tmp_path: Path, args: dict[str, Any]) -> None:
    text = refusal("mcore_llama", with_args(tmp_path / "x.pt", DENSE, **args))
    assert "[unread-statement]" in text or "[unmet-requirement]" in text
    assert next(iter(args)) in text or "window" in text


def test_arguments_of_experts_count_where_there_are_some(tmp_path: Path) -> None:
    args = {"moe_latent_size": 4, "moe_expert_capacity_factor": 1.5}
    text = refusal("mcore_qwen3_moe", with_args(tmp_path / "x.pt", EXPERTS, moe_router_pre_softmax=True, **args))
    assert "moe_latent_size is 4" in text
    planned("mcore_llama", with_args(tmp_path / "y.pt", DENSE, **args))


def test_how_a_model_was_trained_is_not_reported(tmp_path: Path) -> None:
    args = {
        "lr": 1e-4,
        "adam_beta1": 0.9,
        "train_iters": 100,
        "bf16": True,
        "novel_feature": 3,
        "sequence_parallel": True,
    }
    _, notes = planned("mcore_llama", with_args(tmp_path / "x.pt", DENSE, **args))
    assert [note for note in notes if "of the checkpoint" in note] == [
        "fields of the checkpoint that the spec does not read: novel_feature"
    ]


@pytest.mark.parametrize("family", ["megatron_mcore", "megatron_gpt2"])
def test_the_shipped_specs_know_what_trainers_write(family: str) -> None:
    for case in sorted((ORACLES / family).iterdir()):
        for file in sorted((case / "source").rglob("*.pt"))[:1]:
            checkpoint = open_checkpoint(file, nested=family == "megatron_gpt2")
            spec = "megatron_gpt2" if family == "megatron_gpt2" else f"mcore_{case.name.split('_')[0]}"
            spec = "mcore_qwen3_moe" if "moe" in case.name else "mcore_llama" if spec == "mcore_llama31" else spec
            assert unread_statements(load_program(spec), checkpoint.objects, "x") == []


def test_a_spec_lists_what_need_not_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "specs" / "llama.yaml").read_text()
    start, end = text.index("source:"), text.index("target:")
    old = text[start:end]
    text = text.replace(old, 'source: {weights: "*.pth"}\n')
    old = 'source: {weights: "*.pth"}'
    spec = tmp_path / "llama.yaml"
    objects = {"args": {"alpha": 2, "beta_one": 3, "gamma": 0.5, "off": False, "lr": 1.0}}
    spec.write_text(text)
    assert unread_statements(load_program(str(spec)), objects, "x") == ["alpha", "beta_one", "gamma"]
    spec.write_text(text.replace(old, 'source: {weights: "*.pth", unread: {alpha: no use, "beta_{n:[a-z]+}": no use}}'))
    assert unread_statements(load_program(str(spec)), objects, "x") == ["gamma"]
    spec.write_text(text.replace(old, 'source: {weights: "*.pth", unread: {"{x:(}": not a pattern}}'))
    with pytest.raises(Refusal, match="name-syntax"):
        load_program(str(spec))


def test_what_converters_reject_is_what_runs_reject() -> None:
    """Each statement of the table that a converter prints, with a value that is not in its row."""
    for spec, stated in (
        ("gguf_llama", {"general_architecture": "llama"}),
        ("mcore_llama", {"padded_vocab_size": 8}),
    ):
        program = load_program(spec)
        table = neutral_values(program)
        assert len(table) > 4
        for name, values in table.items():
            assert unread_statements(program, {"args": {**stated, name: values[0]}}, "x") == []
            with pytest.raises(Refusal, match="unread-statement"):
                unread_statements(program, {"args": {**stated, name: 17.25}}, "x")
    assert neutral_values(load_program("nanogpt_gpt2")) == {}
