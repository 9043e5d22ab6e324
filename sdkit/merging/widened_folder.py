"""The configurations of a diffusers folder whose first layer was widened: they say how much it reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from sdkit.adapters.input_width import FLUX_INPUT
from sdkit.families.family import Model
from sdkit.weights import Weights

_PIPELINE = "FluxControlPipeline"  # the one that gives the transformer a picture beside the latent


def widened_configs(base: Weights, model: Model, widened: Mapping[str, int]) -> dict[str, bytes]:
    """Path in the folder → the file, of the configurations that are other ones now; none for a single file.

    Args:
        widened: as `merging.bake.Bake` has it.
    """
    return {name: json.dumps(fields, indent=2).encode() + b"\n" for name, fields in _changed(base, model, widened)}


def _changed(base: Weights, model: Model, widened: Mapping[str, int]) -> Iterator[tuple[str, dict[str, object]]]:
    first = model.places.get(f"{FLUX_INPUT}.weight")
    if first is None or first.key not in widened:
        return
    outputs = model.places["transformer.proj_out.weight"].shape[0]  # unsaid, it would be taken for the inputs
    for key, name in (("transformer", "transformer/config.json"), ("config", "config.json")):
        if key in base.configs:
            yield name, {**base.configs[key], "in_channels": widened[first.key], "out_channels": outputs}
    if "model_index" in base.configs:
        yield "model_index.json", {**base.configs["model_index"], "_class_name": _PIPELINE}
