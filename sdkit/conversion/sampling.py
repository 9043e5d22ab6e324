"""How a model is sampled, kept both ways: a folder says it in its scheduler, a single file by markers and metadata.

    scheduler_config.json           single file
    prediction_type                 modelspec.prediction_type; for a velocity also the empty tensor ``v_pred``
    rescale_betas_zero_snr          the empty tensor ``ztsnr``

`sdkit.families.sampling` says how each of them is written. All models of SD3 and FLUX.1 predict a flow; how it is
followed, the folder's scheduler says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdkit.conversion.checkpoint import Checkpoint
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.describe import published_folder
from sdkit.families.reference import published_config
from sdkit.families.sampling import raised_flags, scheduler_config

PREDICTIONS = ("epsilon", "v_prediction")
_ARCHITECTURES = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v_prediction"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
    ("sdxl-refiner", "epsilon"): "stable-diffusion-xl-v1-refiner",
}
_FLOW_ARCHITECTURES = {  # sd-scripts' words, by variant: ModelSpec has none
    "dev": "flux-1-dev",
    "schnell": "flux-1-schnell",
    "medium": "stable-diffusion-3-m",
    "3.5-medium": "stable-diffusion-3-5-medium",
    "3.5-large": "stable-diffusion-3-5-large",
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """What must be known to draw with a model beside its weights.

    Attributes:
        prediction: ``epsilon``, ``v_prediction`` or ``flow``.
        zero_snr: whether the last timestep holds no signal.
        scheduler: the configuration of a scheduler of diffusers that does so.
    """

    prediction: str
    zero_snr: bool
    scheduler: dict[str, Any]


def sampling_of(checkpoint: Checkpoint, prediction: str | None = None) -> Sampling:
    """How the checkpoint is sampled: as asked for, else as it says, else as its family usually is.

    Raises:
        SdkitError: nothing says what an SD2 model predicts, or it is trained in a way no scheduler here describes.
        UsageError: `prediction` is no such thing.
    """
    if prediction is not None and prediction not in PREDICTIONS:
        raise UsageError(f"prediction {prediction!r} is unknown", f"it is one of {', '.join(PREDICTIONS)}")
    markers, family = checkpoint.model.markers, checkpoint.family
    assert family is not None
    if "edm_mean" in markers:
        raise SdkitError(f"{checkpoint.weights.path}: is trained in the EDM way, which no folder here can describe")
    stated = checkpoint.configs.get("scheduler")
    scheduler = dict(stated or published_config(published_folder(family, checkpoint.model.variant), "scheduler"))
    if family.flow and prediction is not None:
        raise UsageError(f"a model of {family.title} predicts a flow and nothing else", "leave out --prediction")
    if family.flow:
        return Sampling("flow", False, scheduler)
    said = prediction or checkpoint.model.prediction or (stated or {}).get("prediction_type")
    if said is None and family.name == "sd2" and not stated:
        raise SdkitError(
            f"{checkpoint.weights.path}: nothing in it says whether it predicts the noise or the velocity",
            "--prediction v_prediction for models made for 768 pixels, --prediction epsilon for those for 512",
        )
    predicts = said or "epsilon"
    if predicts not in PREDICTIONS:
        raise SdkitError(
            f"{checkpoint.weights.path}: its scheduler says that it predicts {predicts!r}, which only a folder can",
            f"--prediction {' or '.join(PREDICTIONS)}, if that is wrong",
        )
    zero_snr = "ztsnr" in markers or bool(scheduler.get("rescale_betas_zero_snr"))
    return Sampling(predicts, zero_snr, scheduler_config(scheduler, predicts, zero_snr=zero_snr))


def sampling_metadata(checkpoint: Checkpoint, sampling: Sampling) -> dict[str, str]:
    """What a single file says of it in ModelSpec's words."""
    assert checkpoint.family is not None
    if sampling.prediction == "flow":
        known = _FLOW_ARCHITECTURES.get(checkpoint.model.variant)
        return {"modelspec.architecture": known} if known else {}
    said = {"modelspec.prediction_type": "v" if sampling.prediction == "v_prediction" else "epsilon"}
    architecture = _ARCHITECTURES.get((checkpoint.family.name, sampling.prediction))
    if architecture and checkpoint.model.variant == "base":
        said["modelspec.architecture"] = architecture
    return said


def markers_for(checkpoint: Checkpoint, sampling: Sampling) -> tuple[str, ...]:
    """The flags a single file of this kind carries."""
    family = checkpoint.family.name if checkpoint.family is not None else None
    return raised_flags(family, sampling.prediction, zero_snr=sampling.zero_snr)
