"""Writes a small checkpoint with random weights to try the commands on, with its config, tokenizer and a LoRA.

`sample.json` in the package has the shapes, the config and the special tokens. The values depend on nothing but the names
of the tensors, so everybody gets the same bytes. Neither torch nor a network is needed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compiler.output import pth_layout
from compiler.output.atomic_output import AtomicOutput
from compiler.plan.plan import TargetTensor
from compiler.resources import sample_path
from compiler.tokenizer.bpe_merges import spelled
from compiler.tokenizer.tokenizer_json import added

_SPREAD = {1: 0.3, 2: 0.08}  # of the values, by the number of axes: norms around 1, matrices around 0
Shapes = Mapping[str, Sequence[int]]


def write_sample(out: Path) -> list[str]:
    """Write the sample into the folder `out` and return the names of its files. Raises Refusal: `output-exists`,
    `output-unwritable`; OSError."""
    sample: dict[str, Any] = json.loads(sample_path().read_text(encoding="utf-8"))
    output = AtomicOutput(out, force=False)
    output.check()
    texts = {
        "config.json": sample["config"],
        "tokenizer.json": _tokenizer(sample["special_tokens"]),
        "tokenizer_config.json": sample["tokenizer_config"],
    }
    with output:
        output.place.mkdir()
        for name, shapes in sample["state_dicts"].items():
            _write_state_dict(output.place / name, shapes, sample["copies"])
        for name, content in texts.items():
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (output.place / name).write_text(text, encoding="utf-8")
        output.finish()
    return sorted([*sample["state_dicts"], *texts])


def _write_state_dict(path: Path, shapes: Shapes, copies: Mapping[str, str]) -> None:
    """A `.pth` of float16 tensors, as torch.save writes it. A name of `copies` has the values of another."""
    targets = [TargetTensor(name, tuple(shape), "float16") for name, shape in shapes.items()]
    file = pth_layout.lay_out(path.name, targets)
    content = bytearray(file.size)
    for target in targets:
        start = file.offsets[target.name]
        content[start : start + target.nbytes] = _values(copies.get(target.name, target.name), target.shape)
    path.write_bytes(content)
    file.finish(path)


def _values(name: str, shape: Sequence[int]) -> bytes:
    """Uniform random values. Of NumPy's generators only the raw words are the same in every release."""
    import numpy as np

    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    uniform = (words >> np.uint64(40)).astype(np.float64) / (1 << 23) - 1  # from -1 to 1
    return (uniform * _SPREAD[len(shape)] + (len(shape) == 1)).astype(np.float16).tobytes()


def _tokenizer(special: Sequence[str]) -> dict[str, Any]:
    """A tokenizer.json whose tokens are the special ones and the 256 bytes."""
    vocabulary = {text: n for n, text in enumerate([*special, *(spelled(bytes([byte])) for byte in range(256))])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(n, text) for n, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
