"""Logits of a converted folder, computed in a fresh process by any installed version of transformers.

A round trip of tensors does not see a wrong config, a lost rope scaling or a buffer that loading leaves uninitialised;
logits from a process that has only the folder do. Tests call `logits`, `logits_many` and `largest_difference`; run as a
program, this file is the process that answers them, and then needs torch, transformers and safetensors only.

The interpreters tried are the current one and every one named by a variable `MAPSPEC_PYTHON_*`, such as
`MAPSPEC_PYTHON_4` for an environment with transformers 4.57.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ORACLES = Path(__file__).parent.parent / "data" / "oracles"


@dataclass(frozen=True)
class Job:
    """One folder to load, in float32 with eager attention on the CPU, and what to run: `input_ids` (int64, batch x
    length), or several inputs by their names. `dirty`: memory is full of NaN before the folder is loaded, so that
    whatever loading leaves unset shows."""

    folder: Path
    inputs: Any
    trust_remote_code: bool = False
    dirty: bool = False
    model_class: str = "AutoModelForCausalLM"


def interpreters() -> dict[str, str]:
    """Name -> path of each Python to try."""
    others = {name: path for name, path in sorted(os.environ.items()) if name.startswith("MAPSPEC_PYTHON_") and path}
    return {"current": sys.executable} | others


def logits(
    folder: Path,
    input_ids: Any,
    python: str = sys.executable,
    *,
    trust_remote_code: bool = False,
    dirty: bool = False,
    model_class: str = "AutoModelForCausalLM",
) -> Any:
    """The logits (float32, batch x length x vocabulary) of the model in `folder`, loaded by a fresh `python`."""
    return logits_many([Job(folder, input_ids, trust_remote_code, dirty, model_class)], python)[0]


def logits_many(jobs: Sequence[Job], python: str = sys.executable) -> list[Any]:
    """The logits of each job in turn, from one process: importing transformers takes seconds, a small model does not.

    Raises AssertionError with what the process said where it fails.
    """
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        named = [job.inputs if isinstance(job.inputs, dict) else {"input_ids": job.inputs} for job in jobs]
        flat = {f"{i}.{name}": tensor.clone() for i, inputs in enumerate(named) for name, tensor in inputs.items()}
        save_file(flat, place / "inputs.safetensors")
        asked = [
            asdict(replace(job, inputs=[*inputs])) | {"folder": str(job.folder)}
            for job, inputs in zip(jobs, named, strict=True)
        ]
        (place / "jobs.json").write_text(json.dumps(asked))
        # A cache of its own: else a folder's code could be that of an earlier folder of the same name.
        settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(place / "modules"), "OMP_NUM_THREADS": "1"}
        command = [python, str(Path(__file__).resolve()), str(place)]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{python} could not compute the logits:\n{done.stderr}"
        found = load_file(place / "logits.safetensors")
    return [found[str(i)] for i in range(len(jobs))]


def inputs_of(golden: Path) -> dict[str, Any]:
    """What the original's model was run on: all that a golden file has but the logits."""
    from safetensors.torch import load_file

    return {name: tensor for name, tensor in load_file(golden).items() if name != "logits_fp32"}


def difference(got: Any, golden: Path) -> float:
    """The largest absolute difference between `got` and the golden logits; infinite where a NaN stands in either.

    A golden file may keep only the last positions of its `input_ids`.
    """
    from safetensors.torch import load_file

    wanted = load_file(golden)["logits_fp32"]
    apart = (got[:, -wanted.shape[1] :].double() - wanted.double()).abs()
    return float("inf") if apart.isnan().any() else float(apart.max())


def largest_difference(
    folder: Path,
    golden: Path,
    tolerance: float,
    *,
    trust_remote_code: bool = False,
    dirty: bool = False,
    model_class: str = "AutoModelForCausalLM",
) -> float:
    """The largest difference from `golden` over all interpreters. Raises AssertionError above `tolerance`."""
    from safetensors.torch import load_file

    job = Job(folder, load_file(golden)["input_ids"], trust_remote_code, dirty, model_class)
    found = {name: difference(logits_many([job], python)[0], golden) for name, python in interpreters().items()}
    assert max(found.values()) <= tolerance, f"{folder} differs from {golden} by {found}, allowed is {tolerance}"
    return max(found.values())


# ---------------------------------------------------------------------------------------------------------------------
# The fresh process


def soil() -> None:
    """Leave NaN in freed memory of many sizes, and in every tensor that torch makes without a value from now on."""
    import torch

    sizes = [2**power for power in range(4, 22)]
    held = [torch.full((size,), float("nan")) for size in sizes for _ in range(8)]
    del held
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def _answer(place: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    torch.set_num_threads(1)
    inputs = load_file(place / "inputs.safetensors")
    found = {}
    for i, job in enumerate(json.loads((place / "jobs.json").read_text())):
        if job["dirty"]:
            soil()
        loader = getattr(transformers, job["model_class"])
        trust = {"trust_remote_code": True} if job["trust_remote_code"] else {}
        model = loader.from_pretrained(
            job["folder"], dtype=torch.float32, attn_implementation="eager", local_files_only=True, **trust
        )
        torch.use_deterministic_algorithms(False)
        with torch.no_grad():
            made = model.eval()(**{name: inputs[f"{i}.{name}"] for name in job["inputs"]})
        output = next(name for name in ("logits_per_image", "logits", "last_hidden_state") if name in made)
        found[str(i)] = made[output].float().contiguous()
    save_file(found, place / "logits.safetensors")


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
