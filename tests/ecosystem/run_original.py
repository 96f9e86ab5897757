"""Runs the program that owns a layout on a folder that `--reverse` or `--to` wrote, in a Python that has it.

Usage: python run_original.py FAMILY FOLDER INPUT OUT: INPUT is a tensor (ids or pixels) and OUT gets the logits (float32) or
tokens, both by torch.save. Loads as the program's own users do, and never with `strict=False`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch


def litgpt(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    from litgpt import GPT, Config

    model = GPT(Config.from_file(folder / "model_config.yaml"))
    model.load_state_dict(torch.load(folder / "lit_model.pth", weights_only=True))
    return model.eval()(ids)


def torchtune(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """By its model builder, whose arguments are those that the manifest records, and its own checkpointer, which needs an
    older torchao (see the Makefile)."""
    sys.path.insert(0, str(Path(sys.prefix) / "torchao-0.13"))
    from torchtune.models.llama3_1 import llama3_1
    from torchtune.training import FullModelTorchTuneCheckpointer

    checkpointer = FullModelTorchTuneCheckpointer(
        folder, ["model.pt"], "LLAMA3", output_dir=folder.parent / "torchtune"
    )
    recorded = json.loads((folder / "mapspec.json").read_text())["settings"]
    names = "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len intermediate_dim rope_base norm_eps"
    settings = {name: recorded[name] for name in names.split() if name in recorded}
    model = llama3_1(**settings, scale_factor=recorded["scale_factor"] or 1)
    model.load_state_dict(checkpointer.load_checkpoint()["model"])
    return model.eval()(ids)


def timm(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The network's sizes are arguments of timm's class, as the manifest records them."""
    import timm.models.vision_transformer
    from safetensors.torch import load_file

    of = json.loads((folder / "mapspec.json").read_text())["settings"]
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=of["image_size"],
        patch_size=of["patch_size"],
        embed_dim=of["embed_dim"],
        depth=of["depth"],
        num_heads=of["num_heads"],
        mlp_ratio=of["mlp_width"] / of["embed_dim"],
        num_classes=of["num_classes"],
    )
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return model.eval()(pixels)


def gguf(file: Path, ids: torch.Tensor) -> torch.Tensor:
    """16 greedy tokens of llama.cpp after each row, not logits; over HTTP, since only that answers with ids."""
    from urllib.request import Request, urlopen

    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(file)
    settings.n_ctx, settings.warmup, settings.cpuparams.n_threads = 256, False, 1
    server = xllamacpp.Server(settings)
    rows = []
    for row in ids.tolist():
        asked = {"prompt": row, "n_predict": 16, "temperature": 0, "ignore_eos": True, "return_tokens": True}
        address = f"{server.listening_address}/completion"
        with urlopen(Request(address, json.dumps(asked).encode(), {"Content-Type": "application/json"})) as answer:
            rows.append(json.load(answer)["tokens"])
    return torch.tensor(rows)


if __name__ == "__main__":
    family, folder, given, out = sys.argv[1:]
    programs = {"litgpt": litgpt, "torchtune": torchtune, "timm": timm, "gguf": gguf}
    with torch.no_grad():
        result = programs[family](Path(folder), torch.load(given, weights_only=True))
    torch.save(result if family == "gguf" else result.float(), out)
