"""Sentencepiece models and files of ranks become a tokenizer.json that gives the ids of sentencepiece and tiktoken.

The ids are recorded in tests/data/vocabularies by tests/recorders/record_vocabularies.py from these two themselves.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parity import interpreters
from tokenizers import Tokenizer

from compiler.cli.main import main
from compiler.diagnostics import Refusal
from compiler.program.loading import load_program
from compiler.tokenizer import assemble, chat_template
from compiler.tokenizer.bpe_merges import merges
from compiler.tokenizer.find import SENTENCEPIECE, TIKTOKEN, TOKENIZER_JSON, kind_of, tokenizer_files
from compiler.tokenizer.sentencepiece_model import read_pieces
from compiler.tokenizer.tiktoken import read_ranks, special_names

DATA = Path(__file__).parent.parent / "data" / "vocabularies"
GOLDEN = json.loads((DATA / "golden.json").read_text())
TEXTS = GOLDEN["texts"]
MODELS = sorted(path.stem for path in DATA.glob("*.model"))
# What the ranks are with the special tokens of a family: spec, and the argument that tells its generations apart.
RANKED = {"llama3": ("meta_llama", False), "llama31": ("meta_llama", True), "qwen1": ("qwen1_llama", None)}
SUFFIX = b"\x12\x03\xc0\x01\x01"  # appended to a model: trainer_spec {treat_whitespace_as_suffix: true}
WORDS = b"\x12\x02\x18\x03"  # trainer_spec {model_type: WORD}


def silent(line: str) -> None:
    pass


def built(place: Path, spec: str = "", scaled: Any = None, say: Callable[[str], None] = silent, named: bool = True,
          **config: Any) -> assemble.Tokenizer:  # fmt: skip
    """The tokenizer of a file or folder, with the special tokens that a spec knows."""
    special = load_program(spec).spec.tokenizer if spec else None
    places = {t: e.evaluate({"use_scaled_rope": scaled}, None) for t, e in special.named.items()} if special else {}  # type: ignore[arg-type]
    files = tokenizer_files(place, silent, named=True)
    return assemble.complete_tokenizer(files, config, special, places, say, named=named)


def loaded(tokenizer: assemble.Tokenizer) -> Any:
    return Tokenizer.from_str(tokenizer.texts[TOKENIZER_JSON])


def recorded(name: str) -> tuple[assemble.Tokenizer, dict[str, Any]]:
    """A tokenizer built, and what was recorded of the original."""
    golden = GOLDEN[name]
    if name in MODELS:
        return built(DATA / f"{name}.model"), golden
    ids = {f"{role}_token_id": golden["special"][text] for role, text in golden["roles"].items()}
    return built(DATA / "ranks.tiktoken", *RANKED[name], **ids), golden


def different(name: str, tokenizer: assemble.Tokenizer) -> list[str]:
    """The texts that get other ids than the original gives them."""
    encoder = loaded(tokenizer)
    pairs = [*zip(TEXTS, GOLDEN[name]["ids"], strict=True)]
    pairs += zip(GOLDEN[name]["special_texts"], GOLDEN[name]["special_ids"], strict=True)
    return [text for text, ids in pairs if encoder.encode(text, add_special_tokens=False).ids != ids]


# ---------------------------------------------------------------------------------------------------------------------
# The ids


@pytest.mark.parametrize("name", [*MODELS, *RANKED])
def test_every_text_has_the_ids_of_the_original(name: str) -> None:
    tokenizer, golden = recorded(name)
    assert len(TEXTS) > 100
    assert different(name, tokenizer) == []
    assert tokenizer.special | golden["roles"] == tokenizer.special
    if "special" in golden:
        assert golden["special"].items() <= tokenizer.ids.items()


@pytest.mark.parametrize("name", [*MODELS, *RANKED])
def test_ids_become_texts_again(name: str) -> None:
    tokenizer, golden = recorded(name)
    encoder = loaded(tokenizer)
    unknown = None if name in RANKED else tokenizer.ids["<unk>"]
    pairs = [(i, t) for i, t in zip(golden["ids"], golden["decoded"], strict=True) if unknown not in i]
    assert len(pairs) > 60
    assert [encoder.decode(ids, skip_special_tokens=False) for ids, _ in pairs] == [text for _, text in pairs]


@pytest.mark.parametrize(
    ("name", "part", "value"),
    [
        ("bpe", "normalizer", None),
        ("bpe", "model.byte_fallback", False),
        ("bpe", "model.merges", []),
        ("symbols", "added_tokens", []),
        ("prefixed", "normalizer", {"type": "Prepend", "prepend": "▁"}),
        ("folded", "model.fuse_unk", False),
        ("unigram", "normalizer.normalizers", []),
        ("llama3", "model.ignore_merges", False),
        ("llama3", "pre_tokenizer.pretokenizers.0.pattern.Regex", r"\p{L}+|\p{N}+|\s+|[^\s\p{L}\p{N}]+"),
        ("qwen1", "normalizer", None),
    ],
)
def test_a_part_that_is_wrong_shows(name: str, part: str, value: Any) -> None:
    """The recorded texts notice each part of what is built."""
    tokenizer, _ = recorded(name)
    fields = json.loads(tokenizer.texts[TOKENIZER_JSON])
    *path, last = part.split(".")
    place = fields
    for step in path:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[last] = value
    wrong = assemble.Tokenizer({}, {TOKENIZER_JSON: json.dumps(fields)}, {}, {}, "")
    found = different(name, wrong)
    if (name, part) != ("llama3", "model.ignore_merges"):  # a trained vocabulary reaches every token by its merges
        assert found


def test_a_word_that_is_a_token_is_not_cut(tmp_path: Path) -> None:
    """As tiktoken has it, even where no merges lead there."""
    lines = (DATA / "ranks.tiktoken").read_bytes()
    (tmp_path / "x.tiktoken").write_bytes(lines + b"enF6cQ== %d\n" % len(lines.splitlines()))
    encoder = loaded(built(tmp_path / "x.tiktoken", "qwen1_llama"))
    assert encoder.encode("zqzq").ids == [len(lines.splitlines())]


def test_merges_are_every_way_to_join_a_token() -> None:
    assert list(merges(["ab", "abc"], {"a", "b", "c", "bc", "ab"})) == [("a", "b"), ("ab", "c"), ("a", "bc")]


# ---------------------------------------------------------------------------------------------------------------------
# What lies beside


def test_what_a_file_is_its_bytes_tell(tmp_path: Path) -> None:
    """Meta calls both kinds tokenizer.model."""
    for name, source, kind in [("tokenizer.model", "ranks.tiktoken", TIKTOKEN), ("x.json", "bpe.model", SENTENCEPIECE)]:
        shutil.copyfile(DATA / source, tmp_path / name)
        assert kind_of(tmp_path / name) == kind
    found = built(tmp_path, "meta_llama", False)
    assert set(found.names) == {
        TOKENIZER_JSON,
        "tokenizer_config.json",
    }  # ranks stay behind: other programs take them for pieces
    found = built(tmp_path / "x.json")
    assert set(found.names) == {TOKENIZER_JSON, "tokenizer_config.json", SENTENCEPIECE}
    assert found.copies[SENTENCEPIECE] == tmp_path / "x.json"


def test_a_tokenizer_that_is_complete_travels_as_it_is(tmp_path: Path) -> None:
    shutil.copyfile(DATA / "bpe.model", tmp_path / "tokenizer.model")
    (tmp_path / TOKENIZER_JSON).write_text('{"model": {"vocab": {"a": 0}}}')
    assert set(built(tmp_path).copies) == {TOKENIZER_JSON, "tokenizer.model"}


def test_tokens_of_other_files_belong_to_it(tmp_path: Path) -> None:
    """A folder whose own class called pieces otherwise, and added more."""
    shutil.copyfile(DATA / "prefixed.model", tmp_path / "tokenizer.model")
    unused = next(n for n, p in enumerate(_pieces("prefixed")) if p == "[UNUSED_1]")
    beyond = len(_pieces("prefixed"))
    said = {
        "tokenizer_class": "SomeTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_some.SomeTokenizer", None]},
        "added_tokens_decoder": {
            str(unused): {"content": "<|im_start|>", "special": True, "normalized": False},
            str(beyond): {"content": "<|end|>", "special": True, "rstrip": True},
        },
        "eos_token": {"content": "<|end|>"},
        "chat_template": "{{ messages }}",
        "add_bos_token": False,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": beyond + 1}))
    found = built(tmp_path)
    assert set(found.names) == {TOKENIZER_JSON, "tokenizer_config.json", "chat_template.jinja", "tokenizer.model"}
    config = json.loads(found.texts["tokenizer_config.json"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["eos_token"] == {"content": "<|end|>"}
    assert "auto_map" not in config
    assert "added_tokens_decoder" not in config
    encoder = loaded(found)
    ids = encoder.encode("<|im_start|>a<|end|>  <extra>").ids
    assert (ids[0], ids[-2], ids[-1]) == (unused, beyond, beyond + 1)
    assert found.special["eos"] == "<|end|>"
    assert found.ids["<|end|>"] == beyond
    assert "[UNUSED_1]" not in found.ids


def _pieces(name: str) -> list[str]:
    found = read_pieces(name, (DATA / f"{name}.model").read_bytes())
    assert found is not None
    return [piece.text for piece in found.pieces]


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "the file is not a tokenizer [missing-tokenizer]"),
        (b"\n\x05\n\x03abc", "neither a sentencepiece model nor a tiktoken file"),
        (
            (DATA / "bpe.model").read_bytes() + SUFFIX,
            "it puts the space after a word (treat_whitespace_as_suffix) [unsupported-tokenizer]",
        ),
        ((DATA / "bpe.model").read_bytes() + WORDS, "not BPE or unigram [unsupported-tokenizer]"),
        ((DATA / "bpe.model").read_bytes() + b"\n\x08\n\x01a\x15\0\0\0\0", "two of its pieces have the same text"),
        ((DATA / "bpe.model").read_bytes() + b"\n\x0a\n\x03qqq\x15\0\0\xc0\x7f", "one of its scores is not a number"),
        ((DATA / "bpe.model").read_bytes() + b"\n\x07\n\x03qqq\x18\x02", "exactly one unknown piece"),
        ((DATA / "bpe.model").read_bytes() + b"\n\x07\n\x03qqq\x18\x05", "marked as unused [unsupported-tokenizer]"),
        ((DATA / "bpe.model").read_bytes()[:-3], "neither a sentencepiece model"),
        (b"YQ== 0\nYg== 2\n", "its ranks are not 0 to 1"),
        (b"YQ== 0\nYQ== 1\n", "line 2 repeats a token"),
        (b"YQ== 0\nYg=== 1\n", "line 2 is not a base64 token and its rank"),
        (b"YQ== 0\nYg== 1\n", "254 of the 256 single bytes have no token"),
        (
            (DATA / "ranks.tiktoken").read_bytes(),
            "the spec has no `tokenizer` section [unsupported-tokenizer]",
        ),
    ],
)
def test_what_is_named_and_cannot_be_built_is_refused(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(Refusal) as refusal:
        built(tmp_path / "tokenizer.model")
    assert says in str(refusal.value)


def test_what_merely_lies_there_travels_with_a_word(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((DATA / "ranks.tiktoken").read_bytes())
    said: list[str] = []
    assert built(tmp_path, say=said.append, named=False).copies == {"tokenizer.model": tmp_path / "tokenizer.model"}
    assert said[0].startswith("cannot build tokenizer.json from tokenizer.model: a tiktoken file has neither")


def test_tokens_that_two_files_call_otherwise_are_refused(tmp_path: Path) -> None:
    shutil.copyfile(DATA / "bpe.model", tmp_path / "tokenizer.model")
    (tmp_path / "added_tokens.json").write_text('{"<s>": 7}')
    with pytest.raises(Refusal, match="the token '<s>' has the id"):
        built(tmp_path)


@pytest.mark.parametrize(
    ("places", "says"),
    [({"<|eot_id|>": 256}, "not one of 0 to 255"), ({"<|eot_id|>": 0, "<|eom_id|>": 0}, "have the same place")],
)
def test_places_that_do_not_fit_are_refused(places: dict[str, int], says: str) -> None:
    special = load_program("meta_llama").spec.tokenizer
    assert special is not None
    with pytest.raises(Refusal, match=says):
        special_names(special, places)


@pytest.mark.parametrize("name", ["bpe.model", "unigram.model", "ranks.tiktoken"])
def test_spoiled_files_are_refused_or_built(name: str) -> None:
    """Whatever bytes change, there is no other error."""
    data, chance = (DATA / name).read_bytes(), random.Random(5)
    refused = 0
    for _ in range(150):
        spoiled = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(spoiled))
            spoiled[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        try:
            refused += (read_ranks if name.startswith("ranks") else read_pieces)(name, bytes(spoiled)) is None
        except Refusal:
            refused += 1
    assert 0 < refused < 150


# ---------------------------------------------------------------------------------------------------------------------
# A whole folder

ASK = """
import json, sys
from transformers import AutoTokenizer
found = {}
for folder, texts in json.load(open(sys.argv[1])).items():
    t = AutoTokenizer.from_pretrained(folder)
    found[folder] = {
        "plain": [t(text, add_special_tokens=False).input_ids for text in texts],
        "framed": [t(text).input_ids for text in texts],
        "keys": sorted(t("a")), "bos": t.bos_token_id, "eos": t.eos_token_id, "length": len(t),
        "back": t.decode(t("Hello world").input_ids, skip_special_tokens=True),
    }
