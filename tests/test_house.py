"""The rules of the house, read from the source: no circles, one library to a room, nothing heavy at the door.

An import inside a function counts like any other, but for the door.
"""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "compiler"
# Full name without `compiler.` -> file.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
HEAVY = ("torch", "transformers", "numpy", "yaml", "jsonschema", "jinja2", "safetensors", "tqdm")

# The floors of the house, the top one first. A package imports packages of lower lines only, never one beside it.
FLOORS = (
    "__main__",
    "cli",
    "draft",
    "verify",
    "jobs lsp plan_report",
    "executor model_folder proof",
    "render.remote_code output emit",
    "settings",
    "render plan",
    "source",
    "program tokenizer transfer",
    "checkpoints ops console",
    "checkpoints.layouts checkpoints.array_files",
    "checkpoints.formats language target templating",
    "quantized",
    "layout",
    "packages",
    "diagnostics dtypes process progress strict_json tensor_names",
    "resources",
)
FLOOR = {package: n for n, line in enumerate(reversed(FLOORS)) for package in line.split()}
MOST_MODULES, MOST_AT_THE_TOP, MOST_LINES = 15, 12, 450

# Library -> the modules that may import it. A new entry needs a reason in docs/design.md.
ROOMS = {
    "yaml": {"language.document"},
    "jsonschema": {"language.schema"},
    "jinja2": {"templating", "tokenizer.chat_template"},
    "ruff": {"templating"},
    "numpy": {"jobs.sample", "transfer.casts", "transfer.strided_copy", "executor.nonfinite_values"},
    "torch": {
        "executor.evaluator",
        "executor.gpu_pipeline",
        "executor.torch_layout",
        "jobs.adapter",
        "jobs.peft_format",
        "ops.kernels",
        "output.dcp_layout",
        "quantized.folder_kernels",
        "quantized.ggml_kernels",
        "target.model_class",
        "verify.model_inputs",
        "verify.neutral_weights",
        "verify.outputs",
        "verify.precision",
        "verify.round_trip",
        "verify.run_model",
        "verify.source_model",
    },
    "safetensors": {"jobs.peft_format", "verify.job"},
    "transformers": {
        "emit.class_mapping",
        "target.model_class",
        "target.model_file",
        "verify.read_back",
        "verify.run_model",
    },
    "tqdm": {"console.terminal"},
    "pygls": {"lsp.server"},
    "lsprotocol": {"lsp.server"},
}
# Who may do so as soon as it is imported itself: rooms that do nothing without their library.
AT_ONCE = {
    "yaml": {"language.document"},
    "numpy": ROOMS["numpy"] - {"jobs.sample"},
    "torch": {
        "ops.kernels",
        "quantized.folder_kernels",
        "quantized.ggml_kernels",
        "executor.evaluator",
        "executor.gpu_pipeline",
        "executor.torch_layout",
    },
}


@dataclass(frozen=True)
class Import:
    """`module` by its full name; `at_once` outside of any function."""

    module: str
    at_once: bool
    line: int


def imports(tree: ast.AST, at_once: bool = True) -> Iterator[Import]:
    """Every import below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_once, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.module is not None
            yield Import(node.module, at_once, node.lineno)
            if node.module.split(".")[0] == "compiler":
                yield from (Import(f"{node.module}.{alias.name}", at_once, node.lineno) for alias in node.names)
        else:
            yield from imports(node, at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def inner(tree: ast.AST) -> set[str]:
    """The modules of the compiler that a module imports."""
    return {i.module.removeprefix("compiler.") for i in imports(tree)} & MODULES.keys()


def package(module: str) -> str:
    """The room of a module: its package, or, of those directly in `compiler`, the module itself."""
    return module.rpartition(".")[0] or module


def climbs(name: str, tree: ast.AST) -> list[str]:
    """The imports of a module that do not lead downward."""
    here = package(name)
    return [
        f"{name} imports {m}" for m in sorted(inner(tree)) if package(m) != here and FLOOR[package(m)] >= FLOOR[here]
    ]


def outer(tree: ast.AST) -> list[Import]:
    """The libraries that a module imports."""
    ours = {"compiler", *sys.stdlib_module_names}
    return [i for i in imports(tree) if i.module.split(".")[0] not in ours]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of a graph, or nothing."""
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def misplaced(name: str, tree: ast.AST) -> list[str]:
    """The imports of a module that belong to another room, or that stand where they run too early."""
    found = []
    for i in outer(tree):
        library = i.module.split(".")[0]
        if name not in ROOMS.get(library, set()):
            found.append(f"{name}:{i.line} imports {library}, which is the room of {ROOMS.get(library, 'nobody')}")
        elif i.at_once and name not in AT_ONCE.get(library, set()):
            found.append(f"{name}:{i.line} imports {library} outside of any function")
    return found


def test_packages_import_downward() -> None:
    assert {package(name) for name in MODULES} == FLOOR.keys()
    assert [line for name, tree in TREES.items() for line in climbs(name, tree)] == []


def test_no_circle_within_a_package() -> None:
    assert circle({name: inner(tree) for name, tree in TREES.items()}) == []


