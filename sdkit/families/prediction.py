"""What a U-Net predicts, the noise or the velocity: its weights do not say, so the file around them must."""

from __future__ import annotations

from sdkit.weights import Weights

_SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
_ARCHITECTURES = {"stable-diffusion-v2-768-v": "v_prediction", "stable-diffusion-v2-512": "epsilon"}


def find_prediction(weights: Weights) -> tuple[str | None, str]:
    """The prediction type and the sentence that gives the evidence, or says that there is none."""
    for name in ("v_pred", "edm_vpred.sigma_max"):
        if name in weights.tensors:
            return "v_prediction", f"it predicts the velocity: it holds the marker {name}"
    if "edm_mean" in weights.tensors:
        return None, "it is trained in the EDM way: it holds the marker edm_mean"
    declared = weights.metadata.get("modelspec.prediction_type", "").lower()
    if declared in _SPELLINGS:
        return _SPELLINGS[declared], f"its metadata say that it predicts {declared}"
    architecture = weights.metadata.get("modelspec.architecture", "").partition("/")[0]
    if architecture in _ARCHITECTURES:
        return _ARCHITECTURES[architecture], f"its metadata say that it is a {architecture}"
    configured = weights.configs.get("scheduler", {}).get("prediction_type")
    if isinstance(configured, str) and configured in _SPELLINGS:
        return _SPELLINGS[configured], f"its scheduler is configured for {configured}"
    return None, "names and shapes do not say whether it predicts the noise or the velocity"
