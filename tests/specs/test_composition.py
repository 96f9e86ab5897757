"""Two specs that meet at a class: `--to` in one pass gives what two passes give, tensors and config, byte for byte.

The default run takes a sample of pairs; `MAPSPEC_ALL=1` takes all (`make test-routes`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import run
from support.portion import ALL
from support.synthetic import synthetic

from compiler.checkpoints.checkpoint import Checkpoint
from compiler.checkpoints.formats.stored_tensor import Tensor
from compiler.diagnostics import Refusal
from compiler.executor.execute import arrange_group
from compiler.jobs.compose import prepare_both, target_of
from compiler.jobs.convert import convert, write
from compiler.jobs.prepare import Converted, Prepared, bind_reversed
from compiler.jobs.request import Request
from compiler.layout.moves import Extent, extents, lower
from compiler.plan.bind import bind
from compiler.plan.composition import compose
from compiler.plan.plan import Plan
from compiler.program.environment import Environment, Given, NamedShapes
from compiler.program.loading import load_program
from compiler.program.program import Program
from compiler.proof.class_check import config_written
from compiler.target import signature_cache
from compiler.target.ask_class import PendingAnswer
from compiler.target.class_signature import ClassSignature

LOG = os.environ.get("MAPSPEC_PAIRS_LOG")  # a file for one line of each pair

SPECS = sorted(path.stem for path in (Path(__file__).parents[2] / "specs").glob("*.yaml"))
PROGRAMS = {name: load_program(name) for name in SPECS}
BY_CLASS: dict[str, list[str]] = {}
for _name, _program in PROGRAMS.items():
    if _program.spec.target.model is not None:
        BY_CLASS.setdefault(target_of(_program), []).append(_name)
QUICK = {"check": False, "checksums": False}
SAMPLE = [
    ("litgpt_llama", ["meta_llama", "mcore_llama"]),
    ("meta_llama", ["torchtune_llama"]),
    ("torchtitan_llama", ["gguf_llama"]),
    ("qwen3", ["gguf_qwen3"]),
    ("qwen3_moe", ["litgpt_qwen3_moe"]),
    ("mistral_mixtral", ["litgpt_mixtral"]),
    ("nanogpt_gpt2", ["nanogpt_gpt2"]),
    ("qwen3_fp8_qwen3", ["litgpt_qwen3"]),
]
PAIRS = [(name, BY_CLASS[target_of(PROGRAMS[name])]) for names in BY_CLASS.values() for name in names]
CHOSEN = PAIRS if ALL else SAMPLE


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but the manifest, which names the sources."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "mapspec.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def outcome(job: Callable[[], object], out: Path) -> object:
    """What a conversion writes, or the kinds of its problems."""
    try:
        job()
    except Refusal as refusal:
        assert not out.exists()
        return sorted({d.kind for d in refusal.diagnostics})
    return contents(out)


def one_pass(first: Program, second: Program, request: Request, out: Path) -> None:
    request = replace(request, to=second.spec.name.value)
    prepared = prepare_both(first, second, request)
    write(prepared.plan, prepared.checkpoint, request, out)


@pytest.mark.parametrize(("one", "others"), CHOSEN)
def test_one_pass_is_two(tmp_path: Path, one: str, others: list[str]) -> None:
    """Also where neither way exists: the problems are then the same."""
    first = PROGRAMS[one]
    made = synthetic(first, finite=True)
    request = Request([made.save(tmp_path, first.spec.weights)], assigned=made.arguments, **QUICK)
    convert(first, request, tmp_path / "hub")
    back = Request([tmp_path / "hub"], reverse=True, **QUICK)
    different = []
    for other in others:
        second = PROGRAMS[other]
        places = tmp_path / f"{other}.one", tmp_path / f"{other}.two"
        single = outcome(lambda p=places[0], s=second: one_pass(first, s, request, p), places[0])
        double = outcome(lambda p=places[1], s=second: convert(s, back, p), places[1])
        if single != double:
            different.append((other, single if isinstance(single, list) else [*single], double))
        if LOG:
            with Path(LOG).open("a", encoding="utf-8") as log:
                print(one, other, "converted" if isinstance(single, dict) else " ".join(single), file=log)  # type: ignore[arg-type]
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
    assert different == []


# ---------------------------------------------------------------------------------------------------------------------
# What cancels


def pieces(plan: Plan, checkpoint: Checkpoint) -> dict[str, int]:
    """Target -> how many separate runs of stored bytes it consists of; none of them is computed."""
    found: dict[str, int] = {}
    for group in plan.groups:
        arrays = arrange_group(group, checkpoint)
        for slot, targets in zip(arrays.slots, group.targets.slots, strict=True):
            for key, target in targets.items():
                moved = [extent for move in lower(slot[key]) for extent in extents(move)]
                assert sum(extent.length for extent in moved) == target.nbytes
                found[target.name] = len(moved)
    return found


def prepared(tmp_path: Path, first: str, second: str) -> Prepared:
    made = synthetic(PROGRAMS[first], finite=True)
    request = Request([made.save(tmp_path, PROGRAMS[first].spec.weights)], assigned=made.arguments, **QUICK)
    return prepare_both(PROGRAMS[first], PROGRAMS[second], request)


def test_two_rotary_permutations_cancel(tmp_path: Path) -> None:
    """Meta and torchtune keep rotary pairs side by side, Transformers in halves: on the way nothing is permuted."""
    there = prepared(tmp_path, "meta_llama", "torchtune_llama")
    assert set(pieces(there.plan, there.checkpoint).values()) == {1}
    (tmp_path / "b").mkdir()
    apart = prepared(tmp_path / "b", "litgpt_llama", "meta_llama")  # LitGPT keeps halves: this one does permute
    runs = pieces(apart.plan, apart.checkpoint)
    assert {name for name, count in runs.items() if count > 1} == {
        f"layers.{i}.attention.w{p}.weight" for i in range(2) for p in "qk"
    }


def test_there_and_back_again_is_the_identity(tmp_path: Path) -> None:
    """LitGPT to Meta to LitGPT as one plan: every tensor is one run of its own bytes, queries, keys and values joined again."""
    lit, meta = PROGRAMS["litgpt_llama"], PROGRAMS["meta_llama"]
    there = prepared(tmp_path, "litgpt_llama", "meta_llama")
    targets = {target.name: target for target in there.plan.targets}
    given = {name: Given(value, "") for name, value in there.plan.values.items() if name in meta.spec.arguments}
    env = Environment(meta, NamedShapes(targets), given)
    hub = compose(there.plan, bind(meta, targets, env))
    tensors = {target.name: target for target in hub.targets}
    settings = there.plan.first.values if there.plan.first else {}
    converted = Converted(config_written(meta, hub.config), Path("config.json"), settings, tensors)
    back, _ = bind_reversed(lit, Request([tmp_path], reverse=True), converted)
    plan = compose(hub, back)
    assert {t.name for t in plan.targets} == set(there.checkpoint.tensors)
    for group in plan.groups:
        arrays = arrange_group(group, there.checkpoint)
        for slot, made in zip(arrays.slots, group.targets.slots, strict=True):
            for key, target in made.items():
                owner = "transformer.wte.weight" if target.name == "lm_head.weight" else target.name  # which are tied
                source = there.checkpoint.tensors[owner]
                assert isinstance(source, Tensor)
                assert list(extents(lower(slot[key])[0])) == [Extent(str(source.path), source.offset, 0, target.nbytes)]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_specs_that_do_not_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic(PROGRAMS["litgpt_qwen3"])
    source = made.save(tmp_path, "*.pth")
    status, _, err = run(capsys, "run", "litgpt_qwen3", source, tmp_path / "out", "--to", "meta_llama")
    assert (status, "[no-route]" in err, "torchtitan_qwen3" in err) == (1, True, True)
    status, _, err = run(capsys, "run", "litgpt_qwen3", source, tmp_path / "out", "--to", "mcore")
    assert (status, "mcore has layouts of" not in err) == (1, True)
    status, _, err = run(capsys, "run", "litgpt_qwen3", source, tmp_path / "out", "--to", "torchtitn")
    assert (status, "did you mean 'torchtitan'?" in err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_what_the_class_cannot_hold_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """gpt-fast and torchao have two words for one scaling, and config.json does not tell which: it is asked by its name."""
    made = synthetic(PROGRAMS["torchtitan_llama"], finite=True)
    source = made.save(tmp_path, "*.pt")
    given = [word for name, value in made.arguments.items() for word in ("--set", f"{name}={value}")]
    words = ("run", "torchtitan_llama", source, tmp_path / "out", "--to", "gpt_fast_llama", "--no-check", *given)
    status, _, err = run(capsys, *words)
    assert (status, err.count("[missing-argument]")) == (1, 1)
    assert "give it with --set use_scaled_rope=VALUE" in err
    assert not (tmp_path / "out").exists()
    status, out, _ = run(capsys, *words, "--set", "use_scaled_rope=true")
    assert (status, "next:" in out) == (0, False)  # verify reads no folder of a trainer
    status, _, err = run(capsys, *words, "--force", "--set", "use_scaled_rope=true", "--set", "no_such=1")
    assert (status, "[unknown-argument]" in err) == (1, True)


def test_an_argument_of_both_specs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain name counts for both, which is said; with the name of a spec before it, for that one."""
    made = synthetic(PROGRAMS["meta_llama"], finite=True)
    source = made.save(tmp_path, "*.pth")
    values = {**made.arguments, "use_scaled_rope": True, "rope_scale_factor": 8.0}
    given = [word for name, value in values.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    words = ("plan", "meta_llama", source, "--to", "gpt_fast_llama")
    status, _, err = run(capsys, *words, *given)
    assert (status, "--set gpt_fast_llama.use_scaled_rope=VALUE" in err) == (0, True), err
    other = [word.replace("use_scaled_rope=", "meta_llama.use_scaled_rope=") for word in given]
    status, _, err = run(capsys, *words, *other)
    assert (status, "counts for both" in err) == (0, False), err  # the config between has what gpt_fast_llama needs
    status, _, err = run(capsys, *words, *other, "--set", "gpt_fast_llama.use_scaled_rope=true")
    assert (status, "counts for both" in err) == (0, False), err
    for wrong in ("gpt_fast_llama.no_such=1", "no_such.use_scaled_rope=1"):
        status, _, err = run(capsys, *words, *given, "--set", wrong)
        assert (status, "[unknown-argument]" in err) == (1, True), err


def test_routes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "routes", "litgpt_llama", "meta_llama")
    assert (status, out) == (0, "litgpt_llama -> LlamaForCausalLM -> meta_llama: exact\n")
    status, out, _ = run(capsys, "routes", "qwen3", "minimind3_lora_qwen3")
    assert (status, "no route" in out, "a merged adapter" in out) == (1, True, True)
    status, out, _ = run(capsys, "routes", "gguf_llama", "--json")
    listed = json.loads(out)["routes"]
    assert {"first", "second", "target", "level", "reasons"} == listed[0].keys()
    assert {one["second"] for one in listed} == set(BY_CLASS["LlamaForCausalLM"]) - {"gguf_llama"}
    status, out, _ = run(capsys, "routes")
    assert "LlamaForCausalLM\n" in out
    status, _, err = run(capsys, "routes", "litgpt_phi", "meta_llama")
    assert (status, "[no-route]" in err, "no other shipped spec" in err) == (1, True, True)


