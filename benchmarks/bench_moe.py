"""The rendered mixture of experts against a plain loop over experts, forward and backward, in one run.

    python benchmarks/bench_moe.py [--batch 8] [--length 512] [--hidden 512] [--experts 4] [--chosen 1] [--rounds 7]

The last line leaves the experts' own work out, which both share: what it costs to bring tokens to experts and back.

The plain loop asks each expert in turn for the tokens that chose it, masks, gathers and adds them in place, as trainers'
own model code commonly does. Both share their weights. Rounds alternate between the two, so that a busy machine slows
both; a ratio above 1 means that the rendered block is faster. Exit status 1 where their outputs differ.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def plain_loop(block: Any, hidden_states: Any) -> Any:
    """The same mixture, expert by expert."""
    import torch

    config = block.config
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    weights, chosen = block.gate(tokens).softmax(dim=-1).topk(config.num_experts_per_tok, dim=-1, sorted=False)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    mixed = torch.zeros_like(tokens)
    for i, expert in enumerate(block.experts):
        mask = chosen == i
        if mask.any():
            rows = mask.any(dim=-1).nonzero().flatten()
            mixed.index_add_(0, rows, expert(tokens[rows]) * weights[mask].view(-1, 1))
    return mixed.view_as(hidden_states)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def block_of(options: argparse.Namespace) -> Any:
    from support.custom_models import MINIMIND

    from compiler.render.remote_code.render import render_custom

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "rendered_for_benchmark")
        package.mkdir()
        for name, text in render_custom(MINIMIND).items():
            (package / name).write_text(text)
        sys.path.insert(0, folder)
        module = importlib.import_module("rendered_for_benchmark.model_minimind")
    config = module.MiniMindConfig(
        hidden_size=options.hidden, use_moe=True, num_experts=options.experts, num_experts_per_tok=options.chosen
    )
    return module.MiniMindSparseMLP(config)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"batch": 8, "length": 512, "hidden": 512, "experts": 4, "chosen": 1, "rounds": 7}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    import torch

    torch.manual_seed(0)
    block = block_of(options)
    states = torch.randn(options.batch, options.length, options.hidden, requires_grad=True)
    ways: dict[str, Callable[[], Any]] = {
        "plain loop": lambda: plain_loop(block, states),
        "rendered": lambda: block(states)[0],
    }
    with torch.no_grad():
        apart = (ways["plain loop"]() - ways["rendered"]()).abs().max().item()

    def forward(way: Callable[[], Any]) -> None:
        with torch.no_grad():
            way()

    def training(way: Callable[[], Any]) -> None:
        way().sum().backward()

    def dispatch(way: Callable[[], Any]) -> None:
        experts = block.experts
        block.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in experts)
        forward(way)
        block.experts = experts

    print(
        f"{options.batch} x {options.length} tokens of {options.hidden}, {options.chosen} of {options.experts} experts; ",
        end="",
    )
    print(f"{torch.get_num_threads()} threads; the outputs differ by at most {apart:.1e}")
    for label, run in (("forward", forward), ("forward and backward", training), ("dispatch alone", dispatch)):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds + 1):
            for name, way in ways.items():
                times[name].append(seconds(lambda run=run, way=way: run(way)))
        middle = {name: statistics.median(found[1:]) for name, found in times.items()}
        each = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in middle.items())
        ratios = [a / b for a, b in zip(times["plain loop"][1:], times["rendered"][1:], strict=True)]
        best = min(times["plain loop"]) / min(times["rendered"])
        print(
            f"{label}: {each}; ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), of the best rounds {best:.2f}"
        )
    return int(apart > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
