"""Record what Megatron-Core's own GPT computes with small seeded weights, in the checkpoints that Megatron-LM would save.

The models run on the CPU, in one process or in two tensor-parallel ranks that talk over gloo, each with its part of the
same weights, cut as Megatron-Core's attributes of every parameter say. Megatron-Core has no converter: the target is
written out here, after `SelfAttention.get_query_key_value_tensors` (each group: its queries, a key, a value) and `MLP`
(gate, then up); that it is right is told by the logits. Its modules without Transformer Engine are what runs on a CPU;
the names of the modules with it are those that Megatron-Core maps its own to.

Usage: python run_megatron_core.py OUT [--seed N], with megatron-core installed; writes OUT/megatron_mcore/CASE.
"""

from __future__ import annotations

import dataclasses
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe import moe_utils
from torch import Tensor, distributed, multiprocessing

LENGTH = 40
Saver = Callable[[GPTModel, Namespace, Path], None]
# Of Megatron-LM's own command line, which its checkpoints keep as `args`.
ARGS = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 12,
    "max_position_embeddings": 64,
    "seq_length": 64,
    "position_embedding_type": "rope",
    "rotary_base": 1000000,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
    "use_rope_scaling": False,
    "rope_scaling_factor": 8.0,
    "normalization": "RMSNorm",
    "norm_epsilon": 1e-6,
    "apply_layernorm_1p": False,
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "untie_embeddings_and_output_weights": True,
    "vocab_size": None,
    "padded_vocab_size": recording.VOCABULARY,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "num_experts": None,
    "moe_ffn_hidden_size": None,
    "moe_router_topk": 2,
    "moe_router_pre_softmax": False,
    "moe_router_score_function": "softmax",
    "moe_router_topk_scaling_factor": None,
    "moe_router_load_balancing_type": "none",
    "moe_token_dispatcher_type": "allgather",
    "use_cpu_initialization": True,
    "tensor_model_parallel_size": 1,
    "transformer_impl": "local",
}
STANDARD = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclasses.dataclass(frozen=True)
class Family:
    spec: str
    model_class: str
    args: Mapping[str, Any]  # beside ARGS
    standard: Mapping[str, Any]  # of the class's config, beside STANDARD
    case: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # beside what every case says

    @property
    def said(self) -> Namespace:
        return Namespace(**(ARGS | dict(self.args)))


