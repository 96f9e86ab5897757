"""How many tokens to run, from the configs: enough to see attention windows and long-context scaling.

A window is seen by sequences longer than it, a scaled rotary embedding by those longer than the original context. What
memory or time does not allow is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BASE = 64  # tokens that every run has, unless the model has fewer positions
MARGIN = 32  # tokens beyond a window or a context
MOST_OPERATIONS = 2e13  # of one run: some minutes on one core
# Names of fields, of Transformers and of trainers.
WINDOWS = re.compile(r"(^|_)(sliding_window|window|window_size|attention_window|attention_chunk_size)$")
CONTEXTS = re.compile(r"original_?(max_)?(position|context|seq)|^old_context_len$|^(original_)?context_length_before")
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "n_ctx", "max_seq_len")
IMAGES_OR_SOUND = ("vision_config", "audio_config", "image_encoder")


@dataclass(frozen=True)
class SequenceLength:
    """`tokens` to run in each sequence; `unseen`: what needs longer sequences than that, one line each."""

    tokens: int
    unseen: tuple[str, ...] = ()


def choose_length(
    config: Mapping[str, Any],
    others: tuple[Mapping[str, Any], ...],
    affordable: Callable[[int], bool],
    asked: int | None = None,
) -> SequenceLength:
    """The length for a model of `config`: `asked`, or what windows and contexts need, here and in `others`, the configs
    of the source, as far as `affordable` allows; more than the model has positions only where its scaling is dynamic."""
    positions = min(_positions(config), default=0)
    needs: dict[str, int] = {}
    for each in (config, *others):
        for name, size in features(each):
            if name not in POSITIONS and 0 < positions <= size:
                continue  # no sequence is long enough to reach it
            most = size + MARGIN if name in POSITIONS else positions or size + MARGIN
            needs.setdefault(f"{name} = {size:,}", min(size + MARGIN, most))
    base = min(asked or BASE, positions or asked or BASE)
    tokens = max([base, *(n for n in needs.values() if asked is None and n > base and affordable(n))])
    unseen = (f"{name} (needs {n:,} tokens)" for name, n in needs.items() if n > tokens)
    return SequenceLength(tokens, tuple(unseen))


def features(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The windows and original contexts of a config, at any depth, in tokens."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            if name not in IMAGES_OR_SOUND:
                yield from features(value)
            continue
        if WINDOWS.search(name) and config.get("use_sliding_window") is not False:
            yield from ((name, n) for n in (value if isinstance(value, list | tuple) else [value]) if _is_size(n))
        elif CONTEXTS.search(name) and _is_size(value):
            yield name, value
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) == "dynamic":
        yield from (("max_position_embeddings", n) for n in _positions(config))


def unseen_features(config: Mapping[str, Any], others: tuple[Mapping[str, Any], ...], tokens: int) -> tuple[str, ...]:
    """The windows and contexts that sequences of so many tokens do not reach, one line each."""
    return choose_length(config, others, lambda length: True, tokens).unseen


def _positions(config: Mapping[str, Any]) -> Iterator[int]:
    yield from (config[name] for name in POSITIONS if _is_size(config.get(name)))
    for name, value in config.items():
        if isinstance(value, Mapping) and name not in IMAGES_OR_SOUND:
            yield from _positions(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
