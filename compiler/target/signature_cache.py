"""What target classes said before: asking one costs seconds, as it imports Transformers; an answer is a few kilobytes.

An answer is kept under a digest of all that it can depend on: the question, the releases of Transformers and torch, and
the source that asks. Releases in development are always asked, as their source changes under one number. The answers
lie in `$MAPSPEC_CACHE`, by default `mapspec` in the user's cache folder; an empty value keeps none. One that cannot be
read is asked for anew, one that cannot be written is not kept: nothing is refused here but what a class refuses.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.target.model_class import ClassSignature
    from compiler.target.model_file import CodeClasses

Json = Any


def config_fields(model_class: str) -> Collection[str]:
    """The names of `target.config_fields`. Raises Refusal: `unknown-class`."""

    def ask() -> Json:
        from compiler.target import model_class as target

        return sorted(target.config_fields(model_class))

    names: list[str] = _recall(["fields", model_class], ask)
    return names


def signature(model_class: str, config: Mapping[str, Any]) -> ClassSignature:
    """`target.signature`. Raises Refusal: `unknown-class`, `unbuildable-target`."""

    def ask() -> ClassSignature:
        from compiler.target import model_class as target

        return target.signature(model_class, config)

    return _signature(["class", model_class, config], ask)


def rendered_signature(
    code: Mapping[str, str], module: str, model_class: str, config: Mapping[str, Any]
) -> ClassSignature:
    """`rendered.signature`. Raises Refusal: `unbuildable-target`."""

    def ask() -> ClassSignature:
        from compiler.target import model_class as rendered

        return rendered.signature_of_code(code, module, model_class, config)

    return _signature(["code", code, module, model_class, config], ask)


def code_classes(files: Mapping[str, str], module: str, model_class: str, config_class: str | None) -> CodeClasses:
    """`model_file.classes`. Raises Refusal: `unknown-class`, `unusable-code`."""
    from compiler.target import model_file

    def ask() -> Json:
        found = model_file.classes(files, module, model_class, config_class)
        return {"model_type": found.model_type, "auto_map": dict(found.auto_map), "fields": list(found.fields)}

    answer = _recall(["classes", dict(files), module, model_class, config_class], ask)
    return model_file.CodeClasses(answer["model_type"], answer["auto_map"], tuple(answer["fields"]))


def code_signature(
    files: Mapping[str, str], module: str, model_class: str, config: Mapping[str, Any]
) -> ClassSignature:
    """`model_file.signature`. Raises Refusal: `unknown-class`, `unusable-code`, `unbuildable-target`."""

    def ask() -> ClassSignature:
        from compiler.target import model_file
        from compiler.target.model_class import ClassSignature

        return ClassSignature(*model_file.signature(files, module, model_class, config))

    return _signature(["file", dict(files), module, model_class, config], ask)


def _signature(question: list[Json], ask: Callable[[], ClassSignature]) -> ClassSignature:
    from compiler.target.model_class import ClassSignature

    def asked() -> Json:
        found = ask()
        return {"shapes": found.shapes, "ties": found.ties}

    answer = _recall(question, asked)
    return ClassSignature({name: tuple(shape) for name, shape in answer["shapes"].items()}, answer["ties"])


def _recall(question: list[Json], ask: Callable[[], Json]) -> Json:
    folder, releases = _folder(), _releases()
    if folder is None or any("dev" in release for release in releases):
        return ask()
    text = json.dumps([question, releases, _source()], sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["question"] == text:
            return kept["answer"]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    answer = ask()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
            json.dump({"question": text, "answer": answer}, file)
        os.replace(file.name, path)
    except OSError:
        pass
    return answer


def _folder() -> Path | None:
    named = os.environ.get("MAPSPEC_CACHE")
    if named is not None:
        return Path(named) if named else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mapspec"
    except RuntimeError:  # no home
        return None


@cache
def _releases() -> tuple[str, ...]:
    try:
        return metadata.version("transformers"), metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ("dev",)


@cache
def _source() -> str:
    """A digest of the modules that turn a class into an answer."""
    found = hashlib.sha256()
    for name in ("model_class.py", "config_dialects.py", "model_file.py", "signature_cache.py"):
        found.update((Path(__file__).parent / name).read_bytes())
    return found.hexdigest()