def test_a_package_has_a_face_and_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP
    for folder in {path.parent for path in MODULES.values()} - {PACKAGE}:
        assert len(list(folder.glob("*.py"))) - 1 <= MOST_MODULES, folder
        face = ast.parse((folder / "__init__.py").read_text())
        assert len(face.body) == 1, f"{folder}/__init__.py is one docstring"
        assert ast.get_docstring(face)


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    faces = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    shipped = {f"compiler.{name}" for name in ("docs", "specs")}
    templates = {".".join(("compiler", *p.parent.relative_to(ROOT).parts)) for p in ROOT.glob("templates/**/*.jinja")}
    assert set(listed) == faces | shipped | templates


@pytest.mark.parametrize("name", MODULES)
def test_each_library_has_its_room(name: str) -> None:
    assert misplaced(name, TREES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_of_one_subject_and_says_which(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= MOST_LINES
    assert ast.get_docstring(TREES[name])


def test_the_rules_find_what_they_forbid() -> None:
    """The measures against text that breaks each rule."""
    late = ast.parse("def f() -> None:\n    from compiler import b\n    import yaml\n")
    early = ast.parse("import compiler.a\nimport jinja2\n")
    assert circle({"a": {"b"}, "b": {"a"}}) != []
    assert {i.module for i in imports(late)} == {"compiler", "compiler.b", "yaml"}
    assert climbs("ops.algebra", ast.parse("from compiler.plan import bind")) == ["ops.algebra imports plan.bind"]
    assert climbs("plan.bind", ast.parse("from compiler.ops.algebra import Op")) == []
    assert climbs("jobs.prepare", ast.parse("from compiler.verify.compare import verify")) != []
    assert [i.at_once for i in outer(late)] == [False]
    assert misplaced("language.document", late) == []
    assert misplaced("plan.plan", late) != []
    assert misplaced("templating", early) != []


# ---------------------------------------------------------------------------------------------------------------------
# At the door


@pytest.mark.parametrize("module", ["compiler.cli.main", "compiler.jobs.convert", "compiler.jobs.compile"])
def test_nothing_heavy_at_the_door(module: str) -> None:
    """To print its help, or to find that nothing can be done, the command line loads the standard library only."""
    heavy = [name for name in HEAVY if module == "compiler.cli.main" or name not in ("yaml", "numpy")]
    code = f"import sys, {module}; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    """A spec is read and a checkpoint planned from its header alone."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    spec = next((ROOT / "specs").glob("*.yaml"))
    code = (
        "import sys\nfrom compiler.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print([n for n in ('torch', 'transformers', 'jinja2') if n in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, "plan", str(spec), str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.strip() == "[]", done.stdout
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# No model's name

# First words of model types that are words of their own as well, or parts of some.
ORDINARY = frozenset(
    [
        "align",
        "aria",
        "audio",
        "beam",
        "clip",
        "core",
        "data",
        "decision",
        "depth",
        "detr",
        "dinat",
        "dist",
        "dots",
        "edge",
        "embedding",
        "encoder",
        "fast",
        "from",
        "gguf",
        "flax",  # a format, as gguf is
        "lens",
        "llms",
        "lora",
        "mask",
        "nemo",  # the suffix of a file
        "meta",
        "mxfp",
        "open",
        "registers",
        "scratch",
        "seed",
        "shared",
        "step",
        "table",
        "time",
        "transformer",
        "video",
        "vision",
        "visual",
        "with",
    ]
)


def model_names() -> set[str]:
    """Words of four letters and more that name a model: in the specs' names and in Transformers' model types."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    words = {word for path in (ROOT / "specs").glob("*.yaml") for word in re.split(r"[^a-z]+", path.stem)}
    words |= {re.split(r"[^a-z]", kind.lower())[0] for kind in CONFIG_MAPPING_NAMES}
    return {word for word in words if len(word) >= 4} - ORDINARY


def test_no_model_is_named() -> None:
    names = model_names()
    assert {"llama", "minimind", "mixtral", "mistral", "gemma"} <= names
    texts = {
        str(path.relative_to(ROOT)): path.read_text().lower()
        for path in [*MODULES.values(), ROOT / "compiler" / "schema.json"]
    }
    assert [f"{file} names {name}" for file, text in texts.items() for name in sorted(names) if name in text] == []


# Files of other projects, and a name in an example.
ELSEWHERE = {"tests/test_modeling_common.py", "tests/errors/x.yaml"}


def test_paths_named_in_text_exist() -> None:
    """Documents, docstrings and comments name files of this repository by paths that are still right."""
    texts = [*ROOT.glob("*.md"), ROOT / "Makefile", *ROOT.glob("docs/*.*"), *ROOT.glob("tests/data/**/*.md")]
    texts += [path for folder in ("compiler", "tests", "docs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    named = r"(?<![\w/.])(?:tests|compiler|docs|benchmarks|templates)/[\w/]+\.(?:py|json|yaml|jinja|md)\b"
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in texts
        if path.name not in ("CHANGELOG.md", Path(__file__).name) and path.suffix in ("", ".md", ".py", ".txt")
        for name in re.findall(named, path.read_text(encoding="utf-8"))
    }
    assert len(found) > 50
    assert sorted(pair for pair in found if pair[1] not in ELSEWHERE and not (ROOT / pair[1]).is_file()) == []
