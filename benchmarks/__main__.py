"""The whole table: how fast and how large the executor is, against copies and against what people do today.

    python -m benchmarks [--gib 1 4] [--rounds 5] [--folder DIR] [--out benchmarks/RESULTS.md] [--only WORD ...]

Every run is a process of its own, timed from its start to its end, so that Python's own start counts. The runs of one
round follow each other, each round in an order of its own, so that a busy machine slows all; medians over the rounds
are shown, and ratios of medians. Each timed run comes after one of the same that is not timed: in a virtual machine a
page that the host must find first costs ten times one that was just in use, and which pages a run is given depends on
what ran before. Before each run all that is unwritten is synced, and its source is read into the page cache or, for a
cold run, dropped from it. What a run has written last is compared with what torch says before the next case is timed.
Nothing is written outside of a temporary folder in DIR (by default beside the repository) and of the table itself,
which goes to stdout as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import machine, models, rank_files, scale
from benchmarks.cases import CASES, CASTS, ELEMENTS, LAYOUT, SHUFFLE, size_of, verify

ROOT = Path(__file__).resolve().parent.parent
COPIES = {"cp": "cp --reflink=never IN OUT", "cat": "cat IN > OUT", "dd": "dd if=IN of=OUT bs=1M status=none"}
PARTS = ["layout", "casts", "memory", "whole", "ranks", "commands", "scale", "gpu"]
MERGERS = {"zero": "zero_to_fp32's steps in torch", "dcp": "dcp_to_torch_save"}
Timed = tuple[list[str], Path]  # a command, and what it reads


class Bench:
    """One folder, and the lines of the table so far."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.rounds = folder, rounds
        self.lines: list[str] = []
        self.peak = 0  # of the last run

    def say(self, *lines: str) -> None:
        self.lines += lines
        print("\n".join(lines), flush=True)

    def run(self, command: list[str], source: Path | None = None, cold: bool = False) -> tuple[float, str]:
        """Seconds and output of one run; `out` is removed before, `source` made warm or cold."""
        out = self.folder / "out"
        if out.is_dir():
            shutil.rmtree(out)
        out.unlink(missing_ok=True)
        os.sync()
        files = source.rglob("*") if source and source.is_dir() else [source] if source else []
        for path in (path for path in files if path.is_file()):
            with path.open("rb", buffering=0) as file:
                if cold:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                else:
                    block = bytearray(1 << 20)
                    while file.readinto(block):
                        pass
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        with tempfile.TemporaryFile("w+") as printed:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=env)
            sampler = threading.Thread(target=self.sample, args=(process.pid,))
            sampler.start()
            process.wait()
            seconds = time.perf_counter() - start
            sampler.join()
            printed.seek(0)
            text = printed.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{text}")
        return seconds, text

    def sample(self, process: int) -> None:
        """Watch the peak memory of a process until it ends, in kilobytes. What `wait4` tells is never less than what
        this process had when it started the other."""
        self.peak = 0
        with contextlib.suppress(OSError, StopIteration, ValueError):
            while True:
                with open(f"/proc/{process}/status") as lines:
                    self.peak = max(self.peak, next(int(at.split()[1]) for at in lines if at.startswith("VmHWM")))
                time.sleep(0.02)

    def interleaved(self, runs: dict[str, Timed], cold: bool) -> Iterator[tuple[str, float]]:
        """Seconds of all runs once a round, in another order each time: what disturbs a machine may come at regular
        intervals. What a run has written is there when it is yielded."""
        for number in range(self.rounds):
            for name, (command, source) in random.Random(number).sample(list(runs.items()), len(runs)):
                self.run(command, source, cold)
                yield name, self.run(command, source, cold)[0]

    def copies(self, source: Path, fsync: bool) -> Iterator[tuple[str, list[str]]]:
        for name, text in COPIES.items():
            out = str(self.folder / "out")
            words = text.replace("IN", str(source)).replace("OUT", out) + (f" && sync {out}" if fsync else "")
            yield name, ["sh", "-c", words]
        floor = [sys.executable, "-m", "benchmarks.floor", str(source), str(self.folder / "out")]
        yield "floor", floor + ["--fsync"] * fsync

    def table(self, title: str, cases: list[str], count: int, *, fsync: bool = False, cold: bool = False) -> None:
        """Time the cases that make as many bytes, and the copies of a file of that size, in the same rounds."""
        like = self.folder / f"{CASES[cases[0]].after}.bin"
        runs = {name: (command, like) for name, command in self.copies(like, fsync)}
        for name in cases:
            words = [sys.executable, "-m", "benchmarks.cases", name, str(self.folder), str(count)]
            runs[name] = (words + ["--fsync"] * fsync, self.folder / f"{CASES[name].before}.bin")
        times: dict[str, list[float]] = {}
        for name, seconds in self.interleaved(runs, cold):
            times.setdefault(name, []).append(seconds)
            if name in CASES and len(times[name]) == self.rounds:
                verify(CASES[name], self.folder, count)
        medians = {name: statistics.median(found) for name, found in times.items()}
        fastest = min(COPIES, key=medians.__getitem__)
        copies = ", ".join(f"{name} {medians[name]:.2f} s" for name in (*COPIES, "floor"))
        self.say("", f"### {title}", "", f"{copies}; written: {like.stat().st_size / (1 << 30):.3g} GiB.", "")
        self.say(f"| case | seconds | / {fastest} | / floor | best / best copy |", "|---|---|---|---|---|")
        for name in cases:
            best = min(times[name]) / min(min(times[copy]) for copy in COPIES)
            ratios = f"{medians[name] / medians[fastest]:.2f} | {medians[name] / medians['floor']:.2f} | {best:.2f}"
            self.say(f"| {name} | {medians[name]:.2f} | {ratios} |")

    def memory(self, cases: list[str], count: int) -> None:
        self.say("", "### Memory, MiB", "", "| case | VmHWM | RssAnon, sampled |", "|---|---|---|")
        for name in cases:
            words = [sys.executable, "-m", "benchmarks.cases", name, str(self.folder), str(count), "--memory"]
            peak, anonymous = self.run(words)[1].split()
            self.say(f"| {name} | {int(peak) / 1024:.0f} | {int(anonymous) / 1024:.0f} |")

    def whole(self, gib: float) -> None:
        """`compile run` against what people do today: warm, then as a user who has just fetched a checkpoint."""
        layers = models.layers_for(int(gib * (1 << 30)))
        python = [sys.executable, "-m"]
        self.run([*python, "benchmarks.models", "prepare", str(self.folder), str(layers)])
        read = {name: self.folder / name for name in ("meta/consolidated.00.pth", "hf/model.safetensors")}
        source, other = read.values()
        out = self.folder / "out"
        ours = [*python, "compiler", "run", "meta_llama", str(source.parent), str(out)]
        ours += ["--set", "max_position_embeddings=4096"]
        ways = {"compile run": (ours, source), "compile run --no-checksums": ([*ours, "--no-checksums"], source)}
        synced = {"cp": (["sh", "-c", f"cp --reflink=never {source} {out} && sync {out}"], source), **ways}
        for name, word, file in (
            ("torch.load(mmap) + save_file", "tensors", source),
            ("from_pretrained + save_pretrained", "pretrained", other),
        ):
            way = [*python, "benchmarks.models", word, str(self.folder)]
            then = ["sh", "-c", f"{shlex.join(way)} && sync {shlex.quote(str(out))}/*"]
            ways |= {name: (way, file), f"{name}, then sync": (then, file)}
            synced[name] = (then, file)
        size = source.stat().st_size / (1 << 30)
        self.say("", f"### A whole conversion, {size:.1f} GiB of bfloat16; compile run syncs what it writes", "")
        self.ways(ways, cold=False)
        self.say("", "### The same from a cold cache, everything synced", "")
        self.ways(synced, cold=True)
        for file in read.values():
            shutil.rmtree(file.parent)

    def ranks(self, gib: float) -> None:
        """`compile run hf` against the trainers' own mergers, on files of several ranks. The target class is asked once
        before, as it is once for each configuration."""
        layers = models.layers_for(int(gib * (1 << 30)) // 2)  # the weights have four bytes
        python, out = [sys.executable, "-m"], self.folder / "out"
        self.say("", f"### Files of {rank_files.RANKS} ranks, float32, become one checkpoint", "")
        self.say("| files | GiB | way | seconds | peak RSS, MiB |", "|---|---|---|---|---|")
        for kind, merger in MERGERS.items():
            self.run([*python, "benchmarks.rank_files", kind, str(self.folder), str(layers)])
            source = self.folder / kind
            size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / (1 << 30)
            runs = {"compile run hf": ([*python, "compiler", "run", "hf", str(source), str(out)], source),
                    merger: ([*python, "benchmarks.rank_files", f"merge-{kind}", str(self.folder)], source)}  # fmt: skip
            times: dict[str, list[float]] = {}
            peaks: dict[str, int] = {}
            digests = set()
            for name, seconds in self.interleaved(runs, cold=False):
                times.setdefault(name, []).append(seconds)
                peaks[name] = max(peaks.get(name, 0), self.peak)
                if len(times[name]) == self.rounds:
                    digests.add(self.digest())
            if len(digests) != 1:
                raise SystemExit(f"compile run hf and {merger} have not written the same tensors")
            for name, found in times.items():
                self.say(
                    f"| {kind} | {size:.2f} | {name} | {statistics.median(found):.2f} | {peaks[name] / 1024:.0f} |"
                )
            shutil.rmtree(source)

    def ways(self, ways: dict[str, Timed], cold: bool) -> None:
        times: dict[str, list[float]] = {}
        peaks: dict[str, int] = {}
        digests = set()
        for name, seconds in self.interleaved(ways, cold):
            times.setdefault(name, []).append(seconds)
            peaks[name] = max(peaks.get(name, 0), self.peak)
            if ways[name][1].suffix == ".pth" and name != "cp" and len(times[name]) == self.rounds:
                digests.add(self.digest())
        if len(digests) != 1:
            raise SystemExit("compile run and torch have not written the same tensors")
        medians = {name: statistics.median(found) for name, found in times.items()}
        self.say(
            "| way | seconds | / compile run | / the same --no-checksums | peak RSS, MiB |", "|---|---|---|---|---|"
        )
        for name in ways:
            seconds = medians[name]
            ours = [medians["compile run"], medians["compile run --no-checksums"]]
            ratios = " | ".join(f"{seconds / own:.1f}" for own in ours)
            peak = "" if ways[name][0][0] == "sh" else f"{peaks[name] / 1024:.0f}"
            self.say(f"| {name} | {seconds:.2f} | {ratios} | {peak} |")

    def digest(self) -> str:
        """Of all tensors of the output, by name."""
        import hashlib

        from compiler.checkpoints.checkpoint import open_checkpoint
        from compiler.checkpoints.formats.stored_tensor import read_bytes

        found = hashlib.sha256()
        tensors = open_checkpoint(self.folder / "out").tensors
        for name in sorted(tensors):
            found.update(name.encode() + read_bytes(tensors[name]))
        return found.hexdigest()

    def commands(self) -> None:
        out = ["--out", str(self.folder / "out"), "llama"]
        kept, anew = (f"MAPSPEC_CACHE={value}" for value in (self.folder / "answers", ""))
        words = {
            "compile --help": (kept, ["--help"]),
            "compile SPEC": (kept, out),
            "compile SPEC, its class asked anew": (anew, out),
            "compile SPEC --no-proof": (kept, [*out, "--no-proof"]),
        }
        self.say("", "### Commands", "", "| command | milliseconds |", "|---|---|")
        for name, (setting, options) in words.items():
            command = ["env", setting, sys.executable, "-m", "compiler", *options]
            seconds = statistics.median(self.run(command)[0] for _ in range(max(5, self.rounds)))
            self.say(f"| {name} | {1000 * seconds:.0f} |")

    def scale(self) -> None:
        sparse = self.folder / "sparse"
        sparse.mkdir()
        total = scale.write_sparse(sparse, 118, 256, 163)
        seconds, lowering, peak, targets, _, _ = scale.plan(sparse)
        shutil.rmtree(sparse)
        self.say("", "### Planning at scale", "")
        self.say(
            f"{total / 1e9:.0f} billion parameters, {targets:,.0f} tensors in 163 files: planned in {seconds:.1f} s"
        )
        self.say(f"(and {lowering:.1f} s more for the byte ranges of all files), {peak:.0f} MiB.")

    def gpu(self) -> None:
        """In a process of its own: this one's memory is not to hold torch."""
        self.say("", "### GPU", "")
        probe = [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"]
        if self.run(probe)[1].strip() != "True":
            self.say("Not run: no GPU at hand.")
            return
        count = 16
        prepare(self.folder, count, ["bfloat16"])
        words = [sys.executable, "-m", "benchmarks.gpu", str(self.folder), "--count", str(count)]
        self.say(*self.run([*words, "--rounds", str(self.rounds)])[1].splitlines())


def prepare(folder: Path, count: int, types: list[str]) -> None:
    """Random weights of an ordinary size, under every element type."""
    import torch

    for dtype in types:
        with (folder / f"{dtype}.bin").open("wb") as file:
            for seed in range(count):
                weights = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed)) * 0.02
                file.write(weights.to(getattr(torch, dtype)).view(torch.uint8).numpy().data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=float, nargs="+", default=[1.0, 4.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=ROOT.parent)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    parser.add_argument("--only", nargs="+", choices=PARTS)
    options = parser.parse_args()
    wanted = options.only or PARTS
    folder = Path(tempfile.mkdtemp(prefix="mapspec-bench-", dir=options.folder))
    bench = Bench(folder, options.rounds)
    bench.say("# Results", "", f"`{machine.command()}`", "", machine.described(folder))
    bench.say(
        f"Medians of {options.rounds} interleaved rounds; every output was compared with torch's after the timing."
    )
    try:
        for gib in options.gib:
            count = max(2, round(gib * (1 << 30) / (2 * ELEMENTS)) // 2 * 2)
            moved, wide = [*LAYOUT, *SHUFFLE], [n for n in CASTS if size_of(CASTS[n].after) == 4]
            narrow = [name for name in CASTS if name not in wide]
            if {"layout", "casts", "memory"} & set(wanted):
                prepare(folder, count, sorted({c.before for c in CASES.values()} | {c.after for c in CASES.values()}))
            bench.say("", f"## {gib:g} GiB of bfloat16")
            if "layout" in wanted:
                bench.table("Layout, warm", moved, count)
                bench.table("Layout, warm, with fsync", list(LAYOUT), count, fsync=True)
                bench.table("Layout, cold cache", list(LAYOUT), count, cold=True)
            if "casts" in wanted:
                bench.table("Casts to two bytes, warm", narrow, count)
                bench.table("Casts to four bytes, warm", wide, count)
            if "memory" in wanted:
                bench.memory(list(CASES), count)
            for file in folder.glob("*.bin"):
                file.unlink()
            if "whole" in wanted:
                bench.whole(gib)
            if "ranks" in wanted:
                bench.ranks(gib)
        bench.say("", "## At any size")
        if "commands" in wanted:
            bench.commands()
        if "scale" in wanted:
            bench.scale()
        if "gpu" in wanted:
            bench.gpu()
    finally:
        shutil.rmtree(folder)
    options.out.write_text("\n".join(bench.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
