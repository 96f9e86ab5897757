"""Asks a target class for its names, shapes and ties in a process of its own, beside other work.

`python -m compiler.target.ask_class` reads a ClassQuestion as JSON from standard input and writes the answer to standard
output: `{"shapes": ..., "ties": ...}`, or `{"problems": [...]}` where the class rejects the config. Importing Transformers
takes seconds, which a conversion can spend copying; a cached answer needs no process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from compiler import packages
from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.resources import package_root
from compiler.target import signature_cache
from compiler.target.signature_cache import ClassQuestion, ClassSignature


class PendingAnswer:
    """The answer to a question, which may still be on its way."""

    def __init__(self, question: ClassQuestion) -> None:
        self.question = question
        self._process: subprocess.Popen[str] | None = None
        self._answer: ClassSignature | None = signature_cache.cached(question)
        if self._answer is None:
            packages.need("a target class")
        if self._answer is None and "transformers" in sys.modules:
            return  # asking here is faster than a process that imports it again
        if self._answer is None:
            path = os.pathsep.join(filter(None, (str(package_root()), os.environ.get("PYTHONPATH"))))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "compiler.target.ask_class"],
                env=os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # it died; `result` reports that
                self._process.stdin.write(json.dumps(asdict(question), default=dict))
                self._process.stdin.close()
            self._process.stdin = None

    def result(self) -> ClassSignature:
        """Wait for the answer. Raises Refusal: `unknown-class`, `unbuildable-target`, `missing-package`."""
        if self._answer is None and self._process is None:
            self._answer = signature_cache.ask(self.question)
        if self._answer is None:
            assert self._process is not None
            output, errors = self._process.communicate()
            self._answer = _parsed(output, errors, self.question)
        return self._answer

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


def _parsed(output: str, errors: str, question: ClassQuestion) -> ClassSignature:
    try:
        answer: dict[str, Any] = json.loads(output)
    except ValueError:
        last = (errors.strip().splitlines() or ["no output"])[-1]
        message = f"the class could not be built: {last}"
        raise Refusal([Diagnostic(Span(question.model_class), message, "unbuildable-target")]) from None
    if "problems" in answer:
        raise Refusal(Diagnostic(Span(p["place"]), p["message"], p["kind"], p["hint"]) for p in answer["problems"])
    return signature_cache.from_json(answer)


def _main() -> None:
    fields: Mapping[str, Any] = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a class prints is not an answer
    try:
        answer = signature_cache.as_json(signature_cache.ask(ClassQuestion(**fields)))
    except Refusal as refusal:
        problems = [
            {"place": d.span.path, "message": d.message, "kind": d.kind, "hint": d.hint} for d in refusal.diagnostics
        ]
        answer = {"problems": problems}
    json.dump(answer, answers)
    answers.flush()
    os._exit(0)  # tearing down torch takes time that the parent would wait for


if __name__ == "__main__":
    _main()
