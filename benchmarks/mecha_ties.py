"""Run as a script, by a Python that has sd-mecha: TIES, or DARE and TIES, of three models over a base.

    /elsewhere/bin/python benchmarks/mecha_ties.py ties|dare a b c base out

As in sdkit's own case TIES keeps a fifth of the numbers, and DARE drops nine of ten after that.
"""

from __future__ import annotations

import os
import sys

import sd_mecha
import torch


def main() -> None:
    """Merge in float32 into float16, with one thread per core."""
    method, *paths, base_path, out = sys.argv[1:]
    base, models = sd_mecha.model(base_path), [sd_mecha.model(path) for path in paths]
    if method == "ties":
        # DARE that drops nothing: `add_difference_ties` of version 1.1.8 fails on models whose space is not known yet.
        given = {"probability": 0.0, "k": 0.2, "vote_sgn": False}
    else:
        given = {"probability": 0.9, "k": 1.0, "vote_sgn": True}
    result = sd_mecha.add_ties_with_dare(base, *models, alpha=1.0, seed=0, **given)
    sd_mecha.merge(
        result,
        fallback_model=base,
        output=out,
        merge_dtype=torch.float32,
        output_dtype=torch.float16,
        threads=os.cpu_count(),
    )


if __name__ == "__main__":
    main()
