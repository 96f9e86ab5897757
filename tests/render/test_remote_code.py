"""The rendered architectures: logits equal to the original code, readable text, and rejected specs."""

from __future__ import annotations

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruff.__main__ import find_ruff_bin
from safetensors.torch import load_file
from support import parity
from support.custom_models import CASES, LAYER_NORMED, MINIMIND, MODELS, NANOGPT, golden, write_folder

from compiler.diagnostics import Refusal
from compiler.render.remote_code.blocks import BLOCKS, NAMES, required_fields, with_defaults
from compiler.render.remote_code.render import CustomModel, auto_map, faults, render_custom

ROOT = Path(__file__).parent.parent.parent
TOLERANCE = 2e-5
LOADS = 5  # test_paths loads what `compile run` writes twenty times


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {case: write_folder(case, root / case) for case in CASES}


# ---------------------------------------------------------------------------------------------------------------------
# Parity


@pytest.mark.parametrize("python", parity.interpreters().values(), ids=parity.interpreters().keys())
def test_golden_logits(folders: dict[str, Path], python: str) -> None:
    """Every case, loaded several times by a fresh process whose free memory is full of NaN, gives the recorded logits."""
    jobs = [
        parity.Job(folders[case], load_file(golden(case))["input_ids"], True, True)
        for case in CASES
        for _ in range(LOADS)
    ]
    results = parity.logits_many(jobs, python)
    for n, case in enumerate(CASES):
        differences = [parity.difference(got, golden(case)) for got in results[n * LOADS : (n + 1) * LOADS]]
        assert max(differences) <= TOLERANCE, (case, differences)


BREAKS = {  # what is replaced in the model's text, and the cases that see it
    "rotation": ("torch.cat((-second, first), dim=-1)", "torch.cat((second, -first), dim=-1)", "minimind/dense_small"),
    "theta": ('theta = rope["rope_theta"]', "theta = 10000.0", "minimind/dense_small"),
    "yarn": ('rope["rope_type"] != "yarn" or', "True or", "minimind/dense_yarn"),
    "query norm": ("self.q_norm(self.q_proj(hidden_states).view(shape))", "self.q_proj(hidden_states).view(shape)", "minimind/dense_small"),
    "shared experts": ("for expert in self.shared_experts:", "for expert in ():", "minimind2/moe_shared"),
    "weights of experts": ("if config.norm_topk_prob and", "if False and", "minimind2/moe_shared"),
    "order of experts": ("mixed.index_add_(0, own,", "mixed.index_add_(0, own.flip(0),", "minimind/moe_trained"),
    "positions": ("inputs_embeds + self.wpe(position_ids)", "inputs_embeds", "nanogpt/trained_bias"),
    "fused order": ("query, key, value = self.c_attn", "key, query, value = self.c_attn", "nanogpt/trained_bias"),
}  # fmt: skip


def test_breaking_a_part_changes_the_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    """Breaking one part of the model changes the logits."""
    jobs = []
    for n, (old, new, case) in enumerate(BREAKS.values()):
        broken = tmp_path / f"broken_{n}"
        broken.mkdir()
        for file in folders[case].iterdir():
            content = file.read_bytes()
            if file.name.startswith("model_"):
                assert content.count(old.encode()) == 1, old
                content = content.replace(old.encode(), new.encode())
            (broken / file.name).write_bytes(content)
        jobs.append(parity.Job(broken, load_file(golden(case))["input_ids"], True))
    for name, (_, _, case), got in zip(BREAKS, BREAKS.values(), parity.logits_many(jobs), strict=True):
        assert parity.difference(got, golden(case)) > 100 * TOLERANCE, name


def test_approximate_gelu_changes_the_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    case = "nanogpt/trained_bias"
    for file in folders[case].iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes().replace(b'"auto_map"', b'"hidden_act": "gelu_new", "auto_map"')
        )
    got = parity.logits(tmp_path, load_file(golden(case))["input_ids"], trust_remote_code=True)
    assert parity.difference(got, golden(case)) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Text


RENDERED = list(MODELS.values())


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    for model in RENDERED:
        package = root / f"package_{model.module}"
        package.mkdir()
        (package / "__init__.py").touch()
        for name, text in render_custom(model).items():
            (package / name).write_text(text)
    return root


def test_ruff(written: Path) -> None:
    for words in (["check"], ["format", "--check"]):
        run([find_ruff_bin(), *words, "--no-cache", "--config", ROOT / "pyproject.toml", written])


def test_mypy(written: Path) -> None:
    """With the project's settings and cache, because reading all of transformers takes half a minute."""
    packages = [word for model in RENDERED for word in ("-p", f"package_{model.module}")]
    run([sys.executable, "-m", "mypy", *packages], MYPYPATH=str(written))


