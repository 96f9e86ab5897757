"""Record what the packages that own quantized layouts make of small seeded weights: stored tensors, config and values.

Usage: python record_quantized_layouts.py OUT --gptqmodel DIR --autogptq DIR --autoawq DIR, in an environment with transformers,
compressed-tensors, bitsandbytes and mlx. The folders are unpacked distributions of gptqmodel, auto-gptq and autoawq, whose
packages need a GPU to be imported; of gptqmodel and auto-gptq single functions are run, by their text. Writes
OUT/CASE.safetensors: the stored tensors, and under `expected:` the values that the package gives; the metadata has what config.json says
of it, and the origin.
"""

from __future__ import annotations

import ast
import json
import runpy
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes.functional as bnb
import mlx.core as mx
import numpy as np
import recording
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

OUT, IN = 32, 128  # outputs and inputs of the weight
NAME = "model.layers.0.self_attn.q_proj"
Case = tuple[str, dict[str, Any], dict[str, Tensor], Tensor, str]


def weight(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(OUT, IN) * torch.linspace(0.01, 0.3, OUT).unsqueeze(1)).to(dtype)


def functions(file: Path, *names: str, **scope: Any) -> list[Callable[..., Any]]:
    """Functions or methods of a file that cannot be imported."""
    tree = ast.parse(file.read_text())
    found = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in names}
    for node in found.values():
        node.decorator_list, node.returns = [], None
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
    module = ast.Module([found[name] for name in names], [])
    exec(compile(ast.fix_missing_locations(module), str(file), "exec"), scope)
    return [scope[name] for name in names]


# ---------------------------------------------------------------------------------------------------------------------


def fp8() -> Iterator[Case]:
    largest = torch.finfo(torch.float8_e4m3fn).max
    origin = f"transformers {version('transformers')}: integrations.finegrained_fp8.Fp8Dequantize"
    read = Fp8Dequantize(None)._dequantize_one
    for name, rows, columns, dtype in (
        ("fp8_blocks", 16, 32, torch.float32),
        ("fp8_e8m0", 16, 64, torch.float8_e8m0fnu),
        ("fp8_tensor", OUT, IN, torch.float32),
    ):
        blocks = weight().unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
        scale = blocks.abs().amax((1, 3)) / largest
        scale = scale.log2().ceil().exp2() if dtype != torch.float32 else scale
        stored = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1).to(torch.float8_e4m3fn)
        scale = scale.to(dtype).reshape(()) if name == "fp8_tensor" else scale.to(dtype)
        block = None if name == "fp8_tensor" else [rows, columns]
        config = {"quant_method": "fp8", "weight_block_size": block, "activation_scheme": "dynamic"}
        tensors = {f"{NAME}.weight": stored, f"{NAME}.weight_scale_inv": scale}
        yield name, config, tensors, read(stored, scale, torch.bfloat16), origin


