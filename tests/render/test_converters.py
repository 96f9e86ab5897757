"""For every spec: the executor and the generated converter write the same bytes, and the way back gives the source.

The harness makes its sources from the specs themselves, so a new spec is tested by being there. Converters run in one
process that cannot import `compiler`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.converter_process import GENERATED, PAIRS, ConverterProcess, script
from support.oracle_cases import Case, cases
from support.portion import portion
from support.synthetic import Synthetic, folder_image, image, saved, synthetic

from compiler.diagnostics import Diagnostic, Refusal
from compiler.jobs.compile import build
from compiler.jobs.convert import convert
from compiler.jobs.request import Request
from compiler.language.document import plain, read_document
from compiler.language.schema import op_words, schema
from compiler.ops import algebra, structural
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.render import rule_function, rule_steps

ROOT = Path(__file__).parent.parent.parent
SPECS = sorted(ROOT.glob("specs/*.yaml"))
ALLOWED = {"torch", "safetensors", "transformers", "yaml"}  # the last one comes with the one before it


@cache
def program_of(name: str) -> Program:
    return load_program(str(ROOT / "specs" / f"{name}.yaml"))


@cache
def source_of(name: str, example: int, dtype: str, finite: bool = False) -> Synthetic:
    return synthetic(program_of(name), example, dtype, finite)


def words(source: Synthetic, program: Program, place: Path) -> list[str]:
    """The arguments of a source for its converter: half of the numbers as options, the rest in a config."""
    found, fields = [], {}
    for n, (name, value) in enumerate(source.arguments.items()):
        if isinstance(value, bool) and n % 2:
            found.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, int | float) and n % 2:
            found += [f"--{name}", str(value)]
        else:
            fields[name] = value
    return [*found, "--config", str(config_file(fields, program, place))] if fields else found


def config_file(fields: Mapping[str, Any], program: Program, place: Path) -> Path:
    """A config in the language that the spec's converter reads."""
    is_yaml = program.spec.source_config.endswith(".yaml")
    place.mkdir(exist_ok=True)
    path = place / ("arguments.yaml" if is_yaml else "arguments.json")
    path.write_text(yaml.safe_dump(dict(fields)) if is_yaml else json.dumps(fields))
    return path


def texts(folder: Path) -> dict[str, Any]:
    """The configs of the model; that of its processor is not a converter's work."""
    files = [folder / "config.json", folder / "generation_config.json"]
    return {f.name: json.loads(f.read_text()) for f in files if f.is_file()}


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
# Those of several sources are in tests/specs/test_several_sources.py.
PATH_A = [n for n, spec in OUTLINES.items() if "model" in spec.get("target", {}) and "sources" not in spec]
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
    file = saved(source, tmp_path, program)
    wanted, got = tmp_path / "executor", tmp_path / "converter"
    request = Request([file], assigned=source.arguments, dtype=cast, max_shard_size=str(limit or "5GB"))
    plan = convert(program, request, wanted)
    given = [str(file), str(got), *words(source, program, tmp_path)]
    given += ["--dtype", cast] if cast else []
    given += ["--max-shard-bytes", str(limit)] if limit else []
    assert server.run(name, *given) == ""
    tensors = folder_image(wanted)
    assert folder_image(got) == tensors
    assert texts(got) == texts(wanted)
    assert tensors.keys() == {t.name for t in plan.targets}
    if not any(op.word == "dequantize" for group in plan.groups for op in group.ops):
        assert {kind for kind, _, _ in tensors.values()} == {f"torch.{cast or dtype}"}
    if limit:
        assert len(list(wanted.glob("*.safetensors"))) > 1
    assert {p.name for p in tmp_path.iterdir()} - {"arguments.json", "arguments.yaml"} == {
        "converter",
        "executor",
        file.name,
    }


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
    if any(group.rule.irreversible for group in plan.groups):
        with pytest.raises(Refusal, match="irreversible-rule"):
            convert(program, back, tmp_path / "back.pth")
        return
    if any(group.rule.loss for group in plan.groups):  # what was cropped has the values of the spec
        padded = {**said, "padded_vocab_size": plan.values["padded_vocab_size"]}
        convert(program, replace(back, assigned=padded), tmp_path / "back.pth")
        convert(program, Request([tmp_path / "back.pth"], assigned=source.arguments), tmp_path / "again")
        assert folder_image(tmp_path / "again") == folder_image(tmp_path / "out")
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
    file = saved(stranger, tmp_path, program)
    with pytest.raises(Refusal, match=r"stranger\.weight"):
        convert(program, Request([file], assigned=source.arguments), tmp_path / "executor")
    assert "stranger.weight" in server.run(
        name, str(file), str(tmp_path / "converter"), *words(source, program, tmp_path)
    )
    assert {p.name for p in tmp_path.iterdir()} - {"arguments.json", "arguments.yaml"} == {file.name}


