"""Throws damaged and hostile inputs at the whole program: checkpoints are converted, specs compiled, in this process.

Whatever comes may be refused; what may not happen is recorded under `wrong`: an exception that is no refusal, a message
with control characters, more than 5 seconds, more than 1 GB of memory, a tensor changed in silence although the zip
format carries its checksum, a folder beside the output, or a word of a spec that becomes code. Prints one JSON object.

    python tests/fuzz/inputs.py safetensors|pth|spec|injection FOLDER ROUNDS [SEED]
"""

from __future__ import annotations

import ast
import io
import json
import random
import re
import resource
import shutil
import struct
import sys
import time
import traceback
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compiler.checkpoints.checkpoint import open_checkpoint
from compiler.checkpoints.formats.stored_tensor import read_bytes
from compiler.diagnostics import Refusal
from compiler.jobs import compile, convert
from compiler.jobs.request import Request
from compiler.language import document
from compiler.program import loading
from compiler.render import converter
from compiler.render.remote_code import render

ROOT = Path(__file__).parents[2]
SHAPES = {
    "model.embed_tokens.weight": (8, 16),
    "model.norm.weight": (16,),
    **{f"model.layers.{i}.{n}_layernorm.weight": (16,) for i in (0, 1) for n in ("input", "post_attention")},
    **{
        f"model.layers.{i}.self_attn.{p}_proj.weight": (n, 16)
        for i in (0, 1)
        for p, n in zip("qkvo", (16, 4, 4, 16), strict=True)
    },
    **{f"model.layers.{i}.mlp.{p}_proj.weight": (24, 16) for i in (0, 1) for p in ("gate", "up")},
    **{f"model.layers.{i}.mlp.down_proj.weight": (16, 24) for i in (0, 1)},
}
WORDS = {"num_attention_heads": 8, "num_key_value_heads": 2}
# What a text may hold that a careless writer of code, templates or YAML would stumble over.
PAYLOADS = [
    'x"; stolen_secret(); "', "x'; stolen_secret(); '", '"""\nstolen_secret()\n"""', "'''\nstolen_secret()\n'''",
    "x\nstolen_secret()", "x\r\nstolen_secret()", "x\u2028stolen_secret()", "x\x0cstolen_secret()", "x\\",
    "\\\nstolen_secret()", '\\"; stolen_secret() #', "{{ stolen_secret() }}", "{% set x = stolen_secret() %}", "{stolen_secret()}",
    "{i.stolen_secret}", "%(stolen_secret)s", "__import__('os').stolen_secret", "(lambda: stolen_secret)()", "stolen_secret",
    "stolen_secret()", "x if stolen_secret else y", "*stolen_secret", "a: b # stolen_secret", "../../stolen_secret", "\x00stolen_secret",
    "[stolen_secret for x in y]", "9**9**9", "x" * 5000, "(" * 300 + ")" * 300, "(a+)+b", "/^(a|a)*$/", "/^(?P<i>(\\d+)+)$/", "\ud7ff",
]  # fmt: skip


