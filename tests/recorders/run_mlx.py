"""Record small seeded InternLM2s as mlx-lm has them, on the CPU in float32; the original is remote code.

Of the grouped rows of wqkv the target takes, by their numbers, those that the package's own attention slices.

Usage: python run_mlx.py OUT [--seed N]; writes OUT/internlm2/CASE.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import recording
import torch
from mlx.utils import tree_flatten
from mlx_lm.models import internlm2
from safetensors.torch import save_file
from torch import Tensor

HEADS, GROUPS, SIZE = 6, 2, 8
HIDDEN = HEADS * SIZE
CONFIG = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
NAMES = {
    "model.tok_embeddings": "model.embed_tokens",
    "model.norm": "model.norm",
    "output": "lm_head",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def weights(model: internlm2.Model, seed: int) -> dict[str, Tensor]:
    """Values of their own for every tensor, exact in float16."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, array in tree_flatten(model.parameters()):
        noise = torch.randn(array.shape, generator=random)
        state[name] = (1 + 0.3 * noise if array.ndim == 1 else noise * 1.2 * array.shape[-1] ** -0.5).half()
    return state


def llama(state: dict[str, Tensor]) -> dict[str, Tensor]:
    target = {}
    for name, tensor in state.items():
        base, word = "", name
        if word.startswith("model.layers."):
            base, word = ".".join(word.split(".")[:3]) + ".", ".".join(word.split(".")[3:])
        word, _, kind = word.rpartition(".")
        if word != "attention.wqkv":
            target[f"{base}{NAMES[word]}.{kind}"] = tensor
            continue
        heads = tensor.split(SIZE)  # for each group its queries, its key, its value
        each = HEADS // GROUPS + 2
        parts = {"q": range(each - 2), "k": [each - 2], "v": [each - 1]}
        for part, places in parts.items():
            rows = [heads[group * each + place] for group in range(GROUPS) for place in places]
            target[f"{base}self_attn.{part}_proj.{kind}"] = torch.cat(rows)
    return target


def record(out: Path, case: str, bias: bool, factor: float | None, seed: int) -> None:
    """`factor`: of a linear scaling of the rotary embeddings."""
    scaling = {"type": "linear", "factor": factor} if factor else None
    said = {**CONFIG, "model_type": "internlm2", "bias": bias, "rope_scaling": scaling}
    standard = {"rope_type": "linear", "factor": factor} if factor else None
    model = internlm2.Model(internlm2.ModelArgs.from_dict(said))
    state = weights(model, seed)
    model.load_weights([(name, mx.array(tensor.float().numpy())) for name, tensor in state.items()])
    input_ids = recording.ids(40, seed)
    made = model(mx.array(input_ids.numpy()))
    logits = torch.tensor(made.tolist(), dtype=torch.float32)

    def save(source: Path) -> None:
        save_file(state, source / "model.safetensors", {"format": "pt"})
        written = {**said, "architectures": ["InternLM2ForCausalLM"]}
        (source / "config.json").write_text(json.dumps(written, indent=1) + "\n")

    recording.record(
        out / "internlm2" / case,
        {"spec": "internlm2_llama", "config": "config.json", "tolerance": 2e-5},
        save=save,
        target=llama(state),
        model_class="LlamaForCausalLM",
        config={**CONFIG, "head_dim": SIZE, "attention_bias": bias, "rope_scaling": standard},
        input_ids=input_ids,
        logits=logits,
        notes={"original": "mlx-lm 0.32.2, models/internlm2.py"},
    )


def main() -> None:
    options = recording.arguments(__doc__ or "")
    mx.set_default_device(mx.cpu)
    record(options.out, "grouped", False, None, options.seed)
    record(options.out, "biased_linear", True, 4.0, options.seed)


if __name__ == "__main__":
    main()