print(json.dumps(found))
"""


def trained(place: Path, rows: int, theta: float) -> None:
    """What a trainer leaves: weights of Meta's names and params.json."""
    width, hidden = 16, 32
    shapes = {"tok_embeddings": (rows, width), "norm": (width,), "output": (rows, width)}
    square = {f"layers.0.attention.w{p}": (width, width) for p in "qkvo"}
    norms = {f"layers.0.{n}_norm": (width,) for n in ("attention", "ffn")}
    mlp = {"w1": (hidden, width), "w2": (width, hidden), "w3": (hidden, width)}
    shapes |= square | norms | {f"layers.0.feed_forward.{n}": shape for n, shape in mlp.items()}
    place.mkdir()
    torch.save({f"{n}.weight": torch.zeros(shape) for n, shape in shapes.items()}, place / "consolidated.00.pth")
    (place / "params.json").write_text(json.dumps({"n_heads": 2, "rope_theta": theta, "norm_eps": 1e-5}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`tokenizer.model` beside `consolidated.00.pth`, of either kind, converted."""
    found = {}
    for name, file, theta in [("bpe", "bpe.model", 10000.0), ("llama3", "ranks.tiktoken", 500000.0)]:
        source, out = tmp_path_factory.mktemp(name) / "source", tmp_path_factory.mktemp(name) / "out"
        bos, eos, rows = numbers(name)
        trained(source, rows, theta)
        shutil.copyfile(DATA / file, source / "tokenizer.model")
        with pytest.raises(SystemExit) as done:
            main(["run", "meta_llama", str(source), str(out), f"--set=bos_token_id={bos}", f"--set=eos_token_id={eos}"])
        assert done.value.code in (0, None)
        found[name] = out
    return found


def numbers(name: str) -> tuple[int, int, int]:
    """bos, eos and how many ids there are."""
    golden = GOLDEN[name]
    ids = golden.get("special") or {text: n for n, text in enumerate(_pieces(name))}
    return ids[golden["roles"]["bos"]], ids[golden["roles"]["eos"]], max(ids.values()) + 1


@pytest.mark.parametrize("python", interpreters().values(), ids=interpreters())
def test_a_trainers_folder_has_its_tokenizer(folders: dict[str, Path], python: str, tmp_path: Path) -> None:
    """In every Transformers there is."""
    texts = {name: TEXTS + GOLDEN[name]["special_texts"] for name in folders}
    (tmp_path / "ask.json").write_text(json.dumps({str(folders[name]): each for name, each in texts.items()}))
    command = [python, "-c", ASK, str(tmp_path / "ask.json")]
    answer = subprocess.run(
        command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    for name, out in folders.items():
        told, (bos, eos, rows) = json.loads(answer.stdout)[str(out)], numbers(name)
        golden = GOLDEN[name]["ids"] + GOLDEN[name]["special_ids"]
        assert told["plain"] == golden
        assert told["framed"] == [[bos, *ids] for ids in golden]
        assert (told["bos"], told["eos"], told["length"]) == (bos, eos, rows)
        assert told["keys"] == ["attention_mask", "input_ids"]  # token types would stop generation
        assert told["back"] == "Hello world"


def test_what_is_written_agrees(folders: dict[str, Path]) -> None:
    for name, out in folders.items():
        config = json.loads((out / "config.json").read_text())
        generation = json.loads((out / "generation_config.json").read_text())
        assert (generation["bos_token_id"], generation["eos_token_id"]) == numbers(name)[:2]
        assert (
            list(assemble.lint(assemble.read_tokenizer(tokenizer_files(out, silent, named=True), config), config)) == []
        )
        assert (out / "tokenizer.model").exists() == (name == "bpe")


def test_too_few_rows_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "source", 600, 10000.0)
    with pytest.raises(SystemExit):
        main(
            [
                "run",
                "meta_llama",
                str(tmp_path / "source"),
                str(tmp_path / "out"),
                "--tokenizer",
                str(DATA / "bpe.model"),
            ]
        )
    assert (
        f"the embedding has 600 rows, but the tokenizer has ids up to {len(_pieces('bpe')) - 1}"
        in capsys.readouterr().err
    )


# ---------------------------------------------------------------------------------------------------------------------
# Files beside a vocabulary that are malformed


@pytest.mark.parametrize(
    ("name", "content", "message", "kind"),
    [
        ("tokenizer_config.json", b"[]", "it is not a JSON object", "json-syntax"),
        ("tokenizer_config.json", b"{", "it is not valid JSON: ", "json-syntax"),
        ("chat_template.jinja", b"{{ 1 }}\xff", "it is not UTF-8 text: invalid start byte at byte 7", "bad-config"),
        ("tokenizer.json", b'{"model": []}', "", ""),
        ("tokenizer.json", b'{"model": [1]}', "its vocabulary or its added tokens are malformed", "bad-config"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": [1]}}',
            "its vocabulary or its added tokens are malformed",
            "bad-config",
        ),
        ("tokenizer.json", b'{"model": {"vocab": [[]]}}', "its vocabulary or its added tokens are malf", "bad-config"),
        ("tokenizer.json", b'{"added_tokens": ["<s>"]}', "its vocabulary or its added tokens are malf", "bad-config"),
    ],
)
def test_a_malformed_file(name: str, content: bytes, message: str, kind: str, tmp_path: Path) -> None:
    files = {"tokenizer.json": tmp_path / "tokenizer.json", name: tmp_path / name}
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (tmp_path / name).write_bytes(content)
    if not kind:
        assert assemble.read_tokenizer(files, {}).ids == {}
        return
    with pytest.raises(Refusal) as caught:
        assemble.read_tokenizer(files, {})
    (problem,) = caught.value.diagnostics
    assert problem.message.startswith(message)
    assert (problem.kind, problem.span.path) == (kind, str(tmp_path / name))


def test_a_template_that_takes_too_long_or_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its process ends by itself, or is stopped."""
    wanted = "it takes more than 2 seconds, or more than 1024 MiB of memory"
    assert chat_template.problem("{{ 'a' * 10000000000 }}", {}) == wanted
    assert chat_template.problem("{{ messages[0].content }}", {}) == ""
    assert chat_template.problem("{{ messages[9].content }}", {}).startswith("UndefinedError: ")

    def run(*_: Any, timeout: float, **rest: Any) -> None:
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    assert chat_template.problem("{{ 1 }}", {}) == wanted
