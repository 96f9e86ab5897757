"""What the names of tensors have in common: words and numbers, divided by dots."""

from __future__ import annotations

import re

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a whole part of a name, such as the 0 of `layers.0.attn.w1`