@pytest.mark.parametrize("name", PATH_A)
def test_both_refuse_a_name_too_few(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    """Whichever tensor is left out: the first, a middle and the last by name stand for all."""
    program, source = program_of(name), source_of(name, 0, "float16")
    names = [n for n in source.tensors if all(t.alias.match(n) is None for t in program.ties)]
    for n, lost in enumerate((names[0], names[len(names) // 2], names[-1])):
        folder = tmp_path / str(n)
        folder.mkdir()
        rest = Synthetic({k: t for k, t in source.tensors.items() if k != lost}, {}, source.arguments)
        file = saved(rest, folder, program)
        with pytest.raises(Refusal):
            convert(program, Request([file], assigned=source.arguments), folder / "executor")
        assert server.run(name, str(file), str(folder / "converter"), *words(source, program, folder)) != ""
        assert {p.name for p in folder.iterdir()} - {"arguments.json", "arguments.yaml"} == {file.name}


CASES = [(case, spec) for case in cases() for spec in (case.spec, *case.said.get("also", ()))]
# Containers other than that of the spec, which only the executor reads.
ELSEWHERE = ("baichuan/w_pack", "qwen1/n_head", "megatron_mcore/qwen2_qkv_bias", "flax/llama_grouped")


@pytest.mark.parametrize(("case", "spec"), CASES, ids=[f"{case.name}-{spec}" for case, spec in CASES])
def test_both_make_the_same_of_what_others_wrote(
    server: ConverterProcess, tmp_path: Path, case: Case, spec: str
) -> None:
    """Recorded checkpoints in their own containers, with their own configs."""
    program, request = load_program(spec), case.request
    given = [str(path) for path in request.source] + [str(tmp_path / "converter")]
    for name in request.assigned.keys() & program.spec.arguments.keys():
        value = request.assigned[name]
        yes_or_no = f'"--{name}", action=' in script(spec).read_text()
        text = value if isinstance(value, str) else json.dumps(value)
        given += [f"--{name}" if value else f"--no-{name}"] if yes_or_no else [f"--{name}", text]
    given += ["--config", str(request.config)] if request.config else []
    said = server.run(spec, *given)
    if case.name in ELSEWHERE or case.name.startswith(("megatron_dist/", "nanotron/")):
        assert said != ""
        return
    assert said == ""
    convert(program, request, tmp_path / "executor")
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "executor")
    assert texts(tmp_path / "converter")["config.json"] == texts(tmp_path / "executor")["config.json"]


# ---------------------------------------------------------------------------------------------------------------------
# What the executor rejects


def agreement(server: ConverterProcess, name: str, source: Synthetic, place: Path) -> str:
    """Runs both on a source that may be damaged: they reject it both, or write the same. Returns what the executor says."""
    place.mkdir()
    program = program_of(name)
    config, path = config_file(source.arguments, program, place), saved(source, place, program)
    given = ["--config", str(config)] if source.arguments else []
    converter = server.run(name, str(path), str(place / "converter"), *given)
    said = ""
    try:
        convert(program, Request([path], config=config if given else None), place / "executor")
    except Refusal as refusal:
        said = str(refusal)
    assert bool(converter) == bool(said), (converter, said)
    if said:
        assert {p.name for p in place.iterdir()} == {config.name, path.name}
        return said
    assert folder_image(place / "converter") == folder_image(place / "executor")
    assert texts(place / "converter") == texts(place / "executor")
    return ""


def grown(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """One position more along an axis."""
    return torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)


@pytest.mark.parametrize("name", PATH_A)
def test_both_judge_a_tensor_of_another_shape_alike(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    """Of those whose sizes the spec asks for, and of the last one."""
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    asked = [text for expr, _ in program.spec.require for function, text, _ in expr.asked if function == "dim"]
    judged = [*[t for t in dict.fromkeys(asked) if t in source.tensors][:3], max(source.tensors)]
    for n, tensor in enumerate(dict.fromkeys(judged)):
        wider = {**source.tensors, tensor: grown(source.tensors[tensor], 0)}
        said = agreement(server, name, Synthetic(wider, {}, source.arguments), tmp_path / str(n))
        assert said or tensor not in judged[:3] or name not in ("llama", "qwen3", "minimind1_llama")


# Fields of a config.json that is nobody's, and whether both accept it beside weights of any spec.
OTHERS: dict[str, tuple[dict[str, Any], bool]] = {
    "a class": ({"architectures": ["MambaForCausalLM"]}, False),
    "a type": ({"model_type": "mamba", "hidden_size": 8}, False),
    "a type of nobody": ({"model_type": "of_my_own"}, True),
    "a class of nobody": ({"architectures": ["OfMyOwn"]}, True),
}
# Fields that most specs do not name; a trainer's config has none of them.
UNREAD: dict[str, Any] = {"sliding_window": 64, "final_logit_softcapping": 30.0, "quantization_config": {"bits": 4}}
# Values that no class can use, by the end of a config field's name.
ABSURD: dict[str, Any] = {"rope_theta": -1.0, "_eps": -1, "hidden_act": "siluu", "max_position_embeddings": -4}


@pytest.mark.parametrize("name", PATH_A)
def test_both_judge_a_contradictory_source_alike(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    """A config.json of another architecture beside the weights, fields that nothing reads, and values out of range: one of
    each, by turns from spec to spec."""
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    spec, arguments = program.spec, dict(source.arguments)
    path = saved(source, tmp_path, program)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    given = config_file(arguments, program, tmp_path / "given") if arguments else None

    def judged(label: str, fields: dict[str, Any] | None = None) -> bool:
        """Whether both accept the source, with these arguments."""
        place = tmp_path / "".join(c if c.isalnum() else "_" for c in label)
        config = config_file(fields, program, place) if fields is not None else given
        said = server.run(name, str(path), str(place / "converter"), *(["--config", str(config)] if config else []))
        refusal = ""
        try:
            convert(program, Request([path], config=config), place / "executor")
        except Refusal as one:
            refusal = str(one)
        assert bool(said) == bool(refusal), (label, said, refusal)
        assert len(said.splitlines()) < 2, said
        assert (place / "converter").exists() is (place / "executor").exists() is (not said)
        return not said

    turn = PATH_A.index(name)
    label, (fields, fine) = [*OTHERS.items()][turn % len(OTHERS)]
    beside.write_text(json.dumps(fields))
    # a spec that lists model types accepts no others
    assert judged(label) is (fine and not (spec.model_types and "model_type" in fields)), label
    beside.unlink()
    absurd = {
        field.carried: value
        for field in spec.config
        for end, value in ABSURD.items()
        if field.name.endswith(end) and field.carried in spec.arguments
    }
    unread = {n: v for n, v in UNREAD.items() if n not in {*spec.arguments, *spec.facts} and not program.passes_over(n)}
    for stated in (absurd, unread if spec.source_config == "config.json" else {}):
        for field, value in [*stated.items()][turn % max(1, len(stated)) :][:1]:
            assert not judged(field, {**arguments, field: value})


@pytest.mark.parametrize("name", PATH_A)
def test_a_converter_rejects_another_container_in_a_line(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    """`run` reads whatever holds the tensors; neither takes a file for one that is none."""
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    place = saved(source, tmp_path, program)
    weights = place if place.is_file() else next(file for file in place.rglob("*") if file.is_file())
    contents = {
        "text": b"the weights are in another place\n",
        "nothing": b"",
        "half": weights.read_bytes()[: -weights.stat().st_size // 2],
    }
    (tmp_path / "others").mkdir()
    save_file({"weight": torch.ones(2)}, tmp_path / "others" / "a")
    torch.save({"weight": torch.ones(2)}, tmp_path / "others" / "b")
    contents |= {"container": (tmp_path / "others" / ("b" if weights.suffix == ".safetensors" else "a")).read_bytes()}
    label, content = [*contents.items()][PATH_A.index(name) % len(contents)]
    weights.write_bytes(content)
    said = server.run(name, str(place), str(tmp_path / "out"), *words(source, program, tmp_path))
    assert len(said.splitlines()) == 1, (label, said)
    # mistral_mistral and its like read both containers, and miss the tensors
    assert " cannot be read as " in said or label == "container", (label, said)
    with pytest.raises(Refusal):
        convert(program, Request([place], assigned=source.arguments), tmp_path / "executor")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PATH_A)
def test_both_reject_a_weight_of_a_type_that_was_quantized(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    if program.spec.weights.endswith(".gguf"):
        pytest.skip("its own types are those of llama.cpp")
    first, last = min(source.tensors), max(source.tensors)
    for n, (tensor, dtype) in enumerate(((first, torch.float8_e4m3fn), (last, torch.int8))):
        spoilt = {**source.tensors, tensor: source.tensors[tensor].to(dtype)}
        assert agreement(server, name, Synthetic(spoilt, {}, source.arguments), tmp_path / str(n))


@pytest.mark.parametrize("name", [name for name in PATH_A if OUTLINES[name].get("tie")])
def test_both_reject_a_tied_tensor_that_differs(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    program = program_of(name)
    for n in range(examples_of(OUTLINES[name])):
        source = source_of(name, n, "float16", finite=True)
        aliases = [t for t in source.tensors for tie in program.ties if tie.alias.match(t) is not None]
        spoilt = {t: -tensor if t in aliases else tensor for t, tensor in source.tensors.items()}
        said = agreement(server, name, Synthetic(spoilt, {}, source.arguments), tmp_path / str(n))
        if "untied-weights" in said:
            return
    pytest.skip("none of its examples has a tie")


@pytest.mark.parametrize("name", PATH_A)
def test_both_judge_tensors_of_two_types_alike(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    """What is joined has one type; all else keeps its own."""
    source = source_of(name, 0, "float16", finite=True)
    names = sorted(source.tensors)
    tensor = names[len(names) // 2]
    if source.tensors[tensor].dtype != torch.float16:
        pytest.skip("it is a scale of quantized weights")
    spoilt = {**source.tensors, tensor: source.tensors[tensor].float()}
    agreement(server, name, Synthetic(spoilt, {}, source.arguments), tmp_path / "place")


# What is put into a config that is right up to there.
CONFIGS = {
    "nothing more": "",
    "a key twice": ', "{name}": {value}',
    "a key twice within": ', "other": {{"a": 1, "a": 2}}',
    "not finite": ', "other": 1e999',
    "not a number": ', "other": [NaN]',
    "not closed": ', "other": [1',
    "a text": ', "{other}": "text"',
    "true": ', "{other}": true',
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["llama", "litgpt_llama", "meta_llama", "gpt_fast_llama", "qwen3_fp8_qwen3"])
def test_both_reject_a_config(server: ConverterProcess, tmp_path: Path, name: str, kind: str) -> None:
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    path = saved(source, tmp_path, program)
    numbers = {n: a.default for n, a in program.spec.arguments.items() if type(a.default) in (int, float)}
    first, *_, last = numbers.items()
    right = json.dumps({first[0]: first[1], **source.arguments})
    config = tmp_path / f"config{Path(program.spec.source_config).suffix or '.json'}"
    more = CONFIGS[kind].format(name=first[0], value=first[1], other=last[0])
    more = more.replace("NaN", ".nan") if config.suffix == ".yaml" else more
    config.write_text(f"{right[:-1]}{more}}}")
    said = server.run(name, str(path), str(tmp_path / "converter"), "--config", str(config))
    try:
        convert(program, Request([path], config=config), tmp_path / "executor")
    except Refusal:
        assert said != ""
    assert (said == "") is (kind == "nothing more") is (tmp_path / "executor").exists(), said
    assert (tmp_path / "converter").exists() is (said == "")


def test_both_read_the_config_beside_the_weights(server: ConverterProcess, tmp_path: Path) -> None:
    for name, field in (("llama", "rms_norm_eps"), ("meta_llama", "norm_eps"), ("internlm2_llama", "rms_norm_eps")):
        (folder := tmp_path / name).mkdir()
        program, source = program_of(name), source_of(name, 0, "float16", finite=True)
        path = saved(source, folder, program)
        beside = (path if path.is_dir() else path.parent) / program.spec.source_config
        beside.write_text(json.dumps({**source.arguments, field: 0.125}))
        convert(program, Request([path]), folder / "executor")
        assert server.run(name, str(path), str(folder / "converter")) == ""
        assert texts(folder / "converter") == texts(folder / "executor")
        assert 0.125 in texts(folder / "converter")["config.json"].values()


def test_both_hold_a_config_of_the_targets_kind_to_what_is_written(server: ConverterProcess, tmp_path: Path) -> None:
    source = source_of("qwen3", 0, "float16", finite=True)
    path = saved(source, tmp_path, program_of("qwen3"))
    config = tmp_path / "config.json"
    for stated in ({"attention_bias": True}, {"vocab_size": 7}):
        config.write_text(json.dumps({"model_type": "qwen3", **source.arguments, **stated}))
        with pytest.raises(Refusal, match="config-mismatch"):
            convert(program_of("qwen3"), Request([path]), tmp_path / "executor")
        (field,) = stated
        assert field in server.run("qwen3", str(path), str(tmp_path / "converter"))
    config.write_text(
        json.dumps(
            {"model_type": "qwen3", **source.arguments, "rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}
        )
    )
    with pytest.raises(Refusal, match="contradictory-field"):
        convert(program_of("qwen3"), Request([path]), tmp_path / "executor")
    assert "rope_theta" in server.run("qwen3", str(path), str(tmp_path / "converter"))


def test_both_reject_two_state_dicts_in_one_file(server: ConverterProcess, tmp_path: Path) -> None:
    source = source_of("nanogpt_gpt2", 0, "float16", finite=True)
    plain, args = dict(source.tensors), {"model_args": {"n_head": 4, "dropout": 0.0}}
    other = {name: tensor + 1 for name, tensor in plain.items()}
    first = min(plain)
    wrapped = {f"module.{name}": tensor for name, tensor in plain.items()}
    files: dict[str, tuple[dict[str, Any], bool]] = {
        "wrapped": ({"model": plain} | args, True),
        "both wrappers": ({"model": {f"_orig_mod.{n}": t for n, t in wrapped.items()}} | args, True),
        "two": ({"model": plain, "state_dict": other} | args, False),
        "two alike": ({"model": plain, "module": plain} | args, False),
        "tensors outside": ({"model": plain, "stray.weight": torch.ones(2, 2)} | args, False),
        "a counter outside": (
            {"model": plain, "step": torch.tensor(3), "rng_state": torch.zeros(4, dtype=torch.uint8)} | args,
            True,
        ),
        "x and module.x": ({"model": {**plain, f"module.{first}": plain[first] + 1}} | args, False),
        "half wrapped": ({"model": {**plain, f"module.{first}": plain[first]} | {}} | args, False),
    }
    for n, (content, fine) in enumerate(files.values()):
        torch.save(content, tmp_path / f"{n}.pt")
        try:
            convert(program_of("nanogpt_gpt2"), Request([tmp_path / f"{n}.pt"]), tmp_path / f"executor{n}")
            accepted = True
        except Refusal:
            accepted = False
        assert accepted is fine
        said = server.run("nanogpt_gpt2", str(tmp_path / f"{n}.pt"), str(tmp_path / f"converter{n}"))
        assert (said == "") is fine, said
        assert not fine or folder_image(tmp_path / f"converter{n}") == folder_image(tmp_path / f"executor{n}")


def test_both_read_a_folder_by_its_index_alone(server: ConverterProcess, tmp_path: Path) -> None:
    name = "internlm2_llama"
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    (folder := tmp_path / "folder").mkdir()
    names, where = list(source.tensors), {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{n:05d}-of-00002.safetensors"
        save_file({name: source.tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(source.arguments))
    save_file({"stray.weight": torch.ones(2)}, folder / "stray.safetensors")
    convert(program, Request([folder]), tmp_path / "executor")
    assert server.run(name, str(folder), str(tmp_path / "converter")) == ""
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "executor")
    first, second = (f"model-{n:05d}-of-00002.safetensors" for n in (1, 2))
    for n, wrong in enumerate((
        {**where, "absent": first},
        {n: f for n, f in where.items() if n != names[0]},
        {**where, names[0]: second},
    )):  # fmt: skip
        index.write_text(json.dumps({"metadata": {}, "weight_map": wrong}))
        with pytest.raises(Refusal, match="bad-index"):
            convert(program, Request([folder]), tmp_path / f"executor{n}")
        assert server.run(name, str(folder), str(tmp_path / f"converter{n}")) != ""
    index.unlink()
    with pytest.raises(Refusal, match="ambiguous-container"):
        convert(program, Request([folder]), tmp_path / "other")
    assert "3 files" in server.run(name, str(folder), str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["mistral_mistral", "mixtral_mixtral"])
def test_both_reject_files_that_share_a_name(server: ConverterProcess, tmp_path: Path, name: str) -> None:
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    folder = saved(source, tmp_path, program)
    (folder / "params.json").write_text(json.dumps(source.arguments))
    suffix = next(folder.glob("consolidated.*")).suffix
    torch.save({min(source.tensors): source.tensors[min(source.tensors)]}, folder / f"consolidated.01{suffix}")
    with pytest.raises(Refusal, match="colliding-names"):
        convert(program, Request([folder]), tmp_path / "executor")
    assert min(source.tensors) in server.run(name, str(folder), str(tmp_path / "converter"))


def test_both_join_the_parts_of_a_model(server: ConverterProcess, tmp_path: Path) -> None:
    """Two tensor-parallel ranks; then one of them is missing, differs where it should not, or is of another type."""
    name, folder = "mcore_llama", tmp_path / "folder"
    program, source = program_of(name), source_of(name, 0, "float16", finite=True)
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for tensor, whole in source.tensors.items():
        merged = next((m for m in program.merged if m.pattern.match(tensor) is not None), None)
        axis = int(merged.axis.text) if merged else 0
        blocks = whole.chunk(merged.blocks, axis) if merged else (whole,)
        for n, part in enumerate(parts):
            part[tensor] = torch.cat([b.chunk(2, axis)[n] for b in blocks], axis).clone() if merged else whole

    def save(parts: list[dict[str, torch.Tensor]], numbers: tuple[int, ...] = (0, 1)) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for n, part in zip(numbers, parts, strict=True):
            (folder / f"mp_rank_{n:02d}").mkdir(parents=True)
            torch.save({"model": part, "args": source.arguments}, folder / f"mp_rank_{n:02d}" / "model_optim_rng.pt")

    save(parts)
    convert(program, Request([folder]), tmp_path / "executor")
    assert server.run(name, str(folder), str(tmp_path / "converter")) == ""
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "executor")
    norm, projection = "decoder.final_layernorm.weight", "decoder.layers.0.self_attention.linear_proj.weight"
    for n, (broken, numbers) in enumerate((
        (parts, (0, 2)),
        ([parts[0], {**parts[1], norm: parts[1][norm] + 1}], (0, 1)),
        ([parts[0], {**parts[1], projection: parts[1][projection].float()}], (0, 1)),
        ([parts[0], {t: p for t, p in parts[1].items() if t != norm}], (0, 1)),
    )):  # fmt: skip
        save(broken, numbers)
        with pytest.raises(Refusal):
            convert(program, Request([folder]), tmp_path / f"executor{n}")
        assert server.run(name, str(folder), str(tmp_path / f"converter{n}")) != ""
        assert not (tmp_path / f"converter{n}").exists()


def test_nothing_of_anybody_elses_is_touched(server: ConverterProcess, tmp_path: Path) -> None:
    """Neither a folder that looks like one to work in, nor an output that is there."""
    source = source_of("llama", 0, "float16", finite=True)
    path = saved(source, tmp_path, program_of("llama"))
    (theirs := tmp_path / ".out.partial").mkdir()
    (theirs / "notes").write_text("mine")
    given = words(source, program_of("llama"), tmp_path)
    assert server.run("llama", str(path), str(tmp_path / "out"), *given) == ""
    assert (theirs / "notes").read_text() == "mine"
    assert "exists already" in server.run("llama", str(path), str(tmp_path / "out"), *given)
    assert {p.name for p in tmp_path.iterdir()} == {".out.partial", "arguments.json", "model.pth", "out"}


def test_help_documents_the_arguments() -> None:
    done = subprocess.run([sys.executable, str(script("llama")), "--help"], capture_output=True, text=True, check=True)
    assert re.search(r"--rope_theta ROPE_THETA\s+default: 1000000\.0", done.stdout)
    assert "compile run" in done.stdout
    done = subprocess.run([sys.executable, str(script("llama"))], capture_output=True, text=True, check=False)
    assert (done.returncode, "usage:" in done.stderr) == (2, True)


def test_a_converter_is_a_program_of_its_own(tmp_path: Path) -> None:
    """As a user runs it: from another folder, by path."""
    name = PATH_A[0]
    source = source_of(name, 0, "float16")
    file = saved(source, tmp_path, program_of(name))
    command = [sys.executable, str(script(name)), file.name, "out", *words(source, program_of(name), tmp_path)]
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
    "guards with indices that are counted": (
        "rename:\n  'h.{i}.{e}.w': 'l.{i}.{e}.w'\n  'h.{i}.{e}.b': {to: 'l.{i}.{e}.b', when: n == 2}\n"
        "  'g.{e}.w': {to: 'm.{e}.w', when: n > 1}\n  'g.{e}.b': {to: 'm.{e}.b', when: n < 3}\n"
        "  'f.{e}.w': {to: 'k.{e}.w', when: n == 3}",
        {f"h.{i}.{e}.{p}": (2,) for i in range(2) for e in range(3) for p in "wb"}
        | {f"g.{e}.{p}": (2,) for e in range(4) for p in "wb"},
    ),
    "a table of guards": (
        "facts: {depth: 'count(\"h.{i}.x\")'}\nkeep: ['h.{i}.x']\n"
        "rename:\n  'h.{i}.{p:a|b}': {to: 'l.{i}.{p}', when: n == 2}\n  top: {to: head, when: n == 3}\n  low: {to: base, when: n < 3}",
        {"h.0.x": (2,), "h.1.x": (2,), "low": (1,)} | {f"h.{i}.{p}": (2,) for i in range(2) for p in "ab"},
    ),
    "words before an index": (
        "facts: {first: 'count(\"x.{i}.a\")', second: 'count(\"y.{i}.a\")'}\nrename: {'{s:x|y}.{i}.{p:a|b}': '{s}s.{i}.{p}'}\n"
        "transform: [{name: turn, from: '{s:x|y}.{i}.w', to: '{s}s.{i}.w', transpose: true}]",
        {f"{s}.{i}.{p}": (2, 3) for s, n in (("x", 1), ("y", 3)) for i in range(n) for p in "abw"},
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
    "copy": (
        "transform: [{name: twice, from: 'h.{i}.w', to: ['l.{i}.a', 'l.{i}.b'], copy: 2},"
        " {name: thrice, from: top, to: [x, y, z], copy: 3, when: n == 2}]",
        {"h.0.w": (3, 2), "h.1.w": (4,), "top": (5,)},
    ),
    "copy in a chain": (
        "transform: [{name: twice, from: 'h.{i}.w', to: ['l.{i}.a', 'l.{i}.b'],"
        " steps: [{transpose: true}, {copy: 2}, {transpose: true, only: [1]}]}]",
        {"h.0.w": (3, 2), "h.1.w": (4, 1)},
    ),
    "copy and concat": (
        "transform: [{name: repeat, from: 'h.{i}.w', to: 'l.{i}.w', steps: [{copy: 3}, {concat: 1}]}]",
        {"h.0.w": (3, 2), "h.1.w": (4, 1)},
    ),
    "copy and unstack": (
        "transform: [{name: open, from: 'h.{i}.w', to: ['l.{i}.{e}.a', 'l.{i}.{e}.b'], steps: [{copy: 2}, {unstack: e}]},"
        " {name: reopen, from: 'g.{i}.w', to: ['m.{i}.{e}.a', 'm.{i}.{e}.b'], steps: [{unstack: e}, {copy: 2}]}]",
        {f"{m}.{i}.w": (3, 2) for m in "hg" for i in range(2)},
    ),
    "stack and copy": (
        "transform: [{name: fold, from: 'h.{i}.{e}.{p:wa|wb}', to: ['l.{i}.{p}', 'm.{i}.{p}'], steps: [{stack: e}, {copy: 2}]}]",
        LAYERS,
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
    "unstack, turn and unstack": (
        "transform: [{name: open, from: h.w, to: 'l.{i}.{e}.w', steps: [{unstack: i}, {transpose: true}, {unstack: e}]}]",
        {"h.w": (2, 5, 3)},
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
    "a guard that leaves out numbers": (
        "indices: {odd: odd % n == 1}\nrename: {'h.{odd}.w': 'l.{odd}.w'}",
        {"h.1.w": (2,), "h.3.w": (2,), "h.5.w": (2,)},
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
    plan = convert(program, Request([tmp_path / "model.pth"], check=False), tmp_path / "executor")
    converter = str(tmp_path / "small" / "convert_small.py")
    assert server.run(converter, str(tmp_path / "model.pth"), str(tmp_path / "converter"), "--no-check") == ""
    wanted = folder_image(tmp_path / "executor")
    assert wanted
    assert folder_image(tmp_path / "converter") == wanted
    assert texts(tmp_path / "converter") == texts(tmp_path / "executor")
    if not any(rule.loss for rule in program.rules):
        convert(program, Request([tmp_path / "executor"], reverse=True, check=False), tmp_path / "back.pth")
        back = torch.load(tmp_path / "back.pth", weights_only=True)
        ignored = {name for name, _ in plan.ignored}
        assert image(back) == image({n: t for n, t in tensors.items() if n not in ignored})


@pytest.mark.parametrize("kind", RULES)
def test_each_tensor_that_rules_of_every_kind_read_is_missed(
    server: ConverterProcess, tmp_path: Path, kind: str
) -> None:
    """By both, or by neither where nothing says that there should be one."""
    rules, shapes = RULES[kind]
    path = tmp_path / "small.yaml"
    path.write_text(SPEC.format(rules=rules))
    for name, text in build(str(path), prove=False).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    program = load_program(str(path))
    for n, lost in enumerate(shapes):
        torch.save({name: torch.ones(shape) for name, shape in shapes.items() if name != lost}, tmp_path / f"{n}.pth")
        try:
            convert(program, Request([tmp_path / f"{n}.pth"], check=False), tmp_path / f"executor{n}")
            accepted = True
        except Refusal:
            accepted = False
        given = [str(tmp_path / f"{n}.pth"), str(tmp_path / f"out{n}"), "--no-check"]
        said = server.run(str(tmp_path / "small" / "convert_small.py"), *given)
        assert (said == "") is accepted, (lost, said)
        assert not accepted or folder_image(tmp_path / f"out{n}") == folder_image(tmp_path / f"executor{n}")


def test_one_index_is_folded_by_one_step(tmp_path: Path) -> None:
    rules = "transform: [{name: fold, from: 'h.{i}.{e}.w', to: w, steps: [{stack: e}, {stack: i}]}]"
    (tmp_path / "small.yaml").write_text(SPEC.format(rules=rules))
    with pytest.raises(Refusal, match=r"fold folds \{i\} and \{e\}; a step folds one index"):
        build(str(tmp_path / "small.yaml"), prove=False)


# ---------------------------------------------------------------------------------------------------------------------
# What is generated


def test_generated_is_fresh() -> None:
    fresh = {f"generated/{n}": text for path in SPECS for n, text in build(str(path), prove=False).items()}
    for first, second in PAIRS:
        fresh |= {f"generated/{n}": text for n, text in build(first, prove=False, to=second).items()}
    made = [path for path in GENERATED.rglob("*.py") if path.relative_to(GENERATED).parts[0] != "emit"]
    files = {str(path.relative_to(ROOT)): path.read_text() for path in made}
    assert sorted(files) == sorted(fresh)
    assert [name for name in fresh if fresh[name] != files[name]] == []


@pytest.mark.parametrize("seed", portion(["1", "2", "3"], 3))
def test_generated_does_not_depend_on_the_order_of_sets(seed: str) -> None:
    command = [sys.executable, "-m", "compiler", "--check", "--no-proof", *map(str, SPECS)]
    environment = os.environ | {"PYTHONHASHSEED": seed}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_proves(path: Path) -> None:
    warnings: list[Diagnostic] = []
    build(str(path), prove=True, warn=warnings.append)
    assert warnings == []


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]], ids=" ".join)
def test_generated_is_clean(words: list[str]) -> None:
    command = [sys.executable, "-m", "ruff", *words, "--no-cache", str(GENERATED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_is_typed() -> None:
    """Against the config of the repository; torch is taken on trust, as reading it costs a minute."""
    files = [str(script(name)) for name in PATH_A]
    files += [str(GENERATED / first / f"convert_{first}_to_{second}.py") for first, second in PAIRS]
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
    defined = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
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
    code = "".join(Path(module.__file__ or "").read_text() for module in (rule_function, rule_steps))
    assert re.search(rf"(structural\.|isinstance\(op, ){op.__name__}\b", code)
    assert f'"{op.word}"' in (Path(__file__).parent.parent / "language" / "test_language.py").read_text()


def test_a_submodel_gives_both_dialects_itself(tmp_path: Path) -> None:
    """A converter prints the fields of submodels as the spec has them, so that they must be complete."""
    text = Path(load_program("clip_clip").spec.path).read_text()
    place = tmp_path / "clip_clip.yaml"
    place.write_text(text.replace('"clip_text_model", ', '"clip_text_model", "rope_theta": 5.0, '))
    with pytest.raises(Refusal) as caught:
        build(str(place), prove=False)
    assert [d.kind for d in caught.value.diagnostics] == ["missing-field"]
    assert "text_config does not give rope_parameters, rope_scaling" in str(caught.value)
