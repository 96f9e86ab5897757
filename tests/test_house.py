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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {path.stem: path for path in sorted((ROOT / "compiler").glob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
HEAVY = ("torch", "transformers", "numpy", "yaml", "jsonschema", "jinja2", "safetensors", "tqdm")

# Library -> the modules that may import it. A new entry needs a reason in docs/design.md.
ROOMS = {
    "yaml": {"document"},
    "jsonschema": {"grammar"},
    "jinja2": {"render", "rendered", "card", "chats"},
    "ruff": {"render", "rendered"},
    "numpy": {"casts", "gather", "values"},
    "torch": {
        "arranging",
        "api",
        "kernels",
        "compute",
        "device",
        "target",
        "verify",
        "forward",
        "neutral",
        "roundtrip",
        "adapter",
    },
    "safetensors": {"verify", "forward", "adapter"},
    "transformers": {"target", "verify", "forward", "readback"},
    "tqdm": {"options"},
}
# Who may do so as soon as it is imported itself: rooms that do nothing without their library.
AT_ONCE = {
    "yaml": {"document"},
    "numpy": {"casts", "gather", "values"},
    "torch": {"api", "kernels", "compute", "device", "arranging"},
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
            if node.module == "compiler":
                yield from (Import(f"compiler.{alias.name}", at_once, node.lineno) for alias in node.names)
        else:
            yield from imports(node, at_once and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def inner(tree: ast.AST) -> set[str]:
    """The modules of the compiler that a module imports."""
    return {i.module.split(".")[1] for i in imports(tree) if i.module.startswith("compiler.")} & MODULES.keys()


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


def test_imports_run_downward() -> None:
    assert circle({name: inner(tree) for name, tree in TREES.items()}) == []


@pytest.mark.parametrize("name", MODULES)
def test_each_library_has_its_room(name: str) -> None:
    assert misplaced(name, TREES[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_short_and_says_what_it_does(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= 300
    if name != "__init__":
        assert ast.get_docstring(TREES[name])


def untold(page: str) -> set[str]:
    """The modules that no row of the table of rooms names."""
    rows = "\n".join(line for line in page.splitlines() if line.startswith("|"))
    return MODULES.keys() - {"__init__", "__main__"} - set(re.findall(r"`(\w+)`", rows))


def test_every_module_has_a_room() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    assert untold(page) == set()
    assert untold(page.replace("`recalled`", "")) == {"recalled"}


def test_the_rules_find_what_they_forbid() -> None:
    """The measures against text that breaks each rule."""
    late = ast.parse("def f() -> None:\n    from compiler import b\n    import yaml\n")
    early = ast.parse("import compiler.a\nimport jinja2\n")
    assert circle({"a": {"b"}, "b": {"a"}}) != []
    assert {i.module for i in imports(late)} == {"compiler", "compiler.b", "yaml"}
    assert [i.at_once for i in outer(late)] == [False]
    assert misplaced("document", late) == []
    assert misplaced("plan", late) != []
    assert misplaced("render", early) != []


# ---------------------------------------------------------------------------------------------------------------------
# At the door


@pytest.mark.parametrize("module", ["compiler.cli", "compiler.convert", "compiler.build"])
def test_nothing_heavy_at_the_door(module: str) -> None:
    """To print its help, or to find that nothing can be done, the command line loads the standard library only."""
    heavy = [name for name in HEAVY if module == "compiler.cli" or name not in ("yaml", "numpy")]
    code = f"import sys, {module}; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    """A spec is read and a checkpoint planned from its header alone."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    spec = next((ROOT / "specs").glob("*.yaml"))
    code = (
        "import sys\nfrom compiler.cli import main\n"
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
        "core",
        "seed",
        "shared",
        "transformer",
        "lens",
        "align",
        "aria",
        "beam",
        "clip",
        "data",
        "depth",
        "detr",
        "dots",
        "edge",
        "embedding",
        "encoder",
        "dist",
        "fast",
        "gguf",
        "lora",
        "mask",
        "mxfp",
        "meta",
        "step",
        "table",
        "time",
        "vision",
        "visual",
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
    texts = {path.name: path.read_text().lower() for path in [*MODULES.values(), ROOT / "compiler" / "schema.json"]}
    assert [f"{file} names {name}" for file, text in texts.items() for name in sorted(names) if name in text] == []