def test_a_plan_names_the_tensors_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = synthetic(PROGRAMS["meta_llama"], finite=True)
    source = made.save(tmp_path, "*.pth")
    given = [word for name, value in made.arguments.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    status, out, _ = run(capsys, "plan", "meta_llama", source, "--to", "torchtune", *given)
    assert status == 0
    assert out.startswith("meta_llama --to torchtune_llama: ")
    assert "as model.layers.#.self_attn.q_proj.weight" in out
    assert out.count("rearrange (head pair two) ... -> (head two pair) ...") == 2


def test_config_and_class_are_checked_in_one_pass_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both halves look at the config between them, and the class is asked about the folder that is never written."""
    made = synthetic(PROGRAMS["meta_llama"], finite=True)
    source = made.save(tmp_path, "*.pth")
    given = [word for name, value in made.arguments.items() for word in ("--set", f"{name}={value}")]
    words = ("run", "meta_llama", source, tmp_path / "out", "--to", "litgpt_llama", *given)
    assert run(capsys, *words)[0] == 0
    shutil.rmtree(tmp_path / "out")
    tied = Path(PROGRAMS["meta_llama"].spec.path).read_text().replace("rope_theta, tie_word_embeddings]", "rope_theta]")
    tied = tied.replace("set: {hidden_act", "set: {tie_word_embeddings: true, hidden_act")
    (tmp_path / "meta_llama.yaml").write_text(tied)
    status, _, err = run(capsys, "run", tmp_path / "meta_llama.yaml", *words[2:])
    assert (status, "lm_head.weight [unclaimed-tensor]" in err) == (1, True)

    def with_another(pending: PendingAnswer) -> ClassSignature:
        answer = signature_cache.ask(pending.question)
        return replace(answer, shapes={**answer.shapes, "model.another.weight": (1,)})

    with monkeypatch.context() as patched:
        patched.setattr(PendingAnswer, "result", with_another)
        status, _, err = run(capsys, *words)
    assert (status, "needs model.another.weight, which the conversion does not write" in err) == (1, True)
    (source.parent / "config.json").write_text('{"model_type": "gemma", "architectures": ["GemmaForCausalLM"]}')
    status, _, err = run(capsys, *words)
    assert (status, "[other-architecture]" in err) == (1, True)
    assert not (tmp_path / "out").exists()