def run(command: list[Any], **variables: str) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("model", RENDERED, ids=lambda m: m.module)
def test_everything_defined_is_used(model: CustomModel) -> None:
    """Every definition is used, every field that is read is declared, and relative imports name rendered modules only."""
    texts = render_custom(model)
    assert list(texts) == [f"configuration_{model.module}.py", f"model_{model.module}.py"]
    assert render_custom(model) == texts
    tree = ast.parse(texts[f"model_{model.module}.py"])
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)
    }
    tasks = ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
    exported = {"__all__", *(model.model_class.removesuffix("CausalLM") + task for task in tasks)}
    for node in tree.body:
        names = (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [t.id for t in getattr(node, "targets", [])]
        )
        assert set(names) <= used | exported, names
    read = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value).endswith("config")}
    inherited = {"_attn_implementation", "output_attentions", "output_hidden_states", "rope_parameters", "num_labels"}
    assert read - inherited - {"use_cache", "output_router_logits"} <= set(model.fields)
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level}
    assert modules == {f"configuration_{model.module}"}
    for text in texts.values():
        assert text.startswith(model.banner + '\n"""')


def test_no_model_is_named() -> None:
    for path in [
        *(ROOT / "templates" / "custom").iterdir(),
        ROOT / "compiler" / "render" / "remote_code" / "render.py",
        ROOT / "compiler" / "render" / "remote_code" / "blocks.py",
    ]:
        text = path.read_text().lower()
        assert not [name for name in ("minimind", "nanogpt", "llama", "qwen", "mixtral", "deepseek") if name in text], (
            path
        )


def test_auto_map() -> None:
    assert auto_map(MINIMIND) == {
        "AutoConfig": "configuration_minimind.MiniMindConfig",
        "AutoModel": "model_minimind.MiniMindModel",
        "AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM",
        "AutoModelForSequenceClassification": "model_minimind.MiniMindForSequenceClassification",
        "AutoModelForTokenClassification": "model_minimind.MiniMindForTokenClassification",
        "AutoModelForQuestionAnswering": "model_minimind.MiniMindForQuestionAnswering",
    }


# ---------------------------------------------------------------------------------------------------------------------
# The vocabulary


def check_descriptions(schema: dict[str, Any], path: str = "blocks") -> None:
    assert schema.get("description", "").endswith("."), path
    for name, part in schema.get("properties", {}).items():
        check_descriptions(part, f"{path}.{name}")
    for part in schema.get("oneOf", ()):
        check_descriptions(part, path)
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False, path


def test_every_block_is_documented() -> None:
    page = (ROOT / "docs" / "blocks.md").read_text()
    for block, schema in BLOCKS["properties"].items():
        section = page.partition(f"\n## {block}\n")[2].partition("\n## ")[0]
        assert section, block
        for option in schema.get("properties", {}):
            assert f"`{option}`" in section, (block, option)


def test_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(BLOCKS)
    check_descriptions(BLOCKS)
    for model in RENDERED:
        jsonschema.validate(model.blocks, BLOCKS)
    for wrong in (
        {"rotary": "half"},
        {"norm": "batch"},
        {"mlp": {"kind": "gated", "gate": True}},
        {"names": {"wte": "x"}},
        {"names": {"q": "a.b"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**MINIMIND.blocks, **wrong}, BLOCKS)


def test_required_fields_are_those_read() -> None:
    """The rendered model reads exactly the fields of `required_fields`."""
    for model in RENDERED:
        text = render_custom(model)[f"model_{model.module}.py"]
        needed = set(required_fields(with_defaults(model.blocks))) - {
            "tie_word_embeddings",
            "rope_theta",
            "rope_scaling",
        }
        assert {name for name in needed if f"config.{name}" not in text} == set(), model.module


def kinds(model: CustomModel) -> dict[str, str]:
    return {".".join(fault.path): fault.kind for fault in faults(model)}


def changed(model: CustomModel = MINIMIND, **changes: Any) -> CustomModel:
    return dataclasses.replace(model, **changes)


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in MINIMIND.fields.items() if key != name}


