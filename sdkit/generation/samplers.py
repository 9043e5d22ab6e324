"""Samplers by the names of A1111's web UI, each one of diffusers' schedulers.

A1111's own samplers are k-diffusion's, which take their timesteps evenly from the last to the first; diffusers calls
that spacing ``linspace``. DDIM, PLMS and UniPC take every n-th one from the first on (``leading``, offset 1). A base
whose last timestep holds no signal (zero terminal SNR) has to begin there, so all take ``trailing`` ones
(arXiv:2305.08891, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.runtime.schedule import LEAST_SIGNAL

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.schedule import NoiseSchedule


@dataclass(frozen=True, slots=True)
class Sampler:
    """A scheduler of diffusers with its settings.

    Attributes:
        scheduler: the class's name.
        settings: of its configuration.
        karras: whether the noise levels can follow Karras et al. (arXiv:2206.00364, equation 5).
        spacing: of the timesteps.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    karras: bool = False
    spacing: str = "linspace"


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_BASIC = {
    "Euler": Sampler("EulerDiscreteScheduler", karras=True),
    "Euler a": Sampler("EulerAncestralDiscreteScheduler"),
    "Heun": Sampler("HeunDiscreteScheduler", karras=True),
    "LMS": Sampler("LMSDiscreteScheduler", karras=True),
    "DPM2": Sampler("KDPM2DiscreteScheduler", karras=True),
    "DPM2 a": Sampler("KDPM2AncestralDiscreteScheduler", karras=True),
    "DPM++ 2M": Sampler("DPMSolverMultistepScheduler", karras=True),
    "DPM++ 2M SDE": Sampler("DPMSolverMultistepScheduler", _SDE, karras=True),
    "DPM++ 2M SDE Heun": Sampler("DPMSolverMultistepScheduler", {**_SDE, "solver_type": "heun"}, karras=True),
    "DPM++ 3M SDE": Sampler("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}, karras=True),
    "DDIM": Sampler("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, spacing="leading"),
    "DDPM": Sampler("DDPMScheduler", {"clip_sample": False}, spacing="leading"),
    "PLMS": Sampler("PNDMScheduler", {"skip_prk_steps": True}, spacing="leading"),
    "UniPC": Sampler("UniPCMultistepScheduler", spacing="leading"),
    "LCM": Sampler("LCMScheduler", spacing="leading"),
}
_OTHER_NAMES = {"PNDM": "PLMS", "Euler ancestral": "Euler a"}
SAMPLERS: Mapping[str, Sampler] = {
    **_BASIC,
    **{
        f"{name} Karras": Sampler(entry.scheduler, {**entry.settings, "use_karras_sigmas": True}, spacing=entry.spacing)
        for name, entry in _BASIC.items()
        if entry.karras
    },
}


def sampler_name(name: str) -> str:
    """The name as A1111 writes it, from any spelling of it: ``dpm++_2m_karras`` is ``DPM++ 2M Karras``.

    Raises:
        UsageError: there is no such sampler; the hint names the nearest.
    """
    known = {_plain(entry): entry for entry in SAMPLERS} | {_plain(key): entry for key, entry in _OTHER_NAMES.items()}
    found = known.get(_plain(name))
    if found is None:
        raise UsageError(f"unknown sampler {name!r}", _nearest(name, known))
    return found


def make_scheduler(name: str, schedule: NoiseSchedule) -> Any:
    """A scheduler of diffusers that draws by a base's own schedule and kind of prediction.

    Raises:
        SdkitError: there is no such sampler, or a package it needs is missing.
    """
    import diffusers

    sampler = SAMPLERS[sampler_name(name)]
    settings = {
        "num_train_timesteps": schedule.steps,
        "trained_betas": _betas(schedule).tolist(),
        "prediction_type": schedule.prediction,
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else sampler.spacing,
        "steps_offset": 1,
        **sampler.settings,
    }
    try:
        return getattr(diffusers, sampler.scheduler)(**settings)
    except ImportError:
        raise SdkitError(f"the sampler {name} needs the package scipy", "pip install scipy") from None


def _betas(schedule: NoiseSchedule) -> torch.Tensor:
    """β_t = 1 − ᾱ_t / ᾱ_(t−1); with no signal at all, the noise level would be infinite."""
    import torch

    alphas = schedule.alphas.detach().cpu().double().clamp(min=LEAST_SIGNAL)
    before = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return 1 - alphas / before


def _plain(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "").replace("-", "")


def _nearest(name: str, known: Mapping[str, str]) -> str:
    hint = nearest_hint(_plain(name), known)
    near = hint.removeprefix("did you mean ").rstrip("?")
    return f"did you mean {known[near]}?" if near in known else f"there are: {', '.join(SAMPLERS)}"
