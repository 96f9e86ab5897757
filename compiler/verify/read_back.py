"""The isolated process that loads a folder as a user's program does: `python -m compiler.verify.read_back FOLDER`.

Loads the config, the tokenizer and the generation config with Transformers alone and prints, as JSON, a list of the
values that Transformers reads differently. The weights are not loaded. `misread` starts the process and returns the
list; it raises Refusal where the folder cannot be loaded at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compiler import packages
from compiler.diagnostics import refuse
from compiler.resources import package_root
from compiler.target.model_class import different


def misread(folder: Path) -> list[str]:
    """The values that Transformers reads differently from the files, one line each. Raises Refusal."""
    packages.need("--readback", "transformers")
    with tempfile.TemporaryDirectory(prefix="mapspec_") as modules:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(package_root()), os.environ.get("PYTHONPATH")))),
            "HF_MODULES_CACHE": modules,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        command = [sys.executable, "-m", "compiler.verify.read_back", str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        refuse(
            str(folder), f"Transformers cannot load it: {lines[-1] if lines else 'no reason given'}", "misread-field"
        )
    misread_values: list[str] = json.loads(done.stdout)
    return misread_values


def read_back(folder: Path) -> Iterator[str]:
    """The same as `misread`, in this process."""
    import transformers

    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    trust: dict[str, Any] = {"trust_remote_code": True} if "auto_map" in written else {}
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **trust)
    for name, (value, loaded) in different(config, written).items():
        yield f"config.json has {name}={value!r}, but {type(config).__name__} reads {loaded!r}"
    if (path := folder / "generation_config.json").is_file():
        generation = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
        for name, value in json.loads(path.read_text(encoding="utf-8")).items():
            if (loaded := getattr(generation, name, None)) != value:
                yield f"generation_config.json has {name}={value!r}, but Transformers reads {loaded!r}"
    if (path := folder / "tokenizer_config.json").is_file():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **trust)
        fields = json.loads(path.read_text(encoding="utf-8"))
        for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
            value = fields.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str) and (loaded := getattr(tokenizer, name)) != value:
                yield f"tokenizer_config.json has {name}={value!r}, but Transformers reads {loaded!r}"


if __name__ == "__main__":
    print(json.dumps(list(read_back(Path(sys.argv[1])))))
