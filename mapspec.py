"""Convert model checkpoints from Python: what the commands of `mapspec` do, as functions.

    import mapspec

    mapspec.convert("llama", "model.pth", "out", tokenizer="tokenizer/")
    weights = dict(mapspec.iter_tensors("llama", "model.pth", device="cuda"))  # writes no file

`spec` is the name of a shipped spec, the path of a YAML file, or "auto" for the shipped spec that fits the source.
`source` is a file, a folder, or a list of files; for a spec of several sources, a dict of them by name. Every function raises `Refusal`; its `diagnostics` are the problems,
each with a file, a line, a message, a kind and a hint.

The keywords that several functions share:

- `config`: the source's config file (JSON, YAML, or Meta's params.json)
- `arguments`: values for the spec's arguments by name; they override the config, as `--set` does
- `weights`: which weights of a torch file to read: "ema", "model", or a dotted path of keys
- `dtype`: cast every floating-point tensor to "float32", "float16" or "bfloat16"; "q8_0" for a GGUF file
- `reverse`: convert a Transformers folder back to the source's layout
- `on_note`: called with each note, one sentence: defaults that were used, config fields that nothing reads
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.diagnostics import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.jobs.detect import Fit
    from compiler.jobs.request import Request
    from compiler.plan.notes import Listener, Note
    from compiler.plan.plan import Plan
    from compiler.program.program import Program
    from compiler.verify.compare import Verdict
    from compiler.verify.round_trip import Return

__all__ = [
    "Refusal",
    "compile_spec",
    "convert",
    "detect",
    "iter_tensors",
    "load_spec",
    "plan",
    "verify",
]

PathLike = str | Path
Source = PathLike | Sequence[PathLike] | Mapping[str, PathLike]
OnNote = Callable[[str], None]


def load_spec(spec: PathLike) -> Program:
    """Read a spec and check it. It is not proven against its target class; `compile_spec` does that.

    mapspec.load_spec("llama").spec.arguments["rope_theta"].default
    """
    from compiler.program.loading import load_program

    return load_program(str(spec))


def compile_spec(spec: PathLike, *, prove: bool = True) -> dict[str, str]:
    """Return the files that `compile SPEC` writes below `generated/`, as {path: text}.

    With `prove`, the spec is first proven against its target class, which imports Transformers.

    script = mapspec.compile_spec("llama")["llama/convert_llama.py"]
    """
    from compiler.jobs.compile import build

    return build(str(spec), prove=prove)


def detect(
    source: Source,
    *,
    specs: Sequence[PathLike] = (),
    config: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | None = None,
) -> list[Fit]:
    """Return how each shipped spec fits a checkpoint, the best first; `specs` are folders of more specs.

    A `Fit` has `spec`, `status` ("fits", "asks" for arguments, "near" or "no"), `asks` and `reasons`.

    [fit.spec for fit in mapspec.detect("model.pth") if fit.status == "fits"]
    """
    from compiler.jobs.detect import detect as fits_of
    from compiler.jobs.detect import known_specs

    request = _request(source, config, arguments, weights=weights)
    return fits_of(request, known_specs([Path(folder) for folder in specs]))


def plan(
    spec: PathLike,
    source: Source,
    *,
    config: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | None = None,
    dtype: str | None = None,
    reverse: bool = False,
    compare: bool = False,
    on_note: OnNote | None = None,
) -> Plan:
    """Return what a conversion would do, from headers alone: `targets`, `groups`, `config`, `values`.

    With `compare`, tied tensors are read and rejected where they differ, as a conversion does.

    for tensor in mapspec.plan("llama", "model.pth").targets:
        print(tensor.name, tensor.shape, tensor.dtype)
    """
    from compiler.jobs.prepare import prepare

    request = _request(
        source, config, arguments, weights=weights, dtype=dtype, reverse=reverse, compare=compare, checksums=False
    )
    listener = _listener(on_note)
    return prepare(_program(spec, request, listener), request, listener).plan


def convert(
    spec: PathLike,
    source: Source,
    out: PathLike,
    *,
    config: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | None = None,
    tokenizer: PathLike | None = None,
    processor: PathLike | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    jobs: int = 2,
    max_shard_size: str = "5GB",
    checksums: bool = True,
    check_values: bool = False,
    digests: bool = False,
    reverse: bool = False,
    parts: int = 1,
    ranks: str | None = None,
    force: bool = False,
    resume: bool = False,
    check: bool = True,
    model: str | None = None,
    any_model_type: bool = False,
    strict: bool = False,
    to: str | None = None,
    container: str | None = None,
    on_note: OnNote | None = None,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """Convert a checkpoint into the folder `out`, which Transformers loads. Return the plan that was carried out.

    - `tokenizer`: a folder or a file to build the tokenizer from; by default what is next to the weights
    - `device`: where tensors are computed, "cpu" or "cuda"
    - `jobs`: threads that move bytes
    - `max_shard_size`: the size of one file of weights, such as "5GB"
    - `checksums`: compare a .pth with its own checksums
    - `check_values`: count NaN and infinity in every tensor, not in samples
    - `digests`: record the SHA-256 of every source file and tensor in mapspec.json
    - `reverse`, `parts`: write the source's own layout to `out`, a folder or a file; in so many tensor-parallel parts
    - `ranks`: the same for several kinds of model-parallel ranks, as "tp=2,pp=2,ep=1"
    - `to`: the spec (or family, such as "gguf") whose layout is written instead, in one pass
    - `container`: "dcp" to store the weights as torch.distributed.checkpoint does
    - `force`: write into a folder that is not empty
    - `resume`: continue a run that was killed
    - `processor`: a folder with preprocessor_config.json, which is copied
    - `check`: compare the result with the target class before it gets its name
    - `model`: the released model of the spec that this is; `strict`: reject arguments that would be guesses
    - `any_model_type`: accept a config that names another architecture
    - `progress`: called with the number of bytes just written, from any thread

    mapspec.convert("meta_llama", "llama-3-8b/", "out", dtype="bfloat16")
    """
    from compiler.jobs.convert import convert as run
    from compiler.progress import WrittenBytes

    request = _request(
        source,
        config,
        arguments,
        weights=weights,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        dtype=dtype,
        device=device,
        jobs=jobs,
        max_shard_size=max_shard_size,
        checksums=checksums,
        check_values=check_values,
        digests=digests,
        reverse=reverse,
        parts=parts,
        ranks=ranks,
        force=force,
        resume=resume,
        processor=None if processor is None else Path(processor),
        check=check,
        model=model,
        any_model_type=any_model_type,
        strict=strict,
        to=to,
        container=container,
    )
    listener = _listener(on_note)
    written = WrittenBytes(progress) if progress else None
    return run(_program(spec, request, listener), request, Path(out), listener, written)


def iter_tensors(
    spec: PathLike,
    source: Source,
    device: str = "cpu",
    *,
    config: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | None = None,
    dtype: str | None = None,
    checksums: bool = True,
    compare: bool = True,
    reverse: bool = False,
    on_note: OnNote | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of every target on `device`, in the order in which a conversion writes them.

    No file is written and no model is built, so that weights can be served or trained at once. A tensor is yielded as
    soon as the work that makes it is queued, and may be used in the current CUDA stream. Tied names are yielded once.
    The source is checked, the plan made and the device opened before the first tensor is asked for.

    model.load_state_dict(dict(mapspec.iter_tensors("llama", "model.pth", device="cuda")), strict=False)
    """
    from compiler.executor.execute import tensors
    from compiler.jobs.prepare import prepare

    request = _request(
        source,
        config,
        arguments,
        weights=weights,
        dtype=dtype,
        checksums=checksums,
        compare=compare,
        reverse=reverse,
    )
    listener = _listener(on_note)
    prepared = prepare(_program(spec, request, listener), request, listener)
    return tensors(prepared.plan, prepared.checkpoint, device)


