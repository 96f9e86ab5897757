"""For every spec: the executor and the generated converter write the same bytes, and the way back gives the source.

The harness makes its sources from the specs themselves, so a new spec is tested by being there. Converters run in one
process that cannot import `compiler`.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.converter_process import GENERATED, ConverterProcess, script
from support.synthetic import Synthetic, folder_image, image, synthetic

from compiler.diagnostics import Refusal
from compiler.jobs.compile import build
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.language.document import plain, read_document
from compiler.language.schema import op_words, schema
from compiler.ops import algebra, structural
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.render.rule_function import print_rule

ROOT = Path(__file__).parent.parent.parent
SPECS = sorted(ROOT.glob("specs/*.yaml"))
ALLOWED = {"torch", "safetensors", "transformers", "yaml"}  # the last one comes with the one before it


@cache
def program_of(name: str) -> Program:
    return load_program(str(ROOT / "specs" / f"{name}.yaml"))


@cache
def source_of(name: str, example: int, dtype: str, finite: bool = False) -> Synthetic:
    return synthetic(program_of(name), example, dtype, finite)


def settings(source: Synthetic) -> list[str]:
    return [word for n, v in source.arguments.items() for word in ("--set", f"{n}={json.dumps(v)}")]


def texts(folder: Path) -> dict[str, Any]:
    return {f.name: json.loads(f.read_text()) for f in folder.glob("*config.json")}


def outline(path: Path) -> dict[str, Any]:
    """A spec as it is written: one that does not compile fails its own tests, and stops no others."""
    try:
        found = plain(read_document(path))
    except Refusal:
        found = None
    return found if isinstance(found, dict) else {}


def examples_of(found: dict[str, Any]) -> int:
    example = found.get("example")
    return len(example) if isinstance(example, list) else 1


OUTLINES = {path.stem: outline(path) for path in SPECS}
PATH_A = [name for name, spec in OUTLINES.items() if "model" in spec.get("target", {})]
EXAMPLES = [(name, n) for name in PATH_A for n in range(examples_of(OUTLINES[name]))]
VARIANTS = [("float32", None, None), ("float16", None, None), ("float32", "bfloat16", None), ("float16", None, 20_000)]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
@pytest.mark.parametrize(("dtype", "cast", "limit"), VARIANTS, ids=["f32", "f16", "cast", "sharded"])
def test_both_write_the_same(
    server: ConverterProcess, tmp_path: Path, name: str, example: int, dtype: str, cast: str | None, limit: int | None
) -> None:
    # What a cast makes of a NaN depends on where it lies in torch's vectors; everything else may hold any bits.
    program = program_of(name)
    computed = any(op.word in ("normalize", "dequantize", "lora") for rule in program.rules for op, _ in rule.steps)
    source = source_of(name, example, dtype, finite=cast is not None or computed)
    file = source.save(tmp_path, program.spec.weights)
    wanted, got = tmp_path / "executor", tmp_path / "converter"
    request = Request([file], assigned=source.arguments, dtype=cast, max_shard_size=str(limit or "5GB"))
    plan = convert(program, request, wanted)
    words = [str(file), str(got), *settings(source)]
    words += ["--dtype", cast] if cast else []
    words += ["--max-shard-bytes", str(limit)] if limit else []
    assert server.run(name, *words) == ""
    tensors = folder_image(wanted)
    assert folder_image(got) == tensors
    assert texts(got) == texts(wanted)
    assert tensors.keys() == {t.name for t in plan.targets}
    if not any(op.word == "dequantize" for group in plan.groups for op in group.ops):
        assert {kind for kind, _, _ in tensors.values()} == {f"torch.{cast or dtype}"}
    if limit:
        assert len(list(wanted.glob("*.safetensors"))) > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["converter", "executor", file.name]


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_way_back_gives_the_source(tmp_path: Path, name: str, example: int, dtype: str) -> None:
    program, source = program_of(name), source_of(name, example, dtype)
    file = source.save(tmp_path, program.spec.weights)
    plan = convert(program, Request([file], assigned=source.arguments), tmp_path / "out")
    # What the target's config cannot say has to be said again.
    carried = {field.carried for field in program.spec.config}
    said = {n: v for n, v in source.arguments.items() if n not in carried}
    guards = {n for rule in program.rules if rule.when for n in rule.when.names}
    said |= {n: v for n, (v, _) in program.spec.examples[example].items() if n in guards - carried}
    back = Request([tmp_path / "out"], reverse=True, assigned=said)
    if any(group.rule.loss for group in plan.groups):
        with pytest.raises(Refusal, match="irreversible-rule"):
            convert(program, back, tmp_path / "back.pth")
        return
    convert(program, back, tmp_path / "back.pth")
    found, wanted = image(torch.load(tmp_path / "back.pth", weights_only=True)), image(source.tensors)
    assert {n: (kind, shape) for n, (kind, shape, _) in found.items()} == {n: (k, s) for n, (k, s, _) in wanted.items()}
    # Arithmetic is undone up to rounding; everything else to the bit.
    rounded = {n for g in plan.groups if any(op.undo == "tolerance" for op in g.ops) for n in g.source_names}
    assert {n: t for n, t in found.items() if n not in rounded} == {n: t for n, t in wanted.items() if n not in rounded}


@pytest.mark.parametrize("name", PATH_A)
def test_both_refuse_a_name_too_many(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    program, source = program_of(name), source_of(name, 0, "float16")
    stranger = Synthetic({**source.tensors, "stranger.weight": torch.ones(2)}, {}, source.arguments)
    file = stranger.save(tmp_path, program.spec.weights)
    with pytest.raises(Refusal, match=r"stranger\.weight"):
        convert(program, Request([file], assigned=source.arguments), tmp_path / "executor")
    assert "stranger.weight" in server.run(name, str(file), str(tmp_path / "converter"), *settings(source))
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == [file.name]


@pytest.mark.parametrize("name", PATH_A)
def test_both_refuse_a_name_too_few(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    """Whichever tensor is left out: the first, a middle and the last by name stand for all."""
    program, source = program_of(name), source_of(name, 0, "float16")
    names = [n for n in source.tensors if all(t.alias.match(n) is None for t in program.ties)]
    for n, lost in enumerate((names[0], names[len(names) // 2], names[-1])):
        folder = tmp_path / str(n)
        folder.mkdir()
        rest = Synthetic({k: t for k, t in source.tensors.items() if k != lost}, {}, source.arguments)
        file = rest.save(folder, program.spec.weights)
        with pytest.raises(Refusal):
            convert(program, Request([file], assigned=source.arguments), folder / "executor")
        assert server.run(name, str(file), str(folder / "converter"), *settings(source)) != ""
        assert not (folder / "converter").exists()


def test_both_read_a_folder_of_bin_files(server: ConverterProcess, tmp_path: Path) -> None:
    """As older releases of Transformers wrote them, with what is no weights beside them."""
    name = "qwen1_llama"
    source, folder = source_of(name, 0, "float16"), tmp_path / "folder"
    folder.mkdir()
    names, where = list(source.tensors), {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{n:05d}-of-00002.bin"
        torch.save({name: source.tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    torch.save({"lr": 0.1}, folder / "training_args.bin")
    convert(program_of(name), Request([folder], assigned=source.arguments), tmp_path / "executor")
    assert server.run(name, str(folder), str(tmp_path / "converter"), *settings(source)) == ""
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "executor")


def test_a_converter_is_a_program_of_its_own(tmp_path: Path) -> None:
    """As a user runs it: from another folder, by path."""
    name = PATH_A[0]
    source = source_of(name, 0, "float16")
    file = source.save(tmp_path, program_of(name).spec.weights)
    command = [sys.executable, str(script(name)), file.name, "out", *settings(source)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").is_file()


# ---------------------------------------------------------------------------------------------------------------------
# Rules that no shipped spec has together

SPEC = """
spec: 1
name: small
summary: every kind of rule
source: {{weights: "*.pth"}}
target: {{model: LlamaForCausalLM}}
arguments: {{n: 2}}
config: {{set: {{hidden_act: silu}}}}
{rules}
example: {{n: 2}}
"""
LAYERS = {f"h.{i}.{e}.w{k}": (4, 6) for i in range(2) for e in range(3) for k in "ab"}
RULES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "shift down": (
        "rename: {h.0.x: first.x, 'h.{i+1}.{p:a|b}': 'l.{i}.{p}'}",
        {"h.0.x": (2,), "h.1.a": (3,), "h.1.b": (2, 2), "h.2.a": (3,), "h.2.b": (2, 2)},
    ),
    "shift up": ("rename: {'h.{i}.a': 'l.{i+3}.a'}", {"h.0.a": (2,), "h.1.a": (3,)}),
    "shift with a step": (
        "rename: {h.0.x: first.x}\ntransform: [{name: turn, from: 'h.{i+1}.a', to: 'l.{i}.a', transpose: true}]",
        {"h.0.x": (1,), "h.1.a": (3, 4), "h.2.a": (2, 5)},
    ),
    "quotes": ("""rename: {'we"ird.{i}.x': 'a"b.{i}.c\\d'}""", {'we"ird.0.x': (2,)}),
    "free text": (r"rename: {'/h\.(?P<i>\d+)\.(?:x|y)/': 'l.{i}.z'}", {"h.0.x": (2,), "h.1.y": (2,)}),
    "guards": (
        "rename:\n  a.w: {to: b.w, when: n == 2}\n  c.w: {to: d.w, when: n == 3}",
        {"a.w": (2,)},
    ),
    "split": (
        "transform: [{name: cut, from: 'h.{i}.w', split: 1, to: {'l.{i}.a': n, 'l.{i}.b': n * 2, 'l.{i}.c': 1}}]",
        {"h.0.w": (3, 7), "h.1.w": (1, 7)},
    ),
    "split evenly": (
        "transform: [{name: cut, from: 'h.{i}.w', split: -1, to: ['l.{i}.a', 'l.{i}.b']}]",
        {"h.0.w": (3, 6), "h.1.w": (2, 3, 4)},
    ),
    "concat": (
        "transform: [{name: join, from: ['h.{i}.a', 'h.{i}.b'], to: 'l.{i}.w', concat: 0}]",
        {"h.0.a": (2, 3), "h.0.b": (2, 3), "h.1.a": (1, 3), "h.1.b": (1, 3)},
    ),
    "stack": (
        "transform: [{name: fold, from: 'h.{i}.{e}.{p:wa|wb}', to: 'l.{i}.{p}', stack: e}]",
        LAYERS,
    ),
    "stack and concat": (
        "transform: [{name: fold, from: ['h.{i}.{e}.wa', 'h.{i}.{e}.wb'], to: 'l.{i}.w',"
        " steps: [{stack: e}, {concat: 1}, {rearrange: e (two r) c -> e c (r two), sizes: {two: 2}}]}]",
        LAYERS,
    ),
    "concat and stack": (
        "transform: [{name: fold, from: ['h.{i}.{e}.wa', 'h.{i}.{e}.wb'], to: 'l.{i}.w',"
        " steps: [{concat: 0}, {transpose: true}, {stack: e, axis: 1}]}]",
        LAYERS,
    ),
    "unstack": (
        "transform: [{name: open, from: 'h.{i}.w', to: 'l.{i}.{e}.w', unstack: e, axis: 1}]",
        {"h.0.w": (3, 2, 2), "h.1.w": (2, 2)},
    ),
    "unstack and split": (
        "transform: [{name: open, from: 'h.{i}.w', to: ['l.{i}.{e}.a', 'l.{i}.{e}.b'],"
        " steps: [{unstack: e}, {split: 0}]}]",
        {"h.0.w": (3, 4, 2), "h.1.w": (3, 4, 1)},
    ),
    "split and unstack": (
        "transform: [{name: open, from: 'h.{i}.w', to: ['l.{i}.{e}.a', 'l.{i}.{e}.b'],"
        " steps: [{split: 1}, {unstack: e}]}]",
        {"h.0.w": (3, 4, 2), "h.1.w": (3, 4, 1)},
    ),
    "unstack twice": (
        "transform: [{name: open, from: 'h.w', to: 'l.{i}.{e}.w', steps: [{unstack: i}, {unstack: e, axis: 1}]}]",
        {"h.w": (2, 5, 3)},
    ),
    "unstack twice and split": (
        "transform: [{name: open, from: 'h.{b:x|y}.w', to: ['l.{b}.{i}.{e}.a', 'l.{b}.{i}.{e}.b'],"
        " steps: [{unstack: i, axis: 1}, {unstack: e}, {transpose: true}, {split: 1}]}]",
        {"h.x.w": (3, 2, 4, 5), "h.y.w": (3, 2, 4, 5)},
    ),
    "open-ended text": (
        "rename: {'/h\\.(?P<i>\\d+)\\.(?P<n>[a-z]+)/': 'l.{i}.{n}'}",
        {"h.0.x": (2,), "h.0.y": (3,), "h.1.x": (2,)},
    ),
    "rearrange": (
        "transform: [{name: move, from: 'h.{i}.w', to: 'l.{i}.w', "
        "rearrange: (a b) c (d e) ... -> e (c a) d b ..., sizes: {a: n, e: 3}}]",
        {"h.0.w": (4, 5, 6), "h.1.w": (6, 1, 3, 2)},
    ),
    "rearrange some": (
        "transform: [{name: qkv, from: 'h.{i}.w', to: {'l.{i}.q': 2 * n, 'l.{i}.k': 4, 'l.{i}.v': n},"
        " steps: [{split: 0}, {rearrange: (head pair two) ... -> (head two pair) ..., sizes: {pair: 2, two: 2}, only: [0, 1]}]}]",
        {"h.0.w": (10, 3), "h.1.w": (10, 1)},
    ),
    "rope and back": (
        "transform:\n  - {name: half, from: 'h.{i}.q', to: 'l.{i}.q', rope_to_half: n}\n"
        "  - {name: pairs, from: 'h.{i}.k', to: 'l.{i}.k', rope_to_interleaved: n}",
        {"h.0.q": (8, 3), "h.0.k": (12,)},
    ),
    "cast": ("transform: [{name: narrow, from: 'h.{i}.w', to: 'l.{i}.w', cast: bfloat16}]", {"h.0.w": (3, 3)}),
    "indices with guards": (
        "indices: {low: low < n, high: n <= high < n + 2, further: further >= n + 2}\n"
        "rename: {'h.{low}.w': 'l.{low}.low', 'h.{high}.w': 'l.{high}.high', 'h.{high}.{p:a|b}': 'm.{high+1}.{p}'}\n"
        "tie: {'t.{low}.w': 'h.{low}.w'}\nignore: {'h.{further}.{rest:.+}': not needed, 't.{high}.w': nor this}\n"
        "transform: [{name: turn, from: 'h.{high}.v', to: 'l.{high}.v', transpose: true}]",
        {f"h.{i}.w": (2,) for i in range(6)}
        | {f"h.{i}.{p}": (1, 3) for i in (2, 3, 4) for p in "abv"}
        | {f"t.{i}.w": (2,) for i in range(3)},
    ),
    "tie and ignore": (
        "rename: {'h.{i}.w': 'l.{i}.w'}\ntie: {'t.{i}.w': 'h.{i}.w'}\nignore: {'/junk.*/': not needed}",
        {"h.0.w": (2,), "h.1.w": (2,), "t.0.w": (2,), "t.1.w": (2,), "junk.x": (9,)},
    ),
}


@pytest.mark.parametrize("kind", RULES)
def test_rules_of_every_kind(
    server: ConverterProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The targets are no model's, so that there is no class to check them against."""
    monkeypatch.setattr("compiler.jobs.prepare.check_target", lambda plan: None)
    rules, shapes = RULES[kind]
    path = tmp_path / "small.yaml"
    path.write_text(SPEC.format(rules=rules))
    for name, text in build(str(path), prove=False).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    random = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(shape, generator=random) for n, shape in shapes.items()}
    tensors |= {n: tensors[n.replace("t.", "h.")] for n in tensors if n.startswith("t.")}
    torch.save(tensors, tmp_path / "model.pth")
    program = load_program(str(path))
    plan = convert(program, Request([tmp_path / "model.pth"]), tmp_path / "executor")
    converter = str(tmp_path / "small" / "convert_small.py")
    assert server.run(converter, str(tmp_path / "model.pth"), str(tmp_path / "converter")) == ""
    wanted = folder_image(tmp_path / "executor")
    assert wanted
    assert folder_image(tmp_path / "converter") == wanted
    assert texts(tmp_path / "converter") == texts(tmp_path / "executor")
    if not any(rule.loss for rule in program.rules):
        convert(program, Request([tmp_path / "executor"], reverse=True), tmp_path / "back.pth")
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        ignored = {name for name, _ in plan.ignored}
        assert image(back) == image({n: t for n, t in tensors.items() if n not in ignored})


