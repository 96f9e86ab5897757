"""What other people's converters and models made of a checkpoint, this project makes of it: tensors by their sha256,
config field by field as the class understands it, logits in every interpreter, and back to every bit of the source.

With `MAPSPEC_MEASURE=1` the largest differences are written to `tests/data/oracles/measured.json`, from which the table
of specs is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from support.oracle_cases import Case, cases, digests, understood
from support.parity import ORACLES, Job, difference, inputs_of, interpreters, logits_many
from support.synthetic import image

from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.jobs.convert import convert, write
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.source.source_files import open_source

CASES = cases()


class Folders(dict[str, Path]):
    """Every case, converted when it is first asked for."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def __missing__(self, name: str) -> Path:
        case = next(case for case in CASES if case.name == name)
        folder = self.place / name.replace("/", "_")
        convert(case.program, case.request, folder)
        self[name] = folder
        return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("oracles"))


@pytest.fixture(scope="module")
def differences(folders: Folders) -> Iterator[dict[str, dict[str, float]]]:
    """The largest logit difference of every case in each interpreter; one process per interpreter."""
    golden = {}
    for case in CASES:
        with suppress(Refusal):  # which the other tests of the case tell
            golden |= {case.name: case.golden} if case.golden and folders[case.name] else {}
    classes = {case.name: case.said.get("model_class", "AutoModelForCausalLM") for case in CASES}
    own_code = {case.name: case.program.spec.target.model is None for case in CASES if case.name in golden}
    jobs = [Job(folders[n], inputs_of(g), own_code[n], model_class=classes[n]) for n, g in golden.items()]
    found: dict[str, dict[str, float]] = {name: {} for name in golden}
    for interpreter, python in interpreters().items():
        for (name, path), got in zip(golden.items(), logits_many(jobs, python), strict=True):
            found[name][interpreter] = difference(got, path)
    yield found
    if os.environ.get("MAPSPEC_MEASURE"):
        measured = {n: {"spec": c.spec, "difference": max(found[n].values())} for c in CASES if (n := c.name) in found}
        (ORACLES / "measured.json").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")


@pytest.mark.parametrize("case", [c for c in CASES if c.manifest], ids=lambda c: c.name)
def test_tensors_are_those_of_the_other_converter(folders: Folders, case: Case) -> None:
    assert digests(folders[case.name]) == case.manifest


@pytest.mark.parametrize("case", [c for c in CASES if c.golden], ids=lambda c: c.name)
def test_logits_are_those_of_the_original(differences: dict[str, dict[str, float]], case: Case) -> None:
    assert max(differences[case.name].values()) <= case.said["tolerance"], differences[case.name]


# Arguments that no shape contradicts.
WRONG: dict[str, dict[str, object]] = {
    "clip/vit": {"hidden_act": "gelu"},
    "timm/vit": {"num_heads": 2},
    "timm/dinov2": {"num_heads": 2},
    "timm/dinov2_reg5": {"layer_norm_eps": 0.1},
    "timm/beit": {"layer_norm_eps": 0.1},
    "timm/deit_distilled": {"num_heads": 8},
    "open_clip/siglip": {"vision_heads": 2},
    "llms_from_scratch/llama3": {"rope_freq": None},
    "llms_from_scratch/qwen3": {"rope_base": 10000.0},
    "llms_from_scratch/qwen3_moe": {"num_experts_per_tok": 2},
    "llms_from_scratch/gpt2": {"n_heads": 2},
}


def test_a_wrong_argument_is_seen(tmp_path: Path) -> None:
    """Every tensor is right, and the model is another."""
    jobs, golden = [], []
    for number, (name, wrong) in enumerate(WRONG.items()):
        case = next(case for case in CASES if case.name == name)
        assert case.golden
        request = replace(case.request, assigned={**case.request.assigned, **wrong})
        convert(case.program, request, folder := tmp_path / str(number))
        jobs.append(
            Job(folder, inputs_of(case.golden), model_class=case.said.get("model_class", "AutoModelForCausalLM"))
        )
        golden.append((case, case.golden))
    for (case, path), got in zip(golden, logits_many(jobs), strict=True):
        assert difference(got, path) > 50 * case.said["tolerance"], case.name


@pytest.mark.parametrize(
    "case", [c for c in CASES if (c.folder / "expected/config.json").is_file()], ids=lambda c: c.name
)
def test_config_means_the_same(folders: Folders, case: Case) -> None:
    got, wanted = understood(folders[case.name] / "config.json"), understood(case.folder / "expected/config.json")
    apart = {n for n in got.keys() | wanted.keys() if got.get(n) != wanted.get(n)}
    explained = case.said.get("config_differs", {})
    assert {n: (got.get(n), wanted.get(n)) for n in apart - explained.keys()} == {}
    assert explained.keys() <= apart, "the explanation of a difference that is gone"


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_way_back_gives_the_source(folders: Folders, tmp_path: Path, case: Case) -> None:
    import torch

    given = case.request.assigned
    back = Request([folders[case.name]], assigned=given, reverse=True)
    if case.said.get("lossy"):
        plan = prepare(case.program, case.request).plan
        groups = plan.groups
        if any(group.rule.irreversible for group in groups):
            with pytest.raises(Refusal, match="irreversible-rule"):
                convert(case.program, back, tmp_path / "back.pth")
        else:  # what was cropped is refilled, so that the result converts to the same model
            assert any(group.rule.loss for group in groups)
            padded = {**given, "padded_vocab_size": plan.values["padded_vocab_size"]}
            convert(case.program, replace(back, assigned=padded), tmp_path / "back")
            convert(case.program, Request([tmp_path / "back"]), tmp_path / "again")
            assert digests(tmp_path / "again") == digests(folders[case.name])
        return
    convert(case.program, back, tmp_path / "back.pth")
    checkpoint = open_source(case.program, case.request.source)
    plan = prepare(case.program, case.request).plan
    left = {name for name, _ in plan.ignored}
    wanted = {
        n: (f"torch.{t.dtype}", tuple(t.shape), bytes(read_bytes(t)))
        for n, t in checkpoint.tensors.items()
        if n not in left
    }
    assert image(torch.load(tmp_path / "back.pth", weights_only=True)) == wanted


def test_a_wrong_tensor_is_seen(tmp_path: Path) -> None:
    """The measure itself: one value off by one bit."""
    from safetensors.torch import load_file, save_file

    case = next(c for c in CASES if c.manifest)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    write(plan, checkpoint, case.request, tmp_path / "out")
    tensors = load_file(tmp_path / "out/model.safetensors")
    name = min(tensors)
    import torch

    tensors[name].reshape(-1).view(torch.uint8)[0] ^= 1
    save_file(tensors, tmp_path / "out/model.safetensors")
    found = digests(tmp_path / "out")
    assert {n for n in found if found[n] != case.manifest[n]} == {name}


def test_a_converter_reads_a_config_in_yaml(tmp_path: Path) -> None:
    """As its trainer wrote it, by the generated program."""
    case = next(c for c in CASES if str(c.request.config).endswith(".yaml") and c.manifest and not c.request.assigned)
    script = Path(__file__).parent.parent.parent / "generated" / case.spec / f"convert_{case.spec}.py"
    words = [str(case.request.source[0]), str(tmp_path / "out"), "--config", str(case.request.config)]
    subprocess.run([sys.executable, str(script), *words], check=True)
    assert digests(tmp_path / "out") == case.manifest
