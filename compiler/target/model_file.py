"""Model code that a user wrote: the files that belong to it, and what its classes expect, from a process of its own.

`read_files` collects the model file and the modules that it imports relatively; it parses them and runs nothing.
`classes` and `signature` import the code in a fresh Python process, so a spec with such a target runs that file. The
process is not a sandbox: the code can do what any program of the user can.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span, nearest, refuse
from compiler.resources import package_root
from compiler.target.class_signature import ClassSignature, CodeClasses
from compiler.target.config_dialects import THETA
from compiler.target.declared_fields import declared, taken
from compiler.target.model_class import COMMON_FIELDS, model_types_by_class, signature_of

SECONDS = 600
KIND = "unusable-code"


def read_files(path: Path) -> dict[str, str]:
    """File name -> text: the file at `path` first, then the modules beside it that it imports relatively, and so on.

    Raises Refusal: `unreadable-file`; `unusable-code` for text that is not Python, for a name that is not a module name,
    and for relative imports that Transformers does not follow when it loads a folder.
    """
    files: dict[str, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop(0)
        if file.name in files:
            continue
        if not file.stem.isidentifier():
            refuse(str(file), f"{file.stem!r} is not a module name", KIND, "rename the file: letters, digits and _")
        try:
            files[file.name] = text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except OSError as error:
            refuse(str(file), f"{file} cannot be read: {error.strerror or error}", "unreadable-file")
        except (SyntaxError, ValueError) as error:
            place = f"{file.name}:{getattr(error, 'lineno', None) or 1}"
            refuse(str(file), f"{place} is not Python: {getattr(error, 'msg', error)}", KIND)
        waiting += [file.with_name(f"{module}.py") for module in _relative_imports(file, tree)]
    return files


def _relative_imports(file: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > 1 or not node.module or "." in node.module:
                hint = "keep the modules in one folder and write: from .module import name"
                place = f"{file.name}:{node.lineno}"
                refuse(str(file), f"{place}: Transformers does not follow this relative import", KIND, hint)
            yield node.module


def stated_model_types(files: Mapping[str, str]) -> frozenset[str]:
    """Each text that a class of the files assigns to `model_type`; runs nothing."""
    assigned = (
        item
        for text in files.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
        for item in node.body
    )
    found: set[str] = set()
    for item in assigned:
        match item:
            case (
                ast.Assign(targets=[ast.Name(id="model_type")], value=ast.Constant(value=str(kind)))
                | ast.AnnAssign(target=ast.Name(id="model_type"), value=ast.Constant(value=str(kind)))
            ):
                found.add(kind)
    return frozenset(found)


def classes(files: Mapping[str, str], module: str, model_class: str, config_class: str | None) -> CodeClasses:
    """What the model class and its config class declare; `config_class` None: the one that the model class names.

    Raises Refusal: `unknown-class`, `unusable-code`.
    """
    question = {"files": dict(files), "module": module, "model_class": model_class, "config_class": config_class}
    answer = _ask(question)
    return CodeClasses(answer["model_type"], answer["auto_map"], tuple(answer["fields"]))


def signature(files: Mapping[str, str], module: str, model_class: str, config: Mapping[str, Any]) -> ClassSignature:
    """Names and shapes of what `save_pretrained` writes for a model built from `config`, a config.json.

    Raises Refusal: `unknown-class`, `unusable-code`, `unbuildable-target`.
    """
    answer = _ask({"files": dict(files), "module": module, "model_class": model_class, "config": dict(config)})
    return ClassSignature({name: tuple(shape) for name, shape in answer["shapes"].items()}, answer["ties"])


def _ask(question: Mapping[str, Any]) -> Any:
    """The answer of a fresh process to a question. Raises Refusal with what the process reports."""
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        folder = Path(name)
        (folder / "question.json").write_text(json.dumps(question), encoding="utf-8")
        paths = [str(package_root()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "compiler.target.model_file", "question.json", "answer.json"]
        options: dict[str, Any] = {"cwd": folder, "env": environment, "stdin": subprocess.DEVNULL, "timeout": SECONDS}
        file = f"{question['module']}.py"
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        except subprocess.TimeoutExpired:
            refuse(file, f"the code did not finish within {SECONDS} seconds", KIND)
        if not (folder / "answer.json").is_file():
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            refuse(file, f"the process that imports the code ended with status {done.returncode}: {last}", KIND)
        answer = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    if "refused" in answer:
        raise Refusal(Diagnostic(Span(file), **problem) for problem in answer["refused"])
    return answer


# ---------------------------------------------------------------------------------------------------------------------
# In the process


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    name = question["model_class"]
    with imported(question["files"], question["module"]) as module:
        if "config" in question:
            found = signature_of(model_class_in(module, name), question["config"])
            return {"shapes": dict(found.shapes), "ties": dict(found.ties)}
        model_type, auto_map, fields = describe(module, name, question["config_class"])
        return {"model_type": model_type, "auto_map": auto_map, "fields": fields}


def _place(error: BaseException, files: Mapping[str, str]) -> str:
    """`file:line` of the user's code in which `error` was raised, or nothing."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name in files]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""


