"""Records tests/data/vocabularies: small models trained by sentencepiece and tiktoken, and the ids that these two give.

    python tests/recorders/record_vocabularies.py      # needs sentencepiece and tiktoken, and nothing of mapspec

A model that is there is kept; delete it to train it anew. `golden.json` has the texts, by model their ids and what these
decode to. Special tokens stand for themselves: the texts between them are encoded one by one.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tiktoken
from tiktoken._educational import bpe_train

HERE = Path(__file__).parent.parent / "data" / "vocabularies"
CORPUS = """\
A spec says how one kind of checkpoint becomes another: names, tensor operations, config fields. The same input gives
the same bytes, whatever the number of threads. What is wrong with a model is said; nothing that is read is executed.
The quick brown fox jumps over the lazy dog. He said "it's fine", didn't he? They'll see that we've been there.
def norm(x, eps=1e-5):
    return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
for i in range(1024):
        print(i, "{:.3f}".format(i / 7))  # 0.000 0.143 0.286
<html><body class="a">&amp; {"key": [1, 2, 3], "other": null}</body></html>
Größe, Straße, Übermut, naïve café, élève, señor, português, Ångström, Łódź, Žižkov, İstanbul
Съешь ещё этих мягких французских булок. Привет, мир! Это проверка.
你好，世界。这是一个测试。数据、模型、语言、训练。今天天气很好。
日本語のテキスト、カタカナとひらがな。東京は大きい。
한국어 문장입니다. 안녕하세요 세계. مرحبا بالعالم नमस्ते दुनिया
2024-01-02 12:34:56 3.14159 -273.15 1,000,000 007 42% $9.99
ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz
"""
LLAMA = {
    "model_type": "bpe",
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
TRAINED = {
    # As Llama 2 and Mistral have it.
    "bpe": {"vocab_size": 640, **LLAMA},
    # As Gemma has it: no space before a text, another order of special pieces, symbols of a user.
    "symbols": {
        "vocab_size": 680,
        "add_dummy_prefix": False,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "user_defined_symbols": ["<start>", "<end>", "\n", "\n\n", "▁▁", "▁▁▁▁", "<h1>"],
        **LLAMA,
    },
    # As InternLM2 has it: symbols of a user, and a space before a text.
    "prefixed": {"vocab_size": 640, "user_defined_symbols": ["[UNUSED_1]", "[UNUSED_2]", "▁▁"], **LLAMA},
    # No bytes for what is unknown, spaces folded, and a normalization of its own.
    "folded": {"model_type": "bpe", "vocab_size": 400, "character_coverage": 0.98},
    "unigram": {"model_type": "unigram", "vocab_size": 330, "character_coverage": 0.98},
    "unigram_bytes": {
        "model_type": "unigram",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
}
RULES = {"ﬁ": "fi", "ﬂ": "fl", "…": "...", "\u00a0": " ", "\u3000": " ", "\t": " ", "\n": " ", "①": "1", "Ａ": "A"}
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
META_3 = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
META_31 = META_3 | {4: "finetune_right_pad_id", 5: "step_id", 8: "eom_id", 10: "python_tag", 11: "image"}
TEXTS = [
    *["", " ", "  ", "   ", "\n", "\n\n", "\t", " \n ", "a", " a", "a ", "  a  ", ".", "é", "你", "🙂"],
    *[line for line in CORPUS.splitlines() if line],
    *CORPUS.split()[:14],
    "Hello world",
    "hello  world   with    many     spaces      ",
    " leading", "trailing ", "   three before", "three after   ",
    "line\nline\n\nline\n\n\nline", "windows\r\nlines\r\n", "tab\ttab\t\ttab", "form\ffeed\vtab",
    "don't WON'T it'S we'LL I'ſ", "CamelCaseAndsnake_case", "a+b=c; d*=e//f", "x" * 50, "ab" * 25, "aaaa aaa aa a",
    "0", "12", "123", "1234", "12345", "1234567890123456789", "1.5e-10", "Ⅷ ½ ² ①",
    "naïve café", "nai\u0308ve cafe\u0301", "Ångström A\u030angstro\u0308m", "ﬁnd the ﬂoor…", "Ａ\u3000Ｂ", "a\u00a0b",
    "你好世界", "你好 世界！", "日本語テキスト", "한국어 문장", "漢字かな交じり文", "𠮷野家", "中English混合123",
    "Привет мир", "مرحبا بالعالم", "नमस्ते", "שלום", "ไทย", "Ελληνικά", "İstanbul ıI",
    "🙂🙃", "👨‍👩‍👧", "🇩🇪🇫🇷", "a🙂b", "☕ coffee", "\u200b\u200d", "\ufeffmark", "\x00\x01\x7f", "�",
    "▁", "▁▁ a", "a▁b", "<0x41>", "<0x0A><0xFF>", "[INST] hi [/INST]", "<|notspecial|>", "< s >",
    "def f(x):\n    if x:\n        return x\n    return -x\n", "\n    indented", "{\n  \"a\": 1\n}", "#!/bin/sh\nexit 0\n",
    "SELECT * FROM t WHERE a = 'b' -- c", "https://example.org/a?b=c&d=%20e#f", "C:\\path\\to", "$\\sum_{i=0}^n x_i$",
    "<start>user\nhi<end>\n", "<h1>title</h1>", "[UNUSED_1] and[UNUSED_2]then", "a    b  c",
]  # fmt: skip
# Where the special tokens are written into a text: by role, since each model calls them otherwise.
SPECIAL_TEXTS = [
    "{bos}",
    "{bos}a{eos}",
    "a{eos}b",
    " {bos} a {eos} ",
    "{eos}{eos}",
    "{bos}Hello world{eos}\n{bos} more",
]


def corpus() -> list[str]:
    return [line for line in CORPUS.splitlines() if line] * 8


def train() -> None:
    """Whatever is not there."""
    rules = HERE / "rules.tsv"
    rules.write_text("".join(f"{hexed(a)}\t{hexed(b)}\n" for a, b in RULES.items()))
    for name, options in TRAINED.items():
        if not (HERE / f"{name}.model").exists():
            own = {} if "normalization_rule_name" in options else {"normalization_rule_tsv": str(rules)}
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus()),
                model_prefix=str(HERE / name),
                num_threads=1,
                minloglevel=2,
                hard_vocab_limit=False,
                **({"character_coverage": 0.9995} | own | options),
            )
            (HERE / f"{name}.vocab").unlink()
    rules.unlink()
    if not (HERE / "ranks.tiktoken").exists():
        ranks = bpe_train("\n".join(corpus()), 640, PATTERN % "{1,3}", visualise=None)
        lines = [
            b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in sorted(ranks.items(), key=lambda r: r[1])
        ]
        (HERE / "ranks.tiktoken").write_bytes(b"".join(lines))


def hexed(text: str) -> str:
    return " ".join(f"{ord(char):X}" for char in text)


def cut(text: str, special: dict[str, int], encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a text in which special tokens stand for themselves."""
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    return [n for part in parts for n in ([special[part]] if part in special else encode(part) if part else [])]


