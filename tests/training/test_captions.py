from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from sdkit.core.errors import SdkitError, UsageError
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.buckets import bucket_sizes
from sdkit.training.cache import TensorCache
from sdkit.training.captions import PLACE, TEMPLATES, cut_off, naming, templates_of
from sdkit.training.data import Dataset, Sample, read_dataset
from sdkit.training.feed import Feed, FeedSettings


def dataset(*captions: str) -> Dataset:
    return Dataset(tuple(Sample(str(n), Path(f"{n}.png"), text, "", (8, 8)) for n, text in enumerate(captions)), {})


def test_every_caption_names_the_word_in_its_own_place() -> None:
    given = ["a {} on grass", "my <cat> asleep", "a <CAT>", "two <cats>", "asleep"]
    found = naming(dataset(*given), "<cat>", ("x {}",))
    wanted = ["a <cat> on grass", "my <cat> asleep", "a <CAT>", "<cat>, two <cats>", "<cat>, asleep"]
    assert [sample.caption for sample in found.samples] == wanted
    assert found.notes == ("2 captions do not name <cat>: it is put in front of them",)
    assert all(sample.captions == (sample.caption,) for sample in found.samples)
    assert naming(dataset("a {}"), "<cat>", ()).notes == ()


def test_pictures_without_captions_get_all_templates() -> None:
    (sample,) = naming(dataset(PLACE), "<cat>", ("a photo of {}", "{}!")).samples
    assert sample.captions == ("a photo of <cat>", "<cat>!") and sample.caption == sample.captions[0]
    assert sample.source == "templates"


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_name_the_word_once_and_differ(kind: str) -> None:
    templates = templates_of(kind)
    assert len(templates) >= 12 == len(set(templates))
    assert all(template.count(PLACE) == 1 for template in templates)


def test_an_unknown_kind_of_word_is_named() -> None:
    with pytest.raises(UsageError, match="property=stlye") as error:
        templates_of("stlye")
    assert "style" in error.value.hint


def test_words_that_come_too_late_are_counted(tiny_base: Path) -> None:
    tokenizer = load_backbone(tiny_base).tokenizers["text_encoder"]  # a letter a token
    given = dataset("<cat> asleep here", "eight ch<cat>", "nine char<cat>", "ten chars:<cat>", "too far away <cat>")
    assert [cut_off(given, tokenizer, "<cat>", vectors, 12) for vectors in (1, 2)] == [2, 3]
    with pytest.raises(SdkitError, match="in all captions <cat> comes after the 12 tokens"):
        cut_off(dataset("far too far away <cat>"), tokenizer, "<cat>", 1, 12)


def test_the_data_s_name_knows_the_templates() -> None:
    one, two = (naming(dataset(PLACE), "<cat>", ("a photo of {}", more)) for more in ("{} a", "{} b"))
    assert one.id != two.id


def test_each_showing_has_a_template_of_its_own_and_always_the_same(tiny_base: Path, pictures: Path) -> None:
    for file in pictures.glob("*.txt"):
        file.unlink()
    samples = naming(read_dataset(pictures, caption=PLACE), "cat", ("{}", "a {}", "b {}")).samples
    backbone = load_backbone(tiny_base)
    settings = FeedSettings(1, bucket_sizes(16, 4))

    def contexts() -> list[torch.Tensor]:
        feed = Feed(samples, backbone, TensorCache(None), settings, frozenset({"cond"}), keep_text=False)
        batches = [feed.batch(index, StepRNG(5, index)) for index in range(40)]
        return [batch.cond.context for batch in batches if batch.cond is not None]

    texts = [backbone.encode_text(backbone.tokenize([text]), (16, 16)).context for text in ("cat", "a cat", "b cat")]
    shown = contexts()
    counts = Counter(next(n for n, text in enumerate(texts) if torch.equal(text, context)) for context in shown)
    assert set(counts) == {0, 1, 2} and min(counts.values()) >= 5
    assert all(torch.equal(one, two) for one, two in zip(shown, contexts(), strict=True))
