"""Run as a script: the plain float32 products of a LoRA's factors, the arithmetic no merge can do without.

    python benchmarks/product.py lora.safetensors

Prints a JSON object: ``plain`` (``up @ down``, each into fresh memory) and ``reused`` (into one buffer), seconds,
the shortest of five passes each, with as many torch threads as there are cores; reading the file is not counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch
from safetensors.torch import load_file

Factors = list[tuple[torch.Tensor, torch.Tensor]]


def factors(path: str) -> Factors:
    """Every pair (up, down) in float32."""
    tensors = load_file(path)
    names = [key.removesuffix(".lora_up.weight") for key in tensors if key.endswith(".lora_up.weight")]
    return [
        (tensors[f"{name}.lora_up.weight"].float().flatten(1), tensors[f"{name}.lora_down.weight"].float().flatten(1))
        for name in names
    ]


def shortest(work: Callable[[], None]) -> float:
    """Seconds of the shortest of five passes."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Measure both."""
    pairs = factors(sys.argv[1])
    buffer = torch.empty(max(len(up) * down.shape[1] for up, down in pairs))

    def plain() -> None:
        for up, down in pairs:
            up @ down

    def reused() -> None:
        for up, down in pairs:
            torch.mm(up, down, out=buffer[: len(up) * down.shape[1]].view(len(up), -1))

    with torch.inference_mode():
        print(json.dumps({"plain": shortest(plain), "reused": shortest(reused), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
