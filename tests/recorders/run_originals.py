"""Record models that are single files of other people's repositories, which no package holds: llama2.c and MiniMind 1.

ORIGINALS is a folder of those files as `make test-oracles` fetches them: `llama2c/model.py` (karpathy/llama2.c, c05b45a)
and `minimind1/model/{model,LMConfig}.py` (jingyaogong/minimind, 58e3af0). The logits are theirs; the target was made by hand.

Usage: python run_originals.py OUT [--seed N] --originals ORIGINALS; writes OUT/llama2c/CASE and OUT/minimind_v2_early/CASE.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import recording
import torch
from torch import Tensor, nn

OUTER = {"tok_embeddings.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
DENSE = {"feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj", "feed_forward.w3": "mlp.up_proj"}
LLAMA2C = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": recording.VOCABULARY, "multiple_of": 4,
           "max_seq_len": 64, "norm_eps": 1e-6}  # fmt: skip
MOE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": recording.VOCABULARY, "hidden_dim": 20,
       "max_seq_len": 64, "norm_eps": 1e-6, "rope_theta": 50000.0, "use_moe": True, "n_routed_experts": 11,
       "num_experts_per_tok": 3}  # fmt: skip


def halved(weight: Tensor, size: int) -> Tensor:
    """Rows of heads of `size`: those of every pair's first place, then those of the second."""
    rows = [h + i for h in range(0, len(weight), size) for i in (*range(0, size, 2), *range(1, size, 2))]
    return weight[rows]


def common(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """What a dense model and one of experts have in common."""
    target = {OUTER[name]: tensor for name, tensor in state.items() if name in OUTER}
    for name, tensor in state.items():
        _, number, rest = (*name.split(".", 2), "")[:3]
        base, inner = f"model.layers.{number}.", rest.removesuffix(".weight")
        if inner in NORMS:
            target[f"{base}{NORMS[inner]}.weight"] = tensor
        elif inner.startswith("attention.w"):
            turned = halved(tensor, size) if inner[-1] in "qk" else tensor
            target[f"{base}self_attn.{inner[-1]}_proj.weight"] = turned
    return target


def sizes(state: dict[str, Tensor], arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": arguments["vocab_size"],
        "hidden_size": arguments["dim"],
        "num_hidden_layers": arguments["n_layers"],
        "num_attention_heads": arguments["n_heads"],
        "num_key_value_heads": arguments["n_kv_heads"],
        "max_position_embeddings": arguments["max_seq_len"],
        "rms_norm_eps": arguments["norm_eps"],
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def llama2c(out: Path, seed: int) -> None:
    original = importlib.import_module("llama2c.model")
    arguments = original.ModelArgs(**LLAMA2C)
    model = recording.seed_weights(original.Transformer(arguments), seed)
    model.output.weight.data.copy_(model.tok_embeddings.weight)
    state = recording.halves(model.state_dict())
    input_ids = recording.ids(40, seed)
    with torch.no_grad():
        logits = model(input_ids, targets=input_ids)  # with targets it tells every position
    target = common(state, LLAMA2C["dim"] // LLAMA2C["n_heads"])
    for name, tensor in state.items():
        for ours, theirs in DENSE.items():
            if f".{ours}." in name:
                target[f"model.layers.{name.split('.')[1]}.{theirs}.weight"] = tensor

    def save(source: Path) -> None:
        checkpoint = {"model": state, "model_args": dataclasses.asdict(arguments), "iter_num": 7}
        torch.save(checkpoint, source / "ckpt.pt")

    recording.record(
        out / "llama2c" / "ckpt",
        {"spec": "llama2c_llama", "tolerance": 2e-5},
        save=save,
        target=target,
        model_class="LlamaForCausalLM",
        config={**sizes(state, LLAMA2C), "intermediate_size": len(state["layers.0.feed_forward.w1.weight"]),
                "head_dim": 8},
        input_ids=input_ids,
        logits=logits,
        notes={"original": "llama2.c c05b45a, model.py"},
    )  # fmt: skip


def minimind1(out: Path, seed: int) -> None:
    config = importlib.import_module("minimind1.model.LMConfig").LMConfig(**MOE)
    model: nn.Module = importlib.import_module("minimind1.model.model").MiniMindLM(config)
    recording.seed_weights(model, seed)
    state = recording.halves(model.state_dict())
    input_ids = recording.ids(40, seed)
    with torch.no_grad():
        logits = model(input_ids)["logits"].clone()
    target = common(state, MOE["dim"] // MOE["n_heads"])
    for number in range(MOE["n_layers"]):
        base, block = f"layers.{number}.feed_forward.", f"model.layers.{number}."

        def of(part: str, kind: str, base: str = base) -> Tensor:
            return state[f"{base}{part}.w{kind}.weight"]

        experts = [f"experts.{e}" for e in range(MOE["n_routed_experts"])]
        sparse = f"{block}block_sparse_moe."
        target[f"{sparse}router.layer.weight"] = state[f"{base}gate.weight"]
        target[f"{sparse}input_linear.weight"] = torch.stack([torch.cat([of(e, "1"), of(e, "3")]) for e in experts])
        target[f"{sparse}output_linear.weight"] = torch.stack([of(e, "2") for e in experts])
        shared = "shared_experts"
        target[f"{block}shared_mlp.input_linear.weight"] = torch.cat([of(shared, "1"), of(shared, "3")])
        target[f"{block}shared_mlp.output_linear.weight"] = of(shared, "2")

    def save(source: Path) -> None:
        torch.save(state, source / "pretrain_32_moe.pth")
        (source / "config_kwargs.json").write_text(json.dumps(MOE, indent=1, sort_keys=True) + "\n")

    recording.record(
        out / "minimind_v2_early" / "moe",
        {"spec": "minimind1_granite_moe_shared", "config": "config_kwargs.json", "tolerance": 2e-5,
         "config_differs": {"num_experts": "num_local_experts in the words of another release; both are written"}},
        save=save,
        target=target,
        model_class="GraniteMoeSharedForCausalLM",
        config={**sizes(state, MOE), "intermediate_size": 20, "shared_intermediate_size": 20, "rope_theta": 50000.0,
                "num_local_experts": 11, "num_experts_per_tok": 3, "attention_multiplier": 8**-0.5,
                "router_aux_loss_coef": 0.1, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
                "logits_scaling": 1.0},
        input_ids=input_ids,
        logits=logits,
        notes={"original": "MiniMind 58e3af0, model/model.py"},
    )  # fmt: skip


def main() -> None:
    options = recording.arguments(__doc__ or "", "--originals")
    sys.path.insert(0, str(options.originals))
    llama2c(options.out, options.seed)
    minimind1(options.out, options.seed)


if __name__ == "__main__":
    main()
