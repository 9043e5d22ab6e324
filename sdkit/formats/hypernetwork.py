"""Hypernetworks of the A1111 web UI: small networks on the keys and values of cross-attention.

A pickle {width: (network for keys, network for values)} for the widths 320, 640, 768, 1024 and 1280, each with
``linear.0.weight``, ``linear.0.bias`` and so on (the oldest: ``linear1``, ``linear2``), and settings beside them
(``layer_structure``, ``activation_func``, …). x + network(x) replaces x: no change of weights equals it.
"""

from __future__ import annotations

import re
from dataclasses import replace

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.families.family import Model
from sdkit.formats.codec import Verdict
from sdkit.weights import Weights

_KEY = re.compile(r"(320|640|768|1024|1280|2048)\.(0|1|k|v)\.linear.*")


def detect(weights: Weights) -> Verdict:
    """Recognised by names like ``768.0.linear.0.weight``."""
    count = sum(1 for name in weights.tensors if _KEY.fullmatch(name))
    if count:
        return Verdict(True, f"{count} tensors are named like 768.0.linear.0.weight")
    return Verdict(False, "no tensor is named like 768.0.linear.0.weight")


def read(weights: Weights, model: Model | None) -> Artifact:
    """An artifact with key and value networks. `model` is not needed."""
    builder = ArtifactBuilder(weights, model, "hypernetwork")
    layers = []
    for name, info in weights.tensors.items():
        if _KEY.fullmatch(name):
            layers.append(builder.read(info))
        else:
            builder.leave(name)
    return replace(builder.build(), kind="hypernetwork", key_value=tuple(layers))
