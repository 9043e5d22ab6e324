from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.buckets import bucket_sizes
from sdkit.training.cache import TensorCache, cache_key
from sdkit.training.data import Sample, read_dataset
from sdkit.training.feed import Feed, FeedSettings

INPUTS = frozenset({"latents", "cond"})


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


@pytest.fixture
def samples(pictures: Path) -> list[Sample]:
    return list(read_dataset(pictures).samples)


def feed(backbone: Backbone, samples: list[Sample], cache: TensorCache | None = None, **settings: object) -> Feed:
    chosen = FeedSettings(**{"batch": 2, "buckets": bucket_sizes(16, 4), **settings})  # type: ignore[arg-type]
    return Feed(samples, backbone, cache or TensorCache(None), chosen, INPUTS)


def shown(feed: Feed, batches: range, seed: int = 0) -> list[tuple[str, ...]]:
    return [feed.batch(index, StepRNG(seed, index)).samples for index in batches]


def test_every_epoch_shows_every_sample_and_none_is_in_a_batch_of_another_size(
    backbone: Backbone, samples: list[Sample]
) -> None:
    tall = {sample.id for sample in samples if sample.size != (16, 16)}
    source = feed(backbone, samples)
    assert source.batches_per_epoch == 3
    for epoch in range(3):
        batches = shown(source, range(3 * epoch, 3 * epoch + 3))
        ids = {sample.partition("#")[0] for batch in batches for sample in batch}
        assert ids == {sample.id for sample in samples}
        for batch in batches:
            assert len(batch) == len(set(batch)) == 2
            assert len({sample.partition("#")[0] in tall for sample in batch}) == 1


def test_the_order_is_a_function_of_seed_and_epoch(backbone: Backbone, samples: list[Sample]) -> None:
    source = feed(backbone, samples, batch=1)
    wanted = shown(source, range(20))
    assert shown(feed(backbone, samples, batch=1), range(15, 20)) == wanted[15:]
    assert wanted[:5] != wanted[5:10] or wanted[:5] != wanted[10:15]
    assert shown(feed(backbone, samples, batch=1), range(5), seed=1) != wanted[:5]


def test_repeats_are_shown_as_often_with_names_of_their_own(backbone: Backbone, samples: list[Sample]) -> None:
    source = feed(backbone, [replace(samples[0], repeats=3), samples[1]], batch=1)
    ids = [sample for batch in shown(source, range(source.batches_per_epoch)) for sample in batch]
    assert Counter(sample.partition("#")[0] for sample in ids) == {samples[0].id: 3, samples[1].id: 1}
    assert len(set(ids)) == 4


def test_class_pictures_come_beside_the_subject_in_its_size(backbone: Backbone, samples: list[Sample]) -> None:
    priors = [replace(sample, prior=True) for sample in samples[1:4]]
    source = feed(backbone, [samples[0], *priors], batch=2)
    seen: Counter[str] = Counter()
    for index in range(6):
        batch = source.batch(index, StepRNG(0, index))
        assert batch.prior == (False, False, True, True)
        assert batch.latents is not None and batch.latents.mean.shape == (4, 4, 8, 8)
        assert len(set(batch.samples)) == 4
        seen.update(sample.partition("#")[0] for sample in batch.samples[2:])
    assert set(seen.values()) == {4}


def test_processes_divide_a_batch_among_them(backbone: Backbone, samples: list[Sample]) -> None:
    source = feed(backbone, samples, batch=3)
    whole = source.batch(0, StepRNG(0, 0))
    parts = [source.batch(0, StepRNG(0, 0), rank, 2) for rank in range(2)]
    assert sorted(parts[0].samples + parts[1].samples) == sorted(whole.samples)
    assert sum(part.share for part in parts) == pytest.approx(1)


def test_captions_are_dropped_as_often_as_asked(backbone: Backbone, samples: list[Sample]) -> None:
    source = feed(backbone, samples[:1], batch=1, caption_dropout=0.5)
    empty = backbone.encode_text(backbone.tokenize([""]), (16, 16)).context
    dropped = 0
    for index in range(60):
        cond = source.batch(index, StepRNG(0, index)).cond
        assert cond is not None
        dropped += torch.equal(cond.context, empty)
    assert 18 < dropped < 42


def test_flipped_latents_are_those_of_the_flipped_picture(backbone: Backbone, tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (16, 16), "white")
    image.paste("black", (0, 0, 5, 16))
    image.save(tmp_path / "left half.png")
    sample = read_dataset(tmp_path).samples[0]
    source = feed(backbone, [sample], batch=1, flip=True)
    means = {}
    for index in range(20):
        latents = source.batch(index, StepRNG(0, index)).latents
        assert latents is not None
        means[tuple(latents.mean.flatten().tolist())] = latents.mean
    assert len(means) == 2
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "left half.png")
    flipped = feed(backbone, list(read_dataset(tmp_path).samples), batch=1).batch(0, StepRNG(0)).latents
    assert flipped is not None and tuple(flipped.mean.flatten().tolist()) in means


def test_the_cache_finds_what_is_the_same_and_nothing_else(
    backbone: Backbone, samples: list[Sample], pictures: Path, tmp_path: Path
) -> None:
    def computed(**settings: object) -> int:
        cache = TensorCache(tmp_path / "cache")
        return feed(backbone, list(read_dataset(pictures).samples), cache, **settings).prepare()

    assert computed() == 10  # five pictures, five captions
    assert computed() == 0
    assert computed(flip=True) == 5
    assert computed(buckets=bucket_sizes(8, 4)) == 10  # conditioning may depend on the size
    (pictures / "0.txt").write_text("other words")
    assert computed() == 1
    (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())
    assert computed() == 0
    with torch.no_grad():
        next(backbone.vae.parameters()).add_(1)
    assert computed() == 4


def test_a_damaged_entry_of_the_cache_is_computed_again(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    value = cache.get("ab", lambda: {"x": torch.arange(3.0)})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(b"damage")
    again = TensorCache(tmp_path).get("ab", lambda: {"x": torch.arange(3.0)})
    assert torch.equal(value["x"], again["x"])
    assert torch.equal(TensorCache(tmp_path).get("ab", dict)["x"], value["x"])


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TensorCache(tmp_path / "file")
    assert cache.get("ab", lambda: {"x": torch.ones(1)})["x"] == 1
    assert cache.get("ab", dict)["x"] == 1


def test_keys_keep_their_parts_apart() -> None:
    assert cache_key("a", "bc") != cache_key("a", "b", "c") != cache_key("ab", "c")


def test_latents_that_are_no_numbers_name_the_picture(backbone: Backbone, samples: list[Sample]) -> None:
    with torch.no_grad():
        backbone.vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(SdkitError, match=r"0\.png: the autoencoder gives no finite latents"):
        feed(backbone, samples[:1]).prepare()


def test_encoding_is_told_and_divided_among_processes(
    backbone: Backbone, samples: list[Sample], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    cache = TensorCache(tmp_path / "cache")
    twice = [replace(sample, repeats=2) for sample in samples]
    first = feed(backbone, twice, cache).prepare(lambda *entry: told.append(entry), rank=0, world=2)
    assert told == [(1, 3), (2, 3), (3, 3)]
    second = feed(backbone, twice, TensorCache(tmp_path / "cache")).prepare(rank=1, world=2)
    assert first > 0 and second > 0
    assert feed(backbone, twice, TensorCache(tmp_path / "cache")).prepare() == 0
