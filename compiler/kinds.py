"""The kinds of problems, as docs/errors.md explains them.

Takes a kind, returns its section of that page; refuses a word that is none.
"""

from __future__ import annotations

from functools import cache

from compiler.diagnostics import nearest, refuse
from compiler.resources import folder

_HEADING = "### "


@cache
def sections() -> dict[str, str]:
    """Kind -> the text below its heading, as written. Raises Refusal where the page is not there."""
    path = folder("docs") / "errors.md"
    if not path.is_file():
        refuse(str(path), "the page of the kinds is missing", "unreadable-file", "python docs/make_errors.py makes it")
    found: dict[str, str] = {}
    for part in path.read_text(encoding="utf-8").split(f"\n{_HEADING}")[1:]:
        kind, _, text = part.partition("\n")
        found[kind] = text.split("\n## ")[0].strip() + "\n"
    return found


def section(kind: str) -> str:
    """The page's section about a kind. Raises Refusal: `unknown-kind`."""
    if kind not in sections():
        hint = nearest(kind, sections()) or "compile explain, without a word, lists all"
        refuse("explain", f"there is no kind {kind!r}", "unknown-kind", hint)
    return f"{kind}\n\n{sections()[kind]}"