def verify(
    spec: PathLike,
    source: Source,
    out: PathLike,
    *,
    source_spec: PathLike | None = None,
    source_model: str | None = None,
    source_config: PathLike | None = None,
    length: int = 64,
    config: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    weights: str | None = None,
    on_note: OnNote | None = None,
) -> Verdict | Return:
    """Compare the converted folder `out` with its source.

    With `source_spec` (a spec that renders the source's model) or `source_model` ("module:Class", importable), both
    models run on `length` tokens and a `Verdict` tells whether their logits agree. Without either, the folder is
    converted back and compared with the source's tensors: a `Return` counts them and lists the `differences`.

    assert mapspec.verify("llama", "model.pth", "out", source_model="trainer.model:Transformer").agrees
    """
    from compiler.cli.verify import source_model_of
    from compiler.verify.compare import verify as compare
    from compiler.verify.round_trip import round_trip

    request = _request(source, config, arguments, weights=weights, checksums=False)
    program = _program(spec, request, _listener(on_note))
    model = source_model_of(
        None if source_spec is None else str(source_spec),
        source_model,
        None if source_config is None else Path(source_config),
        length,
    )
    return compare(program, request, Path(out), model) if model else round_trip(program, request, Path(out))


def _program(spec: PathLike, request: Request, listener: Listener) -> Program:
    from compiler.jobs.detect import named_program

    return named_program(str(spec), request, listener)


def _request(source: Source, config: PathLike | None, arguments: Mapping[str, Any] | None, **options: Any) -> Request:
    from compiler.jobs.option_effects import check_effects
    from compiler.jobs.request import Request

    named = source if isinstance(source, Mapping) else {}
    paths = [source] if isinstance(source, str | Path) else [*named.values()] or source
    request = Request(
        source=[Path(path) for path in paths],
        names=tuple(named),
        config=None if config is None else Path(config),
        assigned=dict(arguments or {}),
        **options,
    )
    check_effects(request)
    return request


def _listener(on_note: OnNote | None) -> Listener:
    """A listener of notes that passes their sentences on."""
    from compiler.cli.notes import sentences

    def listen(note: Note) -> None:
        if on_note is not None:
            for line in sentences(note):
                on_note(line)

    return listen
