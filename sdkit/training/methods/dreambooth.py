"""DreamBooth: teach the base, or a LoRA of it, a subject under a rare word.

With ``class=`` each batch holds as many pictures of the subject's class, drawn by the base itself, so that the base
goes on knowing what others of the class look like (prior preservation; Ruiz et al. 2022, arXiv:2208.12242).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdkit.core.errors import UsageError
from sdkit.training.data import Dataset
from sdkit.training.identifier import base_tokenizer, known_words
from sdkit.training.method import Method, Prior, read_captioned
from sdkit.training.methods import fine_tune, lora
from sdkit.training.option_sets import PriorOptions
from sdkit.training.options import option
from sdkit.training.plan import Base

MAX_PIECES = 3  # a word that falls into more tokens is hard to learn, and easily learnt into each of them


@dataclass(frozen=True)
class SubjectOptions(PriorOptions):
    """Of whatever learns a subject. The defaults of each form are those of the authors' and diffusers' own recipes."""

    token: str = option("sks", "the subject's word: a rare one")
    as_: str = option("weights", "what learns: weights (the base itself) or lora")


@dataclass(frozen=True)
class WeightOptions(SubjectOptions, fine_tune.Options):
    """Of ``as=weights``."""

    lr: float = 5e-6
    steps: int = 400
    caption_dropout: float = 0.0

    def usual(self) -> Mapping[str, Any]:
        """A text encoder is trained more gently, and with a class there is more to learn."""
        gentle = {"lr": 2e-6} if self.text_encoder else {}
        return {**super().usual(), **gentle, **({"steps": 800} if self.class_ else {})}


@dataclass(frozen=True)
class LoraOptions(SubjectOptions, lora.Options):
    """Of ``as=lora``."""

    as_: str = "lora"
    lr: float = 1e-4
    steps: int = 500
    rank: int = 4


Options = WeightOptions | LoraOptions


def instance_prompt(options: Options) -> str:
    """The caption of pictures that have none."""
    return options.caption or " ".join(filter(None, ("a", options.token, options.class_)))


def prior(options: PriorOptions) -> tuple[Prior, ...]:
    """The pictures of the class; none where none are wanted.

    Raises:
        UsageError: there are pictures of a class, and no name for it.
    """
    if not options.class_:
        if options.class_data:
            raise UsageError("class_data= needs class=", "name what the pictures show: class=dog")
        return ()
    folder = Path(options.class_data) if options.class_data else None
    return (Prior(with_article(options.class_), options.class_images, folder),)


def with_article(noun: str) -> str:
    """A class as a prompt names it."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _dataset(folder: Path, options: Options) -> Dataset:
    return read_captioned(folder, replace(options, caption=instance_prompt(options)))


def _notes(base: Base, dataset: Dataset, options: Options) -> list[str]:
    """What is doubtful about the subject's word."""
    tokenizer = base_tokenizer(base.path, base.configs["text_encoder"])
    notes = [
        f"token={options.token}: the base knows the word {word} already, and will mix it up with the subject; "
        "a rare one such as sks is better"
        for word in known_words(tokenizer, options.token)
    ]
    pieces = len(tokenizer(options.token, add_special_tokens=False).input_ids)
    if pieces > MAX_PIECES:
        notes.append(f"token={options.token}: falls into {pieces} tokens; a shorter word is learnt more easily")
    return notes


def _form(kind: Method[Any], options: type[Options]) -> Method[Any]:
    """What another method trains, with the pictures and captions of DreamBooth."""
    return replace(kind, options=options, dataset=_dataset, notes=_notes, prior=prior)


_FORMS = {"weights": _form(fine_tune.METHOD, WeightOptions), "lora": _form(lora.METHOD, LoraOptions)}
METHOD = replace(_FORMS["weights"], forms=_FORMS)
