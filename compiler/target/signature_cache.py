"""A cache of what target classes answered: asking one imports Transformers, which takes seconds; an answer is a few
kilobytes.

The key of an answer is a digest of everything it depends on: the question, the releases of Transformers and torch, and the
source that asks. Development releases are not cached, because their source changes under one number. The answers are
stored in `$MAPSPEC_CACHE`, by default `mapspec` in the user's cache folder; an empty value turns the cache off. An entry
that cannot be read is asked for again, one that cannot be written is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from compiler.target.class_signature import ClassSignature, CodeClasses, ConfigSchema, MemoryTensor

Json = Any
# Fields of a config.json that change neither the names nor the shapes of its tensors.
_WITHOUT_EFFECT = frozenset(("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"))


def config_schema(model_class: str) -> ConfigSchema:
    """`model_class.config_schema`, cached. Raises Refusal: `unknown-class`."""

    def ask() -> Json:
        from compiler.target import model_class as target

        return asdict(target.config_schema(model_class))

    return _config_schema(_recall(["config", model_class], ask))


def _config_schema(answer: Json) -> ConfigSchema:
    nested = {name: _config_schema(inner) for name, inner in answer["nested"].items()}
    names = {key: tuple(answer[key]) for key in ("declared", "looked_for", "needed")}
    return ConfigSchema(**{**answer, **names, "nested": nested})


@dataclass(frozen=True)
class ClassQuestion:
    """What names, shapes and ties does a class have with this `config`, a config.json? `code` holds the texts of a custom
    class's modules by file name, of which `module` defines it; both are empty for a class of Transformers. `own`: a user
    wrote the code, which is imported in a process of its own."""

    model_class: str
    config: Mapping[str, Any]
    code: Mapping[str, str] = field(default_factory=dict)
    module: str = ""
    own: bool = False

    @property
    def key(self) -> list[Json]:
        """What the answer depends on. Element types and the writing release change neither names nor shapes."""
        config = {name: value for name, value in self.config.items() if name not in _WITHOUT_EFFECT}
        return ["signature", self.model_class, config, dict(self.code), self.module, self.own]


def code_classes(files: Mapping[str, str], module: str, model_class: str, config_class: str | None) -> CodeClasses:
    """`model_file.classes`, cached. Raises Refusal: `unknown-class`, `unusable-code`."""
    from compiler.target import model_file

    def ask() -> Json:
        found = model_file.classes(files, module, model_class, config_class)
        return {"model_type": found.model_type, "auto_map": dict(found.auto_map), "fields": list(found.fields)}

    answer = _recall(["classes", dict(files), module, model_class, config_class], ask)
    return CodeClasses(answer["model_type"], answer["auto_map"], tuple(answer["fields"]))


def ask(question: ClassQuestion) -> ClassSignature:
    """The answer, cached or by building the class on the meta device, which imports Transformers.

    Raises Refusal: `unknown-class`, `unbuildable-target`, `unusable-code`.
    """

    def build() -> Json:
        from compiler.target import model_class, model_file

        name, config = question.model_class, question.config
        if question.own:
            found = model_file.signature(question.code, question.module, name, config)
        elif question.code:
            found = model_file.signature_of_code(question.code, question.module, name, config)
        else:
            found = model_class.signature(name, config)
        return as_json(found)

    return from_json(_recall(question.key, build))


def cached(question: ClassQuestion) -> ClassSignature | None:
    """The answer if an earlier run stored it; imports nothing."""
    answer = _stored(question.key)
    return None if answer is None else from_json(answer)


def as_json(signature: ClassSignature) -> dict[str, Json]:
    """A signature as plain data."""
    return {
        "shapes": {name: list(shape) for name, shape in signature.shapes.items()},
        "ties": dict(signature.ties),
        "memory": [asdict(tensor) for tensor in signature.memory],
        "unsaved": list(signature.unsaved),
        "added": dict(signature.added),
        "misread": {name: list(values) for name, values in signature.misread.items()},
    }


def from_json(answer: Mapping[str, Json]) -> ClassSignature:
    """The inverse of `as_json`."""
    memory = [
        MemoryTensor(t["name"], tuple(t["targets"]), tuple(tuple((k, v) for k, v in step) for step in t["steps"]))
        for t in answer["memory"]
    ]
    shapes = {name: tuple(shape) for name, shape in answer["shapes"].items()}
    misread = {name: (values[0], values[1]) for name, values in answer["misread"].items()}
    return ClassSignature(shapes, answer["ties"], tuple(memory), tuple(answer["unsaved"]), answer["added"], misread)


def _recall(question: list[Json], ask: Callable[[], Json]) -> Json:
    answer = _stored(question)
    if answer is None:
        answer = ask()
        _store(question, answer)
    return answer


def _stored(question: list[Json]) -> Json | None:
    path, text = _place(question)
    if path is None:
        return None
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        return entry["answer"] if entry["question"] == text else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _store(question: list[Json], answer: Json) -> None:
    path, text = _place(question)
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump({"question": text, "answer": answer}, file)
        os.replace(file.name, path)


def _place(question: list[Json]) -> tuple[Path | None, str]:
    """The file of a question, None where nothing is cached, and the question as text."""
    folder, releases = cache_folder(), _releases()
    text = json.dumps([question, releases, _source()], sort_keys=True, default=dict)
    if folder is None or any("dev" in release for release in releases):
        return None, text
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json", text


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
    for name in (
        "model_class.py",
        "class_signature.py",
        "memory_layout.py",
        "config_dialects.py",
        "declared_fields.py",
        "rotary_reading.py",
        "signature_cache.py",
    ):
        found.update((Path(__file__).parent / name).read_bytes())
    return found.hexdigest()
