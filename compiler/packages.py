"""Optional packages. Core installations lack them (`pip install mapspec`); `mapspec[proof]` has torch and Transformers,
`mapspec[lsp]` the library of the language server."""

from __future__ import annotations

import importlib.util

from compiler.diagnostics import Diagnostic, Refusal, Span

PROOF = ("torch", "transformers")
LSP = ("pygls",)
INSTALL = "pip install 'mapspec[proof]'"
INSTALL_LSP = "pip install 'mapspec[lsp]'"


def missing(*names: str) -> list[str]:
    """The packages of `names`, by default of PROOF, that cannot be imported. Imports nothing."""
    return [name for name in names or PROOF if importlib.util.find_spec(name) is None]


def need(task: str, *names: str, otherwise: str = "") -> None:
    """Raises Refusal: `missing-package`, if one of `names`, by default of PROOF, is not installed. `task` is what needs it,
    such as "the proof of a spec", `otherwise` what else helps."""
    if absent := missing(*names):
        raise absence(task, absent, otherwise)


def absence(task: str, absent: list[str], otherwise: str = "") -> Refusal:
    """The Refusal about packages that are not installed."""
    verb = "is" if len(absent) == 1 else "are"
    text = f"needs {' and '.join(absent)}, which {verb} not installed"
    install = INSTALL_LSP if set(absent) <= set(LSP) else INSTALL
    return Refusal([Diagnostic(Span(task), text, "missing-package", f"{install}{otherwise and f', or {otherwise}'}")])


def unchecked(absent: list[str]) -> str:
    """The sentence about a result that was not compared with its target class."""
    verb = "is" if len(absent) == 1 else "are"
    return f"not compared with the target class, because {' and '.join(absent)} {verb} not installed: {INSTALL}"
