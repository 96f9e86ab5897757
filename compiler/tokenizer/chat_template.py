"""Renders chat templates, and checks whether one can render a plain conversation.

A template is third-party code. It is rendered in a sandbox; `problem` does so in a process of its own with bounded time
and memory (`python -m compiler.tokenizer.chat_template` reads a template and the special tokens as JSON and prints the
problem). Raises whatever the template raises.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from compiler.resources import package_root

SECONDS, MEMORY = 2, 1 << 30  # of memory: bytes
CHAT = [{"role": role, "content": "Hello"} for role in ("user", "assistant", "user")]


def problem(template: str, special: Mapping[str, str]) -> str:
    """Why a template cannot render a conversation of three turns; empty if it can."""
    here = str(package_root())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", "compiler.tokenizer.chat_template"]
    request = json.dumps([template, dict(special)]).encode()
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, timeout=2 * SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        return f"it takes more than {SECONDS} seconds, or more than {MEMORY >> 20} MiB of memory"
    return str(json.loads(done.stdout))


def _answer() -> None:
    """The child process of `problem`."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    template, special = json.load(sys.stdin)
    failure = ""
    try:
        rendered(template, CHAT, special)
    except MemoryError:
        sys.exit(1)
    except Exception as error:  # whatever a template of somebody else raises
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
    print(json.dumps(failure))


def rendered(template: str, messages: list[dict[str, str]], special: Mapping[str, str], **variables: Any) -> str:
    """A conversation as Transformers renders it with the template (`utils/chat_template_utils.py`, 5.24)."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's turn; it renders its content."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def fail(message: str) -> None:
        raise TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = lambda value, ensure_ascii=False, **rest: json.dumps(
        value, ensure_ascii=ensure_ascii, **rest
    )
    env.globals |= {"raise_exception": fail, "strftime_now": lambda form: "1 January 2000"}
    tokens = {f"{role}_token": token for role, token in special.items()}
    return env.from_string(template).render(messages=messages, **tokens, **variables)


if __name__ == "__main__":
    _answer()
