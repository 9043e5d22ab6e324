"""Options that several methods share: a method inherits the sets it takes, and says where its defaults differ.

`DenoisingOptions` are `TrainOptions` with more keys and come last among a method's bases. The other sets stand free of
both: a dataclass takes every field of a base, inherited ones too, so a set built on `TrainOptions` would undo what the
bases behind it declare.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.training.options import IsFile, TrainOptions, always, fixed, option

if TYPE_CHECKING:
    from sdkit.runtime.cost import StepCost
    from sdkit.training.objectives.denoising import Denoising
    from sdkit.training.plan import Base


def _is_mask_folder(text: str, is_file: IsFile) -> bool:
    return text not in ("alpha", "files")


def is_one_file(text: str, is_file: IsFile) -> bool:
    """Whether an option that names an image encoder names a file or folder: not the embedded base, and not several."""
    return text != "tiny" and "," not in text


@dataclass(frozen=True)
class DenoisingOptions(TrainOptions):
    """Of methods that learn from captioned pictures by denoising."""

    caption_dropout: float = option(0.0, "share of steps a picture comes without its caption", minimum=0.0, maximum=1.0)
    mask: str = option(
        "",
        "which parts count: alpha, files (NAME-masklabel.png beside) or a folder; white counts",
        names_file=_is_mask_folder,
    )
    unmasked_weight: float = option(0.0, "how much the masked-out parts count", minimum=0.0, maximum=1.0)
    token: str = option("", "trigger word, noted in the file")
    snr_gamma: float | None = option(None, "min-SNR weighting, usually 5", minimum=0.0)
    noise_offset: float = option(0.0, "noise common to a whole picture", minimum=0.0)
    prediction: str | None = option(None, "epsilon or v_prediction, where the base does not say")
    prior_weight: float = fixed(1.0)  # of pictures of the class: see `PriorOptions`

    def denoising(self) -> Denoising:
        """What is minimised, as these keys have it."""
        from sdkit.training.objectives.denoising import Denoising

        return Denoising(self.prior_weight, self.snr_gamma, self.noise_offset)


@dataclass(frozen=True)
class TextEncoderOptions:
    """Of methods that may train the text encoder too."""

    text_encoder: bool = option(False, "train the text encoder too")
    te_lr: float | None = option(None, "learning rate of the text encoder [default: lr]", minimum=0.0, late=True)

    def text_lr(self, lr: float) -> float:
        """The text encoder's learning rate, beside that of the rest."""
        return lr if self.te_lr is None else self.te_lr


@dataclass(frozen=True)
class WholeWeightOptions:
    """Of methods that train the base's own weights, where memory is what runs out."""

    weights: str = option("fp32", "type the trained weights are kept in: fp32, or bf16 rounded at random")
    fused_backward: bool = option(False, "update each weight as soon as its gradient is there, and free the gradient")

    def for_memory(self) -> dict[str, Any]:
        """Defaults that follow: bf16 weights compute in bf16, and a fused pass cannot clip what it never holds."""
        precision = {"precision": "bf16"} if self.weights == "bf16" else {}
        return precision | ({"max_grad_norm": 0.0} if self.fused_backward else {})


@dataclass(frozen=True)
class PriorOptions:
    """Of methods that may show pictures of the subject's class beside those of the subject (prior preservation)."""

    class_: str | None = option(None, "what the subject is one of; turns prior preservation on")
    class_images: int | None = option(
        None, "pictures of the class that the base draws [default: as many as the run shows, at most 200]", minimum=1
    )
    class_data: str = option("", "folder of pictures of the class, instead of drawn ones", names_file=always)
    prior_weight: float = option(1.0, "weight of the class pictures", minimum=0.0)


@dataclass(frozen=True)
class LoraOptions(TextEncoderOptions):
    """Of methods that train a LoRA, by any algorithm."""

    algo: str = option("lora", "what is trained beside a layer: lora, dora, loha, lokr or lidb")
    rank: int = option(16, "rank of the LoRA", minimum=1)
    network_alpha: float | None = option(None, "scale × rank of the LoRA [default: rank]", minimum=0.0)
    targets: str = option("transformer", "layers: attention, transformer, or a regular expression")
    conv_rank: int = option(0, "rank beside convolutions (LoCon); 0 leaves them out", minimum=0)
    conv_alpha: float | None = option(None, "alpha beside convolutions [default: conv_rank]", minimum=0.0)
    rslora: bool = option(False, "scale by alpha / sqrt(rank)")
    factor: int = option(-1, "size of LoKr's smaller side; -1 makes both sides about equal", minimum=-1)
    decompose_both: bool = option(False, "LoKr's smaller side may be low-rank too")
    basis_up: int = option(100, "columns of LiDB's frozen basis at a layer's output", minimum=1)
    basis_down: int = option(50, "rows of LiDB's frozen basis at a layer's input", minimum=1)
    basis_seed: int = option(0, "LiDB's frozen bases follow from it", minimum=0)
    lora_plus: float = option(1.0, "learning rate of up beside that of down (LoRA+: 16)", minimum=0.0)
    format: str = option("kohya", "file format of the result: kohya or peft (lidb of a LiDB)")


@dataclass(frozen=True)
class ImageEncoderOptions:
    """Of methods that look at pictures with CLIP's image encoder."""

    image_encoder: str = option(
        "",
        "CLIP of the base's text encoder: a folder or file, several with commas [default: the base's own]",
        names_file=is_one_file,
        names_model=True,
    )

    def check_towers(self, base: Base) -> None:
        """Look for the image encoder before anything is loaded.

        Raises:
            SdkitError: there is none, or one of another text encoder.
        """
        from sdkit.runtime.image_tower import check_towers

        check_towers(self.image_encoder, base.path, base.configs)

    def tower_cost(self, base: Base) -> StepCost:
        """What a picture costs."""
        from sdkit.runtime.cost import image_encoder_cost
        from sdkit.runtime.image_tower import tower_configs

        return image_encoder_cost(tower_configs(self.image_encoder, base.path)[0].vision)
