"""What a GGUF file cannot hold is refused before a byte is written."""

from __future__ import annotations

import pytest

from compiler.diagnostics import Refusal
from compiler.output.gguf_layout import lay_out
from compiler.plan.plan import TargetTensor


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        (TargetTensor("a", (4, 32), "float8_e4m3fn"), "a is float8_e4m3fn, which no GGUF file holds", "cast it with --dtype"),
        (TargetTensor("b", (4,), "bool"), "b is bool, which no GGUF file holds", "the types are bfloat16, float16, "),
        (TargetTensor("c", (1,) * 5, "float32"), "c has 5 axes, a GGUF file at most 4", ""),
    ],
)  # fmt: skip
def test_a_tensor_that_no_file_holds(target: TargetTensor, message: str, hint: str) -> None:
    good = [TargetTensor("norm", (4,), "float32"), TargetTensor("weight", (1,) * 4, "bfloat16")]
    assert set(lay_out("m.gguf", good, {}, {}).offsets) == {"norm", "weight"}
    with pytest.raises(Refusal) as caught:
        lay_out("m.gguf", [*good, target], {}, {})
    (problem,) = caught.value.diagnostics
    assert (problem.message, problem.kind) == (message, "unsupported-tensor")
    assert problem.hint.startswith(hint)
