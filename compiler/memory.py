"""How much memory a process may still take. Takes nothing; returns bytes, or None where the system does not tell.

On Linux it is what the kernel says is available without swapping, and no more than the control group (version 2) of a
container leaves, whose cached files count as free. Source: proc(5); Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def available(root: Path = ROOT) -> int | None:
    """Bytes that can be had; `root` is where `proc` and `sys` lie."""
    found = [n for n in (_of_machine(root), _of_group(root / "sys" / "fs" / "cgroup")) if n is not None]
    return min(found, default=None)


def _of_machine(root: Path) -> int | None:
    kib = _table(root / "proc" / "meminfo").get("MemAvailable:")
    return None if kib is None else kib * 1024


def _of_group(group: Path) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no group, or the limit is `max`
        return None
    return max(0, limit - used + _table(group / "memory.stat").get("inactive_file", 0))


def _table(path: Path) -> dict[str, int]:
    """Lines of a word and a number."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
