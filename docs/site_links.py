"""Hook of mkdocs: links of the pages to files outside of docs/ lead to the repository; all others are checked by mkdocs."""

from __future__ import annotations

import re
from typing import Any

REPOSITORY = "https://github.com/mapspec/mapspec/blob/main/"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return re.sub(r"\]\(\.\./(?!\.)", f"]({REPOSITORY}", markdown)
