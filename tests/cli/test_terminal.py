"""What a terminal shows and a pipe does not: colours, links, carets within the columns, one bar, and how much is printed."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.error_runs import SHAPES, weights

from compiler.cli.main import main
from compiler.cli.notes import brief, sentences
from compiler.console import problems, terminal
from compiler.diagnostics import Diagnostic, Span
from compiler.plan.notes import DefaultArguments, IgnoredTensors, UnreadFields
from compiler.progress import WRITING, WrittenBytes
from compiler.resources import find_spec, folder, spec_label

SMALL = Path(__file__).parent.parent / "errors" / "runs" / "small.yaml"
COLOUR = re.compile(r"\033\[[0-9;]*m")
LINK = re.compile(r"\033\]8;;(.*?)\033\\")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a spec and a checkpoint, in which the command runs; no variable of the shell counts."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(SMALL, "small.yaml")
    weights("model.safetensors", SHAPES)
    Path("config.json").write_text('{"num_attention_heads": 4, "novel": 1}')
    return tmp_path


def said(
    monkeypatch: pytest.MonkeyPatch, *words: str, out: type = io.StringIO, err: type = io.StringIO
) -> tuple[str, str]:
    """What a command prints on stdout and stderr."""
    streams = out(), err()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit):
        main([*words])
    return streams[0].getvalue(), streams[1].getvalue()


# ---------------------------------------------------------------------------------------------------------------------
# Colours and links


@pytest.mark.parametrize(
    ("variables", "tty", "pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, True),
    ],
)
def test_who_gets_colours(
    variables: dict[str, str], tty: bool, pipe: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.coloured(Terminal()) is tty
    assert terminal.coloured(io.StringIO()) is pipe
    for stream, coloured in ((Terminal, tty), (io.StringIO, pipe)):
        out, err = said(monkeypatch, "plan", "small.yaml", "model.safetensors", out=stream, err=stream)
        assert bool(COLOUR.search(out)) is coloured
        assert bool(COLOUR.search(err)) is coloured
        assert "gate_up" in COLOUR.sub("", out)


def test_an_error_is_the_same_text_with_and_without_colours(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("small.yaml").write_text(SMALL.read_text().replace("rename:", "renam:"))
    _, plain = said(monkeypatch, "small.yaml", "--no-proof")
    _, shown = said(monkeypatch, "small.yaml", "--no-proof", err=Terminal)
    assert "\033" not in plain
    assert "\033[" in shown
    assert LINK.sub("", COLOUR.sub("", shown)) == plain
    address = LINK.search(shown)
    assert address is not None
    assert address[1].startswith("file://")
    assert address[1].endswith("/small.yaml")
    monkeypatch.setenv("NO_COLOR", "1")
    assert said(monkeypatch, "small.yaml", "--no-proof", err=Terminal)[1] == plain


def test_a_shipped_spec_has_its_bare_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(find_spec("nanogpt"))
    assert spec_label(path) == "nanogpt.yaml"
    assert str(Span(path, 35, 2)) == "nanogpt.yaml:35:2"
    assert (spec_label("specs/nanogpt.yaml"), spec_label("/x/nanogpt.yaml")) == (
        "specs/nanogpt.yaml",
        "/x/nanogpt.yaml",
    )
    _, err = said(monkeypatch, "plan", "nanogpt", "model.safetensors")
    assert "nanogpt.yaml:" in err
    assert str(folder("specs")) not in err
    out, _ = said(monkeypatch, "plan", "nanogpt", "model.safetensors", "--json")
    assert json.loads(out)["diagnostics"][0]["file"] == path  # a program opens the file


# ---------------------------------------------------------------------------------------------------------------------
# Carets


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_a_caret_is_below_its_token_and_within_the_columns(width: int) -> None:
    draw = random.Random(width)
    for _ in range(300):
        words = [draw.choice("abcdefgh") * draw.randint(1, 12) for _ in range(draw.randint(1, 40))]
        n = draw.randrange(len(words))
        text = " ".join(words)
        column = len(" ".join(words[:n])) + (n > 0) + 1
        line, caret = Span("a.yaml", 1, column, len(words[n]), text).excerpt(width)
        assert len(line) <= width
        assert len(caret) <= width
        start, length = caret.index("^"), len(caret) - caret.index("^")
        # Where the token is cut, the last character shown is an ellipsis.
        assert line[start : start + length].rstrip("…") == words[n][: len(line[start : start + length].rstrip("…"))]
        assert start + length == len(line) or length == len(words[n])
        assert line.strip("…") in text


def test_a_problem_fits_the_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "  " + " or ".join(f"num_hidden_layers == {n}" for n in range(40, 60)) + " or nun_layers == 2: too many\n"
    Path("small.yaml").write_text(SMALL.read_text().replace("require:\n", f"require:\n{rule}"))
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, err = said(monkeypatch, "small.yaml", "--no-proof", err=Terminal)
        head, source, caret, *_ = LINK.sub("", COLOUR.sub("", err)).splitlines()
        assert head.startswith("small.yaml:")
        assert max(len(source), len(caret)) <= columns
        assert source[caret.index("^") :].startswith("nun_layers")
        assert source.startswith("  …")
        out, _ = said(monkeypatch, "plan", str(SMALL), "model.safetensors", out=Terminal)
        assert max(len(COLOUR.sub("", line)) for line in out.splitlines()) <= min(columns, 100)


# ---------------------------------------------------------------------------------------------------------------------
# The bar


def test_two_threads_have_one_bar(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "DELAY", 0)
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with terminal.Meter() as meter:
        tick = meter.begin(WRITING, 4000)
        threads = [threading.Thread(target=lambda: [tick(10) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bar = meter.bar
        assert (bar.n, bar.total, bar.pos) == (4000, 4000, 0)
        bar.refresh()
        meter.begin("hashing", 10)
        assert meter.bar is not bar
        assert "hashing:   0%" in stream.getvalue()
    shown = stream.getvalue()
    assert "writing: 100%" in shown
    assert "4.00k/4.00k" in shown
    assert "\n" not in shown  # no second bar below the first
    assert shown.endswith("\r")  # and nothing is left of it


@pytest.mark.parametrize("case", ["pipe", "dumb", "quiet"])
def test_there_is_no_bar(case: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "DELAY", 0)
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO() if case == "pipe" else Terminal())
    if case == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with terminal.Meter(silent=case == "quiet") as meter:
        meter.begin(WRITING, 10)(10)
    assert stream.getvalue() == ""


def test_a_run_tells_its_phases_and_their_bytes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {}

    class Listening(terminal.Meter):
        def begin(self, what: str, total: int) -> Callable[[int], None]:
            seen[what] = [total]
            return seen[what].append

    monkeypatch.setattr("compiler.cli.run.Meter", Listening)
    monkeypatch.setattr("compiler.cli.verify.Meter", Listening)
    said(monkeypatch, "run", "small.yaml", "model.safetensors", "out", "--digests", "--no-check")
    assert seen.keys() == {"writing", "hashing"}
    out, _ = said(monkeypatch, "verify", "small.yaml", "model.safetensors", "out")
    assert "round trip exact" in out
    assert seen.keys() == {"writing", "hashing", "comparing"}
    for total, *sizes in seen.values():
        assert sum(sizes) == pytest.approx(total, rel=0.05)
    function: list[int] = []
    assert WrittenBytes(function.append).begin("hashing", 1)(1) is None
    WrittenBytes(function.append).begin(WRITING, 1)(7)
    assert function == [7]


# ---------------------------------------------------------------------------------------------------------------------
# How much is printed


def test_one_result_line_and_the_next_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "small.yaml", "model.safetensors", "out", "--force", "--no-check"]
    out, err = said(monkeypatch, *words)
    result, following = out.splitlines()
    assert re.fullmatch(r"wrote out/ · LlamaForCausalLM · 20 tensors · 70\.3 kB · [\d.]+ s", result)
    assert following == "next: mapspec verify small.yaml model.safetensors out"
    assert "note: defaults used: num_key_value_heads=2" in err
    quiet, silence = said(monkeypatch, *words, "-q")
    assert (quiet.count("\n"), quiet[:10], silence) == (1, "wrote out/", "")
    assert said(monkeypatch, *words, "-qq") == ("", "")
    verbose, _ = said(monkeypatch, *words, "-v")
    assert ["num_key_value_heads", "2", "default"] in [line.split() for line in verbose.splitlines()]
    # The step that was named works.
    assert "round trip exact" in said(monkeypatch, *following.removeprefix("next: mapspec ").split())[0]
    _, wrong = said(monkeypatch, "run", "small.yaml", "modle.safetensors", "out", "-qq")
    assert "did you mean" in wrong


def test_the_next_step_after_compiling(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["small.yaml", "--no-proof"]
    *_, following = said(monkeypatch, *words)[0].splitlines()
    assert following == "next: mapspec run small.yaml SOURCE OUT"
    assert all(line.startswith("unchanged ") for line in said(monkeypatch, *words, "-q")[0].splitlines())
    for more in (["--check"], ["--json"]):
        assert "next:" not in said(monkeypatch, *words, *more)[0]


@pytest.mark.parametrize("named", [True, False])
def test_the_next_step_where_no_spec_fits(place: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    """The class of config.json is the target of the draft; the command runs as it is printed."""
    weights("other.safetensors", {f"unknown.{name}": shape for name, shape in SHAPES.items()})
    Path("config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"][:named]}))
    out, _ = said(monkeypatch, "detect", "other.safetensors", "--config", "config.json")
    lines = out.splitlines()
    if named:
        command = "mapspec draft other.safetensors --target LlamaForCausalLM -o mine.yaml --config config.json"
        assert lines[-1] == f"no spec fits; next: {command}"
        assert "wrote mine.yaml" in said(monkeypatch, *command.split()[1:])[0]
    else:
        assert "draft other.safetensors --target CLASS" in lines[-2]
        assert "mapspec run hf other.safetensors OUT" in lines[-1]


def test_short_notes() -> None:
    many = DefaultArguments({f"value_{n}": n or None for n in range(14)})
    assert brief(many) == ["defaults used: value_1=1, value_2=2, value_3=3, value_4=4 and 10 more (-v lists them)"]
    assert sentences(many)[0].count("value_") == 14
    few = DefaultArguments({"a": None, "b": 2})
    assert brief(few) == ["defaults used: b=2 and 1 more (-v lists them)"]
    ignored = IgnoredTensors((*((f"layers.{n}.freqs", "recomputed") for n in range(24)), ("mask", "a constant")))
    assert len(brief(ignored)) == 2
    assert "layers.7.freqs and 16 more: recomputed" in brief(ignored)[0].replace(" (-v lists them)", "")
    assert brief(UnreadFields(("novel",))) == sentences(UnreadFields(("novel",)))


def test_the_format_is_known_before_the_words_are_parsed() -> None:
    assert problems.format_of(["run", "--json", "--nonsense"]) == "json"
    assert problems.format_of(["--output-format", "github", "--nonsense"]) == "github"
    assert problems.format_of(["--output-format", "xml"]) == "text"
    text = problems.annotation(Diagnostic(Span("a,b.yaml", 2, 3, 4, "abcdef"), "50% of\nit", "some-kind", "do"))
    assert text == "::error file=a%2Cb.yaml,line=2,col=3,endColumn=7,title=some-kind::50%25 of%0Ait%0Ahint: do"
