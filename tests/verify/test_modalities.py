"""`compile verify` runs models of images, of sound, and of several inputs, with inputs from the class or the spec."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import source_models
from support.mutations import mutants
from support.oracle_cases import Case
from support.parity import ORACLES
from test_verify import in_this_process

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.cli.verify import agreement, faults
from compiler.diagnostics import Refusal
from compiler.jobs.convert import write
from compiler.jobs.prepare import Request, prepare
from compiler.language.parser import load_spec
from compiler.plan.plan import Plan
from compiler.program.environment import NamedShapes
from compiler.program.loading import compile_spec
from compiler.program.program import Program
from compiler.verify.compare import SourceModel, Verdict, compare, input_shapes
from compiler.verify.job import Job, Trial, load_results
from compiler.verify.outputs import named_tensors
from compiler.verify.run_model import main, results

FILE = source_models.__file__
CASES = {
    "timm/vit": ("vision_classifier", {"pixel_values": (2, 3, 16, 16)}),
    "clip/vit": ("image_and_text", {"input_ids": None, "pixel_values": None}),
    "whisper/tiny": ("speech_to_text", {"input_features": None, "decoder_input_ids": None}),
}
# case -> how a wrong conversion is called.
WRONG = {
    "timm/vit": "qkv: read from its end",
    "clip/vit": "vision_qkv: read from its end",
    "whisper/tiny": "model.{s}.layers.{i}.self_attn.v_proj.{t}: transposed",
}


def compared(name: str, out: Path, plan: Plan | None = None, entry: str = "") -> Verdict:
    """The folder `out` of a recorded case, written by `plan`, compared with its source model."""
    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    right, checkpoint = prepared.plan, prepared.checkpoint
    write(plan or right, checkpoint, case.request, out)
    model = SourceModel(entry=entry or f"{FILE}:{CASES[name][0]}")
    return compare(plan or right, checkpoint, case.request, out, model, in_this_process())


@pytest.mark.parametrize("name", CASES)
def test_a_right_folder_agrees(name: str, tmp_path: Path) -> None:
    found = compared(name, tmp_path / "out")
    assert found.agrees, found
    assert found.inputs.keys() == CASES[name][1].keys()
    assert all(wanted in (None, found.inputs[key]) for key, wanted in CASES[name][1].items())
    assert found.unused == ()
    assert found.worst.difference < 1e-5 * found.worst.scale


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_folder_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And, where that takes few runs, its rule is named."""
    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    mutant = next(m for m in mutants(plan, checkpoint.tensors) if m.name.startswith(WRONG[name]))
    if name != "timm/vit":
        monkeypatch.setattr("compiler.verify.compare._explained", lambda verdict, *rest: verdict)
    found = compared(name, tmp_path, mutant.plan)
    assert not found.agrees
    assert [rule.name for rule in found.rules] == (["qkv"] if name == "timm/vit" else [])


def test_every_output_is_compared(tmp_path: Path) -> None:
    """Logits per image and per text, which the source returns without names."""
    found = compared("clip/vit", tmp_path)
    assert [output.name for output in found.outputs] == ["logits_per_image", "logits_per_text"]
    assert "logits_per_text: largest difference " in agreement(found, "the source")


