"""A cache of class signatures: computing one imports Transformers, which takes seconds; the result is a few kilobytes.

The key is a digest of everything that a result depends on: the question, the releases of Transformers and torch, and
the source of this package. Development releases are never cached, because their source changes under one number. The
folder is `$MAPSPEC_CACHE`, by default `mapspec` in the user's cache folder; an empty value disables the cache. An entry
that cannot be read is computed again; failing to write one is ignored.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.target.model_class import ClassSignature, ConfigSchema

Json = Any


def config_schema(model_class: str) -> ConfigSchema:
    """`model_class.config_schema`, cached. Raises Refusal: `unknown-class`."""

    def ask() -> Json:
        from compiler.target import model_class as target

        return dataclasses.asdict(target.config_schema(model_class))

    return _config_schema(_recall(["config", model_class], ask))


def _config_schema(answer: Json) -> ConfigSchema:
    from compiler.target.model_class import ConfigSchema

    nested = {name: _config_schema(inner) for name, inner in answer["nested"].items()}
    names = {key: tuple(answer[key]) for key in ("declared", "looked_for", "needed")}
    return ConfigSchema(**{**answer, **names, "nested": nested})


def signature(model_class: str, config: Mapping[str, Any]) -> ClassSignature:
    """`model_class.signature`, cached. Raises Refusal: `unknown-class`, `unbuildable-target`."""

    def ask() -> ClassSignature:
        from compiler.target import model_class as target

        return target.signature(model_class, config)

    return _signature(["class", model_class, config], ask)


def rendered_signature(
    code: Mapping[str, str], module: str, model_class: str, config: Mapping[str, Any]
) -> ClassSignature:
    """`model_class.signature_of_code`, cached. Raises Refusal: `unbuildable-target`."""

    def ask() -> ClassSignature:
        from compiler.target import model_class as rendered

        return rendered.signature_of_code(code, module, model_class, config)

    return _signature(["code", code, module, model_class, config], ask)


def _signature(question: list[Json], ask: Callable[[], ClassSignature]) -> ClassSignature:
    from compiler.target.model_class import ClassSignature

    def asked() -> Json:
        found = ask()
        return {"shapes": found.shapes, "ties": found.ties}

    answer = _recall(question, asked)
    return ClassSignature({name: tuple(shape) for name, shape in answer["shapes"].items()}, answer["ties"])


def _recall(question: list[Json], ask: Callable[[], Json]) -> Json:
    folder, releases = cache_folder(), _releases()
    if folder is None or any("dev" in release for release in releases):
        return ask()
    text = json.dumps([question, releases, _source()], sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    try:
        cached = json.loads(path.read_text(encoding="utf-8"))
        if cached["question"] == text:
            return cached["answer"]
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


def cache_folder() -> Path | None:
    """Where results are cached; None if the cache is disabled."""
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
    """A digest of the modules that compute signatures."""
    found = hashlib.sha256()
    for name in ("model_class.py", "config_dialects.py", "signature_cache.py"):
        found.update((Path(__file__).parent / name).read_bytes())
    return found.hexdigest()
