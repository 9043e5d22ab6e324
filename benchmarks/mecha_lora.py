"""Run as a script, by a Python that has sd-mecha: merge a LoRA into a checkpoint.

    /elsewhere/bin/python benchmarks/mecha_lora.py base.safetensors lora.safetensors 0.8 out.safetensors

Two things in sd-mecha 1.1.8 stand in the way and are worked round here:
- its converter of SD1's kohya names subscripts an object that has no ``__getitem__`` (TypeError at the first key);
- a plain ``base + 0.8 * lora`` writes only the tensors that the LoRA changes; the base must be the fallback as well.
Its output has `position_ids` as float16, as it casts every tensor.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import sd_mecha
import torch
from sd_mecha import keys_map


def main() -> None:
    """Merge in float32 into float16, with one thread per core."""
    base_path, lora_path, strength, out = sys.argv[1:]
    relation: Any = keys_map.RealizedKeyRelation
    if not hasattr(relation, "__getitem__"):
        relation.__getitem__ = lambda self, name: self.inputs[name]
    base = sd_mecha.model(base_path)
    lora = sd_mecha.convert(sd_mecha.model(lora_path), base)
    sd_mecha.merge(
        base + lora * float(strength),
        fallback_model=base,
        output=out,
        merge_dtype=torch.float32,
        output_dtype=torch.float16,
        threads=os.cpu_count(),
    )


if __name__ == "__main__":
    main()
