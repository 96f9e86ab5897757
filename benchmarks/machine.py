"""What a table of results says of the run that made it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path


def command() -> str:
    """This run without its folders."""
    words = iter(sys.argv[1:])
    kept = [word for word in words if word not in ("--folder", "--out") or next(words) is None]
    return shlex.join(["python", "-m", "benchmarks", *kept])


def described(folder: Path) -> str:
    """The machine, and the file system of `folder`."""
    with open("/proc/cpuinfo") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    with open("/proc/meminfo") as lines:
        memory = int(next(lines).split()[1]) / (1 << 20)
    found = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB of memory, Linux {platform.release().split('-')[0]}, "
        f"{found.stdout.strip()}; Python {platform.python_version()}. "
        f"Load when it began: {os.getloadavg()[0]:.1f}."
    )
