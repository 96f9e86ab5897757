"""The whole folder: tokenizer and its template, the ids that must agree, the card, the manifest, reading it back."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.oracle_cases import Case, digests
from support.parity import ORACLES

from compiler.cli.main import main
from compiler.model_folder.card import CARD, MANIFEST
from compiler.tokenizer import assemble
from compiler.tokenizer import chat_template as chats
from compiler.tokenizer.find import tokenizer_files

DATA = Path(__file__).parent.parent / "data" / "tokenizer"
GOLDEN = json.loads((DATA / "golden_tokenization.json").read_text())
CASE = Case(ORACLES / "minimind/dense_trained")
SOURCE = CASE.request.source[0]
WORDS = [str(SOURCE), "OUT", "--config", str(CASE.request.config)]


def run(out: Path, *more: str, spec: str = "qwen3") -> int:
    with pytest.raises(SystemExit) as done:
        main(["run", spec, *[w.replace("OUT", str(out)) for w in WORDS], *map(str, more)])
    return int(done.value.code or 0)


def read(place: Path, **config: Any) -> assemble.Tokenizer:
    return assemble.read_tokenizer(tokenizer_files(place, print, named=True), config)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the tokenizer to spoil."""
    place = tmp_path / "tokenizer"
    place.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DATA / name, place / name)
    return place


def change(place: Path, **fields: Any) -> None:
    path = place / "tokenizer_config.json"
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not None}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "out"
    assert run(out, "--tokenizer", str(DATA), "--digests", "--readback") == 0
    return out


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


def test_the_converted_tokenizer_is_the_original_one(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in GOLDEN["texts"]] == GOLDEN["ids"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert len(tokenizer) == GOLDEN["len"]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "What is 1+1?"}]
    said = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert said == GOLDEN["chat_text_gen"]
    assert json.loads((folder / "tokenizer_config.json").read_text()) == json.loads(
        (DATA / "tokenizer_config.json").read_text()
    )


def test_ids_agree_in_all_three_places(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # pad: only the tokenizer knew
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert list(assemble.lint(read(folder), config)) == []


def test_the_template_is_rendered_as_transformers_does() -> None:
    tokenizer = read(DATA)
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": "2"},
    ]
    assert chats.rendered(tokenizer.template, messages, tokenizer.special) == GOLDEN["chat_text"]
    prompt = chats.rendered(tokenizer.template, messages[:2], tokenizer.special, add_generation_prompt=True)
    assert prompt == GOLDEN["chat_text_gen"]


def test_a_template_gets_into_both_places(own: Path) -> None:
    template = json.loads((own / "tokenizer_config.json").read_text())["chat_template"]
    assert read(own).texts == {"chat_template.jinja": template}
    change(own, chat_template=None)
    (own / "chat_template.jinja").write_text(template)
    found = read(own)
    assert json.loads(found.texts["tokenizer_config.json"])["chat_template"] == template
    assert "tokenizer_config.json" not in found.copies
    # Where the two differ, the file is what programs go by.
    change(own, chat_template="old")
    assert json.loads(read(own).texts["tokenizer_config.json"])["chat_template"] == template
    change(own, chat_template=template)
    assert read(own).texts == {}


def test_a_bare_tokenizer_gets_a_config(own: Path) -> None:
    found = read(own / "tokenizer.json", bos_token_id=1, eos_token_id=2)
    assert set(found.names) == {"tokenizer.json", "tokenizer_config.json"}
    assert found.special == {"bos": "<|im_start|>", "eos": "<|im_end|>"}


