"""Record what Transformers' own reader makes of small seeded GGUF files, written by the package gguf under its names.

Of llama.cpp's converter, which is no package, only the rotary re-layout of Llama is written out here; the reader of
Transformers undoes it, and must arrive at the weights that it began with.

Usage: python run_gguf.py OUT [--seed N], with transformers and gguf installed; writes OUT/gguf/CASE.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import recording
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

SIZES = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama_grouped": ("llama", "LlamaForCausalLM", {"num_key_value_heads": 2, "rope_theta": 500000.0}),
    "llama_tied_11_layers": (
        "llama",
        "LlamaForCausalLM",
        {"num_key_value_heads": 4, "num_hidden_layers": 11, "tie_word_embeddings": True, "rope_theta": 10000.0},
    ),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {"num_key_value_heads": 1, "head_dim": 12, "rope_theta": 1e6}),
    "qwen3_moe": (
        "qwen3moe",
        "Qwen3MoeForCausalLM",
        {"num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6, **EXPERTS},
    ),
}


def pairs(tensor: Tensor, heads: int) -> Tensor:
    """Rotary halves to pairs. (heads two pair) d -> (heads pair two) d"""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def stored(state: dict[str, Tensor], architecture: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file under gguf's names: float16, vectors in float32, experts in one."""
    kind = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    found: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            number, _, part = after.partition(".")
            experts.setdefault(f"{before}.experts.{part}", {})[int(number)] = tensor
            continue
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        turned = architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))
        matrix = pairs(tensor, heads) if turned else tensor
        found[names.get_name(name, (".weight",))] = tensor.float() if tensor.ndim == 1 else matrix
    for name, tensors in experts.items():
        found[names.get_name(name, (".weight",))] = torch.stack([tensors[number] for number in sorted(tensors)])
    return found


def write(path: Path, tensors: dict[str, Tensor], architecture: str, config: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    else:
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_token_list([f"<{n}>" for n in range(config["vocab_size"])])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for name, (architecture, model_class, changes) in CASES.items():
        config = SIZES | changes
        model = recording.seeded_class(model_class, config, options.seed)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            state = recording.halves(load_file(Path(folder, "model.safetensors")))
        tensors = stored(state, architecture, config)
        # A matrix keeps its type, a vector is float32 in the file.
        target = {n: t.float() if t.ndim == 1 else t for n, t in state.items()}

        def save(source: Path, tensors: Any = tensors, architecture: str = architecture, config: Any = config) -> None:
            write(source / "model.gguf", tensors, architecture, config)

        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            read = getattr(transformers, model_class).from_pretrained(
                folder, gguf_file="model.gguf", config=model.config, dtype=torch.float32, attn_implementation="eager"
            )  # of its own it reads no head_dim of Qwen3
        for n, tensor in model.state_dict().items():
            assert torch.equal(read.state_dict()[n], tensor), f"{name}: Transformers reads another {n}"
        input_ids = recording.ids(24, options.seed)
        with torch.no_grad():
            logits = read.eval()(input_ids=input_ids).logits
        recording.record(
            options.out / "gguf" / name,
            {"spec": f"gguf_{architecture.replace('moe', '_moe')}", "weights": "model.gguf", "tolerance": 2e-5},
            save=save,
            target=target,
            model_class=model_class,
            config=config,
            input_ids=input_ids,
            logits=logits,
            notes={"gguf": version("gguf"), "computed_by": "Transformers' reader of GGUF files"},
        )


if __name__ == "__main__":
    main()
