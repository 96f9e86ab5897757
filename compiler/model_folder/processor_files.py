"""The settings of a processor (images, video, audio) in a model folder: files to copy, or one made from the spec.

Takes the folders that a user names, or the one next to the source; returns the files to copy. Refuses a named folder
without any, and a file that links out of its folder or names code of another repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from compiler.checkpoints.config_file import read_config_file
from compiler.diagnostics import listed, refuse
from compiler.plan.plan import Plan
from compiler.tokenizer.find import check_file, own_code

PREPROCESSOR = "preprocessor_config.json"  # of an image processor or a feature extractor
# Config fields of models that read something else than text.
_SENSES = frozenset(["audio_config", "feat_extract_norm", "image_size", "num_mel_bins", "patch_size", "vision_config"])
FILES = (PREPROCESSOR, "processor_config.json", "video_preprocessor_config.json")


def processor_files(place: Path, say: Callable[[str], None], *, named: bool) -> dict[str, Path]:
    """Name -> file of a folder's processor, or of one file; it is an error if the user `named` the place and there is
    none. Raises Refusal."""
    if named and not place.exists():
        refuse(str(place), "there is no such folder or file", "missing-processor")
    files = {name: place / name for name in FILES if (place / name).is_file()}
    if place.is_file() and place.name in FILES:
        files = {place.name: place}
    if named and not files:
        what = "the folder has no processor" if place.is_dir() else "the file is not a processor"
        refuse(str(place), what, "missing-processor", f"looked for {listed(FILES)}")
    for file in files.values():
        check_file(file, place if place.is_dir() else place.parent)
        if code := own_code(read_config_file(file)):
            say(f"the processor has its own code, which is not copied: {listed(code)}")
    return files


def missing_parts(plan: Plan, processors: Mapping[str, Path], *, tokenizer: bool) -> Iterator[str]:
    """What `AutoProcessor` will not find in the folder: settings for images or audio, or the `tokenizer` of a processor that
    joins both."""
    settings = [*map(read_config_file, processors.values()), plan.processor]
    name = next((str(fields["processor_class"]) for fields in settings if fields.get("processor_class")), "")
    if name and not tokenizer:
        yield f"the folder has no tokenizer, which {name} needs: pass --tokenizer DIR"
    fields = sorted(_SENSES & plan.config.keys())
    if fields and not processors and not plan.processor:
        yield f"the model reads images or audio ({listed(fields)}), and the folder has no {PREPROCESSOR}: pass --processor DIR"


def spec_text(plan: Plan) -> str:
    """The text of preprocessor_config.json by the spec's `processor` section."""
    return json.dumps(plan.processor, indent=2, sort_keys=True, allow_nan=False) + "\n"
