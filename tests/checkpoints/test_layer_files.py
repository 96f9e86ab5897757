"""Folders with a file for each layer of a pipeline, cut here by gpt-neox's rule: the embedding is layer 0, layer 1 has no
weights, then come the layers of the transformer, one without weights, the norm, and the output.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.config_file import read_config_file
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.executor.preconditions import check_replicas
from compiler.jobs.convert import convert
from compiler.jobs.detect import detect, unique
from compiler.jobs.prepare import prepare
from compiler.jobs.request import Request
from compiler.program.loading import load_program
from compiler.source.source_files import open_source

LAYERS, WIDTH, FFN, TOKENS = 3, 16, 40, 32
SPEC = "gpt_neox_gpt_neox"
# As gpt-neox keeps its configuration, in YAML's flow style with hyphens, comments and a comma behind the last field.
CONFIG = """{
  # model settings
  "num-layers": 3,
  "hidden-size": 16,
  "num-attention-heads": 2,
  "max-position-embeddings": 64,
  "pos-emb": "rotary",
  "rotary-pct": 0.25,
  "gpt-j-residual": true,
  "attention-config": [[["flash"], 3]],
  "model-parallel-size": 1,
  "train-iters": 143000,
}
"""


def layer(number: int) -> dict[str, Tensor]:
    """The tensors of one transformer layer, by gpt-neox's names."""
    random = torch.Generator().manual_seed(number)
    shapes = {
        "attention.query_key_value": (3 * WIDTH, WIDTH), "attention.dense": (WIDTH, WIDTH),
        "mlp.dense_h_to_4h": (FFN, WIDTH), "mlp.dense_4h_to_h": (WIDTH, FFN),
    }  # fmt: skip
    found = {f"{name}.weight": torch.randn(shape, generator=random).half() for name, shape in shapes.items()}
    found |= {f"{name}.bias": torch.randn(shape[0], generator=random).half() for name, shape in shapes.items()}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        found |= {f"{norm}.{kind}": torch.randn(WIDTH, generator=random).half() for kind in ("weight", "bias")}
    return found | {"attention.rotary_emb.inv_freq": torch.ones(1)}


def model() -> dict[int, dict[str, Tensor]]:
    """Number of a layer of the pipeline -> its tensors."""
    return {
        0: {"word_embeddings.weight": torch.randn(TOKENS, WIDTH).half()},
        **{n + 2: layer(n) for n in range(LAYERS)},
        LAYERS + 3: {"norm.weight": torch.randn(WIDTH).half(), "norm.bias": torch.randn(WIDTH).half()},
        LAYERS + 4: {"final_linear.weight": torch.randn(TOKENS, WIDTH).half()},
    }


