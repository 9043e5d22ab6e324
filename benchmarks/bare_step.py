"""The least a training step of a LoRA on the embedded base can take: the U-Net forward and backward, and AdamW.

    python -m benchmarks.bare_step [--steps 60] [--compile]

Nothing else is done: no noise, no loss of a picture, no log. `sdkit train` runs beside it, two lengths of it, so that
start-up counts for neither. Processor time on one thread, the smaller of two rounds each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import run

BATCH, RANK, SHORT = 4, 16, 10
TRAINED = ("to_q", "to_k", "to_v", "to_out.0")
ASSETS = Path(__file__).parents[1] / "sdkit" / "assets"


def bare_step(steps: int, compiled: bool) -> float:
    """Seconds of processor time."""
    import torch

    from sdkit.runtime.layers.low_rank import LowRankLayer
    from sdkit.runtime.load import load_backbone

    torch.set_num_threads(1)
    backbone = load_backbone(ASSETS / "tiny").to(torch.device("cpu"), torch.float32)
    factors = []
    for name, module in list(backbone.modules()):
        if name.startswith("unet") and name.endswith(TRAINED):
            rows, columns = module.weight.shape  # type: ignore[union-attr, misc]
            pair = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((RANK, columns), (rows, RANK))]
            backbone.replace(name, LowRankLayer(module, pair[0], pair[1], 1.0))
            factors += pair
    unet: Any = backbone.unet
    if compiled:
        backbone.compile("unet")
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    noised, context = torch.zeros(BATCH, 4, side, side), torch.zeros(BATCH, 32, width)
    optimizer = torch.optim.AdamW(factors, fused=True)
    seconds = []
    for number in range(steps + 2):
        began = time.process_time()
        unet(noised, torch.full((BATCH,), number), context, return_dict=False)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[2:])


def sdkit_step(steps: int, compiled: bool, folder: Path) -> float:
    """Seconds of processor time."""
    words = [f"rank={RANK}", f"batch={BATCH}", "targets=attention", "resolution=64", f"compile={compiled}".lower()]
    command = [
        sys.executable,
        "-m",
        "sdkit",
        "train",
        "lora",
        "--base",
        "tiny",
        "--data",
        ASSETS / "quickstart",
        *words,
    ]
    spent = [
        run([*command, "-o", folder / "lora.safetensors", "--force", "-q", f"steps={count}"]).cpu_seconds
        for count in (SHORT, SHORT + steps)
    ]
    return (spent[1] - spent[0]) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        ours = min(sdkit_step(given.steps, given.compile, Path(temporary)) for _ in range(2))
    bare = min(bare_step(given.steps, given.compile) for _ in range(2))
    print(f"sdkit's whole step {ours * 1000:.0f} ms, the U-Net and AdamW alone {bare * 1000:.0f} ms")


if __name__ == "__main__":
    main()
