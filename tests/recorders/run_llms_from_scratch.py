"""Record the models of LLMs-from-scratch (S. Raschka's book) as classes of Transformers.

Each is a small model of the package's own code with seeded weights; the target was made by hand, the logits are its own.

Usage: python run_llms_from_scratch.py OUT [--seed N]; writes OUT/llms_from_scratch/CASE for each case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from torch import Tensor, nn

recording.stand_in("tiktoken")  # which only the tokenizer asks
recording.stand_in("tiktoken.load", load_tiktoken_bpe=None)
LLAMA: dict[str, str | tuple[str, ...]] = {
    r"tok_emb\.weight": "model.embed_tokens.weight",
    r"out_head\.weight": "lm_head.weight",
    r"final_norm\.(?:weight|scale)": "model.norm.weight",
    r"trf_blocks\.(\d+)\.norm1\.(?:weight|scale)": r"model.layers.\1.input_layernorm.weight",
    r"trf_blocks\.(\d+)\.norm2\.(?:weight|scale)": r"model.layers.\1.post_attention_layernorm.weight",
    r"trf_blocks\.(\d+)\.att\.W_query\.weight": r"model.layers.\1.self_attn.q_proj.weight",
    r"trf_blocks\.(\d+)\.att\.W_key\.weight": r"model.layers.\1.self_attn.k_proj.weight",
    r"trf_blocks\.(\d+)\.att\.W_value\.weight": r"model.layers.\1.self_attn.v_proj.weight",
    r"trf_blocks\.(\d+)\.att\.out_proj\.weight": r"model.layers.\1.self_attn.o_proj.weight",
    r"trf_blocks\.(\d+)\.att\.([qk])_norm\.scale": r"model.layers.\1.self_attn.\2_norm.weight",
    r"trf_blocks\.(\d+)\.ff\.gate\.weight": r"model.layers.\1.mlp.gate.weight",
    **{rf"trf_blocks\.(\d+)\.ff\.fc{n}\.weight": rf"model.layers.\1.mlp.{name}_proj.weight"
       for n, name in ((1, "gate"), (2, "up"), (3, "down"))},
    **{rf"trf_blocks\.(\d+)\.ff\.fc{n}\.(\d+)\.weight": rf"model.layers.\1.mlp.experts.\2.{name}_proj.weight"
       for n, name in ((1, "gate"), (2, "up"), (3, "down"))},
}  # fmt: skip
COMMON = {"vocab_size": recording.VOCABULARY, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "context_length": 64,
          "dtype": torch.float32}  # fmt: skip


def keep(out: Path, case: str, spec: str, model: nn.Module, seed: int, given: Mapping[str, Any], target: dict[str, Tensor] | None,
         model_class: str, config: Mapping[str, Any]) -> None:  # fmt: skip
    state = recording.halves(model.state_dict())
    input_ids = recording.ids(40, seed)
    with torch.no_grad():
        logits = model(input_ids)

    def save(place: Path) -> None:
        torch.save(state, place / "model.pth")
        settings = {name: value for name, value in given.items() if name != "dtype"}
        (place / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")

    recording.record(
        out / "llms_from_scratch" / case,
        {"spec": spec, "weights": "model.pth", "config": "config.json", "tolerance": 2e-5},
        save=save,
        target=recording.renamed(state, LLAMA) if target is None else target,
        model_class=model_class,
        config=config,
        input_ids=input_ids,
        logits=logits,
        notes={"original": f"llms-from-scratch {version('llms-from-scratch')}"},
    )


def gpt(out: Path, seed: int) -> None:
    from llms_from_scratch.ch04 import GPTModel

    given = {"vocab_size": recording.VOCABULARY, "emb_dim": 32, "n_heads": 4, "n_layers": 2, "context_length": 48,
             "drop_rate": 0.0, "qkv_bias": True}  # fmt: skip
    model = recording.seed_weights(GPTModel(given), seed)
    state = recording.halves(model.state_dict())
    target = {
        "transformer.wte.weight": state["tok_emb.weight"],
        "transformer.wpe.weight": state["pos_emb.weight"],
        "transformer.ln_f.weight": state["final_norm.scale"],
        "transformer.ln_f.bias": state["final_norm.shift"],
        "lm_head.weight": state["out_head.weight"],
    }
    for i in range(2):
        ours, theirs = f"trf_blocks.{i}.", f"transformer.h.{i}."
        for n in (1, 2):
            target[f"{theirs}ln_{n}.weight"] = state[f"{ours}norm{n}.scale"]
            target[f"{theirs}ln_{n}.bias"] = state[f"{ours}norm{n}.shift"]
        parts = [state[f"{ours}att.W_{part}.weight"].T for part in ("query", "key", "value")]
        target[f"{theirs}attn.c_attn.weight"] = torch.cat(parts, 1)
        target[f"{theirs}attn.c_attn.bias"] = torch.cat(
            [state[f"{ours}att.W_{p}.bias"] for p in ("query", "key", "value")]
        )
        for old, new in (("att.out_proj", "attn.c_proj"), ("ff.layers.0", "mlp.c_fc"), ("ff.layers.2", "mlp.c_proj")):
            target[f"{theirs}{new}.weight"] = state[f"{ours}{old}.weight"].T
            target[f"{theirs}{new}.bias"] = state[f"{ours}{old}.bias"]
    keep(out, "gpt2", "llms_from_scratch_gpt2", model, seed, given, target, "GPT2LMHeadModel",
         {"vocab_size": recording.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48,
          "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None})  # fmt: skip


def llama(out: Path, seed: int) -> None:
    from llms_from_scratch.llama3 import Llama3Model

    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context_length": 16}
    given = {**COMMON, "hidden_dim": 48, "n_kv_groups": 2, "rope_base": 500000.0, "rope_freq": scaling}
    model = recording.seed_weights(Llama3Model(given), seed)
    keep(out, "llama3", "llms_from_scratch_llama", model, seed, given, None, "LlamaForCausalLM",
         {"vocab_size": recording.VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
          "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
          "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None})  # fmt: skip


def qwen3(out: Path, seed: int) -> None:
    from llms_from_scratch.qwen3 import Qwen3Model

    config = {"vocab_size": recording.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
              "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    given = {**COMMON, "head_dim": 16, "qk_norm": True, "n_kv_groups": 2, "rope_base": 1000000.0}
    dense = {**given, "hidden_dim": 48}
    model = recording.seed_weights(Qwen3Model(dense), seed)
    keep(out, "qwen3", "llms_from_scratch_qwen3", model, seed, dense, None, "Qwen3ForCausalLM",
         {**config, "intermediate_size": 48, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}})  # fmt: skip
    sparse = {**given, "num_experts": 11, "num_experts_per_tok": 3, "moe_intermediate_size": 8}
    model = Qwen3Model(sparse)
    for block in model.trf_blocks:  # the experts are made without memory
        block.ff.to_empty(device="cpu")
    recording.seed_weights(model, seed + 1)
    keep(out, "qwen3_moe", "llms_from_scratch_qwen3_moe", model, seed, sparse, None, "Qwen3MoeForCausalLM",
         {**config, "intermediate_size": 8, "moe_intermediate_size": 8, "num_experts": 11, "num_experts_per_tok": 3,
          "norm_topk_prob": True, "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}})  # fmt: skip


def main() -> None:
    options = recording.arguments(__doc__ or "")
    gpt(options.out, options.seed)
    llama(options.out, options.seed)
    qwen3(options.out, options.seed)


if __name__ == "__main__":
    main()
