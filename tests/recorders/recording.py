"""What the recorders of `tests/oracles` share: seeded weights, and the layout of a case on disk.

A recorder runs in an environment that has the package it asks (`make test-oracles` makes one). It builds a small model
with the package's own code, converts it with the package's own converter, and records both with the logits of the
package's own model. Nothing of this project takes part.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

VOCABULARY = 128
KEPT = 12  # positions, the last ones
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def arguments(description: str, *folders: str) -> argparse.Namespace:
    """`OUT`, where the family's folder of cases is written, `--seed`, and options that name further folders."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    for folder in folders:
        parser.add_argument(folder, type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    return options


def import_torchvision() -> None:
    """timm and CLIP want it, but none of its compiled operators: where those were built for another torch than the one
    that is installed, its own modules ask for them in vain."""
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            operator = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not operator:
                raise
            OPERATORS.define(f"{operator[1]}(Tensor unused) -> Tensor")


def enter(name: str) -> ModuleType:
    """A package as its folder alone, so that its modules can be imported without what its `__init__` would import."""
    parent = name.rpartition(".")[0]
    spec = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    assert spec is not None, f"{name} is not installed"
    return stand_in(name, module_from_spec(spec))


def stand_in(name: str, module: ModuleType | None = None, **holds: Any) -> ModuleType:
    """A module under a name that a package imports, holding only what is asked of it."""
    sys.modules[name] = module = module or ModuleType(name)
    for word, value in holds.items():
        setattr(module, word, value)
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    return module


def seed_weights(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter values of its own, exact in float16: norms near 1, biases that count, distinct tensors."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim > 1:
            value = noise * (0.6 if "emb" in name or "wte" in name else 1.2 * parameter.shape[-1] ** -0.5)
        else:
            value = 1 + 0.3 * noise if "bias" not in name else 0.3 * noise
        parameter.data.copy_(value.half())
    return model.eval()


def seeded_class(model_class: str, config: Mapping[str, Any], seed: int) -> nn.Module:
    """A model of a class of Transformers with weights of its own."""
    import transformers

    cls = getattr(transformers, model_class)
    return seed_weights(cls(cls.config_class(**config)), seed)


def ids(length: int, seed: int) -> Tensor:
    """Token ids (1 x length, int64)."""
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def images(count: int, channels: int, size: int, seed: int) -> Tensor:
    """Random images (count x channels x size x size, float32)."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def halves(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in float16; counters stay whole numbers."""
    return {n: (t.detach().half() if t.is_floating_point() else t.detach()).clone() for n, t in state.items()}


def renamed(state: Mapping[str, Tensor], table: Mapping[str, str | tuple[str, ...]]) -> dict[str, Tensor]:
    """`state` under the names of a table: regular expression of a full name -> its name in the target, or several names
    for equal parts of its first axis. Raises LookupError for a name that the table does not have."""
    target: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, new in table.items():
            if found := re.fullmatch(pattern, name):
                names = (new,) if isinstance(new, str) else new
                parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
                target |= {found.expand(n): part.clone() for n, part in zip(names, parts, strict=True)}
                break
        else:
            raise LookupError(name)
    return target


def record(
    folder: Path,
    case: Mapping[str, Any],
    *,
    save: Callable[[Path], None],
    target: Mapping[str, Tensor],
    model_class: str,
    config: Mapping[str, Any],
    input_ids: Tensor | Mapping[str, Tensor],
    logits: Tensor | None,
    notes: Mapping[str, Any],
) -> None:
    """Write one case: `save` fills `source/`; `target` is what the package's own converter made of it.

    The standard class must agree with the package's model by 1e-4, or there is no right answer to record. `logits` is
    None where the package's model does not run in float32 on a CPU; then the tensors are all that is recorded. Other
    inputs than ids are given by their names; of a model without logits, the last hidden state takes their place.
    """
    if find_spec("torchvision"):
        import_torchvision()
    import transformers

    inputs = {"input_ids": input_ids} if isinstance(input_ids, Tensor) else dict(input_ids)
    source, expected = folder / "source", folder / "expected"
    for place in (source, expected):
        place.mkdir(parents=True, exist_ok=True)
    save(source)
    cls = getattr(transformers, model_class)
    filled = cls.config_class(**config, architectures=[model_class], attn_implementation="eager")
    tied = [name for name in target if name == "lm_head.weight" and filled.tie_word_embeddings]
    place = folder / "hf"
    place.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in target.items()}, place / "model.safetensors", {"format": "pt"})
    filled.save_pretrained(place)
    model, loaded = cls.from_pretrained(
        place, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not loaded["missing_keys"], loaded
    assert not loaded["unexpected_keys"], loaded
    report: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if logits is not None:
        with torch.no_grad():
            apart = float((output_of(model.eval()(**inputs)) - logits).abs().max())
        assert apart < 1e-4, f"{folder.name}: the standard class differs by {apart}"
        report["standard_class_differs_by"] = apart
        kept = {**inputs, "logits_fp32": logits[:, -KEPT:].float().contiguous()}
        save_file(kept, expected / "golden_logits.safetensors")
    for file in place.iterdir():
        if file.name != "config.json":
            file.unlink()
    (place / "config.json").rename(expected / "config.json")
    place.rmdir()
    manifest = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "sha256": hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest(),
        }
        for name, tensor in sorted(target.items())
        if name not in tied
    }
    _write(expected / "manifest.json", manifest)
    _write(folder / "case.json", case)
    _write(expected / "report.json", {**notes, **report})
    print(f"{folder.parent.name}/{folder.name}: {len(manifest)} tensors, {report.get('standard_class_differs_by')}")


def output_of(made: Any) -> Tensor:
    """What is compared of a model's output: the logits, or the last hidden state."""
    names = ("logits_per_image", "logits", "last_hidden_state")
    return next(made[name] for name in names if name in made)  # type: ignore[no-any-return]


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
