"""Run as a script: a kohya LoRA of rank 128 with random numbers, for the same modules as another.

python benchmarks/wide_lora.py loraxl.safetensors loraxl_128.safetensors
"""

from __future__ import annotations

import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RANK = 128


def main() -> None:
    """Write the file."""
    source, target = sys.argv[1:]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    with safe_open(source, "pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no dict)
            shape = list(file.get_slice(name).get_shape())
            if name.endswith(".alpha"):
                tensors[name] = torch.tensor(float(RANK))
                continue
            shape[0 if ".lora_down." in name else 1] = RANK
            # Falling by a hundredth from one direction to the next, as the singular values of a trained one do.
            scale = 0.99 ** torch.arange(float(RANK))
            scale = scale.view(-1, *[1] * (len(shape) - 1)) if ".lora_down." in name else 1.0
            tensors[name] = (torch.randn(shape, generator=generator) * 0.02 * scale).half()
        save_file(tensors, target, file.metadata())


if __name__ == "__main__":
    main()
