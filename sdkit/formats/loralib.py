"""State dicts of loralib, LoRA's first implementation: ``<module>.lora_A`` and ``<module>.lora_B``, no ``.weight``.

Modules have the names of the model they were trained in, here diffusers' and transformers'. Which component they belong
to only the names tell. ΔW = alpha / rank · lora_B @ lora_A, and alpha is nowhere in the file: a person must say it
(`--network-alpha`). Linear layers only: loralib folds a convolution's kernel into rows and columns both, its embeddings
are transposed, and its merged q, k, v say nowhere which of them were trained. github.com/microsoft/LoRA.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats.codec import Verdict
from sdkit.formats.peft import LoraSettings, add_pair, candidates, fitting_component
from sdkit.weights import TensorInfo, Weights

CHANGES = ("lora",)
PROGRAMS = ("loralib",)
_KEY = re.compile(r"(?:(?P<component>unet|text_encoder(?:_2)?)\.)?(?P<module>.+)\.lora_(?P<side>[AB])")
_FOREIGN = ("diffusion_model.", "text_encoders.", "base_model.", "transformer.")


def detect(weights: Weights) -> Verdict:
    """Recognised by pairs named ``….lora_A`` and ``….lora_B``."""
    names = [name for name in weights.tensors if name.endswith((".lora_A", ".lora_B"))]
    count = sum(1 for name in names if _KEY.fullmatch(name) and not name.startswith(_FOREIGN))
    if count:
        return Verdict(True, f"{count} tensors are named like ….to_q.lora_A, without .weight behind")
    return Verdict(False, "no tensor is named like ….to_q.lora_A without .weight behind")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`. The scale is only a guess, see `Artifact.scale_known`."""
    builder = ArtifactBuilder(weights, model, "loralib")
    pairs: dict[tuple[str, str], dict[str, TensorInfo]] = defaultdict(dict)
    for name, info in weights.tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            builder.leave(name)
        elif len(info.shape) != 2:
            raise SdkitError(f"{weights.path}: {name} {list(info.shape)} is no factor of a linear layer")
        else:
            pairs[match["component"] or "", match["module"]][match["side"]] = info
    bare = {module: _shape(parts) for (component, module), parts in pairs.items() if not component}
    guess = fitting_component(builder, bare) if bare else ""
    settings = LoraSettings.parse({}, weights.path)
    for (component, module), parts in pairs.items():
        add_pair(builder, candidates(component or guess, module), module, parts, settings, stated=False)
    builder.note("a module has no alpha: alpha = rank is assumed; --network-alpha says what it was trained with")
    return replace(builder.build(), scale_known=False)


def _shape(parts: dict[str, TensorInfo]) -> tuple[int, ...] | None:
    return (parts["B"].shape[0], parts["A"].shape[1]) if {"A", "B"} <= set(parts) else None