def test_one_index_is_folded_by_one_step(tmp_path: Path) -> None:
    rules = "transform: [{name: fold, from: 'h.{i}.{e}.w', to: w, steps: [{stack: e}, {stack: i}]}]"
    (tmp_path / "small.yaml").write_text(SPEC.format(rules=rules))
    with pytest.raises(Refusal, match=r"fold folds \{i\} and \{e\}; a step folds one index"):
        build(str(tmp_path / "small.yaml"), prove=False)


def test_two_indices_are_opened_by_the_first_steps(tmp_path: Path) -> None:
    rules = "transform: [{name: open, from: h.w, to: 'l.{i}.{e}.w', steps: [{unstack: i}, {transpose: true}, {unstack: e}]}]"
    (tmp_path / "small.yaml").write_text(SPEC.format(rules=rules))
    with pytest.raises(Refusal, match=r"open opens \{i\} and \{e\}; a step opens one index"):
        build(str(tmp_path / "small.yaml"), prove=False)


# ---------------------------------------------------------------------------------------------------------------------
# What is generated


def test_generated_is_fresh() -> None:
    fresh = {f"generated/{n}": text for path in SPECS for n, text in build(str(path), prove=False).items()}
    files = {str(p.relative_to(ROOT)): p.read_text() for p in GENERATED.rglob("*") if p.suffix == ".py"}
    assert sorted(files) == sorted(fresh)
    assert [name for name in fresh if fresh[name] != files[name]] == []


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_generated_does_not_depend_on_the_order_of_sets(seed: str) -> None:
    command = [sys.executable, "-m", "compiler", "--check", "--no-proof", *map(str, SPECS)]
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_proves(path: Path) -> None:
    build(str(path), prove=True)


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_generated_is_clean(words: list[str]) -> None:
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", str(GENERATED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_is_typed() -> None:
    """Against the config of the repository; torch is taken on trust, as reading it costs a minute."""
    files = [str(script(name)) for name in PATH_A]
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--no-incremental", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PATH_A)
def test_a_converter_needs_little(name: str) -> None:
    tree = ast.parse(script(name).read_text())
    found = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    found |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    package = {"gguf", "numpy"} if load_program(name).spec.weights.endswith(".gguf") else set()
    assert found - sys.stdlib_module_names - {"__future__"} <= ALLOWED | package
    defined = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and not n.name.startswith("__")]
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert [n for n in defined if n not in used] == []


# ---------------------------------------------------------------------------------------------------------------------
# The algebra: each op in each of its places


CORE = [op for op in algebra.Op.__subclasses__() if op.__module__ == structural.__name__]


@pytest.mark.parametrize("op", CORE, ids=lambda op: op.word)
def test_an_op_stands_everywhere(op: type[algebra.Op]) -> None:
    """The places of an op: the language, its schema, its inverse, a converter's text, a property test."""
    assert op.word in op_words()
    assert f'"{op.word}"' in json.dumps(schema())
    assert op.inverse is not algebra.Op.inverse
    assert op.apply is not algebra.Op.apply
    assert op.undo == "exact" or op.loss
    assert f"structural.{op.__name__}(" in Path(sys.modules[print_rule.__module__].__file__ or "").read_text()
    assert f'"{op.word}"' in (Path(__file__).parent.parent / "language" / "test_language.py").read_text()