@pytest.mark.parametrize(
    ("fields", "config", "says"),
    [
        (
            {},
            {"vocab_size": 6400, "eos_token_id": 1},
            "ends a text with '<|im_end|>' (2), the config with 1; generation",
        ),
        ({}, {"vocab_size": 6400, "bos_token_id": 3}, "begins a text with '<|im_start|>' (1), the config with 3"),
        ({}, {"vocab_size": 6390, "eos_token_id": 2}, "the embedding has 6390 rows, and the tokenizer ids up to 6399"),
        ({"eos_token": "<end>"}, {"vocab_size": 6400}, "'<end>', which is none of its tokens"),
        ({"eos_token": None}, {"vocab_size": 6400}, "generation will not stop"),
        ({"chat_template": "{{ messages[0].nothing.at_all }}"}, {"vocab_size": 6400}, "UndefinedError"),
        ({"chat_template": "{% for m in messages %}"}, {"vocab_size": 6400}, "TemplateSyntaxError"),
        ({"chat_template": "{{ raise_exception('no') }}"}, {"vocab_size": 6400}, "no"),
        ({"chat_template": "{{ ''.__class__.__mro__ }}"}, {"vocab_size": 6400}, "SecurityError"),
    ],
)
def test_what_does_not_fit_is_said(own: Path, fields: dict[str, Any], config: dict[str, Any], says: str) -> None:
    change(own, **fields)
    (said,) = assemble.lint(read(own), config)
    assert says in said


@pytest.mark.parametrize("eos", [2, [0, 2]])
def test_what_fits_is_not_said(own: Path, eos: Any) -> None:
    change(own, chat_template="{% generation %}{% for m in messages %}{% break %}{% endfor %}{% endgeneration %}")
    assert list(assemble.lint(read(own), {"vocab_size": 6400, "eos_token_id": eos})) == []


def test_broken_files_are_refused(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "tokenizer.json").write_text("{")
    assert run(tmp_path / "out", "--tokenizer", str(own)) == 1
    assert "[json-syntax]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Card and manifest


def test_the_manifest_tells_where_each_tensor_comes_from(folder: Path) -> None:
    said = json.loads((folder / MANIFEST).read_text())
    assert said["spec"]["name"] == "qwen3"
    (source,) = said["sources"]
    assert source["sha256"] == hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    assert {n: (e["dtype"], tuple(e["shape"]), e["sha256"]) for n, e in said["tensors"].items()} == digests(folder)
    assert said["tensors"]["model.norm.weight"]["from"] == ["model.norm.weight"]
    assert said["ties"] == {"lm_head.weight": "model.embed_tokens.weight"}
    spec = Path(CASE.program.spec.path).read_text().splitlines()
    assert (
        "self_attn.{p:q|k|v|o}" in spec[said["tensors"]["model.layers.1.self_attn.k_proj.weight"]["rule"]["line"] - 1]
    )


def test_the_card_says_what_it_is(folder: Path) -> None:
    from compiler.checkpoints.checkpoint import open_checkpoint

    text = (folder / CARD).read_text()
    count = sum(e.nbytes // 2 for e in open_checkpoint(folder).tensors.values())  # type: ignore[union-attr]
    assert f"| parameters | {count:,} |" in text
    assert "`Qwen3ForCausalLM`" in text
    assert "apply_chat_template" in text
    assert "The model was not\nrun" in text or "The model was not run" in text
    assert str(folder) not in text + (folder / MANIFEST).read_text()
    assert str(SOURCE.parent) not in text + (folder / MANIFEST).read_text()


def test_card_and_manifest_are_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run(tmp_path / name, "--tokenizer", str(DATA)) == 0
    for file in (CARD, MANIFEST):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert "sha256" not in json.loads((tmp_path / "a" / MANIFEST).read_text())["sources"][0]


def test_what_was_verified_is_written_down(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(out, "--verify", spec="minimind") == 0
    text = (out / CARD).read_text()
    assert "round trip exact (" in text
    assert "trust_remote_code=True" in text
    assert json.loads((out / MANIFEST).read_text())["verified"]["proof"] == "weights"
    assert not list(out.glob(".*"))


# ---------------------------------------------------------------------------------------------------------------------
# Reading back


def test_a_field_that_comes_back_as_another_is_found(folder: Path, tmp_path: Path) -> None:
    from compiler.verify.read_back import misread

    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    said = json.loads((wrong / "config.json").read_text())
    assert misread(wrong) == []
    (wrong / "config.json").write_text(json.dumps(said | {"sliding_window": 8}))
    (line,) = misread(wrong)
    assert "config.json says sliding_window=8" in line


def test_a_folder_that_cannot_be_read_is_refused(folder: Path, tmp_path: Path) -> None:
    from compiler.diagnostics import Refusal
    from compiler.verify.read_back import misread

    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}')
    with pytest.raises(Refusal, match="cannot read it"):
        misread(tmp_path)