class Guard:
    """Runs one thing at a time and notes what may not happen."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0

    def run(self, what: str, action: Callable[[], str]) -> None:
        began = time.perf_counter()
        try:
            outcome = action()
        except Refusal as refusal:
            outcome = "refused"
            if any(unicodedata.category(c) == "Cc" for c in re.sub(r"[\n\t]", "", str(refusal))):
                self.wrong.append(f"{what}: a message with control characters: {str(refusal)[:200]!r}")
        except Exception:
            outcome = "crashed"
            self.wrong.append(f"{what}: {traceback.format_exc(limit=-3)}")
        self.counts[outcome] += 1
        took = time.perf_counter() - began
        self.slowest = max(self.slowest, took)
        if took > 5:
            self.wrong.append(f"{what}: it took {took:.1f} seconds")

    def report(self) -> dict[str, Any]:
        memory = peak_memory()
        if memory > 1e9:
            self.wrong.append(f"{memory:,} bytes of memory")
        return {**self.counts, "slowest": round(self.slowest, 2), "memory": memory, "wrong": self.wrong[:20]}


def peak_memory() -> int:
    """The most memory, in bytes, that this program has had. Not `ru_maxrss` where the system tells better: that is
    inherited from whoever started the process, and a test runner may be large."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three changes of bytes anywhere, more often near the beginning and the end, where the structure is."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(changed) or 1
        at = rng.choice(
            (rng.randrange(size), rng.randrange(min(size, 2000)), size - 1 - rng.randrange(min(size, 3000)))
        )
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes([(changed[at : at + 1] or b"\0")[0] ^ 1 << rng.randrange(8)])
            case 2:
                changed[at : at + 8] = rng.choice((b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 62), b"9" * 8))
            case 3:
                del changed[at:]
            case 4:
                del changed[at : at + rng.randrange(1, 40)]
            case 5:
                changed[at:at] = changed[at : at + rng.randrange(1, 40)]
            case 6:
                changed[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(changed)


ODD = [
    None,
    -1,
    0,
    1 << 31,
    1 << 63,
    1 << 70,
    1.5,
    1e300,
    True,
    "",
    "F8_E8M0",
    "I8",
    [],
    {},
    [[]],
    [1 << 40, 1 << 40],
    "\u202e",
    "a\nb",
]


def damaged_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is valid JSON and says something else."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 2))):
        name, other = rng.choice(list(header)), rng.choice(list(header))
        entry = header[name]
        match rng.randrange(6):
            case 0 if isinstance(entry, dict) and entry:
                entry[rng.choice(list(entry))] = rng.choice(ODD)
            case 1 if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list) and entry["data_offsets"]:
                entry["data_offsets"][rng.randrange(len(entry["data_offsets"]))] += rng.choice(
                    (-16, -1, 1, 16, 1 << 40)
                )
            case 2:
                header[name], header[other] = header[other], header[name]
            case 3:
                header[rng.choice((name + "x", "", "__metadata__", f"model.layers.{10 ** rng.randrange(1, 40)}.x"))] = (
                    entry
                )
            case 4:
                del header[name]
                if not header:
                    break
            case _:
                header[name] = rng.choice(ODD)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def damaged_pickle(data: bytes, rng: random.Random) -> bytes:
    """A zip file whose pickle is changed, under checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in records if n.endswith("data.pkl"))
    records[name] = damaged(records[name], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for record, content in records.items():
            archive.writestr(record, content)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def checkpoint(path: Path) -> bytes:
    """A sound one: its bytes, which `path` holds now."""
    rng = random.Random(7)
    if path.suffix == ".pth":
        import torch

        generator = torch.Generator().manual_seed(7)
        torch.save({name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}, path)
        return path.read_bytes()
    header, body = {}, b""
    for name, shape in SHAPES.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        part = struct.pack(f"<{count}f", *(rng.random() for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(body), len(body) + len(part)]}
        body += part
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path.read_bytes()


def content(path: Path) -> dict[str, tuple[Any, ...]]:
    return {n: (t.dtype, t.shape, bytes(read_bytes(t))) for n, t in open_checkpoint(path).tensors.items()}


def convert_damaged(kind: str, folder: Path, rounds: int, rng: random.Random) -> Guard:
    guard, program = Guard(), loading.load_program("llama")
    path, out = folder / f"model.{kind}", folder / "out"
    data = checkpoint(path)
    convert.convert(program, Request([path], assigned=WORDS), out)
    expected = content(out)

    def action(checked: bool) -> str:
        convert.convert(program, Request([path], assigned=WORDS), out)
        same = content(out) == expected
        if not same and checked:
            raise AssertionError("a tensor has changed although the file has checksums")
        return "same" if same else "different"

    for n in range(rounds):
        structure = rng.random() < 0.4
        path.write_bytes(
            damaged(data, rng)
            if not structure
            else damaged_header(data, rng)
            if kind == "safetensors"
            else damaged_pickle(data, rng)
        )
        shutil.rmtree(out, ignore_errors=True)
        guard.run(f"round {n}", lambda checked=kind == "pth" and not structure: action(checked))  # type: ignore[misc]
        if left := [p.name for p in folder.iterdir() if p not in (path, out)]:
            guard.wrong.append(f"round {n}: it left {left}")
            shutil.rmtree(folder / left[0], ignore_errors=True)
    return guard


# ---------------------------------------------------------------------------------------------------------------------
# Specs


def damaged_spec(text: str, rng: random.Random) -> str:
    """Lines and words moved, doubled, dropped, exchanged for hostile ones."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        words = re.split(r"(\W)", lines[at])
        match rng.randrange(7):
            case 0:
                lines[at], lines[other] = lines[other], lines[at]
            case 1:
                lines.insert(at, lines[other])
            case 2 if len(lines) > 1:
                del lines[at]
            case 3:
                words[rng.randrange(len(words))] = rng.choice(re.split(r"(\W)", lines[other]))
                lines[at] = "".join(words)
            case 4:
                words[rng.randrange(len(words))] = rng.choice(PAYLOADS)
                lines[at] = "".join(words)
            case 5:
                lines[at] = damaged(lines[at].encode(), rng).decode("utf-8", "replace")
            case 6:
                lines[at] = rng.choice((" ", "  ", "- ", "? ", "&a ", "*a ", "!!x ", "[" * 99, "{")) + lines[at]
    return "".join(lines)


