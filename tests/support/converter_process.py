"""A process that runs generated converters one after the other, and cannot import `compiler`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

# Pairs of specs with a converter of their own: the first, and the one that it goes on into.
PAIRS = (("litgpt_llama", "meta_llama"), ("qwen3", "litgpt_qwen3"))
GENERATED = Path(__file__).parent.parent.parent / "generated"
# One converter after the other, as `python convert_x.py WORDS` would run it, in a process without the compiler.
SERVER = """
import json, os, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "compiler":
            raise ImportError("a converter may not need the compiler")

sys.meta_path.insert(0, Blocker())
lines, answers = sys.stdin, os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in lines:
    sys.argv = json.loads(line)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        said = ""
    except SystemExit as end:
        said = "" if end.code in (None, 0) else str(end.code)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps(said), file=answers, flush=True)
"""


class ConverterProcess:
    """Runs converters; importing torch is paid for once."""

    def __init__(self, place: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=place,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, *words: str) -> str:
        """What the converter of that spec, or at that path, ends with: empty when it is content."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        path = script(name) if script(name).is_file() else name
        print(json.dumps([str(path), *words]), file=self.process.stdin, flush=True)
        return _answer(self.process.stdout)

    def close(self) -> None:
        self.process.communicate()


def _answer(lines: IO[str]) -> str:
    line = lines.readline()
    assert line, "the process of the converters has died"
    return str(json.loads(line))


def script(name: str) -> Path:
    return GENERATED / name / f"convert_{name}.py"