ATTENTION = MINIMIND.blocks["attention"]
FAULTY: dict[str, tuple[CustomModel, str, str, str]] = {
    "module is no identifier": (changed(module="mini-mind"), "target.remote_code", "bad-name", "'mini-mind'"),
    "module is a keyword": (changed(module="class"), "target.remote_code", "bad-name", "'class'"),
    "module hides Python's": (changed(module="random"), "target.remote_code", "shadowed-module", "'random'"),
    "class is code": (changed(config_class="C: pass\nimport os"), "target.classes.config", "bad-name", "not a class name"),
    "class of no causal model": (changed(model_class="MiniMindModel"), "target.classes.model", "bad-name", "MiniMindForCausalLM"),
    "one class twice": (changed(config_class="MiniMindForCausalLM"), "target.classes.config", "bad-name", "same name"),
    "missing field": (changed(fields=without("rms_norm_eps")), "config.fields", "missing-field", "'rms_norm_eps': the norm reads it"),
    "missing switch": (changed(fields=without("use_moe")), "config.fields", "missing-field", "'use_moe': the mixture of experts"),
    "unknown field": (changed(fields=without("hidden_size") | {"hidden_sizes": "768"}), "config.fields.head_dim", "unknown-field", "hidden_size"),
    "circle": (changed(fields={**MINIMIND.fields, "hidden_size": "8 * head_dim"}), "config.fields.head_dim", "circular-field", "head_dim"),
    "field is a keyword": (changed(fields={**MINIMIND.fields, "lambda": "1"}), "config.fields.lambda", "bad-name", "'lambda'"),
    "field is code": (changed(fields={**MINIMIND.fields, "a=1): pass\n#": "1"}), "config.fields.a=1): pass\n#", "bad-name", "cannot be"),
    "norm of queries": (
        changed(LAYER_NORMED, blocks={**LAYER_NORMED.blocks, "attention": {"kind": "grouped_query", "rope": "half", "qk_norm": "per_head"}}),
        "target.blocks.attention.qk_norm", "block-mismatch", "norm: rms",
    ),
    "rms bias": (changed(blocks={**MINIMIND.blocks, "norm": {"kind": "rms", "bias": True}}), "target.blocks.norm.bias", "block-mismatch", "an rms norm has no bias"),
    "bias without weight": (
        changed(LAYER_NORMED, blocks={**LAYER_NORMED.blocks, "norm": {"kind": "layer", "weight": False, "bias": "bias"}}),
        "target.blocks.norm.bias", "block-mismatch", "a norm without a weight has no bias",
    ),
    "norm after no rotation": (
        changed(blocks={**MINIMIND.blocks, "embedding": {"positions": "learned"}, "attention": {**ATTENTION, "rope": "none", "qk_norm": "rotated"}}),
        "target.blocks.attention.qk_norm", "block-mismatch", "rotary positions",
    ),
    "no positions": (changed(blocks={**MINIMIND.blocks, "attention": {**ATTENTION, "rope": "none"}}), "target.blocks.attention", "block-mismatch", "positions"),
    "two modules of one name": (changed(blocks={**MINIMIND.blocks, "names": {"q": "k_proj"}}), "target.blocks.names.k", "name-collision", "k_proj"),
    "module of a bad name": (changed(blocks={**MINIMIND.blocks, "names": {"mlp": "class"}}), "target.blocks.names.mlp", "bad-name", "'class'"),
    "bias of no field": (changed(blocks={**MINIMIND.blocks, "attention": {**ATTENTION, "bias": "attention_bias"}}), "config.fields", "missing-field", "attention_bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTY)
def test_rejected(case: str) -> None:
    model, path, kind, words = FAULTY[case]
    assert kinds(model).get(path) == kind
    with pytest.raises(Refusal) as caught:
        render_custom(model)
    assert any(words in f"{d.message} {d.hint}" and d.kind == kind for d in caught.value.diagnostics), str(caught.value)


def test_all_faults_at_once() -> None:
    assert len(list(faults(changed(module="random", model_class="X", fields=without("dropout"))))) == 3


def test_valid_architectures_have_no_faults() -> None:
    for model in RENDERED:
        assert not list(faults(model)), model.module


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_a_summary_cannot_inject(summary: str) -> None:
    """Any summary becomes one docstring and leaves the rest of the module unchanged."""
    text = render_text(changed(summary=summary))
    trees = [ast.parse(t) for t in (text, render_text(MINIMIND))]
    bodies = [[ast.dump(node) for node in tree.body[1:]] for tree in trees]
    assert bodies[0] == bodies[1]
    assert ast.get_docstring(trees[0]) is not None


def render_text(model: CustomModel) -> str:
    """The configuration before ruff formats it, which would take one process per example."""
    from compiler.render.remote_code.render import _values
    from compiler.templating import environment

    return environment().get_template("custom/configuration.py.jinja").render(**_values(model))


def test_round_up_becomes_plain_python() -> None:
    fields = {**MINIMIND.fields, "intermediate_size": "round_up(int(hidden_size * 8 / 3), 64)"}
    text = render_custom(changed(fields=fields))["configuration_minimind.py"]
    assert "intermediate_size = -(-int(hidden_size * 8 / 3) // 64) * 64" in text


def test_every_name_is_rendered() -> None:
    """Every key of `names` changes the rendered text."""
    for model in (MINIMIND, MODELS["minimind2"], NANOGPT, LAYER_NORMED):
        names = {key: f"own_{key}" for key in NAMES}
        text = render_custom(changed(model, blocks={**model.blocks, "names": names}))[f"model_{model.module}.py"]
        for key, default in NAMES.items():
            assert f"self.{default} =" not in text or default in ("model", "norm", "dropout"), key
        assert 'base_model_prefix = "own_base"' in text
        assert '"own_base.own_embedding.weight"' in text