def compressed() -> Iterator[Case]:
    origin = f"compressed-tensors {version('compressed-tensors')}: the compressor's compress and decompress"
    int4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    fp = {"num_bits": 8, "type": "float", "symmetric": True}
    static = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    for name, form, weights, activations in (
        ("ct_int4_group", "pack-quantized", int4, None),
        ("ct_int4_zero_points", "pack-quantized", int4 | {"symmetric": False}, None),
        ("ct_int8_packed_channel", "pack-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}, None),
        ("ct_int8_channel", "int-quantized", {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}, None),
        ("ct_fp8_channel", "float-quantized", fp | {"strategy": "channel"}, None),
        ("ct_fp8_tensor", "float-quantized", fp | {"strategy": "tensor"}, static),
        ("ct_fp8_block", "float-quantized", fp | {"strategy": "block", "block_structure": [16, 32]}, None),
        ("ct_nvfp4", "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}, None),
    ):  # fmt: skip
        group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        scheme = QuantizationScheme.model_validate(group)
        dense = weight(torch.bfloat16)
        scale, zero, extra = scales(dense, scheme.weights)
        state = {"weight": dense, "weight_scale": scale, **extra}
        if not scheme.weights.symmetric:
            state["weight_zero_point"] = zero
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(state, scheme)
        expected = compressor.decompress(dict(stored), scheme)["weight"]
        tensors = {f"{NAME}.{end}": tensor for end, tensor in stored.items()}
        if activations:
            tensors[f"{NAME}.input_scale"] = torch.ones(1, dtype=torch.bfloat16)
        config = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
                  "config_groups": {"group_0": group}}  # fmt: skip
        yield name, config, tensors, expected.detach(), origin


def scales(dense: Tensor, args: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Scales and zero points of a strategy, by the largest values."""
    wide = dense.float()
    strategy = getattr(args.strategy, "value", args.strategy)
    match strategy:
        case "tensor":
            view, axes = wide, (0, 1)
        case "channel":
            view, axes = wide, (1,)
        case "block":
            rows, columns = args.block_structure
            view, axes = wide.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)), (1, 3)
        case _:
            view, axes = wide.unflatten(1, (-1, args.group_size)), (2,)
    keep = strategy == "channel"
    if strategy == "tensor_group":
        divisor = (448 * 6 / wide.abs().max()).reshape(1)
        scale = (view.abs().amax(axes) / 6 * divisor).clamp(max=448).to(torch.float8_e4m3fn).float()
        return scale, torch.zeros(1), {"weight_global_scale": divisor}
    if args.symmetric:
        most = 448.0 if args.type == "float" else 2 ** (args.num_bits - 1) - 1
        scale = (view.abs().amax(axes, keepdim=keep) / most).to(torch.bfloat16)
        return scale.reshape(1) if strategy == "tensor" else scale, torch.zeros(1), {}
    low, high = view.amin(axes), view.amax(axes)
    scale = ((high - low) / (2**args.num_bits - 1)).to(torch.bfloat16)
    least = -(2 ** (args.num_bits - 1))
    zero = (least - low / scale.float()).round().clamp(least, -least - 1).to(torch.int8)
    return scale, zero, {}


def gptq(model: Path, auto: Path) -> Iterator[Case]:
    linear = model / "gptqmodel/nn_modules/qlinear/__init__.py"
    scope = {"t": torch, "torch": torch}
    _, dequantize, from_codes = functions(
        linear, "_torch_right_shift", "dequantize_weight", "_dequantize_from_codes", **scope
    )
    (convert,) = functions(
        model / "gptqmodel/utils/model.py",
        "convert_gptq_v1_to_v2_format_module",
        torch=torch, log=SimpleNamespace(info=SimpleNamespace(once=print)), BaseQuantLinear=SimpleNamespace,
    )  # fmt: skip
    (pack,) = functions(
        auto / "auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py", "pack",
        torch=torch, nn=torch.nn, np=np, transformers=__import__("transformers"),
    )  # fmt: skip
    for name, bits, group, form, ordered in (
        ("gptq_int4", 4, 32, "gptq", False),
        ("gptq_int4_v2_ordered", 4, 32, "gptq_v2", True),
        ("gptq_int8", 8, IN, "gptq", False),
        ("gptq_int2", 2, 32, "gptq", False),
    ):
        dense, most = weight(), 2**bits - 1
        view = dense.unflatten(1, (-1, group))
        low, high = view.amin(2), view.amax(2)
        scale = ((high - low) / most).half().float()
        zero = (-low / scale).round().clamp(1, most)
        layer = torch.nn.Linear(IN, OUT, bias=False).half()
        layer.weight.data = dense.half()
        module = SimpleNamespace(bits=bits, group_size=group, infeatures=IN, outfeatures=OUT)
        layer.weight.data = layer.weight.data.float()
        pack(module, layer, scale.clone(), zero.clone(), None)
        groups = torch.arange(IN, dtype=torch.int32) // group
        if ordered:
            groups = groups[torch.randperm(IN)]
        stored = {"qweight": module.qweight, "qzeros": module.qzeros, "scales": module.scales.half(), "g_idx": groups}
        wf = torch.arange(0, 32, bits, dtype=torch.int32).unsqueeze(0)
        read = SimpleNamespace(
            planar=False, bits=bits, pack_factor=32 // bits, maxq=most, in_features=IN,
            dequant_dtype=torch.int16 if bits == 8 else torch.int8,
            wf_unsqueeze_zero=wf.unsqueeze(0), wf_unsqueeze_neg_one=wf.unsqueeze(-1),
            _init_wf_unsqueeze_buffers=lambda: None, qzero_format=lambda format: None, **{n: t.clone() for n, t in stored.items()},
        )  # fmt: skip
        convert(read, bits, torch.int32)
        if form == "gptq_v2":
            stored["qzeros"] = read.qzeros.clone()
        read._dequantize_from_codes = lambda weight, zeros, num_itr, read=read: from_codes(read, weight, zeros, num_itr)
        expected = dequantize(read).T.contiguous()
        if name == "gptq_int2":
            del stored["g_idx"]
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered, "sym": False,
                  "checkpoint_format": form}  # fmt: skip
        if name == "gptq_int4":
            del config["checkpoint_format"]
        origin = "auto-gptq 0.7.1: pack; gptqmodel 7.7.0: convert_gptq_v1_to_v2_format_module, dequantize_weight"
        yield name, config, {f"{NAME}.{end}": tensor for end, tensor in stored.items()}, expected, origin


def awq(auto: Path) -> Iterator[Case]:
    package = runpy.run_path(str(auto / "awq/utils/packing_utils.py"))
    words = torch.randint(-(2**31), 2**31, (IN, OUT // 8), dtype=torch.int32)
    zeros = torch.randint(-(2**31), 2**31, (IN // 32, OUT // 8), dtype=torch.int32)
    stored = {"qweight": words, "qzeros": zeros, "scales": torch.rand(IN // 32, OUT).half() / 10}
    expected = package["dequantize_gemm"](words, zeros, stored["scales"], 4, 32).T.contiguous()
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    tensors = {f"{NAME}.{end}": tensor for end, tensor in stored.items()}
    yield "awq", config, tensors, expected, "autoawq 0.2.9: awq.utils.packing_utils.dequantize_gemm"


def bitsandbytes() -> Iterator[Case]:
    origin = f"bitsandbytes {version('bitsandbytes')} on the CPU"
    for name, kind, nested, block, dtype in (
        ("bnb_nf4", "nf4", False, 64, torch.bfloat16),
        ("bnb_nf4_nested", "nf4", True, 64, torch.bfloat16),
        ("bnb_fp4_nested", "fp4", True, 64, torch.float16),
        ("bnb_nf4_over_rows", "nf4", False, 256, torch.float32),
    ):
        packed, state = bnb.quantize_4bit(weight(dtype), blocksize=block, compress_statistics=nested, quant_type=kind)
        stored = {"weight": packed} | {f"weight.{end}": t for end, t in state.as_dict(packed=True).items()}
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
                  "bnb_4bit_use_double_quant": nested}  # fmt: skip
        if block > IN:  # the kernel for the CPU expects rows of complete blocks
            expected = _dequantize_4bit_compute(packed.flatten(), state.absmax, state.code, block, (OUT, IN), dtype)
            read = "backends.default.ops"
        else:
            expected, read = bnb.dequantize_4bit(packed, state), "functional.dequantize_4bit"
        yield name, config, {f"{NAME}.{end}": t for end, t in stored.items()}, expected, f"{origin}: {read}"
    numbers, largest, _ = bnb.int8_vectorwise_quant(weight(torch.float16))
    stored = {"weight": numbers, "SCB": largest, "weight_format": torch.zeros((), dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    expected = bnb.int8_vectorwise_dequant(numbers, largest)
    tensors = {f"{NAME}.{end}": t for end, t in stored.items()}
    yield "bnb_int8", config, tensors, expected, f"{origin}: int8_vectorwise_dequant"


def mlx() -> Iterator[Case]:
    for bits, group, dtype in ((4, 64, mx.bfloat16), (8, 32, mx.float16), (2, 64, mx.float32)):
        parts = mx.quantize(mx.array(weight().numpy()).astype(dtype), group, bits)
        expected = mx.dequantize(*parts, group_size=group, bits=bits)
        ends = zip(("weight", "scales", "biases"), parts, strict=True)
        config = {"group_size": group, "bits": bits}
        origin = f"mlx {version('mlx')} on the CPU: quantize, dequantize"
        yield f"mlx_int{bits}", config, {f"{NAME}.{end}": torch_of(t) for end, t in ends}, torch_of(expected), origin


def torch_of(array: mx.array) -> Tensor:
    if array.dtype == mx.bfloat16:
        return torch.from_numpy(np.array(array.view(mx.uint16)).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def main() -> None:
    options = recording.arguments(__doc__ or "", "--gptqmodel", "--autogptq", "--autoawq")
    options.out.mkdir(parents=True, exist_ok=True)
    cases = (
        fp8,
        compressed,
        lambda: gptq(options.gptqmodel, options.autogptq),
        lambda: awq(options.autoawq),
        bitsandbytes,
        mlx,
    )
    for family in cases:
        torch.manual_seed(options.seed)
        for name, config, stored, expected, origin in family():
            tensors = {n: t.detach().contiguous() for n, t in stored.items()} | {f"expected:{NAME}.weight": expected}
            settings = {"quantization" if family is mlx else "quantization_config": config}
            settings |= {"dtype": "bfloat16"} if family is fp8 else {}
            metadata = {"config": json.dumps(settings), "origin": origin}
            save_file(tensors, options.out / f"{name}.safetensors", metadata)


if __name__ == "__main__":
    main()
