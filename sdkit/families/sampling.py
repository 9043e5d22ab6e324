"""How a model must be sampled, as its files say it: a folder in its scheduler, a single file by markers.

ComfyUI and the web UIs look for the markers. (SD2 needs none: these programs tell its two kinds by other means.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sdkit.weights import DTYPES
from sdkit.weights.memory import MemoryWeights

FLAGS = ("v_pred", "ztsnr")
# Schedulers that know `rescale_betas_zero_snr`; others are replaced by DDIM where the last step must hold no signal.
_ZERO_SNR = {"DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"}
_ZERO_SNR |= {"DPMSolverMultistepScheduler", "LCMScheduler", "TCDScheduler", "UniPCMultistepScheduler"}
_PNDM_ONLY = ("skip_prk_steps",)


def scheduler_config(config: Mapping[str, Any], prediction: str, *, zero_snr: bool) -> dict[str, Any]:
    """A scheduler's configuration with what must hold in it; one that says so already keeps every word.

    Args:
        config: as diffusers writes it.
        prediction: ``epsilon`` or ``v_prediction``.
        zero_snr: whether the last timestep holds no signal.
    """
    changed = dict(config)
    if config.get("prediction_type", "epsilon") != prediction:
        changed["prediction_type"] = prediction
    if zero_snr and not config.get("rescale_betas_zero_snr"):
        changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        if config.get("_class_name") not in _ZERO_SNR:
            changed["_class_name"] = "DDIMScheduler"
            changed = {key: value for key, value in changed.items() if key not in _PNDM_ONLY}
    return changed


def raised_flags(family: str | None, prediction: str, *, zero_snr: bool) -> tuple[str, ...]:
    """The markers a single file of a family carries."""
    if family is None or family == "sd2":
        return ()
    flags = {"v_pred": prediction == "v_prediction", "ztsnr": zero_snr}
    return tuple(name for name, raised in flags.items() if raised)


def flag_tensors(names: Collection[str]) -> MemoryWeights:
    """Markers as the trainers of such models save them: empty tensors."""
    return MemoryWeights("markers", {name: (DTYPES["I64"], (0,), b"") for name in names}, {})
