"""`compile draft`: the rules it finds, the questions it asks, and that an open question keeps a spec from compiling."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import source_models
from support.oracle_cases import Case
from support.parity import ORACLES
from support.synthetic import synthetic

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.config_file import read_config_file
from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.draft.decide_by_example import decide_by_example
from compiler.draft.decide_by_model import decide_by_model
from compiler.draft.proposal import propose
from compiler.draft.reshape_steps import reshape
from compiler.draft.spec_text import Proposal
from compiler.draft.tensor_roles import NameFamily, name_families
from compiler.jobs.compile import build
from compiler.jobs.convert import convert
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.proof.config_faults import unfilled_fields
from compiler.proof.proof import config_schema
from compiler.settings.arguments import BAGGAGE
from compiler.target.config_dialects import read_config
from compiler.verify.compare import SourceModel
from compiler.verify.job import Job, Results
from compiler.verify.run_model import results

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks import draft as benchmark  # noqa: E402

FEW = (
    "litgpt_llama",
    "internlm2_llama",
    "torchtitan_qwen3_moe",
    "phi3_llama",
    "nanogpt_gpt2",
    "olmo1_olmo",
    "qwen3_fp8_qwen3",
)


@pytest.mark.parametrize("name", FEW)
def test_a_hidden_spec_is_found_again(name: str) -> None:
    found = benchmark.measured(ROOT / "specs" / f"{name}.yaml")
    assert found.identical >= 0.7 * found.rules
    assert found.marked == found.rules - found.identical, found.wrong
    assert found.proven, found.problem


def test_the_measure_sees_a_wrong_rule() -> None:
    """The same draft with two targets exchanged is no longer identical."""
    program = load_program("litgpt_llama")
    source, config, plan = benchmark.example(program)
    truth = benchmark.meaning(plan, source)
    proposal = benchmark.draft(program, source, config)
    for guess in proposal.draft.guesses:
        if guess.sources == ["transformer.h.{i}.mlp.fc_1.weight"]:
            guess.targets = ["model.layers.{i}.mlp.up_proj.weight"]
        elif guess.sources == ["transformer.h.{i}.mlp.fc_2.weight"]:
            guess.targets = ["model.layers.{i}.mlp.gate_proj.weight"]
    made = meaning_of(proposal, source)
    assert {n for n in truth if made[n] != truth[n]} == {
        f"model.layers.{i}.mlp.{p}_proj.weight" for i in (0, 1) for p in ("gate", "up")
    }


def meaning_of(proposal: Proposal, source: dict[str, benchmark.Form]) -> dict[str, object]:
    drafted = benchmark.compile_spec(
        benchmark.load_spec("x_draft.yaml", proposal.text(True).replace("name: litgpt_llama_draft", "name: x_draft"))
    )
    env = benchmark.Environment(drafted, benchmark.NamedShapes(source), {})
    return benchmark.meaning(benchmark.bind(drafted, source, env), source)


def test_what_is_undecided_does_not_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ORACLES / "meta_llama/llama3_1shard_gqa/source"
    words = [
        "draft",
        str(source / "consolidated.00.pth"),
        "--config",
        str(source / "params.json"),
        "--target",
        "LlamaForCausalLM",
    ]
    out = tmp_path / "mine.yaml"
    with pytest.raises(SystemExit) as done:
        main([*words, "-o", str(out)])
    assert done.value.code == 0
    printed = capsys.readouterr()
    assert "6 questions to decide" in printed.err
    assert "--reference FILE.py:FUNCTION, the source's own model, decides" in printed.err
    assert f"next: decide them in the file, then mapspec {out}" in printed.out
    with pytest.raises(Refusal) as caught:
        build(str(out), prove=True)
    assert {d.kind for d in caught.value.diagnostics} == {"undecided"}
    assert len(caught.value.diagnostics) == 6
    text = out.read_text()
    start, end = text.index("undecided:"), text.index("arguments:")
    out.write_text(text[:start] + text[end:])
    assert build(str(out), prove=True)
    with pytest.raises(SystemExit) as done:
        main([*words, "-o", str(out)])
    assert done.value.code == 1
    assert "[output-exists]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["torchtune_qwen2", "qwen1_llama", "opt_opt", "meta_llama", "gpt_fast_llama", "litgpt_llama", "baichuan_llama"],
)
def test_a_second_checkpoint_decides(name: str, tmp_path: Path) -> None:
    """Where the first guess is wrong, trying finds the right one: the draft then does what the hidden spec does."""
    program = load_program(name)
    made = synthetic(program, 0, "float32")
    (tmp_path / "in").mkdir()
    save_file({n: t.clone() for n, t in made.tensors.items()}, tmp_path / "in" / "model.safetensors")
    convert(program, Request([tmp_path / "in" / "model.safetensors"], assigned=made.arguments), tmp_path / "out")
    source, config, plan = benchmark.example(program)
    proposal = benchmark.draft(program, source, config)
    asked = len(proposal.questions)
    proposal = decide_by_example(proposal, open_checkpoint(tmp_path / "in"), open_checkpoint(tmp_path / "out"))
    assert len(proposal.questions) < asked
    assert "qkv" not in proposal.questions
    proposal = dataclasses.replace(proposal, name="x_draft")
    drafted = benchmark.compile_spec(benchmark.load_spec("x_draft.yaml", proposal.text(True)))
    env = benchmark.Environment(drafted, benchmark.NamedShapes(source), {})
    found = benchmark.meaning(benchmark.bind(drafted, source, env), source)
    truth = benchmark.meaning(plan, source)
    wrong = [n for n in truth if found.get(n) != truth[n]]
    assert wrong == []


def here(place: Path, job: Job) -> Results:
    """Runs a job in this process."""
    return results(job)


@pytest.mark.parametrize(
    ("name", "model"),
    [("meta_llama/llama3_1shard_gqa", "Interleaved"), ("internlm2/wqkv_2shards", "Grouped")],
)
def test_the_sources_own_model_decides(name: str, model: str) -> None:
    """Rotary pairs, the groups of a fused matrix, gate and up: what computes the same is what the hidden spec says."""
    torch.set_num_threads(1)
    case = Case(ORACLES / name)
    prepared = prepare(case.program, case.request)
    plan, checkpoint = prepared.plan, prepared.checkpoint
    beside = [case.folder / "source" / name for name in ("params.json", "config.json")]
    config = read_config(read_config_file(next(path for path in beside if path.exists())))
    shapes = {n: (tuple(t.shape), t.dtype) for n, t in checkpoint.tensors.items()}
    told = {field: value for field, value in config.items() if field not in BAGGAGE}
    proposal = propose("x_draft", shapes, "LlamaForCausalLM", told)
    truth = benchmark.meaning(plan, checkpoint.tensors)

    # Another model decides nothing.
    other = SourceModel(entry="test_draft:Shifted" + model)
    unchanged, said = decide_by_model(proposal, checkpoint, case.request, other, here)
    assert (unchanged, "none of" in said) == (proposal, True), said

    found, said = decide_by_model(
        proposal, checkpoint, case.request, SourceModel(entry=f"support.source_models:{model}"), here
    )
    assert len(proposal.questions) >= 3
    assert found.questions.keys() <= {"hidden_act", "max_position_embeddings"}, said  # no rule is left
    assert "logits agree within" in found.text()
    drafted = benchmark.compile_spec(benchmark.load_spec("x_draft.yaml", found.text(decided=True)))
    env = benchmark.Environment(drafted, benchmark.NamedShapes(checkpoint.tensors), {})
    made = benchmark.meaning(benchmark.bind(drafted, checkpoint.tensors, env), checkpoint.tensors)
    assert {n for n in truth if made[n] != truth[n]} == set()


class ShiftedInterleaved(source_models.Interleaved):
    """A model that does something else."""

    config_class = source_models.Args

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) + tokens[..., None]


class ShiftedGrouped(source_models.Grouped):
    """The same for the other one."""

    config_class = source_models.Args

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": super().forward(tokens)["logits"] + tokens[..., None]}


def test_a_model_that_cannot_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    words = ["draft", str(tmp_path / "x.safetensors"), "--target", "LlamaForCausalLM", "--reference", "nothing"]
    with pytest.raises(SystemExit) as done:
        main(words)
    assert (done.value.code, "FILE.py:FUNCTION" in capsys.readouterr().err) == (2, True)


def test_a_class_that_nobody_knows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    with pytest.raises(SystemExit) as done:
        main(["draft", str(tmp_path / "x.safetensors"), "--target", "LamaForCausalLM"])
    assert done.value.code == 1
    assert "[unknown-class]" in capsys.readouterr().err


def test_nothing_in_common_is_all_undecided() -> None:
    shapes = {f"stage.{i}.thing": ((3, 5), "float32") for i in range(2)}
    proposal = propose(
        "x",
        shapes,
        "LlamaForCausalLM",
        {"hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 2, "intermediate_size": 48},
    )
    assert "stage.{i}.thing" in proposal.questions
    assert "model.embed_tokens.weight" in proposal.questions


# ---------------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 5), st.integers(2, 4), st.permutations(range(6)))
@settings(max_examples=40, deadline=None)
def test_folding_loses_no_name(layers: int, experts: int, order: list[int]) -> None:
    names = [f"layers.{i}.experts.{e}.w1.weight" for i in range(layers) for e in range(experts)]
    names += [f"layers.{i}.norm.weight" for i in range(layers)] + ["head.weight", "layers.0.first.weight"]
    shapes = {names[n]: ((4,), "float32") for n in [*order, *range(len(names))] if n < len(names)}
    forms = name_families(shapes)
    assert sorted(name for form in forms for name in form.names) == sorted(shapes)
    assert {form.text for form in forms} == {
        "layers.{i}.experts.{e}.w1.weight", "layers.{i}.norm.weight", "head.weight", "layers.0.first.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "steps"),
    [
        ((4, 6), (4, 6), ()),
        ((4, 6), (6, 4), ({"transpose": True},)),
        ((4, 6), (5, 6), None),
        ((6,), (6,), ()),
    ],
)
def test_one_shape_to_another(source: tuple[int, ...], target: tuple[int, ...], steps: object) -> None:
    one, other = (NameFamily("a", (shape,), "float32", (), ("a",)) for shape in (source, target))
    found = reshape(one, other)
    assert (found.steps if found else None) == steps


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("litgpt_llama", "LlamaForCausalLM"),
        ("gemma_gemma", "GemmaForCausalLM"),
        ("persimmon_persimmon", ""),
        ("timm_vit", ""),
    ],
)
def test_a_draft_compiles_without_warnings(name: str, target: str) -> None:
    """No config gives the ids of tokens: they are arguments that are null, not the defaults of the class. A width of heads
    that the class only looks for is not written."""
    program = load_program(name)
    source, _, _ = benchmark.example(program)
    config = benchmark.own_words(program)
    config = {field: value for field, value in config.items() if not field.endswith("_token_id")}
    proposal = benchmark.draft(program, source, config)
    text = proposal.text(decided=True)
    drafted = benchmark.compile_spec(benchmark.load_spec(f"{proposal.name}.yaml", text))
    if target:
        assert drafted.spec.arguments["eos_token_id"].default is None
    else:
        assert "head_dim" not in {field.name for field in drafted.spec.config}
    assert (schema := config_schema(drafted)) is not None
    assert [d.message for d in unfilled_fields(drafted, schema)] == []
