"""Specs of several sources: the models that two checkpoints make together, and sources that do not belong together."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.parity import Job, interpreters, logits_many
from support.several_sources import (
    EXPERTS,
    IMAGE,
    llava,
    llava_logits,
    minimind_v,
    minimind_v_logits,
    patches,
    save,
)
from support.synthetic import folder_image, request_of, synthetic

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.language.parser import load_spec
from compiler.program.loading import compile_spec, load_program
from compiler.source.source_files import open_source
from compiler.verify.round_trip import round_trip

GENERATED = Path(__file__).parent.parent.parent / "generated"
BEFORE, AFTER = torch.tensor([[3, 5, 9]]), torch.tensor([[11, 60, 2]])
PIXELS = torch.randn((1, 3, 12, 12), generator=torch.Generator().manual_seed(7))
LLAVA, MINIMIND = "llava_llava", "minimind_v_lfm2_vl"


def asked(sources: Mapping[str, Path], *names: str, **values: Any) -> Request:
    """A request for these of the sources, in this order; for `text` and `vision` by default."""
    names = names or ("text", "vision")
    return Request([sources[name] for name in names], names=names, assigned=values)


def load(path: Path) -> dict[str, Any]:
    file = path if path.is_file() else path / "pytorch_model.bin"
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Path]]]:
    """Model -> its spec and its sources."""
    place = tmp_path_factory.mktemp("sources")
    return {
        "llava": (LLAVA, llava(place / "llava")),
        "dense": (MINIMIND, minimind_v(place / "dense")),
        "experts": (MINIMIND, minimind_v(place / "experts", EXPERTS)),
    }


@pytest.fixture(scope="module")
def folders(
    models: dict[str, tuple[str, dict[str, Path]]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Model -> its converted folder. The proof of the spec has compared its names with the class."""
    place = tmp_path_factory.mktemp("converted")
    for model, (spec, sources) in models.items():
        convert(load_program(spec), replace(asked(sources), check=False), place / model)
    return {model: place / model for model in models}


def inputs(model: str) -> dict[str, Any]:
    """What the converted model is run on: an image between two texts."""
    token = 70 if model == "llava" else IMAGE
    ids = torch.cat((BEFORE, torch.full((1, 9), token), AFTER), 1)
    if model == "llava":
        return {"input_ids": ids, "pixel_values": PIXELS}
    return {
        "input_ids": ids,
        "pixel_values": patches(PIXELS, 4),
        "spatial_shapes": torch.tensor([[3, 3]]),
        "pixel_attention_mask": torch.ones(1, 9, dtype=torch.int64),
    }


