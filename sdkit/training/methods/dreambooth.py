"""DreamBooth: teach the base, or a LoRA of it, a subject under a rare word.

With ``class=`` each batch holds as many pictures of the subject's class, drawn by the base itself, so that the base
goes on knowing what others of the class look like (prior preservation; Ruiz et al. 2022, arXiv:2208.12242).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint
from sdkit.training.data import Dataset
from sdkit.training.identifier import base_tokenizer, known_words
from sdkit.training.method import Method, read_captioned
from sdkit.training.methods import fine_tune, lora
from sdkit.training.options import TrainOptions
from sdkit.training.plan import Base

_OWN = frozenset("as class class_images class_data prior_weight".split())
_FORMS = ("weights", "lora")
MAX_PIECES = 3  # a word that falls into more tokens is hard to learn, and easily learnt into each of them


def instance_prompt(options: TrainOptions) -> str:
    """The caption of pictures that have none."""
    return options.caption or " ".join(filter(None, ("a", options.token, options.class_)))


def class_prompt(options: TrainOptions) -> str:
    """What pictures of the class are drawn from; empty where none are wanted.

    Raises:
        UsageError: there are pictures of a class, and no name for it.
    """
    if not options.class_:
        if options.class_data:
            raise UsageError("class_data= needs class=", "name what the pictures show: class=dog")
        return ""
    return f"{'an' if options.class_[0].lower() in 'aeiou' else 'a'} {options.class_}"


def _dataset(folder: Path, options: TrainOptions) -> Dataset:
    return read_captioned(folder, replace(options, caption=instance_prompt(options)))


def _notes(base: Base, dataset: Dataset, options: TrainOptions) -> list[str]:
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


def _variant(options: TrainOptions) -> Method:
    """What the options make of the method: its defaults are those of the authors' and diffusers' own recipes."""
    if options.as_ not in _FORMS:
        raise UsageError(f"as={options.as_}: unknown", nearest_hint(options.as_, _FORMS))
    if options.as_ == "lora":
        kind, defaults = lora.METHOD, {"lr": 1e-4, "rank": 4, "steps": 500}
    else:
        kind = fine_tune.METHOD
        rate, steps = 2e-6 if options.text_encoder else 5e-6, 800 if options.class_ else 400
        defaults = {"lr": rate, "steps": steps, "caption_dropout": 0.0}
    return replace(
        kind,
        accepts=kind.accepts | _OWN,
        defaults={**kind.defaults, **defaults, "token": "sks"},
        dataset=_dataset,
        notes=_notes,
        class_prompt=class_prompt,
    )


METHOD = replace(
    _variant(TrainOptions()), accepts=fine_tune.METHOD.accepts | lora.METHOD.accepts | _OWN, variant=_variant
)
