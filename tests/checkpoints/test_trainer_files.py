"""Checkpoints as trainers leave them, from the file to the folder: the same tensors come out, and it is said what was
opened, left and taken off."""

from __future__ import annotations

import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracle_cases import Case, digests
from support.parity import ORACLES

from compiler.cli.main import main

CASE = Case(ORACLES / "minimind/dense_small")
WEIGHTS: dict[str, torch.Tensor] = torch.load(CASE.request.source[0])
ADAM = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]}


def resumed() -> dict[str, Any]:
    """MiniMind's file to resume from."""
    rest = {"optimizer": ADAM, "epoch": 1, "step": 7, "world_size": 1, "wandb_id": None, "scaler": {"scale": 65536.0}}
    return {"model": WEIGHTS, **rest}


def lightning(attribute: str) -> dict[str, Any]:
    state = {f"{attribute}.{name}": tensor for name, tensor in WEIGHTS.items()}
    told = {"epoch": 1, "global_step": 3, "pytorch-lightning_version": "2.5.0", "loops": {}, "callbacks": {}}
    return {**told, "state_dict": state, "optimizer_states": [ADAM], "lr_schedulers": [], "hyper_parameters": {"lr": 1}}


def deepspeed(stage: int) -> dict[str, Any]:
    """What `save_checkpoint` writes as `mp_rank_00_model_states.pt`; from stage 3 on the weights are elsewhere."""
    module = {name: t if stage < 3 else torch.empty(0, dtype=t.dtype) for name, t in WEIGHTS.items()}
    shapes = [OrderedDict((name, t.shape) for name, t in WEIGHTS.items())]
    told = {"buffer_names": [], "optimizer": None, "param_shapes": shapes, "sparse_tensor_module_names": set()}
    return {"module": OrderedDict(module), **told, "ds_config": {"stage": stage}, "ds_version": "0.16.0"}


def averaged(key: str, wrap: bool) -> dict[str, Any]:
    """The average is the right one, the model beside it is not."""
    spoiled = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    average = {"module": WEIGHTS, "decay": 0.99, "num_updates": torch.tensor(3)} if wrap else WEIGHTS
    return {"model": spoiled, key: average, "optimizer": ADAM}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("wanted") / "out"
    assert run(CASE.request.source[0], out) == 0
    return digests(out)


def run(source: Path, out: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["run", "qwen3", str(source), str(out), "--config", str(CASE.request.config), *more])
    return int(done.value.code or 0)


def saved(content: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


CASES: dict[str, tuple[Callable[[], Any], list[str], list[str]]] = {
    "resume": (resumed, [], ["opened 'model'", "optimizer"]),
    "lightning model": (lambda: lightning("model"), [], ["opened 'state_dict'", "removed the prefix 'model.' from 25"]),
    "lightning net": (lambda: lightning("net"), [], ["removed the prefix 'net.' from 25"]),
    "lightning deep": (lambda: lightning("task.net"), [], ["removed the prefix 'task.net.' from 25"]),
    "deepspeed 1": (lambda: deepspeed(1), [], ["opened 'module'"]),
    "deepspeed 2": (lambda: deepspeed(2), [], ["opened 'module'"]),
    "ema": (lambda: averaged("ema", False), ["--weights", "ema"], ["opened 'ema'"]),
    "timm's ema": (
        lambda: averaged("model_ema", True),
        ["--weights", "ema"],
        ["opened 'model_ema'", "opened 'module'"],
    ),
    "a path": (lambda: {"a": {"b.c": WEIGHTS}, "d": {"x": torch.ones(1)}}, ["--weights", "a.b.c"], ["opened 'b.c'"]),
    "ema beside": (lambda: resumed() | {"ema": {"x": torch.ones(2)}}, [], ["--weights ema reads those"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_weights_come_out(name: str, tmp_path: Path, wanted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    content, words, says = CASES[name]
    source = saved(content(), tmp_path / "in" / "checkpoint.pth")
    assert run(source, tmp_path / "out", *words) == 0
    assert digests(tmp_path / "out") == wanted
    said = capsys.readouterr().err
    assert all(text in said for text in says), said


def test_a_deepspeed_folder(tmp_path: Path, wanted: Any, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "run"
    saved(deepspeed(2), place / "global_step7" / "mp_rank_00_model_states.pt")
    saved({"optimizer_state_dict": ADAM}, place / "global_step7" / "mp_rank_00_optim_states.pt")
    (place / "latest").write_text("global_step7\n")
    assert run(place, tmp_path / "out") == 0
    assert digests(tmp_path / "out") == wanted
    assert "the last step is in the folder global_step7" in capsys.readouterr().err


def test_a_megatron_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of a run, the one of its last step, and the arguments in what all ranks share."""
    case = Case(ORACLES / "megatron_dist/qwen3_moe_tp2")
    shutil.copytree(case.request.source[0], tmp_path / "run" / "iter_0000010")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("10")
    words = ["run", case.spec, str(tmp_path / "run"), str(tmp_path / "out"), "--set", "moe_router_pre_softmax=true"]
    with pytest.raises(SystemExit) as done:
        main(words)
    said = capsys.readouterr().err
    assert done.value.code == 0, said
    assert "the last step is in the folder iter_0000010" in said
    assert digests(tmp_path / "out") == case.manifest
    (tmp_path / "run" / "iter_0000010" / "common.pt").unlink()
    with pytest.raises(SystemExit):
        main([*words[:3], str(tmp_path / "other"), *words[4:]])
    assert "num_attention_heads has no value" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["latest", "latest_checkpointed_iteration.txt"])
@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "nothing", "", "x" * 300])
def test_latest_names_nothing_outside(name: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(deepspeed(2), tmp_path / "elsewhere" / "mp_rank_00_model_states.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text(name)
    assert run(tmp_path / "run", tmp_path / "out") == 1
    assert "[missing-weights]" in capsys.readouterr().err


def test_stage_three_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(saved(deepspeed(3), tmp_path / "mp_rank_00_model_states.pt"), tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "every tensor in it is empty" in said
    assert "give the folder" in said


@pytest.mark.parametrize("words", [["--weights", "nothing"], ["--weights", "optimizer"]])
def test_weights_that_are_not_there(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(saved(resumed(), tmp_path / "in" / "x.pth"), tmp_path / "out", *words) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_attribute_is_taken_off_only_where_the_spec_then_knows_the_names(tmp_path: Path) -> None:
    """Some names below it and some not, or names that no spec knows: nothing is guessed."""
    some = {("net." if n.startswith("model.") else "") + n: t for n, t in WEIGHTS.items()}
    assert run(saved(some, tmp_path / "some" / "x.pth"), tmp_path / "a") == 1
    assert run(saved({f"a.b.c.d.{n}": t for n, t in WEIGHTS.items()}, tmp_path / "far" / "x.pth"), tmp_path / "b") == 1


def test_another_choice_of_weights_is_another_run(tmp_path: Path) -> None:
    from compiler.jobs.convert import fingerprint
    from compiler.jobs.prepare import prepare
    from compiler.jobs.request import Request

    source = saved(averaged("ema", False), tmp_path / "x.pth")
    requests = [Request([source], config=CASE.request.config, weights=weights) for weights in ("model", "ema")]
    prints = {fingerprint(p.plan, p.checkpoint, []) for p in (prepare(CASE.program, request) for request in requests)}
    assert len(prints) == 2
