"""Record nanochat's GPT (karpathy/nanochat, 92d63d4, MIT): checkpoints as its trainer writes them, logits and greedy tokens.

ORIGINALS is a folder of its files as `make test-oracles` fetches them: `nanochat/{gpt,common,optim,flash_attention}.py`.
The target's names were written by hand.

Usage: python run_nanochat.py OUT [--seed N] --originals ORIGINALS; writes OUT/nanochat/CASE.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import recording
import torch
from safetensors.torch import save_file
from torch import Tensor

COMMIT = "92d63d4e8bb4df75c3b71618f31ddde2378b2bcd"
LENGTH = 200  # beyond the short window, which is 128 tokens and the own one
CASES: dict[str, dict[str, Any]] = {
    "windowed": {"vocab_size": 128, "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "sequence_len": 256, "window_pattern": "SL"},
    "padded": {"vocab_size": 72, "n_layer": 3, "n_head": 2, "n_kv_head": 1, "n_embd": 24, "sequence_len": 512, "window_pattern": "SSSL"},
}  # fmt: skip
ARGUMENTS = ("n_head", "sequence_len", "vocab_size", "window_pattern")
NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "value_embeds.": "model.value_embeddings.",
    "transformer.h.": "model.layers.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".attn.c_": ".self_attn.",
    ".attn.ve_gate.": ".self_attn.value_gate.",
    ".mlp.c_fc.": ".mlp.up_proj.",
    ".mlp.c_proj.": ".mlp.down_proj.",
    "resid_lambdas": "model.residual_scales.weight",
    "x0_lambdas": "model.embedding_scales.weight",
    "smear_gate.": "model.smear_gate.",
    "smear_lambda": "model.smear_scale.weight",
    "backout_lambda": "model.subtracted_scale.weight",
}


def target_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    for part in "qkv":
        name = name.replace(f".self_attn.{part}.", f".self_attn.{part}_proj.")
    return name


def written(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main() -> None:
    options = recording.arguments(__doc__ or "", "--originals")
    sys.path.insert(0, str(options.originals))
    original = importlib.import_module("nanochat.gpt")
    for number, (name, settings) in enumerate(CASES.items()):
        model = original.GPT(original.GPTConfig(**settings))
        model.init_weights()
        recording.seed_weights(model, options.seed + number)
        state = dict(model.state_dict())
        state["lm_head.weight"].mul_(3)  # so that the cap of the logits shows
        for table in [n for n in state if "wte" in n or "value_embeds" in n]:  # a GPU run has these in bfloat16
            state[table].copy_(state[table].bfloat16())
        input_ids = recording.ids(LENGTH, options.seed) % settings["vocab_size"]
        with torch.no_grad():
            logits = model(input_ids)
        tokens = [*model.generate(input_ids[0].tolist(), max_tokens=12, temperature=0.0)]

        source, expected = options.out / "nanochat" / name / "source", options.out / "nanochat" / name / "expected"
        source.mkdir(parents=True, exist_ok=True)
        expected.mkdir(exist_ok=True)
        saved = {n: t.bfloat16() if "wte" in n or "value_embeds" in n else t.clone() for n, t in state.items()}
        torch.save(saved, source / "model_000010.pt")
        written(source / "meta_000010.json", {"step": 10, "val_bpb": 1.0, "model_config": settings})
        kept = {"input_ids": input_ids, "logits_fp32": logits[:, -recording.KEPT :].float().contiguous()}
        save_file(kept, expected / "golden_logits.safetensors")
        written(expected / "generated.json", tokens)
        rows = settings["vocab_size"]
        tables = {n: t[:rows] for n, t in saved.items() if n.startswith(("transformer.wte", "value_embeds", "lm_head"))}
        manifest = {target_name(n): entry(tensor) for n, tensor in sorted((saved | tables).items())}
        written(expected / "manifest.json", manifest)
        written(expected / "report.json", {"nanochat": COMMIT, "torch": torch.__version__})
        case: dict[str, Any] = {"spec": "nanochat_2026", "tolerance": 1e-5}
        case["set"] = {name: settings[name] for name in ARGUMENTS}  # a converter reads no model_config in another file
        if rows % 64:
            case["lossy"] = "the rows that pad the vocabulary are cropped"
        written(source.parent / "case.json", case)
        print(f"nanochat/{name}: {len(manifest)} tensors, logits up to {float(logits.abs().max()):.1f}")


def entry(tensor: Tensor) -> dict[str, Any]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": kind, "shape": list(tensor.shape), "sha256": hashlib.sha256(data).hexdigest()}


if __name__ == "__main__":
    main()
