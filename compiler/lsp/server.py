"""The language server, over `pygls` (https://microsoft.github.io/language-server-protocol/, version 3.17).

While someone types, a text is compiled; when a file is opened or saved, its target class is asked in a thread, which
imports Transformers, and on save the spec is proven. Without torch and Transformers, neither happens.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from compiler import __version__, packages
from compiler.diagnostics import Diagnostic, Refusal, Span
from compiler.lsp import answers
from compiler.lsp.analysis import Analysis, TargetAnswers, analyse, ask_target, prove_and_ask

SOURCE = "mapspec"


def serve() -> None:
    """Serve until the client says `exit` or closes standard input."""
    protocol, sys.stdout = sys.stdout.buffer, sys.stderr  # whatever a class prints is no message
    server().start_io(sys.stdin.buffer, protocol)


def server() -> Any:
    """A LanguageServer of pygls that answers about spec files."""
    from lsprotocol import types
    from pygls.lsp.server import LanguageServer

    ls = LanguageServer(SOURCE, __version__)
    targets: dict[str, TargetAnswers] = {}  # URI -> the last answers of its target class
    kinds = {
        "key": types.CompletionItemKind.Property,
        "word": types.CompletionItemKind.EnumMember,
        "tensor": types.CompletionItemKind.Value,
        "function": types.CompletionItemKind.Function,
        "field": types.CompletionItemKind.Field,
    }
    asking = asyncio.Lock()  # one thread imports Transformers

    def path_of(document: Any) -> str:
        return document.path or document.uri

    def range_of(document: Any, span: Span) -> Any:
        if not span.line or span.path != path_of(document):
            return types.Range(types.Position(0, 0), types.Position(0, 1))
        start, line = span.column - 1, span.line - 1
        place = types.Range(types.Position(line, start), types.Position(line, start + span.length))
        return document.range_to_client_units(place)

    def shown(document: Any, diagnostic: Diagnostic) -> Any:
        level = types.DiagnosticSeverity.Warning if diagnostic.warning else types.DiagnosticSeverity.Error
        message = f"{diagnostic.message}\nhint: {diagnostic.hint}" if diagnostic.hint else diagnostic.message
        return types.Diagnostic(range_of(document, diagnostic.span), message, level, diagnostic.kind, source=SOURCE)

    def publish(document: Any, diagnostics: tuple[Diagnostic, ...]) -> None:
        items = [shown(document, diagnostic) for diagnostic in diagnostics]
        ls.text_document_publish_diagnostics(
            types.PublishDiagnosticsParams(document.uri, items, version=document.version)
        )

    def compiled(uri: str) -> tuple[Any, Analysis]:
        """The document, and its diagnostics, which are published."""
        document = ls.workspace.get_text_document(uri)
        analysis = analyse(path_of(document), document.source)
        publish(document, analysis.diagnostics)
        return document, analysis

    @ls.feature(types.TEXT_DOCUMENT_DID_OPEN)
    async def opened(params: types.DidOpenTextDocumentParams) -> None:
        document, analysis = compiled(params.text_document.uri)
        if analysis.program is None or packages.missing():
            return
        try:
            async with asking:
                targets[document.uri] = await asyncio.to_thread(ask_target, analysis.program)
        except Refusal:
            return  # the proof reports it when the file is saved

    @ls.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(params: types.DidChangeTextDocumentParams) -> None:
        compiled(params.text_document.uri)

    @ls.feature(types.TEXT_DOCUMENT_DID_SAVE)
    async def saved(params: types.DidSaveTextDocumentParams) -> None:
        document, analysis = compiled(params.text_document.uri)
        if analysis.program is None or packages.missing():
            return
        text = document.source
        async with asking:
            found, target = await asyncio.to_thread(prove_and_ask, analysis.program)
        if target is not None:
            targets[document.uri] = target
        if document.source == text:  # else these places are of another text
            publish(document, (*analysis.diagnostics, *found))

    @ls.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(params: types.DidCloseTextDocumentParams) -> None:
        targets.pop(params.text_document.uri, None)
        ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(params.text_document.uri, []))

    def asked(params: Any) -> tuple[Any, tuple[str, str, int, int]]:
        document = ls.workspace.get_text_document(params.text_document.uri)
        at = document.position_from_client_units(params.position)
        return document, (path_of(document), document.source, at.line, at.character)

    @ls.feature(types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(trigger_characters=[".", '"', " "]))
    def completion(params: types.CompletionParams) -> list[types.CompletionItem]:
        document, question = asked(params)
        end = params.position
        return [
            types.CompletionItem(
                one.label,
                kind=kinds.get(one.kind, types.CompletionItemKind.Variable),
                detail=one.detail,
                text_edit=types.TextEdit(
                    types.Range(types.Position(end.line, end.character - one.length), end), one.label
                ),
            )
            for one in answers.complete(*question, targets.get(document.uri))
        ]

    @ls.feature(types.TEXT_DOCUMENT_HOVER)
    def hover(params: types.HoverParams) -> types.Hover | None:
        document, question = asked(params)
        text = answers.hover(*question, targets.get(document.uri))
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, text)) if text else None

    @ls.feature(types.TEXT_DOCUMENT_DEFINITION)
    def definition(params: types.DefinitionParams) -> types.Location | None:
        document, question = asked(params)
        span = answers.definition(*question)
        return types.Location(document.uri, range_of(document, span)) if span else None

    return ls