def of_pieces(name: str) -> dict[str, object]:
    model = sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{name}.model"))
    special = {model.id_to_piece(n): n for n in range(len(model)) if model.is_control(n) or model.is_unknown(n)}
    roles = {"bos": model.id_to_piece(model.bos_id()), "eos": model.id_to_piece(model.eos_id())}
    texts = [text.format(**roles) for text in SPECIAL_TEXTS]
    return {
        "ids": [model.encode(text) for text in TEXTS],
        "decoded": [model.decode(model.encode(text)) for text in TEXTS],
        "special_texts": texts,
        "special_ids": [cut(text, special, model.encode) for text in texts],
        "roles": roles,
        "bos_id": model.bos_id(),
    }


def of_ranks(names: list[str], digits: str, roles: dict[str, str], form: str = "") -> dict[str, object]:
    """`form`: the Unicode normalization that the model's own code does first."""
    lines = (HERE / "ranks.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    special = {name: len(ranks) + n for n, name in enumerate(names)}
    encoding = tiktoken.Encoding("x", pat_str=PATTERN % digits, mergeable_ranks=ranks, special_tokens=special)

    def encode(text: str) -> list[int]:
        return encoding.encode(unicodedata.normalize(form, text) if form else text, allowed_special="all")

    texts = [text.format(**roles) for text in SPECIAL_TEXTS]
    return {
        "ids": [encode(text) for text in TEXTS],
        "decoded": [encoding.decode(encode(text)) for text in TEXTS],
        "special_texts": texts,
        "special_ids": [encode(text) for text in texts],
        "roles": roles,
        "bos_id": special[roles["bos"]],
        "special": special,
    }


def meta(named: dict[int, str]) -> list[str]:
    """Meta's special tokens: 256, of which some have names."""
    free = iter(range(256))
    return [f"<|{named[n]}|>" if n in named else f"<|reserved_special_token_{next(free)}|>" for n in range(256)]


def main() -> None:
    HERE.mkdir(exist_ok=True)
    train()
    begins = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    qwen = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
    golden = {
        "by": {name: importlib.metadata.version(name) for name in ("sentencepiece", "tiktoken")},
        "texts": TEXTS,
        **{name: of_pieces(name) for name in TRAINED},
        "llama3": of_ranks(meta(META_3), "{1,3}", begins),
        "llama31": of_ranks(meta(META_31), "{1,3}", begins),
        "qwen1": of_ranks(qwen, "", {"bos": "<|endoftext|>", "eos": "<|im_end|>"}, "NFC"),
    }
    text = json.dumps(golden, ensure_ascii=True)
    (HERE / "golden.json").write_text(text.replace('}, "', '},\n"').replace('], "', '],\n"') + "\n")
    print(f"{len(TEXTS)} texts, {len(golden) - 2} models, {sum(f.stat().st_size for f in HERE.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