def test_logits_are_those_of_the_trainers_model(
    models: dict[str, tuple[str, dict[str, Path]]], folders: dict[str, Path]
) -> None:
    """In every release of Transformers; one process each. Exchanged halves of a projector are seen."""
    classes = {"llava": "LlavaForConditionalGeneration"}
    jobs = [Job(folders[m], inputs(m), model_class=classes.get(m, "Lfm2VlForConditionalGeneration")) for m in models]
    wrong = folders["llava"].parent / "wrong"
    shutil.copytree(folders["llava"], wrong, dirs_exist_ok=True)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"vision_feature_layer": -1}))
    jobs.append(Job(wrong, inputs("llava"), model_class=classes["llava"]))
    for python in interpreters().values():
        *results, spoiled = logits_many(jobs, python)
        for model, got in zip(models, results, strict=True):
            text, vision = (load(models[model][1][name]) for name in ("text", "vision"))
            compute = llava_logits if model == "llava" else minimind_v_logits
            wanted = compute(text, vision, BEFORE, PIXELS, AFTER)
            assert (got[..., : wanted.shape[-1]] - wanted).abs().max() < 2e-5, model
            if model == "llava":
                assert (spoiled[..., : wanted.shape[-1]] - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("example", [0, 1])
@pytest.mark.parametrize("spec", [LLAVA, MINIMIND])
def test_executor_and_converter_agree_on_any_bits(
    tmp_path: Path, spec: str, example: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every example of the spec; and the inverse gives every tensor of the sources again."""
    program = load_program(spec)
    source = synthetic(program, example, "float16")
    request = replace(request_of(source, tmp_path, program), check=False)
    convert(program, request, tmp_path / "executor")
    options = [f"--{name}={json.dumps(value)}" for name, value in source.arguments.items() if value is not None]
    options = [option.replace('"', "") for option in options]
    words = [
        *(f"{name}={path}" for name, path in zip(request.names, request.source, strict=True)),
        str(tmp_path / "converter"),
        "--no-check",
    ]
    run_converter(spec, [*words, *options], monkeypatch)
    assert folder_image(tmp_path / "converter") == folder_image(tmp_path / "executor")
    result = round_trip(program, request, tmp_path / "executor")
    assert (result.equal, result.differences) == (len(prepare(program, request).plan.targets), ())


def run_converter(spec: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a generated converter in this process. Raises SystemExit where it fails."""
    monkeypatch.setattr(sys, "argv", ["convert", *words])
    runpy.run_path(str(GENERATED / spec / f"convert_{spec}.py"), run_name="__main__")


@pytest.mark.parametrize("model", ["llava", "experts"])
def test_the_converter_writes_the_same(
    models: dict[str, tuple[str, dict[str, Path]]],
    folders: dict[str, Path],
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, sources = models[model]
    words = [f"vision={sources['vision']}", f"text={sources['text']}", str(tmp_path / "out"), "--no-check"]
    run_converter(spec, words, monkeypatch)
    made, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", folders[model]))
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in made)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", folders[model])]
    assert configs[0] == configs[1]


def test_a_converter_rejects_what_run_rejects(
    models: dict[str, tuple[str, dict[str, Path]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = models["llava"][1]
    text, vision = f"text={sources['text']}", f"vision={sources['vision']}"
    for words, message in (
        ([text], "vision is missing"),
        ([text, text, vision], "given twice"),
        ([text, vision, f"sound={sources['text']}"], "no source 'sound'"),
        ([text, f"vision={sources['text']}"], "the same"),
        ([f"text={sources['vision']}", f"vision={sources['text']}"], "the config of text is of 'clip'"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_converter(LLAVA, [*words, str(tmp_path / "out")], monkeypatch)
        assert not (tmp_path / "out").exists()


def test_the_manifest_has_the_source_of_each_tensor(
    models: dict[str, tuple[str, dict[str, Path]]], tmp_path: Path
) -> None:
    """A projector over the checkpoint of the language model replaces its four tensors, and no other."""
    _, sources = models["llava"]
    request = replace(asked(sources, "vision", "projector", "text"), check=False)
    convert(load_program(LLAVA), request, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "mapspec.json").read_text())
    assert [source["source"] for source in manifest["sources"]] == ["text", "projector", "vision"]
    owners = {name: entry["sources"] for name, entry in manifest["tensors"].items()}
    assert {name for name, found in owners.items() if found == ["projector"]} == {
        f"multi_modal_projector.linear_{n}.{t}" for n in (1, 2) for t in ("weight", "bias")
    }
    assert {tuple(found) for name, found in owners.items() if name.startswith("vision_tower.")} == {("vision",)}
    written = load_file(tmp_path / "out" / "model.safetensors")
    given = load(sources["projector"])
    assert torch.equal(written["multi_modal_projector.linear_1.weight"], given["model.mm_projector.0.weight"])


@pytest.mark.parametrize("model", ["llava", "dense"])
def test_the_round_trip_is_exact(
    models: dict[str, tuple[str, dict[str, Path]]], folders: dict[str, Path], tmp_path: Path, model: str
) -> None:
    """`verify` reads all sources; it sees a tensor of the image encoder that differs."""
    spec, sources = models[model]
    program, request = load_program(spec), asked(sources)
    result = round_trip(program, request, folders[model])
    assert result.equal > 50
    assert not result.differences
    shutil.copytree(folders[model], tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.layer_norm2.bias"))
    tensors[name] = tensors[name] + 1
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    [difference] = round_trip(program, request, tmp_path / "out").differences
    assert difference.name.startswith("vision:")


def refused(spec: str, request: Request) -> list[tuple[str, str]]:
    with pytest.raises(Refusal) as caught:
        prepare(load_program(spec), request)
    return [(problem.kind, problem.message) for problem in caught.value.diagnostics]


WRONG: dict[str, tuple[Callable[[dict[str, Path]], Request], str, str]] = {
    "missing": (lambda s: asked(s, "text"), "missing-source", "vision is missing"),
    "twice": (lambda s: asked(s, "text", "text", "vision"), "repeated-source", "given 2 times"),
    "unknown": (
        lambda s: Request([*s.values()][:2], names=["text", "visio"]),
        "unknown-source",
        "no source 'visio'",
    ),
    "one for both": (
        lambda s: Request([s["text"], s["text"]], names=["text", "vision"]),
        "repeated-source",
        "given as the source text and as",
    ),
    "exchanged": (
        lambda s: Request([s["vision"], s["text"]], names=["text", "vision"]),
        "other-architecture",
        "model_type is 'clip'",
    ),
    "unnamed": (lambda s: Request([s["text"]]), "missing-source", "several sources"),
    "one config": (
        lambda s: Request([s["text"], s["vision"]], names=["text", "vision"], config=s["text"]),
        "wrong-usage",
        "one config",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_sources_that_are_wrong(models: dict[str, tuple[str, dict[str, Path]]], case: str) -> None:
    make, kind, message = WRONG[case]
    problems = refused(LLAVA, make(models["llava"][1]))
    assert any(found == kind and message in text for found, text in problems), problems


def test_names_need_a_spec_of_several_sources(models: dict[str, tuple[str, dict[str, Path]]]) -> None:
    sources = models["llava"][1]
    assert refused("llama", asked(sources)) == [("unknown-source", "llama reads one source")]


def test_an_encoder_of_another_width(tmp_path: Path) -> None:
    """The projector does not fit it, which the configs say too."""
    problems = refused(LLAVA, asked(llava(tmp_path, vision_width=30)))
    assert ("unmet-requirement", "the projector was trained for an image encoder of another width") in problems


def test_configs_that_contradict(models: dict[str, tuple[str, dict[str, Path]]], tmp_path: Path) -> None:
    """A size in the config of one source that the other one does not have."""
    _, sources = models["dense"]
    shutil.copytree(sources["vision"], tmp_path / "vision")
    file = tmp_path / "vision" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_size": 16}))
    [(kind, message)] = refused(MINIMIND, asked(sources | {"vision": tmp_path / "vision"}))
    assert kind == "config-mismatch"
    assert "vision_image_size = 16" in message


def test_several_sources_are_not_written(
    models: dict[str, tuple[str, dict[str, Path]]], folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match="several sources"):
        convert(load_program(LLAVA), Request([folders["llava"]], reverse=True), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_detect_finds_the_spec_of_several_sources(models: dict[str, tuple[str, dict[str, Path]]]) -> None:
    """Of all sources it fits; of one, the reason says which it is."""
    sources = models["llava"][1]
    programs = [load_program(name) for name in (LLAVA, MINIMIND, "llama")]
    found = {fit.spec: fit for fit in detect(asked(sources), programs)}
    assert {name: fit.status for name, fit in found.items()} == {LLAVA: "fits", MINIMIND: "near", "llama": "no"}
    found = {fit.spec: fit for fit in detect(Request([sources["vision"]]), programs)}
    assert found[LLAVA].status == "near"
    assert "the source vision" in found[LLAVA].reasons[0]
    assert found["llama"].status == "no"


def run(words: list[str]) -> Any:
    with pytest.raises(SystemExit) as done:
        main(words)
    return done.value.code


def test_the_command_line(models: dict[str, tuple[str, dict[str, Path]]], capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` shows qualified names, and the words of the command; a word without a name is an error."""
    sources = models["llava"][1]
    assert run(["plan", LLAVA, f"vision={sources['vision']}", f"text={sources['text']}"]) == 0
    assert "vision:vision_model.embeddings.class_embedding" in capsys.readouterr().out
    assert run(["plan", LLAVA, f"vision={sources['vision']}", str(sources["text"])]) == 2
    assert "has no name, and other sources do" in capsys.readouterr().err
    missing = sources["text"].with_name("nothing")
    assert run(["plan", LLAVA, f"vision={sources['vision']}", f"text={missing}"]) == 1
    assert "there is no such file" in capsys.readouterr().err


FILLED = """
spec: 1
name: filled
summary: two sources of one model
sources:
  tuned: {weights: "*.pth"}
  base: {weights: "*.pth", fills: tuned}
target: {model: GPT2LMHeadModel}
rename: {"tuned:{name:a|b|c}": "x.{name}"}
example: {}
"""


def test_a_base_fills_what_a_source_lacks(tmp_path: Path) -> None:
    """Where both have a name, that of the source itself is read."""
    program = compile_spec(load_spec(tmp_path / "filled.yaml", FILLED))
    tuned = save(tmp_path / "tuned", {"a": torch.zeros(2)}, name="tuned.pth")
    base = save(tmp_path / "base", {n: torch.ones(2) for n in "abc"}, name="base.pth")
    checkpoint = open_source(program, [base, tuned], names=["base", "tuned"])
    assert {name: tensor.parts[0].path for name, tensor in checkpoint.tensors.items()} == {
        "tuned:a": tuned,
        "tuned:b": base,
        "tuned:c": base,
    }
    assert checkpoint.notes[-1] == "base adds 2 tensors to tuned and leaves 1 as they are"
