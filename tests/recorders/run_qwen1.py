"""Record what ModelScope's model of the first Qwen, its authors' own code, makes of small seeded checkpoints.

The package is entered at the model's own modules; of the base classes and the registry, which ask for the whole of it,
stand here only names, since they compute nothing.

Usage: python run_qwen1.py OUT [--seed N], with transformers 4, modelscope 1.9.5 and einops installed; writes
OUT/qwen1/CASE.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HIDDEN, HEADS, MIDDLE, LAYERS, LENGTH = 32, 4, 44, 2, 64
SAID = {
    "vocab_size": recording.VOCABULARY,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-6,
    "seq_length": LENGTH,
    "rotary_pct": 1.0,
    "no_bias": True,
    "bf16": False,
    "fp16": False,
    "use_flash_attn": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "tie_word_embeddings": False,
}
# As the first releases said it, and as all since September 2023 do.
FIRST = {
    "n_embd": HIDDEN,
    "n_head": HEADS,
    "n_layer": LAYERS,
    "n_inner": None,
    "n_positions": 96,
    "ffn_hidden_size": 2 * MIDDLE,
    "padded_vocab_size": recording.VOCABULARY,
    "params_dtype": "torch.float32",
    "pos_emb": "rotary",
}
LATER = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 2 * MIDDLE,
    "max_position_embeddings": 96,
}


def classes() -> tuple[Any, Any]:
    """The package's own config and model."""
    base = type("Model", (), {"__init__": lambda self, *_, **__: None})
    registry = type("Registry", (), {"register_module": lambda *_, **__: lambda cls: cls})
    whole = recording.enter("modelscope")
    whole.Model, whole.TorchModel = base, type("TorchModel", (base,), {})
    for name in ("modelscope.utils", "modelscope.models", "modelscope.models.nlp", "modelscope.models.nlp.qwen"):
        recording.enter(name)
    whole.models.MODELS = registry()
    from modelscope.models.nlp.qwen.configuration import QWenConfig
    from modelscope.models.nlp.qwen.text_generation import QWenForTextGeneration

    return QWenConfig, QWenForTextGeneration


def llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Llama's names; thirds of c_attn, and biases of nought for o_proj, since Llama's four go together."""
    parts = {
        "ln_1": "input_layernorm",
        "ln_2": "post_attention_layernorm",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.up_proj",
        "mlp.w2": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    target = {
        "model.embed_tokens.weight": state["transformer.wte.weight"],
        "model.norm.weight": state["transformer.ln_f.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for layer in range(LAYERS):
        old, new = f"transformer.h.{layer}.", f"model.layers.{layer}."
        target |= {f"{new}{there}.weight": state[f"{old}{here}.weight"] for here, there in parts.items()}
        for kind in ("weight", "bias"):
            for n, part in enumerate("qkv"):
                whole = state[f"{old}attn.c_attn.{kind}"]
                target[f"{new}self_attn.{part}_proj.{kind}"] = whole[n * HIDDEN : (n + 1) * HIDDEN].contiguous()
        target[f"{new}self_attn.o_proj.bias"] = torch.zeros(HIDDEN, dtype=torch.float16)
    return target


def record(folder: Path, model: nn.Module, seed: int, written: dict[str, Any], base: float) -> None:
    state = recording.halves(model.state_dict())
    input_ids = recording.ids(40, seed)
    with torch.no_grad():
        logits = model(input_ids, use_cache=False).logits

    def save(source: Path) -> None:
        if "n_head" in written:
            torch.save(state, source / "pytorch_model.bin")
        else:
            save_file(state, source / "model.safetensors", {"format": "pt"})
        (source / "config.json").write_text(json.dumps(written, indent=1) + "\n")

    recording.record(
        folder,
        {"spec": "qwen1_llama", "config": "config.json", "tolerance": 2e-5},
        save=save,
        target=llama(state),
        model_class="LlamaForCausalLM",
        config={
            "vocab_size": recording.VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": MIDDLE,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HIDDEN // HEADS,
            "max_position_embeddings": LENGTH,
            "rms_norm_eps": SAID["layer_norm_epsilon"],
            "rope_theta": base,
            "attention_bias": True,
            "bos_token_id": 151643,
            "eos_token_id": 151643,
        },
        input_ids=input_ids,
        logits=logits,
        notes={"modelscope": version("modelscope"), "model": "modelscope.models.nlp.qwen"},
    )


def main() -> None:
    options = recording.arguments(__doc__ or "")
    config_class, model_class = classes()
    for number, (case, names, base) in enumerate((("n_head", FIRST, 10000.0), ("base_1e6", LATER, 1000000.0))):
        config = config_class(**SAID, **FIRST, rotary_emb_base=base)
        model = recording.seed_weights(model_class(config), options.seed + number)
        written = {**SAID, **names, "rotary_emb_base": base, "model_type": "qwen", "architectures": ["QWenLMHeadModel"]}
        record(options.out / "qwen1" / case, model, options.seed, written, base)


if __name__ == "__main__":
    main()
