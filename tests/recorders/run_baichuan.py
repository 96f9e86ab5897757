"""Record what optimum-habana's copy of modeling_baichuan.py makes of a small seeded Baichuan 2 and a Baichuan.

The original is remote code of generation 4. Habana's copy, made for its own processors, computes the same on a CPU; what
it imports for those processors and for generating stands here empty. It is the second generation's, which the first
differs from in its head alone: a plain linear layer, set through the model's own `set_output_embeddings`.

Usage: python run_baichuan.py OUT [--seed N], with transformers 4 and optimum-habana installed; writes
OUT/baichuan/w_pack and OUT/baichuan2/norm_head.
"""

from __future__ import annotations

import json
import math
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HIDDEN, HEADS = 32, 4
CONFIG = {
    "vocab_size": recording.VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def built() -> nn.Module:
    """The package's own model of CONFIG."""
    for name in ("optimum", "optimum.habana", "optimum.habana.transformers", "optimum.habana.transformers.models"):
        recording.enter(name)
    recording.enter("optimum.habana.transformers.models.baichuan")
    recording.stand_in("optimum.habana.transformers.generation")
    recording.stand_in("optimum.habana.transformers.generation.utils", GaudiGenerationMixin=type("Mixin", (), {}))
    recording.stand_in("habana_frameworks")
    recording.stand_in("habana_frameworks.torch")
    recording.stand_in("habana_frameworks.torch.core", mark_step=lambda: None)
    from optimum.habana.transformers.models.baichuan import modeling_baichuan
    from optimum.habana.transformers.models.baichuan.configuration_baichuan import BaichuanConfig

    # Away from its processors its default is the first axis of a batch of positions, which its tables do not have.
    turn = partial(modeling_baichuan.apply_rotary_pos_emb, unsqueeze_dim=0)
    modeling_baichuan.apply_rotary_pos_emb = turn
    return modeling_baichuan.BaichuanForCausalLM(BaichuanConfig(**CONFIG))


def llama(state: dict[str, Tensor], unit_rows: bool) -> dict[str, Tensor]:
    """Thirds of W_pack, and, for NormHead, the head's rows divided by their lengths, one by one."""
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if "W_pack" in name:
            for n, part in enumerate(("q_proj", "k_proj", "v_proj")):
                target[name.replace("W_pack", part)] = tensor[n * HIDDEN : (n + 1) * HIDDEN].contiguous()
        elif name == "lm_head.weight" and unit_rows:
            target[name] = torch.stack([row / torch.tensor(math.hypot(*row.tolist())) for row in tensor])
        else:
            target[name] = tensor
    return target


def whole_rows(seed: int) -> Tensor:
    """Rows of many lengths; whole numbers, so that the sums of their squares have the same bits on every processor."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(-9, 10, (recording.VOCABULARY, HIDDEN), generator=random)
    return torch.ldexp(rows, torch.randint(-6, 0, (len(rows), 1), generator=random))


def record(folder: Path, model: nn.Module, seed: int, architecture: str, case: dict[str, Any]) -> None:
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    first = architecture == "BaiChuanForCausalLM"
    if first:
        state = recording.halves(state)
    input_ids = recording.ids(40, seed)
    with torch.no_grad():
        logits = model(input_ids, use_cache=False).logits

    def save(source: Path) -> None:
        if first:
            torch.save(state, source / "pytorch_model.bin")
        else:
            save_file(state, source / "model.safetensors", {"format": "pt"})
        written = {**CONFIG, "model_type": "baichuan", "architectures": [architecture], "model_max_length": 64}
        (source / "config.json").write_text(json.dumps(written, indent=1) + "\n")

    recording.record(
        folder,
        {"config": "config.json", "tolerance": 2e-5, **case},
        save=save,
        target=llama(state, unit_rows=not first),
        model_class="LlamaForCausalLM",
        config={**CONFIG, "num_key_value_heads": HEADS, "head_dim": HIDDEN // HEADS},
        input_ids=input_ids,
        logits=logits,
        notes={"optimum_habana": version("optimum-habana"), "model": "modeling_baichuan.py"},
    )


def main() -> None:
    options = recording.arguments(__doc__ or "")
    model = recording.seed_weights(built(), options.seed)
    model.lm_head.weight.data.copy_(whole_rows(options.seed))
    lossy = "the lengths of the head's rows are lost"
    second = {"spec": "baichuan2_llama", "lossy": lossy}
    record(options.out / "baichuan2" / "norm_head", model, options.seed, "BaichuanForCausalLM", second)
    model.set_output_embeddings(nn.Linear(HIDDEN, recording.VOCABULARY, bias=False))
    first = recording.seed_weights(model, options.seed + 1)
    record(options.out / "baichuan" / "w_pack", first, options.seed, "BaiChuanForCausalLM", {"spec": "baichuan_llama"})


if __name__ == "__main__":
    main()
