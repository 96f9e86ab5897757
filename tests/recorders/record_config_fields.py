"""Record the fields of the config classes of other people's packages and their defaults, one JSON file for each package.

Usage: python record_config_fields.py [OUT]; writes OUT/PACKAGE.json, by default into tests/data/config_fields. It reads
the source text of whatever packages of `CLASSES` are on the path and imports none of them, so that unpacked wheels will
do. A class in it is a dataclass, a named tuple, or a function whose parameters are the fields.
"""

from __future__ import annotations

import ast
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "data" / "config_fields"
# Distribution -> class or function -> the file that has it, below the package's folder.
CLASSES = {
    "litgpt": {"Config": "litgpt/config.py"},
    "fairseq2": {"LLaMAConfig": "fairseq2/models/llama/config.py"},
    "ibm-fms": {"LLaMAConfig": "fms/models/llama.py"},
    "mistral-inference": {"TransformerArgs": "mistral_inference/args.py"},
    "openai-whisper": {"ModelDimensions": "whisper/model.py"},
    "llama-models": {"ModelArgs": "llama_models/llama3/args.py"},
    "megatron-core": {
        "TransformerConfig": "megatron/core/transformer/transformer_config.py",
        "ModelParallelConfig": "megatron/core/model_parallel_config.py",
    },
    "ai2-olmo": {"ModelConfig": "olmo/config.py"},
    "ai2-olmo-core": {
        "TransformerConfig": "olmo_core/nn/transformer/config.py",
        "AttentionConfig": "olmo_core/nn/attention/__init__.py",
    },
    "transformer-lens": {"HookedTransformerConfig": "transformer_lens/HookedTransformerConfig.py"},
    "timm": {
        "VisionTransformer": "timm/models/vision_transformer.py",
        "Beit": "timm/models/beit.py",
        "ConvNeXt": "timm/models/convnext.py",
        "ResNet": "timm/models/resnet.py",
        "SwinTransformer": "timm/models/swin_transformer.py",
    },
    "torchtune": {
        "llama3_1": "torchtune/models/llama3_1/_component_builders.py",
        "mistral": "torchtune/models/mistral/_component_builders.py",
        "phi3": "torchtune/models/phi3/_component_builders.py",
        "qwen2": "torchtune/models/qwen2/_component_builders.py",
    },
    "torchtitan": {"RoPE.Config": "torchtitan/models/common/rope.py"},
}


def fields(text: str, name: str) -> dict[str, Any]:
    """The fields of a class, or the parameters of a function or of a class's `__init__`: name -> default. The default is
    `...` where there is none, or where it is no literal."""
    body: list[ast.stmt] = ast.parse(text).body
    for part in name.split("."):
        node = next(n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == part)
        body = node.body
    annotated = [s for s in body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    own = {s.target.id: s.value for s in annotated if isinstance(s.target, ast.Name)}
    functions = [node] if isinstance(node, ast.FunctionDef) else []
    init = [s for s in body if isinstance(s, ast.FunctionDef) and s.name == "__init__"]
    if not own or any("Final" in ast.unparse(s.annotation) for s in annotated):  # a module, not a dataclass
        own, functions = {}, functions + init
    for function in functions:
        names = [a.arg for a in function.args.args]
        own |= dict.fromkeys((n for n in names if n != "self"), None)
        own |= dict(zip(names[::-1], function.args.defaults[::-1], strict=False))
        own |= {a.arg: value for a, value in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)}
    return {field: _literal(value) for field, value in own.items() if not field.startswith("__")}


def _literal(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):  # of dataclasses
        value = next((k.value for k in value.keywords if k.arg == "default"), None)
    try:
        return ... if value is None else ast.literal_eval(value)
    except ValueError:
        return ...


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.mkdir(parents=True, exist_ok=True)
    for package, classes in CLASSES.items():
        roots = {name: find_spec(file.split("/")[0]) for name, file in classes.items()}
        try:
            release = version(package)
        except PackageNotFoundError:
            print(f"{package} is not on the path", file=sys.stderr)
            continue
        found: dict[str, list[str]] = {}
        defaults: dict[str, dict[str, Any]] = {}
        for name, file in classes.items():
            place = next(iter(roots[name].submodule_search_locations or []))
            values = fields((Path(place).parent / file).read_text(encoding="utf-8"), name)
            found[name] = [*values]
            defaults[name] = {field: value for field, value in values.items() if value is not ...}
        content = {"package": package, "version": release, "fields": found, "defaults": defaults}
        (out / f"{package}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
