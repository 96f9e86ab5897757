"""Record a small seeded Llama as the Flax model of transformers 4.46.3 saves and computes it.

The target is written out here: kernels are [in, out], names are those of the module. Without torch, so that the environment
needs `pip install transformers==4.46.3 flax jax safetensors` alone.

Usage: python run_flax.py OUT [--seed N]; writes OUT/flax/CASE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file
from transformers import FlaxLlamaForCausalLM, LlamaConfig

VOCABULARY, LENGTH, KEPT = 128, 24, 12
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama_grouped": {"num_key_value_heads": 2},
}
NAMES = {"kernel": "weight", "embedding": "weight"}


def seeded(params: Any, random: np.random.Generator) -> Any:
    """Values of its own for every parameter: norms near 1, distinct matrices."""
    values = {}
    for name, array in flatten_dict(params).items():
        noise = random.standard_normal(array.shape, dtype=np.float32)
        scale = 0.6 if name[-1] == "embedding" else 1.2 * array.shape[0] ** -0.5
        values[name] = 1 + 0.3 * noise if noise.ndim == 1 else noise * np.float32(scale)
    return unflatten_dict(values)


def entry(array: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}


def written(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for number, (case, fields) in enumerate(CASES.items()):
        random = np.random.default_rng((options.seed, number))
        folder = options.out / "flax" / case
        source, expected = folder / "source", folder / "expected"
        expected.mkdir(parents=True, exist_ok=True)
        model = FlaxLlamaForCausalLM(LlamaConfig(**SIZES, **fields), seed=options.seed)
        model.params = seeded(model.params, random)
        ids = random.integers(0, VOCABULARY, (1, LENGTH))
        logits = np.asarray(model(ids.astype(np.int32)).logits)[:, -KEPT:]
        model.save_pretrained(source)
        (source / "generation_config.json").unlink(missing_ok=True)
        save_file({"input_ids": ids, "logits_fp32": logits}, expected / "golden_logits.safetensors")
        target = {
            ".".join((*name[:-1], NAMES.get(name[-1], name[-1]))): array.T if name[-1] == "kernel" else array
            for name, array in flatten_dict(model.params).items()
        }
        written(expected / "manifest.json", {name: entry(array) for name, array in sorted(target.items())})
        written(expected / "config.json", json.loads((source / "config.json").read_text()))
        written(folder / "case.json", {"config": "config.json", "spec": "flax_llama", "tolerance": 2e-05})
        releases = {"flax": flax.__version__, "jax": jax.__version__, "transformers": transformers.__version__}
        written(expected / "report.json", releases)
        print(f"flax/{case}: {len(target)} tensors")


if __name__ == "__main__":
    main()