def test_a_wrong_activation_is_named(tmp_path: Path) -> None:
    """quick_gelu where the source has gelu, in both parts of the model or in one."""
    case = Case(ORACLES / "clip/vit")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    right = fields["vision_config"]["hidden_act"]
    fields["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model = SourceModel(entry=f"{FILE}:image_and_text")
    found = compare(plan, checkpoint, case.request, tmp_path, model, in_this_process())
    assert found.field is not None
    assert (found.field.name, found.field.old, found.field.new) == ("hidden_act", "relu", right)
    assert "hidden_act = 'relu' in config.json is wrong" in faults(found, "the source", tmp_path)[0].message


def test_models_without_a_common_output(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no output can be compared: the source model returns 0 \[2, 7\]"):
        compared("timm/vit", tmp_path, entry=f"{__file__}:of_seven_classes")


def of_seven_classes(config: dict[str, Any]) -> Any:
    """A model with other outputs, in spite of its weights."""
    model = source_models.vision_classifier(config)
    forward = model.forward
    model.forward = lambda x: forward(x).repeat(1, 7)[:, :7]
    return model


# ---------------------------------------------------------------------------------------------------------------------
# The spec's `verify` section

SEGMENTATION = """\
spec: 1
name: masks
summary: An image and points on it become masks
source: {weights: "*.safetensors"}
target: {model: SamModel}
arguments: {image_size: 32}
config:
  derive:
    vision_config: >-
      {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": image_size,
      "patch_size": 8, "mlp_dim": 32, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8}
    prompt_encoder_config: '{"hidden_size": 16, "image_size": image_size, "patch_size": 8, "image_embedding_size": 4, "mask_input_channels": 4}'
    mask_decoder_config: '{"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}'
keep: all
"""
SECTION = """\
verify:
  inputs:
    pixel_values: {kind: floats, shape: [1, 3, image_size, image_size], source: picture}
    input_points: {kind: floats, shape: [1, 2, 3, 2]}
    input_labels: {kind: mask, shape: [1, 2, 3], source: what}
"""


def masks(config: dict[str, Any]) -> Any:
    """The source model: the class itself, whose inputs have other names and another order."""
    import transformers

    class Renamed(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def state_dict(self, *args: Any, **named: Any) -> Any:
            return self.inner.state_dict(*args, **named)

        def load_state_dict(self, state: Any, strict: bool = True, assign: bool = False) -> Any:
            owner = state["shared_image_embedding.positional_embedding"]
            state = {**state, "prompt_encoder.shared_embedding.positional_embedding": owner}
            return self.inner.load_state_dict(state, strict)

        def forward(self, what: Any, picture: Any, input_points: Any) -> Any:
            found = self.inner(pixel_values=picture, input_points=input_points, input_labels=what)
            return {"pred_masks": found.pred_masks, "iou_scores": found.iou_scores}

    return Renamed(transformers.SamModel(transformers.SamConfig.from_dict(config["fields"])))


def segmentation(place: Path, text: str) -> tuple[Plan, Checkpoint, Request]:
    """A small checkpoint, and the plan of the spec."""
    import transformers

    spec = load_program_text(text)
    fields = {f.name: f.expr.evaluate({"image_size": 32}, NamedShapes({})) for f in spec.spec.config if f.expr}
    torch.manual_seed(0)
    model = transformers.SamModel(transformers.SamConfig.from_dict(fields))
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn_like(tensor) * 0.3)
    model.save_pretrained(place / "source")
    (place / "fields.json").write_text(json.dumps({"fields": fields}))
    request = Request([place / "source" / "model.safetensors"])
    prepared = prepare(spec, request)
    return prepared.plan, prepared.checkpoint, request


def load_program_text(text: str) -> Program:
    return compile_spec(load_spec("masks.yaml", text))


@pytest.mark.parametrize(
    ("section", "sizes"),
    [("", {"pixel_values": (2, 3, 32, 32), "input_points": (2, 1, 1, 2), "input_labels": (2, 1, 1)}),
     (SECTION, {"pixel_values": (1, 3, 32, 32), "input_points": (1, 2, 3, 2), "input_labels": (1, 2, 3)})],
)  # fmt: skip
def test_an_image_and_points(
    section: str, sizes: dict[str, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs of the class, or those that the spec says; what they leave out is reported."""
    plan, checkpoint, request = segmentation(tmp_path, SEGMENTATION + section)
    write(plan, checkpoint, request, tmp_path / "out")
    model = SourceModel(entry=f"{__file__}:masks", config=tmp_path / "fields.json")
    found = compare(plan, checkpoint, request, tmp_path / "out", model, in_this_process())
    assert found.agrees, found
    assert found.inputs == sizes
    assert {output.name for output in found.outputs} == {"pred_masks", "iou_scores"}
    assert any("mask_embed" in name for name in found.unused)
    assert "NOT used by these inputs: prompt_encoder" in agreement(found, "the source")
    state = load_file(tmp_path / "out" / "model.safetensors")
    wrong = {"mask_decoder.iou_token.weight": state["mask_decoder.iou_token.weight"] * 2}
    save_file(state | wrong, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("compiler.verify.compare._explained", lambda verdict, *rest: verdict)
    assert not compare(plan, checkpoint, request, tmp_path / "out", model, in_this_process()).agrees


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("{kind: floats, shape: [1, 3, side, side]}", "unknown-name"),
        ("{kind: pictures, shape: [1]}", "unknown-word"),
        ("{kind: floats}", "missing-key"),
        ("{kind: floats, shape: [1], below: 0.5}", "wrong-type"),
    ],
)
def test_a_wrong_section_is_refused(line: str, kind: str) -> None:
    with pytest.raises(Refusal) as refused:
        load_program_text(SEGMENTATION + f"verify: {{inputs: {{pixel_values: {line}}}}}\n")
    assert {d.kind for d in refused.value.diagnostics} == {kind}


def test_a_size_that_is_none(tmp_path: Path) -> None:
    text = SEGMENTATION + "verify: {inputs: {pixel_values: {kind: floats, shape: [1, image_size - 32]}}}\n"
    plan, checkpoint, _ = segmentation(tmp_path, text)
    with pytest.raises(Refusal, match="image_size - 32 is 0"):
        input_shapes(plan, checkpoint)


def test_inputs_that_the_class_lacks(tmp_path: Path) -> None:
    text = SEGMENTATION + "verify: {inputs: {picture: {kind: floats, shape: [1, 3, 32, 32]}}}\n"
    plan, checkpoint, request = segmentation(tmp_path, text)
    write(plan, checkpoint, request, tmp_path / "out")
    model = SourceModel(entry=f"{__file__}:masks", config=tmp_path / "fields.json")
    with pytest.raises(RuntimeError, match="SamModel has no parameter picture"):
        compare(plan, checkpoint, request, tmp_path / "out", model, in_this_process())


# ---------------------------------------------------------------------------------------------------------------------
# Inputs of classes

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONVOLUTIONS = {"conv_dim": [8, 8], "conv_kernel": [4, 4], "conv_stride": [4, 4], "num_conv_pos_embeddings": 4}
CLASSES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "BertModel": (TINY | {"vocab_size": 40}, {"input_ids"}),
    "T5ForConditionalGeneration": (
        {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40},
        {"input_ids", "decoder_input_ids"},
    ),
    "ResNetModel": ({"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}, {"pixel_values"}),
    "VideoMAEModel": (
        TINY | {"image_size": 8, "patch_size": 4, "num_frames": 4, "tubelet_size": 2},
        {"pixel_values"},
    ),
    "Wav2Vec2Model": (TINY | CONVOLUTIONS, {"input_values"}),
    "ASTModel": (TINY | {"max_length": 32, "num_mel_bins": 24}, {"input_values"}),
    "Speech2TextModel": (
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 40,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "input_feat_per_channel": 24,
         "conv_channels": 16},
        {"input_features", "decoder_input_ids"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_runs_on_the_inputs_that_it_implies(name: str) -> None:
    import transformers

    from compiler.verify import run_model

    fields, wanted = CLASSES[name]
    model_class = getattr(transformers, name)
    model = model_class(model_class.config_class(**fields)).eval()
    first = run_model._First(None, wide=False)
    job = Job(prepared_program(), (), folder=Path(), length=16)
    assert named_tensors(run_model._first_call(job, model, first))
    assert first.inputs is not None
    assert first.inputs.keys() == wanted


def test_a_class_of_unknown_inputs() -> None:
    import transformers

    from compiler.verify import run_model

    config = transformers.TimeSeriesTransformerConfig(prediction_length=2, context_length=4, lags_sequence=[1])
    model = transformers.TimeSeriesTransformerModel(config)
    job = Job(prepared_program(), (), folder=Path(), length=16)
    with pytest.raises(RuntimeError, match="write them in the spec's `verify` section"):
        run_model._first_call(job, model, run_model._First(None, wide=False))


def prepared_program() -> Program:
    return Case(ORACLES / "timm/vit").program


def test_the_process_writes_what_it_found(tmp_path: Path) -> None:
    """Job and results survive their files, in the order in which modules finish."""
    case = Case(ORACLES / "timm/vit")
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path / "out")
    job = Job(case.program, tuple(case.request.source), plan, tmp_path / "out", True, watch=True, trials=(Trial(),))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    main(tmp_path)
    found, here = load_results(tmp_path), results(job)
    assert list(found.modules) == list(here.modules)
    assert list(found.inputs) == ["pixel_values"]
    assert torch.equal(found.outputs[0]["logits"], here.outputs[0]["logits"])
    assert (found.unused, found.narrow, found.widened, found.stored) == ((), (), (), here.stored)
    (tmp_path / "job").write_bytes(pickle.dumps(replace(job, folder=tmp_path / "nowhere")))
    with pytest.raises(SystemExit) as ended:
        main(tmp_path)
    assert "nowhere" in str(ended.value)