def wanted(layers: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The same under the names of the standard class."""
    found = {
        "gpt_neox.embed_in.weight": layers[0]["word_embeddings.weight"],
        "embed_out.weight": layers[LAYERS + 4]["final_linear.weight"],
    }
    found |= {f"gpt_neox.final_layer_norm.{kind}": layers[LAYERS + 3][f"norm.{kind}"] for kind in ("weight", "bias")}
    for n in range(LAYERS):
        own = {name: tensor for name, tensor in layers[n + 2].items() if "inv_freq" not in name}
        found |= {f"gpt_neox.layers.{n}.{name}": tensor for name, tensor in own.items()}
    return found


def file(folder: Path, number: int, rank: int = 0) -> Path:
    return folder / f"layer_{number:02}-model_{rank:02}-model_states.pt"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run, with one step."""
    folder = tmp_path / "run" / "global_step10"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text("global_step10")
    (tmp_path / "run" / "125M.yml").write_text(CONFIG)
    torch.manual_seed(0)
    for number, tensors in model().items():
        torch.save(tensors, file(folder, number))
    torch.save({"module": None, "global_steps": 10}, folder / "mp_rank_00_model_states.pt")
    return tmp_path / "run"


def request(run: Path) -> Request:
    return Request([run], config=run / "125M.yml")


def test_the_layers_become_the_model(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = wanted(model())
    prepared = prepare(load_program(SPEC), request(run))
    checkpoint, plan = prepared.checkpoint, prepared.plan
    found = {
        target.name: checkpoint.tensors[group.source_names[0]] for group in plan.groups for target in group.target_list
    }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert bytes(read_bytes(found[name])) == tensor.view(torch.uint8).numpy().tobytes(), name
    assert all(not group.ops for group in plan.groups)
    stated = {
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
    }
    shapes = {"vocab_size": TOKENS, "hidden_size": WIDTH, "intermediate_size": FFN, "num_hidden_layers": LAYERS}
    defaults = {"rotary_emb_base": 10000.0, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "tie_word_embeddings": False}
    wanted_fields = stated | shapes | defaults | {"bos_token_id": 0, "eos_token_id": 0, "attention_bias": True}
    assert {name: plan.config.get(name) for name in wanted_fields} == wanted_fields


def test_one_file_without_a_pipeline(run: Path, tmp_path: Path) -> None:
    """As gpt-neox saves with pipe-parallel-size 0: the same names in one file."""
    torch.manual_seed(0)
    module = {f"sequential.{n}.{name}": tensor for n, own in model().items() for name, tensor in own.items()}
    torch.save({"module": module}, tmp_path / "mp_rank_00_model_states.pt")
    joined = open_checkpoint(run)
    alone = open_checkpoint(tmp_path / "mp_rank_00_model_states.pt")
    assert {n: read_bytes(t) for n, t in joined.tensors.items()} == {n: read_bytes(t) for n, t in alone.tensors.items()}


def test_detect_names_the_spec(run: Path) -> None:
    programs = [load_program(name) for name in (SPEC, "litgpt_gpt_neox", "megatron_gpt2")]
    fit = unique(detect(request(run), programs), run)
    assert (fit.spec, fit.status) == (SPEC, "fits")


def test_hyphens_are_underscores(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(CONFIG)
    assert read_config_file(tmp_path / "a.yml")["num_attention_heads"] == 2
    (tmp_path / "b.yml").write_text("a-b: 1\na_b: 2\n")
    assert read_config_file(tmp_path / "b.yml") == {"a-b": 1, "a_b": 2}


def exchanged(step: Path) -> None:
    file(step, 2).rename(step / "moved")
    file(step, 4).rename(file(step, 2))
    (step / "moved").rename(file(step, 4))


def second_rank(step: Path) -> None:
    shutil.copy(file(step, 2), file(step, 2, rank=1))


def other_rank(step: Path) -> None:
    for path in step.glob("layer_*"):
        path.rename(step / path.name.replace("model_00", "model_01"))


def truncated(step: Path) -> None:
    file(step, 3).write_bytes(file(step, 3).read_bytes()[:-300])


def lost_layer(step: Path) -> None:
    file(step, 3).unlink()


def last_layer(step: Path) -> None:
    file(step, LAYERS + 1).unlink()


def lost_norm(step: Path) -> None:
    file(step, LAYERS + 3).unlink()


def half(step: Path) -> None:
    """Its queries are those of one of two model-parallel ranks."""
    held = torch.load(file(step, 2))
    held["attention.query_key_value.weight"] = held["attention.query_key_value.weight"][: 3 * WIDTH // 2].clone()
    torch.save(held, file(step, 2))


def stated_ranks(step: Path) -> None:
    config = step.parent / "125M.yml"
    config.write_text(config.read_text().replace('"model-parallel-size": 1', '"model-parallel-size": 2'))


@pytest.mark.parametrize(
    ("spoil", "says", "kind"),
    [
        (exchanged, "it was saved as layer_04-model_00-model_states.pt: files of this folder", "unfit-parts"),
        (second_rank, "the file of layer 0 and model-parallel rank 1 is missing", "missing-part"),
        (other_rank, "the file of layer 0 and model-parallel rank 0 is missing; others are of rank 1", "missing-part"),
        (truncated, "cut short", "damaged-file"),
        (lost_layer, "num_layers = 3 (125M.yml), but the checkpoint has 2", "config-mismatch"),
        (last_layer, "num_layers = 3 (125M.yml), but the checkpoint has 2", "config-mismatch"),
        (lost_norm, "norm", "missing-tensor"),
        (half, "this may be one of several model-parallel ranks", "unmet-requirement"),
        (stated_ranks, "model_parallel_size is not the number of ranks whose files are here", "unmet-requirement"),
    ],
)
def test_files_that_do_not_fit(run: Path, spoil: Callable[[Path], None], says: str, kind: str) -> None:
    spoil(run / "global_step10")
    with pytest.raises(Refusal) as refused:
        prepare(load_program(SPEC), request(run))
    assert refused.value.diagnostics[0].kind == kind, refused.value
    assert says in str(refused.value), refused.value


def test_one_layer_alone(run: Path) -> None:
    with pytest.raises(Refusal, match="the file of one layer"):
        open_checkpoint(file(run / "global_step10", 2))


# ---------------------------------------------------------------------------------------------------------------------
# Several model-parallel ranks

AXES = {  # of what the ranks divide; their other tensors are copies, but for the biases of row-parallel layers
    "word_embeddings.weight": 0, "final_linear.weight": 0,
    "attention.query_key_value.weight": 0, "attention.query_key_value.bias": 0,
    "mlp.dense_h_to_4h.weight": 0, "mlp.dense_h_to_4h.bias": 0,
    "attention.dense.weight": 1, "mlp.dense_4h_to_h.weight": 1,
}  # fmt: skip
ROW_PARALLEL_BIASES = ("attention.dense.bias", "mlp.dense_4h_to_h.bias")


def parts_of(name: str, tensor: Tensor, ranks: int, summed: bool) -> list[Tensor]:
    """What each rank holds. A bias that the ranks add is a different summand in each."""
    if name in AXES:
        return [part.clone() for part in tensor.chunk(ranks, AXES[name])]
    if name in ROW_PARALLEL_BIASES and summed:
        shares = [tensor * 0.25] * (ranks - 1)
        return [*shares, tensor - sum(shares)]
    return [tensor] * ranks


def parallel(run: Path, ranks: int, summed: bool = True, sequential: bool = False) -> dict[str, Tensor]:
    """Replace the files of a run by those of several ranks, as layer files or one file for each rank. Returns the tensors of
    the standard class: gpt-neox's own converter adds the biases."""
    step, config = run / "global_step10", run / "125M.yml"
    for path in step.iterdir():
        path.unlink()
    torch.manual_seed(0)
    layers, modules = model(), [dict[str, Tensor]() for _ in range(ranks)]
    for number, tensors in layers.items():
        own = [{} for _ in range(ranks)]
        for name, tensor in tensors.items():
            held = parts_of(name, tensor, ranks, summed)
            for rank, part in enumerate(held):
                own[rank][name] = modules[rank][f"sequential.{number}.{name}"] = part
            if name in ROW_PARALLEL_BIASES and summed:
                layers[number][name] = sum(part.double() for part in held).half()
        for rank in range(0 if sequential else ranks):
            torch.save(own[rank], file(step, number, rank))
    for rank, module in enumerate(modules):
        torch.save({"module": module if sequential else None}, step / f"mp_rank_{rank:02}_model_states.pt")
    text = config.read_text().replace('"model-parallel-size": 1', f'"model-parallel-size": {ranks}')
    config.write_text(text if summed else text.replace('"gpt-j-residual": true', '"gpt-j-residual": false'))
    return wanted(layers)


@pytest.mark.parametrize("summed", [True, False], ids=["one residual", "two residuals"])
@pytest.mark.parametrize("sequential", [False, True], ids=["layers", "one file a rank"])
def test_the_ranks_become_the_model(run: Path, tmp_path: Path, summed: bool, sequential: bool) -> None:
    expected = parallel(run, 2, summed, sequential)
    convert(load_program(SPEC), Request([run], config=run / "125M.yml", check=False), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in expected if not found[name].equal(expected[name])] == []
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == TOKENS


def test_biases_that_are_copies_are_not_added(run: Path, tmp_path: Path) -> None:
    """The negative control of the two residuals: what adding them would give is another model."""
    parallel(run, 2, summed=False)
    config = run / "125M.yml"
    config.write_text(config.read_text().replace('"gpt-j-residual": false', '"gpt-j-residual": true'))
    convert(load_program(SPEC), Request([run], config=config, check=False), tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["gpt_neox.layers.0.attention.dense.bias"]
    assert found.equal(2 * layer(0)["attention.dense.bias"])


def lost_rank(step: Path) -> None:
    for path in step.glob("layer_*-model_01-*"):
        path.unlink()


def lost_file(step: Path) -> None:
    file(step, 3, rank=1).unlink()


def foreign_rank(step: Path) -> None:
    held = torch.load(file(step, 2, rank=1))
    torch.save({name: tensor[..., :-1].clone() for name, tensor in held.items()}, file(step, 2, rank=1))


def cut_short(step: Path) -> None:
    file(step, 3, rank=1).write_bytes(file(step, 3, rank=1).read_bytes()[:-300])


@pytest.mark.parametrize(
    ("spoil", "says", "kind"),
    [
        (lost_rank, "this may be one of several model-parallel ranks", "unmet-requirement"),
        (lost_file, "the file of layer 3 and model-parallel rank 1 is missing", "missing-part"),
        (foreign_rank, "cannot be joined along axis", "unfit-parts"),
        (cut_short, "cut short", "damaged-file"),
    ],
)
def test_ranks_that_do_not_fit(run: Path, spoil: Callable[[Path], None], says: str, kind: str) -> None:
    parallel(run, 2)
    spoil(run / "global_step10")
    with pytest.raises(Refusal) as refused:
        prepare(load_program(SPEC), request(run))
    assert kind in {problem.kind for problem in refused.value.diagnostics}, refused.value
    assert says in str(refused.value), refused.value


def test_a_norm_that_differs_between_ranks(run: Path) -> None:
    """gpt-neox's own converter would average it."""
    parallel(run, 2)
    path = file(run / "global_step10", 2, rank=1)
    held = torch.load(path)
    torch.save(held | {"input_layernorm.weight": held["input_layernorm.weight"] + 1}, path)
    with pytest.raises(Refusal, match=r"sequential.2.input_layernorm.weight should be the same in .* but differs"):
        check_replicas(open_source(load_program(SPEC), [run]))


def test_ranks_for_a_spec_that_does_not_join_them(run: Path) -> None:
    parallel(run, 2)
    with pytest.raises(Refusal, match="files of 2 model-parallel ranks, which this spec does not join"):
        open_checkpoint(run)
