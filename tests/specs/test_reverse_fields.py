"""One field of a converted folder's config.json is changed, and the folder reversed: the reverse is rejected, or the source
that it makes converts forward into a config.json with the changed field. Every shipped spec with an exact reverse.

No file is written: a plan needs names, shapes and dtypes only. The default run changes a few fields of each spec;
`MAPSPEC_ALL=1` changes all, of every example.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file
from support.portion import ALL
from support.synthetic import synthetic

from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.prepare import Converted, bind_reversed
from compiler.jobs.request import Request
from compiler.model_folder import source_folder
from compiler.plan.bind import bind
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, Given, NamedShapes, Origin
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.proof.class_check import config_written
from compiler.target.config_meaning import HARMLESS

SPECS = sorted(path.stem for path in (Path(__file__).parents[2] / "specs").glob("*.yaml"))
FEW = 2
# Of the folder, not of the model; and `tie_word_embeddings`, which the tensors show (below).
APART = {"architectures", "dtype", "torch_dtype", "model_type", "tie_word_embeddings", *HARMLESS}
WITHOUT_EFFECT = {"gguf_qwen3_moe": {"intermediate_size"}}  # of dense layers, which it has none of


class Form(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


def other(value: Any, dice: random.Random) -> Any:
    """A value of the same type that means something else."""
    match value:
        case bool():
            return not value
        case int():
            return dice.choice([value + 1, value * 2, max(1, value // 2)])
        case float():
            return value * dice.choice([2.0, 0.5])
        case str():
            return "relu" if value == "gelu" else "gelu"
        case None:
            return 7
        case list():
            return [*value[1:], value[0]] if len({*map(str, value)}) > 1 else [other(one, dice) for one in value]
        case dict() if value:
            key = dice.choice(sorted(value))
            return {**value, key: other(value[key], dice)}
    return value


def forward(program: Program, tensors: Mapping[str, Form], given: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan of a source, and the config.json that it writes."""
    known = {name: Given(value, "--set", Origin.EXAMPLE) for name, value in given.items()}
    plan = bind(program, tensors, Environment(program, NamedShapes(tensors), known))
    return plan, config_written(program, plan.config, plan.dtype)


def forms(plan: Plan) -> dict[str, Form]:
    return {target.name: Form(tuple(target.shape), target.dtype) for target in plan.targets}


def changes(program: Program, example: int, dice: random.Random) -> Iterator[tuple[str, Any, Any]]:
    """(field, value in the folder, value after reverse and forward), where the second is not the first's."""
    made = synthetic(program, example, finite=True)
    source = {name: Form(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in made.tensors.items()}
    plan, config = forward(program, source, made.arguments)
    ignored = APART | WITHOUT_EFFECT.get(program.spec.name.value, set())
    ignored |= {"sliding_window"} if config.get("use_sliding_window") is False else set()
    fields = [name for name in sorted(config) if name not in ignored]
    for name in fields if ALL else dice.sample(fields, min(FEW, len(fields))):
        changed = {**config, name: other(config[name], dice)}
        converted = Converted(changed, Path("config.json"), plan.values, forms(plan))
        try:
            back, _ = bind_reversed(program, Request([Path("folder")], reverse=True), converted)
            stated = source_folder.fields(back) or back.values
            values = {**back.values, **stated}
            given = {n: values[n] for n in values if n in program.spec.arguments and n in stated}
            _, again = forward(program, forms(back), given)
        except Refusal:
            continue
        if again.get(name) != changed[name]:
            yield name, changed[name], again.get(name)


@pytest.mark.parametrize("spec", SPECS)
def test_a_changed_field_is_rejected_or_comes_back(spec: str) -> None:
    program, dice = load_program(spec), random.Random(spec)
    if program.spec.target.model is None or any(rule.loss for rule in program.rules):
        pytest.skip("its reverse is not exact, or its class is its own")
    for example in range(len(program.spec.examples) if ALL else 1):
        assert list(changes(program, example, dice)) == []


def test_the_measure_sees_a_lost_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the comparison of configs, a changed constant vanishes."""
    monkeypatch.setattr("compiler.settings.config_guard.irreversible_fields", lambda *_: [])
    monkeypatch.setattr("compiler.settings.config_guard.differing_fields", lambda *_: {})
    found = [one for seed in range(4) for one in changes(load_program("mistral_mistral"), 0, random.Random(seed))]
    assert found


@pytest.mark.parametrize(
    ("spec", "alias"), [("mixtral_mixtral", "lm_head.weight"), ("torchtune_phi3", "lm_head.weight")]
)
def test_a_tie_that_the_spec_does_not_have(tmp_path: Path, spec: str, alias: str) -> None:
    """A folder that says that its class shares two tensors, and has both: they must be equal."""
    program = load_program(spec)
    made = synthetic(program, finite=True)
    one = tmp_path / "one"
    convert(program, Request([made.save(tmp_path, program.spec.weights)], assigned=made.arguments, check=False), one)
    text = (one / "config.json").read_text()
    (one / "config.json").write_text(text.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    back = Request([one], reverse=True)
    with pytest.raises(Refusal, match=f"{alias} differs from model.embed_tokens.weight, but .* shares them") as refused:
        convert(program, back, tmp_path / "back")
    assert refused.value.diagnostics[0].kind == "untied-weights"
    assert not (tmp_path / "back").exists()
    tensors = load_file(one / "model.safetensors")
    save_file(tensors | {alias: tensors["model.embed_tokens.weight"].clone()}, one / "model.safetensors")
    convert(program, back, tmp_path / "back")
