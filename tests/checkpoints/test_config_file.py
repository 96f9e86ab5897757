"""JSON configs: what is rejected, and where the message points."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import Refusal
from compiler.strict_json import JsonError, parse

MALFORMED = {
    '{"a": 1,\n "b": }': ("json-syntax", "2:7", "not JSON: Expecting value"),
    '{"a": 1, "a": 2}': ("duplicate-key", "", "the key 'a' is given twice"),
    '{"a": {"b": NaN}}': ("not-finite", "", "NaN is not a number that JSON has"),
    '{"a": -1e999}': ("not-finite", "", "-1e999 is not a number that JSON has"),
    '{"a": ' + "[" * 41 + "]" * 41 + "}": ("bad-config", "", "nested deeper than 40 levels"),
    "[1]": ("bad-config", "", "a config must be a mapping of fields, not list"),
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_config_is_rejected_where_the_mistake_is(text: str, tmp_path: Path) -> None:
    kind, place, message = MALFORMED[text]
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Refusal) as caught:
        read_config_file(tmp_path / "config.json")
    (problem,) = caught.value.diagnostics
    assert (problem.kind, problem.message) == (kind, message)
    assert str(problem.span) == str(tmp_path / "config.json") + f":{place}" * bool(place)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1.5}')
    assert read_config_file(tmp_path / "config.json") == {"a": 1.5}


def test_headers_are_bounded_and_their_errors_have_a_place() -> None:
    assert parse(b'{"a": [1, 2.5, true, null, "x"]}') == {"a": [1, 2.5, True, None, "x"]}
    with pytest.raises(JsonError, match="more than 3 values"):
        parse(b"[1, 2, 3, 4]", most_values=3)
    with pytest.raises(JsonError, match="line 1 column 2"):
        parse(b"{,}")
