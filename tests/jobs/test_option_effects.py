"""Every option of `run` in every mode: it has an effect, or it is rejected in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import run

from compiler.cli.options import request
from compiler.cli.run import check_modes, run_parser
from compiler.diagnostics import Refusal
from compiler.jobs.option_effects import check_effects

SOURCE = ["s", "a.pth"]
# Mode -> the words that choose it, OUT, the file of weights, whether that is in a folder.
MODES = {
    "folder": ([], "out", "model.safetensors", True),
    "dcp": (["--container", "dcp"], "out", "model.safetensors", True),
    "reverse to torch": (["--reverse"], "out", "model.pth", True),
    "reverse to safetensors": (["--reverse"], "out", "model.safetensors", True),
    "reverse to one file": (["--reverse"], "out.pth", "out.pth", False),
    "reverse to one safetensors": (["--reverse"], "out.safetensors", "out.safetensors", False),
    "reverse to parts": (["--reverse", "--parts", "2"], "out", "model.pth", True),
    "reverse to dcp": (["--reverse", "--container", "dcp"], "out", "model.pth", True),
    "to torch": (["--to", "t"], "out", "model.pth", True),
    "to one file": (["--to", "t"], "out.pth", "out.pth", False),
    "to gguf": (["--to", "gguf"], "out.gguf", "out.gguf", False),
    "to a folder with gguf": (["--to", "gguf"], "out", "model.gguf", True),
}  # fmt: skip
REVERSE = {mode for mode in MODES if mode.startswith("reverse")}
BACKWARDS = REVERSE | {mode for mode in MODES if mode.startswith("to")}
ONE_FILE = {mode for mode in MODES if "one" in mode}
SHARDED = {"folder", "dcp", "reverse to safetensors", "reverse to dcp"}
# Option -> (a value, the modes that reject it).
OPTIONS: dict[str, tuple[list[str], set[str]]] = {
    "--weights": (["ema"], REVERSE),
    "--model": (["m"], REVERSE),
    "--processor": (["p"], BACKWARDS),
    "--digests": ([], BACKWARDS),
    "--readback": ([], BACKWARDS),
    "--verify": ([], BACKWARDS),
    "--tokenizer": (["t"], ONE_FILE),
    "--max-shard-size": (["1GB"], {*MODES} - SHARDED),
    "--parts": (["2"], {*MODES} - BACKWARDS),
    "--ranks": (["tp=2"], {*MODES} - BACKWARDS),
    **{option: ([value] if value else [], {*MODES}) for option, value in
       {"--source-spec": "s", "--source-model": "m:C", "--source-config": "c", "--length": "8", "--require-logits": ""}.items()},
}  # fmt: skip
EVERYWHERE = {  # what is read, how much is checked, resources, and what is printed
    "--config", "--set", "--strict", "--ignore-model-type", "--dtype", "--device", "--jobs", "--no-checksums", "--no-check",
    "--check-values", "--force", "--resume", "--json", "--output-format", "--quiet", "--verbose", "--help",
}  # fmt: skip
CHOOSE_THE_MODE = {"--reverse", "--to", "--container"}


def check(mode: str, words: list[str]) -> None:
    own, out, file, folder = MODES[mode]
    options = run_parser().parse([*SOURCE, out, *own, *words])
    check_modes(options)
    check_effects(request(options), Path(out), file, folder)


def test_every_option_has_a_place_in_the_table() -> None:
    flags = {flag for action in run_parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert flags == {*OPTIONS} | EVERYWHERE | CHOOSE_THE_MODE


@pytest.mark.parametrize("mode", MODES)
def test_an_option_without_effect_is_rejected(mode: str) -> None:
    check(mode, [])
    for option, (value, rejecting) in OPTIONS.items():
        if mode not in rejecting:
            check(mode, [option, *value])
            continue
        with pytest.raises(Refusal) as refused:
            check(mode, [option, *value])
        (one,) = refused.value.diagnostics
        assert one.kind == "wrong-usage", option
        assert option in f"{one.span.path} {one.message}", option
        assert one.hint, option


def test_digests_of_a_distributed_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The forward modes accept --digests: the manifest has the digest of every tensor, in either container."""
    demo, plain, distributed = tmp_path / "demo", tmp_path / "plain", tmp_path / "distributed"
    assert run(capsys, "sample", demo)[0] == 0
    words = ("run", "minimind", demo / "model.pth")
    assert run(capsys, *words, plain, "--digests", "--no-check")[0] == 0
    assert run(capsys, *words, distributed, "--digests", "--no-check", "--container", "dcp")[0] == 0
    digests = [
        {name: one["sha256"] for name, one in json.loads((out / "mapspec.json").read_text())["tensors"].items()}
        for out in (plain, distributed)
    ]
    assert digests[0] == digests[1]
    assert digests[0]
    status, _, err = run(capsys, *words[:2], plain, tmp_path / "back", "--reverse", "--digests")
    assert (status, "--digests" in err, "[wrong-usage]" in err, (tmp_path / "back").exists()) == (2, True, True, False)
    status, _, err = run(capsys, "plan", *words[1:2], plain, "--reverse", "--weights", "ema")
    assert (status, "--weights" in err) == (2, True)
