"""The forms that `--emit` knows."""

from __future__ import annotations

from collections.abc import Mapping

# Form -> what is written in it.
FORMS: Mapping[str, str] = {
    "transformers": "WeightRenaming and WeightConverter for from_pretrained of Transformers 5",
    "vllm": "WeightsMapper for a model class of vLLM",
    "mlx": "sanitize, a function of arrays, for a model class of mlx-lm",
}