def compile_damaged(folder: Path, rounds: int, rng: random.Random) -> Guard:
    guard = Guard()
    texts = {path.name: path.read_text() for path in sorted((ROOT / "specs").glob("*.yaml"))}
    quick_layout()
    for n in range(rounds):
        name = rng.choice(list(texts))
        (folder / name).write_bytes(damaged_spec(texts[name], rng).encode("utf-8", "surrogateescape"))
        guard.run(f"round {n} ({name})", lambda name=name: compiled(folder / name, guard))  # type: ignore[misc]
    return guard


def quick_layout() -> None:
    """Without ruff, which would take most of the time; what it would not read is no Python either."""

    def formatted(text: str, columns: int = 120) -> str:
        ast.parse(text)
        return text

    converter.formatted = render.formatted = formatted  # type: ignore[attr-defined]


def compiled(path: Path, guard: Guard) -> str:
    """Compile a spec, and look at every word of its code."""
    for name, text in compile.build(str(path), prove=False).items():
        if not re.fullmatch(r"\w+/\w+\.py", name, re.ASCII):
            guard.wrong.append(f"{path.name}: it would write {name!r}")
        tree = ast.parse(text)
        own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            called = isinstance(node, ast.Call) and not node.args and ast.unparse(node.func).endswith("stolen_secret")
            asked = isinstance(node, ast.FormattedValue) and any(
                ast.unparse(part) == "stolen_secret" for part in ast.walk(node) if isinstance(part, ast.Name)
            )
            if (called and "stolen_secret" not in own) or asked:
                guard.wrong.append(f"{path.name}: a word became code: {ast.unparse(node)[:200]}")
    return "compiled"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], bool]]:
    """Every text of a document: the path to it, and whether it is a key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), True
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from leaves(item, (*path, n))
    elif isinstance(value, str):
        yield path, False


def replaced(value: Any, path: tuple[Any, ...], key: bool, change: Callable[[str], str]) -> Any:
    """The document with one of its texts changed."""
    if not path:
        return change(value)
    if isinstance(value, list):
        return [replaced(v, path[1:], key, change) if n == path[0] else v for n, v in enumerate(value)]
    if key and len(path) == 1:
        return {change(k) if k == path[0] else k: v for k, v in value.items()}
    return {k: replaced(v, path[1:], key, change) if k == path[0] else v for k, v in value.items()}


def inject(folder: Path, rounds: int, rng: random.Random) -> Guard:
    guard = Guard()
    documents = {p.name: document.plain(document.read_document(p)) for p in sorted((ROOT / "specs").glob("*.yaml"))}
    # What few specs have is tried as often as what all have in dozens.
    places: dict[tuple[Any, ...], list[tuple[str, tuple[Any, ...], bool]]] = {}
    for name, value in documents.items():
        for path, key in leaves(value):
            kind = path[: 2 if path[0] in ("source", "target", "tokenizer") else 1]
            places.setdefault(kind, []).append((name, path, key))
    quick_layout()
    for n in range(rounds):
        payload = rng.choice(PAYLOADS)
        name, path, key = rng.choice(places[rng.choice(list(places))])
        change = rng.choice((lambda text: payload, lambda text: text + payload, lambda text: payload + text))  # noqa: B023
        text = json.dumps(replaced(documents[name], path, key, change))
        (folder / name).write_text(text)
        guard.run(f"round {n} ({name} {path} {payload[:40]!r})", lambda name=name: compiled(folder / name, guard))  # type: ignore[misc]
    return guard


if __name__ == "__main__":
    what, place, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    place.mkdir(parents=True, exist_ok=True)
    chance = random.Random(f"{what} {sys.argv[4] if len(sys.argv) > 4 else 0}")
    match what:
        case "spec":
            found = compile_damaged(place, number, chance)
        case "injection":
            found = inject(place, number, chance)
        case _:
            found = convert_damaged(what, place, number, chance)
    result = found.report()
    print(json.dumps(result))
    sys.exit(bool(result["wrong"]))
