"""The main job on a small real checkpoint: convert it, load the result with Transformers, compare, generate.

The checkpoint is a MiniMind-3 of 533 thousand parameters, trained by MiniMind's own trainer; the logits that it is
compared with were recorded from MiniMind's own model (tests/data/oracles/ORIGIN.md).
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

os.environ.update(TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
ROOT = Path(__file__).resolve().parent.parent
CASE = ROOT / "tests/data/oracles/minimind/dense_trained"
OUT = ROOT / "out/minimind"
STEPS = 4
START = time.monotonic()


def step(number: int, text: str) -> None:
    print(f"[{number}/{STEPS}] {time.monotonic() - START:5.1f} s  {text}", flush=True)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    config = CASE / "source/minimind_config_resolved.json"
    words = [
        "run",
        "qwen3",
        str(CASE / "source/model.pth"),
        str(OUT),
        "--config",
        str(config),
        "--tokenizer",
        str(ROOT / "tests/data/tokenizer"),
    ]
    step(1, "convert a checkpoint of 1.9 MB, and compare the result with the target class")
    print("$ mapspec", " ".join(os.path.relpath(w) if w.startswith("/") else w for w in words), flush=True)
    subprocess.run([sys.executable, "-m", "compiler", *words], check=True, cwd=ROOT)

    step(2, "import torch and Transformers, and load the folder")
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32, attn_implementation="eager").eval()
    step(3, "compute logits, and compare them with those that the original model gave")
    golden = load_file(CASE / "expected/golden_logits.safetensors")
    with torch.no_grad():
        logits = model(golden["input_ids"]).logits
    kept = golden["logits_fp32"].shape[1]  # the record holds the last positions
    difference = (logits[:, -kept:] - golden["logits_fp32"]).abs().max().item()
    print(f"{type(model).__name__}: the largest logit difference against the recorded original is {difference:.1e}")

    step(4, "generate with the converted tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(OUT)
    prompt = tokenizer("def main", return_tensors="pt").input_ids
    with torch.no_grad():
        written = model.generate(prompt, max_new_tokens=24, do_sample=False)
    print(
        "a sample (of a model this small, expect no sense):",
        repr(tokenizer.decode(written[0], skip_special_tokens=True)),
    )
    if difference > 2e-5:
        raise SystemExit("the logits differ")
    print(f"done in {time.monotonic() - START:.1f} s; the folder is {os.path.relpath(OUT)}")


if __name__ == "__main__":
    main()
