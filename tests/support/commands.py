"""Runs a command in this process, as a shell would."""

from __future__ import annotations

import pytest

from compiler.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """The exit status of `mapspec WORDS`, and what it prints on stdout and on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main([*map(str, words)])
    said = capsys.readouterr()
    assert isinstance(done.value.code, int)
    return done.value.code, said.out, said.err