MOE = {
    "hidden_size": 16,
    "ffn_hidden_size": 8,
    "moe_ffn_hidden_size": 8,
    "num_experts": 11,
    "moe_router_topk": 3,
    "qk_layernorm": True,
}
QWEN3_MOE = {
    "hidden_size": 16,
    "head_dim": 12,
    "num_experts": 11,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 8,
    "intermediate_size": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "sliding_window": None,
}
TWO_RANKS = {"tensor_model_parallel_size": 2, "transformer_impl": "transformer_engine"}
LOCAL = {"set": {"fused_norms": False}}  # which the way back cannot tell
FAMILIES = {
    "llama31_scaled": Family(
        "mcore_llama",
        "LlamaForCausalLM",
        {
            "rotary_base": 500000,
            "norm_epsilon": 1e-5,
            "use_rope_scaling": True,
            "rope_scaling_factor": 4.0,
            "max_position_embeddings": 32768,
        },
        {
            "head_dim": 12,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "max_position_embeddings": 32768,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        LOCAL,
    ),
    "llama_padded_tp2": Family(  # as many groups as heads; the rows that pad the vocabulary are no tokens
        "mcore_llama",
        "LlamaForCausalLM",
        {
            **TWO_RANKS,
            "rotary_base": 10000,
            "norm_epsilon": 1e-5,
            "kv_channels": 8,
            "group_query_attention": False,
            "num_query_groups": 1,
            "vocab_size": recording.VOCABULARY,
            "padded_vocab_size": 144,
        },
        {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "num_key_value_heads": 4, "head_dim": 8},
        {"set": {"vocab_size": recording.VOCABULARY}, "lossy": "the rows that pad the vocabulary are gone"},
    ),
    "qwen2_local": Family(
        "mcore_qwen2",
        "Qwen2ForCausalLM",
        {"kv_channels": 8, "add_qkv_bias": True},
        {"use_sliding_window": False, "sliding_window": None},
        LOCAL,
    ),
    "qwen3_tied": Family(
        "mcore_qwen3",
        "Qwen3ForCausalLM",
        {"qk_layernorm": True, "untie_embeddings_and_output_weights": False},
        {"head_dim": 12, "tie_word_embeddings": True, "sliding_window": None},
        LOCAL,
    ),
    "qwen3_tp2": Family(
        "mcore_qwen3",
        "Qwen3ForCausalLM",
        {**TWO_RANKS, "qk_layernorm": True},
        {"head_dim": 12, "sliding_window": None},
    ),
    "qwen3_moe": Family(
        "mcore_qwen3_moe",
        "Qwen3MoeForCausalLM",
        MOE,
        {**QWEN3_MOE, "norm_topk_prob": True},
        {"set": {"fused_norms": False, "expert_layout": "local"}},
    ),
    "qwen3_moe_tp2": Family(
        "mcore_qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**TWO_RANKS, **MOE, "moe_router_pre_softmax": True},
        {**QWEN3_MOE, "norm_topk_prob": False},
        {"set": {"moe_router_pre_softmax": True}},  # which the way back cannot tell
    ),
}


def built(said: Namespace, **part: Any) -> GPTModel:
    """A model as Megatron-LM builds it from its arguments, without Transformer Engine; or the `part` of a pipeline stage."""
    names = {field.name for field in dataclasses.fields(TransformerConfig)}
    config = {name: value for name, value in vars(said).items() if name in names}
    config |= {"layernorm_epsilon": said.norm_epsilon, "num_moe_experts": said.num_experts}
    config |= {"activation_func": torch.nn.functional.silu, "gated_linear_unit": True}  # swiglu
    config |= {"pipeline_dtype": torch.float32}
    if not said.group_query_attention:
        config["num_query_groups"] = None
    return GPTModel(
        TransformerConfig(**config),
        get_gpt_layer_local_spec(said.num_experts, qk_layernorm=said.qk_layernorm, normalization=said.normalization),
        vocab_size=said.padded_vocab_size,
        max_sequence_length=said.max_position_embeddings,
        parallel_output=False,
        share_embeddings_and_output_weights=not said.untie_embeddings_and_output_weights,
        position_embedding_type=said.position_embedding_type,
        rotary_percent=said.rotary_percent,
        rotary_base=said.rotary_base,
        rope_scaling=said.use_rope_scaling,
        rope_scaling_factor=said.rope_scaling_factor,
        **part,
    )


def part(whole: Tensor, parameter: Tensor, rank: int, ranks: int) -> Tensor:
    """What a rank has of a parameter: of each of its `partition_stride` blocks along `partition_dim`, its share."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return whole
    pieces = whole.chunk(ranks * parameter.partition_stride, parameter.partition_dim)
    return torch.cat(pieces[rank::ranks], parameter.partition_dim)


def in_rank(rank: int, said: Namespace, seed: int, input_ids: Tensor, place: Path, also: Saver | None) -> None:
    """Build the part of one rank, compute, and leave in `place` its weights and the logits of all, and what `also` saves.

    The only rank seeds the weights; ranks of several cut those that the only rank left there.
    """
    ranks = said.tensor_model_parallel_size
    torch.cuda.current_device = lambda: "cpu"
    moe_utils.te_general_gemm = None  # as the module of that name says itself; 0.16.1 forgets to import it here
    distributed.init_process_group("gloo", init_method=f"file://{place}/meet_{ranks}", rank=rank, world_size=ranks)
    parallel_state.initialize_model_parallel(ranks)
    initialize_rng_tracker(inference_rng_tracker=True)
    model = built(said)
    if ranks == 1:
        recording.seed_weights(model, seed)
    else:
        whole = torch.load(place / "weights_0_of_1.pt")
        for name, parameter in model.named_parameters():
            parameter.data.copy_(part(whole[name], parameter, rank, ranks))
    positions = torch.arange(LENGTH)[None]
    masked = torch.ones(1, 1, LENGTH, LENGTH).triu(1).bool()
    with torch.no_grad():
        logits = model.eval()(input_ids, positions, masked)
    if rank == 0:
        torch.save(logits, place / f"logits_{ranks}.pt")
    state = model.half().state_dict_for_save_checkpoint()
    torch.save(state, place / f"weights_{rank}_of_{ranks}.pt")
    if also:
        also(model, said, place)
    distributed.destroy_process_group()


def named(state: dict[str, Any], said: Namespace) -> dict[str, Any]:
    """Under the names that the modules with Transformer Engine give, where the arguments speak of those."""
    if said.transformer_impl == "local":
        return state
    names = get_gpt_layer_local_spec().submodules.sharded_state_dict_keys_map
    found = {}
    for name, value in state.items():
        head, local, expert = name.partition(".local_experts.")
        number, _, rest = expert.partition(".")
        fused = f"{head}.{rest}{number if value is not None else ''}" if local else name  # one _extra_state for all
        for ours, theirs in names.items():
            if not (said.num_experts and ours == "pre_mlp_layernorm."):  # never fused in front of a router
                fused = fused.replace(f".{ours}", f".{theirs}")
        found[fused] = value
    return found


def target(state: Mapping[str, Tensor], said: Namespace, groups: int) -> dict[str, Tensor]:
    """The same weights under the names of the standard class."""
    tokens = recording.VOCABULARY
    found = {
        "model.embed_tokens.weight": state["embedding.word_embeddings.weight"][:tokens],
        "model.norm.weight": state["decoder.final_layernorm.weight"],
    }
    if "output_layer.weight" in state:
        found["lm_head.weight"] = state["output_layer.weight"][:tokens]
    for i in range(said.num_layers):
        ours, theirs = f"decoder.layers.{i}.", f"model.layers.{i}."
        found[f"{theirs}input_layernorm.weight"] = state[f"{ours}input_layernorm.weight"]
        found[f"{theirs}post_attention_layernorm.weight"] = state[f"{ours}pre_mlp_layernorm.weight"]
        found[f"{theirs}self_attn.o_proj.weight"] = state[f"{ours}self_attention.linear_proj.weight"]
        for kind in ("weight", "bias"):
            if (fused := state.get(f"{ours}self_attention.linear_qkv.{kind}")) is not None:
                # (group part dim) ... -> group part dim ..., the parts being queries, one key, one value
                by_group = fused.unflatten(0, (groups, -1, said.kv_channels))
                for letter, rows in {"q": by_group[:, :-2], "k": by_group[:, -2:-1], "v": by_group[:, -1:]}.items():
                    found[f"{theirs}self_attn.{letter}_proj.{kind}"] = rows.flatten(0, 2)
        for letter in "qk":
            if said.qk_layernorm:
                norm = state[f"{ours}self_attention.{letter}_layernorm.weight"]
                found[f"{theirs}self_attn.{letter}_norm.weight"] = norm
        if said.num_experts:
            found[f"{theirs}mlp.gate.weight"] = state[f"{ours}mlp.router.weight"]
        experts = {f"experts.local_experts.{e}.": f"experts.{e}." for e in range(said.num_experts or 0)} or {"": ""}
        for here, there in experts.items():
            gate, up = state[f"{ours}mlp.{here}linear_fc1.weight"].chunk(2)
            found[f"{theirs}mlp.{there}gate_proj.weight"] = gate
            found[f"{theirs}mlp.{there}up_proj.weight"] = up
            found[f"{theirs}mlp.{there}down_proj.weight"] = state[f"{ours}mlp.{here}linear_fc2.weight"]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def recorded(family: Family, seed: int, place: Path, also: Saver | None = None) -> dict[str, Any]:
    """Run a family's model in its ranks: what a case records of it, but the source. `place` then holds the weights of
    each rank, and what `also` saves there."""
    said = family.said
    ranks = said.tensor_model_parallel_size
    input_ids = recording.ids(LENGTH, seed)
    for size in sorted({1, ranks}):
        alone = Namespace(**(vars(said) | {"tensor_model_parallel_size": size}))
        given = (alone, seed, input_ids, place, also if size == ranks else None)
        multiprocessing.start_processes(in_rank, given, nprocs=size, start_method="fork")
    whole = torch.load(place / "weights_0_of_1.pt")
    groups = said.num_query_groups if said.group_query_attention else said.num_attention_heads
    return {
        "target": target(whole, said, groups),
        "model_class": family.model_class,
        "config": {**STANDARD, **family.standard},
        "input_ids": input_ids,
        "logits": torch.load(place / f"logits_{ranks}.pt")[..., : recording.VOCABULARY].contiguous(),
        "notes": {"megatron-core": version("megatron-core"), "ranks": ranks, "names": said.transformer_impl},
    }


def record(out: Path, case: str, family: Family, seed: int) -> None:
    said = family.said
    ranks = said.tensor_model_parallel_size
    with tempfile.TemporaryDirectory() as text:
        found = recorded(family, seed, Path(text))
        parts = [torch.load(Path(text) / f"weights_{rank}_of_{ranks}.pt") for rank in range(ranks)]

    def save(source: Path) -> None:
        for rank, state in enumerate(parts):
            folder = source / f"mp_rank_{rank:02}"
            folder.mkdir(exist_ok=True)
            kept = {
                "args": Namespace(**vars(said), rank=rank, world_size=ranks),
                "checkpoint_version": 3.0,
                "iteration": 10,
                "model": named(state, said),
            }
            torch.save(kept, folder / "model_optim_rng.pt")

    recording.record(
        out / "megatron_mcore" / case,
        {"spec": family.spec, "weights": ".", "tolerance": 2e-5, **family.case},
        save=save,
        **found,
    )


def main() -> None:
    options = recording.arguments(__doc__ or "")
    for case, family in FAMILIES.items():
        record(options.out, case, family, options.seed)


if __name__ == "__main__":
    main()
