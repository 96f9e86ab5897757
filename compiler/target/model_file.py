"""Model code that a user wrote: the files that belong to it, and what its classes expect, from a process of its own.

`read_files` collects the model file and the modules that it imports relatively; it parses them and runs nothing.
`classes` and `signature` import the code in a fresh Python process, so a spec with such a target runs that file. The
process is not a sandbox: the code can do what any program of the user can.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compiler.diagnostics import Diagnostic, Refusal, Span, refuse
from compiler.resources import package_root
from compiler.target.class_signature import ClassSignature, CodeClasses

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
    from compiler.target import model_class as target

    name = question["model_class"]
    with target.imported(question["files"], question["module"]) as module:
        if "config" in question:
            found = target.signature_of(target.model_class_in(module, name), question["config"])
            return {"shapes": dict(found.shapes), "ties": dict(found.ties)}
        model_type, auto_map, fields = target.describe(module, name, question["config_class"])
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


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
