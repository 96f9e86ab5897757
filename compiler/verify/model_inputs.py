"""Inputs of a Transformers model, drawn from a fixed seed: tokens, images, features, waveforms, points.

Shapes come from the spec's `verify` section or from the class (its `forward`, `main_input_name`, `dummy_inputs`) and the
sizes in its config. Where these leave a shape open, several are offered; the caller takes the first that runs.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from compiler.verify.job import InputShape

BATCH = 2
FRAMES = 96  # of features or of video, where the config has no number
# Sub-configs that are searched first, by the kind of input.
TEXT, VISION, AUDIO = ("text_config", "decoder"), ("vision_config", "image_encoder"), ("audio_config", "encoder")


def draw(shapes: Sequence[InputShape]) -> dict[str, Any]:
    """One tensor for each shape: int64 tokens and masks, float32 floats."""
    return {shape.name: _tensor(shape, number) for number, shape in enumerate(shapes)}


def _tensor(shape: InputShape, seed: int, excluded: frozenset[int] = frozenset()) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    if shape.kind == "floats":
        return torch.randn(shape.shape, generator=generator)
    if shape.kind == "mask":
        return torch.ones(shape.shape, dtype=torch.int64)
    allowed = [n for n in range(shape.below) if n not in excluded] if shape.below < 1 << 20 else []
    if len(allowed) < 2:
        return torch.randint(shape.below, shape.shape, generator=generator)
    return torch.tensor(allowed)[torch.randint(len(allowed), shape.shape, generator=generator)]


def implied(model: Any, length: int, below: int) -> list[dict[str, Any]]:
    """The inputs that the class and its config imply, the most complete first: `length` tokens, smaller than `below` if
    that is not 0. Empty where the inputs of the class are unknown."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    known = inspect.signature(model.forward).parameters
    main = model.main_input_name
    offered = {name: shapes for name, shapes in _shapes(model, config, length, below).items() if name in known}
    special = frozenset(_special_tokens(config))
    sets = [tuple(offered)]
    if main in offered:
        alone = (main, "decoder_input_ids") if "decoder_input_ids" in offered else (main,)
        sets += [(*alone, "pixel_values") if "pixel_values" in offered and main != "pixel_values" else alone, alone]
    found: list[dict[str, Any]] = []
    for names in dict.fromkeys(sets):
        for chosen in product(*(offered[name] for name in names)):
            inputs = {shape.name: _tensor(shape, number, special) for number, shape in enumerate(chosen)}
            found += [_ended(inputs, config)] if inputs else []
    if main not in offered and isinstance(dummy := model.dummy_inputs, Mapping) and set(dummy) <= set(known):
        found.append(dict(dummy))
    return found


def _shapes(model: Any, config: Mapping[str, Any], length: int, below: int) -> dict[str, list[InputShape]]:
    """Input -> the shapes that it may have. Of an image (batch, channels, height, width), of a waveform (batch,
    samples), of features (batch, bands, frames) or (batch, frames, bands)."""
    found: dict[str, list[InputShape]] = {}

    def offer(name: str, kind: str, *shapes: tuple[int, ...], below: int = 0) -> None:
        found[name] = [InputShape(name, kind, shape, below) for shape in shapes]

    vocabulary = _number(config, ("vocab_size",), TEXT)
    if vocabulary:
        most = min(vocabulary, below) if below else vocabulary
        offer("input_ids", "tokens", (BATCH, length), below=most)
        if config.get("is_encoder_decoder"):
            offer("decoder_input_ids", "tokens", (BATCH, length), below=most)
    images = model.main_input_name == "pixel_values" or any(isinstance(config.get(name), Mapping) for name in VISION)
    if images:
        height, width = _image_size(config)
        channels = _number(config, ("num_channels", "in_channels", "in_chans"), VISION) or 3
        frames = _number(config, ("num_frames",), VISION)
        video = [(BATCH, frames, channels, height, width)] if frames else []
        offer("pixel_values", "floats", (BATCH, channels, height, width), *video)
        offer("pixel_values_videos", "floats", *(video or [(BATCH, FRAMES // 12, channels, height, width)]))
        offer("input_points", "floats", (BATCH, 1, 1, 2))
        offer("input_labels", "mask", (BATCH, 1, 1))
    bands = _number(config, ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel"), AUDIO)
    positions = _number(config, ("max_source_positions",), AUDIO)
    if bands:
        frames = _number(config, ("max_length",), AUDIO) or FRAMES
        by_band = [(BATCH, bands, positions * _stride(model))] if positions else []
        features = [*by_band, (BATCH, frames, bands), (BATCH, bands, frames), (BATCH, 1, frames, bands)]
        offer("input_features", "floats", *features)
        offer("input_values", "floats", *features)
    else:
        steps = config.get("conv_stride") or config.get("upsampling_ratios") or [320]
        samples = max(math.prod(steps) * 16, 2048)
        channels = _number(config, ("audio_channels",), AUDIO) or 1
        offer("input_values", "floats", (BATCH, samples), (BATCH, channels, samples))
    return found


def _stride(model: Any) -> int:
    """How many frames of features become one position: the strides of the convolutions before the first layer."""
    import torch

    found = [module.stride[0] for name, module in model.named_modules() if isinstance(module, torch.nn.Conv1d)]
    return math.prod(found)


def _image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    value = _field(config, ("image_size", "img_size", "input_size"), VISION)
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return int(value[0]), int(value[1])
    return (value, value) if isinstance(value, int) and value > 0 else (224, 224)


def _ended(inputs: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens beside an image end with the end token: text encoders read the whole text from there."""
    end = _number(config, ("eos_token_id",), TEXT)
    if "pixel_values" in inputs and "input_ids" in inputs and end < int(inputs["input_ids"].max()) + 2:
        inputs["input_ids"][:, -1] = end
    return inputs


def _special_tokens(config: Mapping[str, Any]) -> Iterator[int]:
    """Tokens with a meaning of their own, such as padding or the place of an image, at any depth of the config."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_tokens(value)
        elif name.endswith(("token_id", "token_index", "token_ids")):
            yield from (n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int))


def _number(config: Mapping[str, Any], names: Sequence[str], first: Sequence[str]) -> int:
    value = _field(config, names, first)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _field(config: Mapping[str, Any], names: Sequence[str], first: Sequence[str]) -> Any:
    """A field under one of its names: in the sub-configs `first`, then here, then in any other; None if there is none."""
    parts = [config[key] for key in first if isinstance(config.get(key), Mapping)]
    for part in (*parts, config):
        value = next((part[name] for name in names if part.get(name) is not None), None)
        if value is not None:
            return value
    others = [value for key, value in config.items() if key not in first and isinstance(value, Mapping)]
    return next((v for part in others if (v := _field(part, names, first)) is not None), None)