def main(question_file: str, answer_file: str) -> None:
    question = json.loads(Path(question_file).read_text(encoding="utf-8"))
    try:
        answer = _answer(question)
    except Refusal as refusal:
        problems = [{"message": d.message, "kind": d.kind, "hint": d.hint} for d in refusal.diagnostics]
        answer = {"refused": problems}
    except BaseException as error:  # what user code raises: SystemExit too
        text = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"the code cannot be imported: {_place(error, question['files'])}{text}"
        hint = "the folder must load with these files and installed packages only; import files beside it relatively"
        answer = {"refused": [{"message": message, "kind": KIND, "hint": hint}]}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


@contextmanager
def imported(files: Mapping[str, str], module: str) -> Iterator[Any]:
    """The module `module` of a temporary package made of `files`."""
    with tempfile.TemporaryDirectory(prefix="mapspec_") as name:
        place = Path(name)
        package = f"mapspec_rendered_{place.name.rsplit('_', 1)[-1]}"
        (place / package).mkdir()
        for file, text in {"__init__.py": "", **files}.items():
            (place / package / file).write_text(text, encoding="utf-8")
        sys.path.insert(0, name)
        try:
            yield importlib.import_module(f"{package}.{module}")
        finally:
            sys.path.remove(name)
            for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
                del sys.modules[loaded]


def model_class_in(module: Any, name: str) -> Any:
    """The model class `name` of a module. Raises Refusal: `unknown-class`."""
    from transformers import PreTrainedModel

    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, PreTrainedModel):
        models = [n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, PreTrainedModel)]
        text = "is not a subclass of PreTrainedModel" if found is not None else "is not defined there"
        refuse(module.__name__.rpartition(".")[2], f"{name} {text}", "unknown-class", nearest(name, models))
    return found


def describe(module: Any, name: str, config_name: str | None) -> tuple[str, dict[str, str], list[str]]:
    """The model type, the `auto_map` and the config fields of the model class `name` of a module; `config_name` is its
    config class, None: the one that the model class names. Raises Refusal: `unknown-class`, `unusable-code`."""
    import transformers

    package, _, place = module.__name__.rpartition(".")
    found = model_class_in(module, name)
    config = getattr(module, config_name, None) if config_name else found.config_class
    if not isinstance(config, type) or not issubclass(config, transformers.PretrainedConfig):
        text = f"{config_name} is not a config class" if config_name else f"{name} names no config class"
        refuse(place, text, "unknown-class", "a subclass of PretrainedConfig, as `config_class` of the model class")
    if config.__module__.rpartition(".")[0] != package:
        hint = "define a subclass in the file, with a model_type of its own"
        refuse(place, f"the config class {config.__name__} is not defined in the code", "unusable-code", hint)
    kind = config.model_type
    if not kind or any(kind in kinds for kinds in model_types_by_class().values()):
        text = f"model_type {kind!r} is one of Transformers" if kind else f"{config.__name__} has no model_type"
        refuse(place, text, "unusable-code", "give the config class a model_type of its own")
    head = re.search(r"For[A-Z]\w*$", name)
    auto = f"AutoModel{head[0]}" if head and hasattr(transformers, f"AutoModel{head[0]}") else "AutoModel"
    classes = {"AutoConfig": config, auto: found}
    auto_map = {word: f"{c.__module__.rpartition('.')[2]}.{c.__name__}" for word, c in classes.items()}
    fields = set(COMMON_FIELDS)
    for base in config.__mro__[:-1]:
        own = base.__module__.rpartition(".")[0] == package
        fields |= declared(base).keys()
        fields |= {f for f in {**vars(base), **vars(base).get("__annotations__", {})} if own and not f.startswith("_")}
        if own:
            fields |= set(taken(base))
            fields |= set(inspect.signature(base).parameters) - {"kwargs"}
    if fields & {"rope_parameters", *THETA}:
        fields |= {"rope_parameters", "rope_scaling", THETA[0]}
    return kind, auto_map, sorted(fields)


def signature_of_code(
    files: Mapping[str, str], module: str, model_class: str, config: Mapping[str, Any]
) -> ClassSignature:
    """What `save_pretrained` of the rendered class writes when built from `config`, a config.json. Raises Refusal."""
    with imported(files, module) as found:
        return signature_of(getattr(found, model_class), config)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
