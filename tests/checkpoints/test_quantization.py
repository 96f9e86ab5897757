"""Quantized folders: the values of the packages that own the layouts, bit for bit, and what does not fit together.

`tests/recorders/record_quantized_layouts.py` recorded the stored tensors and the values.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from compiler.checkpoints.formats.stored_tensor import Encoded
from compiler.checkpoints.layouts.table import LAYOUTS
from compiler.checkpoints.quantization import decoded, method_of
from compiler.diagnostics import Refusal
from compiler.executor.apply_rule import loaded
from compiler.executor.evaluator import ArrayEvaluator
from compiler.executor.execute import array_of
from compiler.layout.array import narrow
from compiler.layout.computed import Formulas
from compiler.quantized.folder_kernels import KERNELS
from compiler.transfer.files import InputFile
from compiler.transfer.worker import Worker
from mapspec import convert, iter_tensors

DATA = Path(__file__).parent.parent / "data" / "quantized"
CASES = sorted(path.stem for path in DATA.glob("*.safetensors"))
MODULE = "model.layers.0.self_attn.q_proj"
WEIGHT = f"{MODULE}.weight"
NOT_NUMBERS = ("_shape", "__nf4", "__fp4", "input_scale", "weight_format", "g_idx")


def case(name: str) -> tuple[dict[str, Tensor], Tensor, dict[str, Any]]:
    """The stored tensors of a case, the values of its weight, and its config."""
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    return tensors, tensors.pop(f"expected:{WEIGHT}"), config


def opened(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Checkpoint:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return decoded(open_checkpoint(folder / "model.safetensors"), config, "config.json")


def same(made: Tensor, wanted: Tensor) -> bool:
    return made.dtype == wanted.dtype and torch.equal(made.contiguous().view(torch.uint8), wanted.view(torch.uint8))


def test_every_layout_and_kernel_is_recorded(tmp_path: Path) -> None:
    used, methods = set(), set()
    for name in CASES:
        tensors, _, config = case(name)
        weight = opened(tmp_path, tensors, config).tensors[WEIGHT]
        assert isinstance(weight, Encoded)
        used |= {one.op.kernel for one in (weight, *weight.stored) if isinstance(one, Encoded)}
        methods.add(method_of(config))
    assert used == KERNELS.keys() - {"dequantize_shifted"}  # part of dequantize_packed_shifted
    assert methods == {layout.method for layout in LAYOUTS}


@pytest.mark.parametrize("name", CASES)
def test_the_values_of_the_package(name: str, tmp_path: Path) -> None:
    tensors, wanted, config = case(name)
    checkpoint = opened(tmp_path, tensors, config)
    assert list(checkpoint.tensors) == [WEIGHT]
    weight = checkpoint.tensors[WEIGHT]
    assert isinstance(weight, Encoded)
    made = loaded(weight)
    assert same(made, wanted.to(made.dtype))
    formulas = Formulas()
    array = array_of(weight, formulas)
    with ExitStack() as stack:
        worker = Worker({str(path): stack.enter_context(InputFile(path)) for path in checkpoint.files})
        evaluator = ArrayEvaluator(formulas.nodes, worker.fill)
        rows = [evaluator.tensor(narrow(array, 0, start, 4)).clone() for start in range(0, len(wanted), 4)]
    assert same(torch.cat(rows), made)
    for end in {key for key in tensors if not key.endswith(NOT_NUMBERS)}:
        other = tensors[end].reshape(-1, 1).clone()
        other.view(torch.uint8)[:, -1] ^= 32  # other numbers in any of the tensors are another weight
        other = other.reshape(tensors[end].shape)
        assert not same(loaded(opened(tmp_path, tensors | {end: other}, config).tensors[WEIGHT]), made), end


@pytest.mark.parametrize("name", ["mlx_int2", "mlx_int4", "mlx_int8"])
def test_mlx_in_each_of_its_containers(name: str, tmp_path: Path) -> None:
    """`weights.npz` of early releases, which has no bfloat16, and safetensors with the metadata of mlx."""
    tensors, _, config = case(name)
    stored = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    wanted = loaded(opened(tmp_path, stored, config).tensors[WEIGHT])
    numpy.savez(tmp_path / "weights.npz", **{n: t.numpy() for n, t in stored.items()})
    save_file({n: t.contiguous() for n, t in stored.items()}, tmp_path / "weights.safetensors", {"format": "mlx"})
    for file in ("weights.npz", "weights.safetensors"):
        weight = decoded(open_checkpoint(tmp_path / file), config, "config.json").tensors[WEIGHT]
        assert isinstance(weight, Encoded)
        assert same(loaded(weight), wanted), file


def test_a_group_that_is_not_there(tmp_path: Path) -> None:
    tensors, _, config = case("gptq_int8")
    tensors[f"{MODULE}.g_idx"] += 1
    weight = opened(tmp_path, tensors, config).tensors[WEIGHT]
    with pytest.raises(ValueError, match="g_idx has the groups 1 to 1, but there are 1"):
        loaded(weight)


def test_a_module_with_settings_of_its_own(tmp_path: Path) -> None:
    tensors, wanted, config = case("mlx_int8")
    config["quantization"] = {"bits": 4, "group_size": 64, "lm_head": False, MODULE: config["quantization"]}
    assert same(loaded(opened(tmp_path, tensors, config).tensors[WEIGHT]), wanted)


def test_bits_of_single_modules(tmp_path: Path) -> None:
    tensors, wanted, config = case("gptq_int8")
    config["quantization_config"] |= {"bits": 4, "dynamic": {"+:.*q_proj": {"bits": 8}}}
    assert same(loaded(opened(tmp_path, tensors, config).tensors[WEIGHT]), wanted)


def test_experts_in_one_tensor(tmp_path: Path) -> None:
    tensors, wanted, config = case("fp8_blocks")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored, scale = tensors[WEIGHT].unflatten(0, (2, 16)), tensors[f"{WEIGHT}_scale_inv"].unflatten(0, (2, 1))
    checkpoint = opened(tmp_path, {name: stored, f"{name}_scale_inv": scale}, config)
    assert same(loaded(checkpoint.tensors[name]), wanted.unflatten(0, (2, 16)))
    each = scale[:, :1, :1].contiguous()
    config["quantization_config"]["weight_block_size"] = None
    checkpoint = opened(tmp_path, {name: stored, f"{name}_scale_inv": each}, config)
    assert same(loaded(checkpoint.tensors[name]), (stored.float() * each).bfloat16())


def test_the_dtype_is_that_of_the_config(tmp_path: Path) -> None:
    tensors, wanted, config = case("gptq_int4")
    weight = opened(tmp_path, tensors, config | {"dtype": "bfloat16"}).tensors[WEIGHT]
    assert same(loaded(weight), wanted.to(torch.bfloat16))


def without(end: str) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, settings: tensors.__delitem__(MODULE + end) and None


def setting(**values: Any) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, settings: settings.update(values)


def changed(end: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, settings: tensors.update({MODULE + end: change(tensors[MODULE + end])})


def more(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor], dict[str, Any]], None]:
    return lambda tensors, settings: tensors.update({name: tensor})


STATE = b'{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 127]}'
CONTROLS = [
    ("gptq_int4", without(".scales"), "missing-tensor", f"but no {MODULE}.scales"),
    ("gptq_int4", without(".qweight"), "missing-tensor", f"but no {MODULE}.qweight"),
    (
        "gptq_int4",
        changed(".scales", lambda t: t[:, :16]),
        "wrong-shape",
        "q_proj.scales has the shape [4, 16], not [4, 32]",
    ),
    ("gptq_int4", changed(".qzeros", lambda t: t[:2]), "wrong-shape", "q_proj.qzeros has the shape [2, 4], not [4, 4]"),
    ("gptq_int4", changed(".g_idx", lambda t: t[:64]), "wrong-shape", "q_proj.g_idx has the shape [64], not [128]"),
    ("gptq_int2", changed(".scales", lambda t: t[:3]), "wrong-shape", "qzeros has the shape [4, 2], not [3, 2]"),
    ("gptq_int4", setting(bits=3), "quantized-weights", "GPTQ with 3 bits; 2, 4 and 8 are read"),
    ("gptq_int4", setting(checkpoint_format="marlin"), "quantized-weights", "GPTQ in the format 'marlin'"),
    ("gptq_int4", setting(quant_method="aqlm"), "quantized-weights", "quantized by 'aqlm', which is not read"),
    ("gptq_int4", setting(quant_method="fp8"), "quantized-weights", "no tensor's name ends in _scale_inv"),
    ("gptq_int4", more(WEIGHT, torch.ones(32, 128)), "colliding-names", f"there is a dense {WEIGHT} beside"),
    (
        "gptq_int4",
        more("x.weight_packed", torch.ones(2)),
        "quantized-weights",
        "x.weight_packed has a name of compressed-tensors",
    ),
    (
        "gptq_int4",
        changed(".qweight", lambda t: t.float()),
        "quantized-weights",
        "q_proj.qweight is float32, not int32",
    ),
    ("gptq_int4_v2_ordered", without(".g_idx"), "missing-tensor", f"but no {MODULE}.g_idx"),
    ("awq", setting(version="gemv"), "quantized-weights", "AWQ of the version 'gemv' with 4 bits"),
    ("awq", changed(".scales", lambda t: t[:3]), "wrong-shape", "q_proj.qzeros has the shape [4, 4], not [3, 4]"),
    ("fp8_blocks", without(".weight"), "missing-tensor", f"but no {WEIGHT}"),
    ("fp8_blocks", changed(".weight_scale_inv", lambda t: t[:1]), "wrong-shape", "has the shape [1, 4], not [2, 4]"),
    ("fp8_blocks", setting(weight_block_size=[16, 0]), "quantized-weights", "the block size is [16, 0]"),
    ("ct_int4_group", without(".weight_shape"), "missing-tensor", f"but no {MODULE}.weight_shape"),
    (
        "ct_int4_group",
        changed(".weight_scale", lambda t: t[:, :3]),
        "wrong-shape",
        "3 groups, which do not divide the 128",
    ),
    (
        "ct_int4_group",
        changed(".weight_scale", lambda t: t[:, :2]),
        "wrong-shape",
        "groups of 64, which no `config_groups` has",
    ),
    (
        "ct_int4_group",
        changed(".weight_packed", lambda t: t[:, :12]),
        "quantized-weights",
        "has 12 words for 128 columns",
    ),
    ("ct_int4_zero_points", without(".weight_zero_point"), "missing-tensor", f"but no {MODULE}.weight_zero_point"),
    (
        "ct_int8_channel",
        changed(".weight", lambda t: t.float()),
        "quantized-weights",
        "so the folder is not compressed",
    ),
    ("ct_nvfp4", without(".weight_global_scale"), "missing-tensor", f"but no {MODULE}.weight_global_scale"),
    ("ct_int4_group", setting(transform_config={"R1": 1}), "quantized-weights", "has a transform_config"),
    (
        "ct_int4_group",
        setting(sparsity_config={"format": "sparse-24-bitmask"}),
        "quantized-weights",
        "a sparsity_config",
    ),
    ("bnb_nf4", without(".weight.quant_state.bitsandbytes__nf4"), "missing-tensor", "quant_state.bitsandbytes__nf4"),
    ("bnb_nf4", changed(".weight.absmax", lambda t: t[:3]), "wrong-shape", "weight.absmax has the shape [3], not [64]"),
    (
        "bnb_nf4",
        changed(".weight.quant_state.bitsandbytes__nf4", lambda t: t[:9]),
        "quantized-weights",
        "holds no JSON object",
    ),
    ("modelopt_nvfp4", without(".weight_scale_2"), "missing-tensor", f"but no {MODULE}.weight_scale_2"),
    (
        "modelopt_nvfp4",
        changed(".weight_scale", lambda t: t[:, :4]),
        "wrong-shape",
        "has the shape [32, 4], not [32, 8]",
    ),
    (
        "modelopt_fp8_rows",
        changed(".weight_scale", lambda t: t[:3]),
        "wrong-shape",
        "has the shape [3], not [] or [32]",
    ),
    (
        "modelopt_fp8",
        more(f"{MODULE}.pre_quant_scale", torch.ones(128)),
        "quantized-weights",
        "q_proj.pre_quant_scale: weights",
    ),
    (
        "bnb_nf4",
        more(f"{WEIGHT}.quant_state.bitsandbytes__nf4", torch.tensor([*STATE], dtype=torch.uint8)),
        "wrong-shape",
        "2,048 bytes, not half of 4,064",
    ),
    ("bnb_nf4_nested", without(".weight.nested_quant_map"), "missing-tensor", "nested_quant_map"),
    ("bnb_int8", changed(".SCB", lambda t: t[:3]), "wrong-shape", "q_proj.SCB has the shape [3], not [32]"),
    ("mlx_int4", without(".biases"), "missing-tensor", f"but no {MODULE}.biases"),
    ("mlx_int4", setting(bits=5), "quantized-weights", "with 5 bits in groups of 64"),
    ("mlx_int4", setting(group_size=48), "wrong-shape", "q_proj.scales has the shape [32, 2], not [32, 2]"),
]


@pytest.mark.parametrize(("name", "change", "kind", "says"), CONTROLS)
def test_what_does_not_fit(name: str, change: Any, kind: str, says: str, tmp_path: Path) -> None:
    tensors, _, config = case(name)
    change(tensors, next(value for key, value in config.items() if key != "dtype"))
    with pytest.raises(Refusal) as caught:
        opened(tmp_path, tensors, config)
    (problem,) = caught.value.diagnostics
    assert (problem.kind, says in problem.message) == (kind, True), problem.message


@pytest.mark.parametrize("name", ["gptq_int4_v2_ordered", "bnb_nf4_nested"])
def test_run_hf_makes_a_dense_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.layout.computed.BLOCK", 1024)  # four rows at a time
    tensors, wanted, config = case(name)
    sizes = {"vocab_size": 16, "hidden_size": 128, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    model.config.architectures = ["Qwen3ForCausalLM"]
    source = tmp_path / "in"
    model.config.save_pretrained(source)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config | {"dtype": "bfloat16"}))
    others = {n: t.bfloat16() for n, t in model.state_dict().items() if n != WEIGHT}
    save_file(others | tensors, source / "model.safetensors")
    convert("hf", source, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert made.keys() == model.state_dict().keys()
    assert same(made.pop(WEIGHT), wanted.bfloat16())
    assert all(same(made[n], others[n]) for n in made)
    assert "quantization" not in (tmp_path / "out" / "config.json").read_text()
    assert same(dict(iter_tensors("hf", source))[WEIGHT], wanted.bfloat16())
