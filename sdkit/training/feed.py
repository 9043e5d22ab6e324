"""From a dataset to the batches of a run: which samples come when is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sdkit.core.errors import SdkitError
from sdkit.runtime.backbone import Backbone, Cond, Latents
from sdkit.runtime.losses import HeldOut
from sdkit.runtime.rng import StepRNG
from sdkit.training.batch import Batch
from sdkit.training.buckets import Size, nearest_size
from sdkit.training.cache import TensorCache, cache_key
from sdkit.training.data import Sample
from sdkit.training.images import fit, frame_of, open_picture, pixels
from sdkit.training.masks import latent_mask

if TYPE_CHECKING:
    import torch

Watch = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """How samples become batches.

    Attributes:
        batch: samples in a batch (as many of the class come on top, where there are any).
        buckets: the sizes pictures are brought to.
        flip: mirror half of them, at random.
        caption_dropout: probability that a sample comes without its caption.
        background: what transparent pixels show.
        unmasked_weight: how much those places count that a mask leaves out.
    """

    batch: int
    buckets: Sequence[Size]
    flip: bool = False
    caption_dropout: float = 0.0
    background: str = "white"
    unmasked_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class _Slot:
    """One showing of a sample in an epoch."""

    sample: Sample
    size: Size
    number: int

    @property
    def id(self) -> str:
        """Unlike that of any other slot, so that each showing has noise of its own."""
        return f"{self.sample.id}#{self.number}" if self.number else self.sample.id


class Feed:
    """The batches of a run.

    Args:
        samples: of a `Dataset`.
        backbone: encodes pictures and captions.
        cache: keeps what it encoded.
        inputs: the fields of `Batch` that are wanted.
        keep_text: whether encoded captions may be kept: not when a text encoder or a token is trained.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        backbone: Backbone,
        cache: TensorCache,
        settings: FeedSettings,
        inputs: frozenset[str],
        *,
        keep_text: bool = True,
    ) -> None:
        self.samples = samples
        self.settings = settings
        self._backbone = backbone
        self._cache = cache
        self._inputs = inputs
        self._keep_text = keep_text
        self._slots = self._by_size([sample for sample in samples if not sample.prior])
        self._priors = [sample for sample in samples if sample.prior]
        self._subjects: dict[str, list[Sample]] = {}
        for sample in samples:
            self._subjects.setdefault(sample.subject, []).append(sample)
        self._epoch: tuple[int, int, list[list[_Slot]]] | None = None
        self._ids: dict[str, str] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every sample has been shown as often as it repeats."""
        return batches_per_epoch([len(slots) for slots in self._slots.values()], self.settings.batch)

    def batch(self, index: int, rng: StepRNG, rank: int = 0, world: int = 1) -> Batch:
        """The batch number `index` of the run, or what process `rank` of `world` gets of it.

        Args:
            rng: of that batch.
        """
        epoch, place = divmod(index, self.batches_per_epoch)
        slots = self._order(epoch, rng)[place]
        slots = [*slots, *self._prior_slots(index, slots, rng)]
        mine = slots[rank::world]
        return self._make(mine, len(mine) / len(slots), rng)

    @property
    def square(self) -> Size:
        """What references are brought to, so that all are alike."""
        return nearest_size((1, 1), self.settings.buckets)

    def held_out(self, sample: Sample, size: Size, among: Sequence[Sample] = ()) -> HeldOut:
        """A picture beside the run's, on the CPU, as far as the objective looks at it.

        Args:
            among: the pictures beside the run's, where its reference is looked for.
        """
        slot = _Slot(sample, size, 0)
        same = [other for other in among if other.subject == sample.subject]
        other = same[(same.index(sample) + 1) % len(same)] if sample in same else sample
        mask = self._mask(slot, False)
        return HeldOut(
            sample.id,
            sample.caption,
            size,
            self._latents(slot, False) if "latents" in self._inputs else None,
            self._pixels(slot, False)[None] if "pixels" in self._inputs else None,
            frame_of(sample.size, size),
            None if mask is None else mask[None],
            self._look_at(other)[None] if self._looks_at_references else None,
        )

    def all_pixels(self) -> Iterator[torch.Tensor]:
        """Every picture once, [1, 3, h, w], on the CPU."""
        for slots in self._slots.values():
            yield from (self._pixels(slot, False)[None] for slot in slots if slot.number == 0)

    def prepare(self, watch: Watch = lambda done, total: None, *, rank: int = 0, world: int = 1) -> int:
        """Encode everything that can be kept, before the first step.

        Args:
            watch: told how many pictures are encoded, and of how many.
            rank: of several processes with one cache each encodes its part.
            world: how many processes there are.

        Returns:
            How many results had to be computed.

        Raises:
            SdkitError: a picture's latents are no finite numbers; the message names it.
        """
        before = self._cache.computed
        slots = [slot for slots in self._slots.values() for slot in slots if slot.number == 0][rank::world]
        for number, slot in enumerate(slots, 1):
            if "latents" in self._inputs:
                for flipped in {False, self.settings.flip}:
                    self._latents(slot, flipped)
                    self._mask(slot, flipped)
            if self._looks_at_references:
                self._look_at(slot.sample)
            if {"cond", "text"} & self._inputs and self._keep_text:
                for caption in slot.sample.captions:
                    self._cond(caption, slot.size)
            watch(number, len(slots))
        return self._cache.computed - before

    def _by_size(self, samples: Sequence[Sample]) -> dict[Size, list[_Slot]]:
        groups: dict[Size, list[_Slot]] = {}
        for sample in samples:
            size = nearest_size(sample.size, self.settings.buckets)
            groups.setdefault(size, []).extend(_Slot(sample, size, number) for number in range(sample.repeats))
        return dict(sorted(groups.items()))

    def _order(self, epoch: int, rng: StepRNG) -> list[list[_Slot]]:
        """The batches of an epoch. The last of each size is filled up from its beginning, so all are equally large."""
        if self._epoch is None or self._epoch[:2] != (epoch, rng.attempt):
            shuffle = rng.at(epoch)
            batches = []
            for size, slots in self._slots.items():
                order = [slots[index] for index in shuffle.permutation(len(slots), "order", str(size))]
                batches += _chunks(order, self.settings.batch)
            order_of_batches = shuffle.permutation(len(batches), "batches")
            self._epoch = (epoch, rng.attempt, [batches[index] for index in order_of_batches])
        return self._epoch[2]

    def _prior_slots(self, index: int, slots: Sequence[_Slot], rng: StepRNG) -> list[_Slot]:
        """As many samples of the class as of the subject, in the same size, each in turn."""
        chosen = []
        for offset in range(len(slots) if self._priors else 0):
            epoch, place = divmod(index * len(slots) + offset, len(self._priors))
            order = rng.at(epoch).permutation(len(self._priors), "prior order")
            chosen.append(_Slot(self._priors[order[place]], slots[0].size, offset))
        return chosen

    def _make(self, slots: Sequence[_Slot], share: float, rng: StepRNG) -> Batch:
        flips = [self.settings.flip and rng.chance(0.5, "flip", slot.id) for slot in slots]
        captions = tuple(self._caption(slot, rng) for slot in slots)
        return Batch(
            samples=tuple(slot.id for slot in slots),
            share=share,
            prior=tuple(slot.sample.prior for slot in slots),
            captions=captions,
            pixels=self._stack_pixels(slots, flips) if "pixels" in self._inputs else None,
            latents=self._stack_latents(slots, flips) if "latents" in self._inputs else None,
            cond=self._stack_text(slots, captions) if "cond" in self._inputs else None,
            mask=self._stack_masks(slots, flips) if "latents" in self._inputs else None,
            subjects=tuple(slot.sample.subject for slot in slots),
            text=partial(self._stack_text, slots, captions) if "text" in self._inputs else None,
            reference=self._stack_references(slots, rng) if self._looks_at_references else None,
        )

    @property
    def _looks_at_references(self) -> bool:
        return bool({"reference latents", "reference pixels"} & self._inputs)

    def _stack_references(self, slots: Sequence[_Slot], rng: StepRNG) -> torch.Tensor:
        import torch

        found = []
        for slot in slots:
            others = [other for other in self._subjects[slot.sample.subject] if other is not slot.sample]
            chosen = others[rng.integer(len(others), "reference", slot.id)] if others else slot.sample
            found.append(self._look_at(chosen))
        return torch.stack(found).to(self._backbone.device)

    def _look_at(self, sample: Sample) -> torch.Tensor:
        """A picture as a reference, [c, h, w] on the CPU."""
        slot = _Slot(sample, self.square, 0)
        return self._latents(slot, False).mean[0] if "reference latents" in self._inputs else self._pixels(slot, False)

    def _stack_pixels(self, slots: Sequence[_Slot], flips: Sequence[bool]) -> torch.Tensor:
        import torch

        return torch.stack([self._pixels(slot, flip) for slot, flip in zip(slots, flips, strict=True)]).to(
            self._backbone.device
        )

    def _stack_latents(self, slots: Sequence[_Slot], flips: Sequence[bool]) -> Latents:
        joined = Latents.join([self._latents(slot, flip) for slot, flip in zip(slots, flips, strict=True)])
        return Latents(joined.mean.to(self._backbone.device), joined.std.to(self._backbone.device))

    def _stack_masks(self, slots: Sequence[_Slot], flips: Sequence[bool]) -> torch.Tensor | None:
        import torch

        if all(slot.sample.mask is None for slot in slots):
            return None
        masks = [self._mask(slot, flip) for slot, flip in zip(slots, flips, strict=True)]
        width, height = (side // self._backbone.pixels_per_latent for side in slots[0].size)
        whole = torch.ones(1, height, width)
        return torch.stack([whole if mask is None else mask for mask in masks]).to(self._backbone.device)

    def _mask(self, slot: _Slot, flip: bool) -> torch.Tensor | None:
        """How much each place of the latents counts, [1, h, w], on the CPU; None when all of them count alike."""
        sample, scale = slot.sample, self._backbone.pixels_per_latent
        if sample.mask is None:
            return None
        mask = sample.mask
        key = cache_key("mask", sample.id.partition("+")[0], sample.mask_id, slot.size, scale)
        stored = self._cache.get(key, lambda: {"mask": latent_mask(sample.path, mask, slot.size, scale)})["mask"]
        weights = stored.clamp(min=self.settings.unmasked_weight)
        return weights.flip(-1) if flip else weights

    def _stack_text(self, slots: Sequence[_Slot], captions: Sequence[str]) -> Cond:
        if self._keep_text:
            cond = Cond.join([self._cond(caption, slot.size) for caption, slot in zip(captions, slots, strict=True)])
        else:
            cond = self._backbone.encode_text(self._backbone.tokenize(captions), slots[0].size)
        return self._backbone.framed(cond, [frame_of(slot.sample.size, slot.size) for slot in slots])

    def _caption(self, slot: _Slot, rng: StepRNG) -> str:
        if rng.chance(self.settings.caption_dropout, "caption", slot.id):
            return ""
        captions = slot.sample.captions
        return captions[rng.integer(len(captions), "template", slot.id) if len(captions) > 1 else 0]

    def _pixels(self, slot: _Slot, flip: bool) -> torch.Tensor:
        picture = pixels(fit(open_picture(slot.sample.path, self.settings.background), slot.size))
        return picture.flip(-1) if flip else picture

    def _latents(self, slot: _Slot, flip: bool) -> Latents:
        content = slot.sample.id.partition("+")[0]
        key = cache_key("latents", self._id("vae"), content, slot.size, flip, self.settings.background)
        stored = self._cache.get(key, lambda: self._encode(slot, flip))
        return Latents(stored["mean"], stored["std"])

    def _encode(self, slot: _Slot, flip: bool) -> dict[str, torch.Tensor]:
        # One picture at a time: a convolution's rounding may depend on what else is in its batch.
        import torch

        latents = self._backbone.encode_image(self._pixels(slot, flip)[None])
        if not bool(torch.isfinite(latents.mean).all() and torch.isfinite(latents.std).all()):
            raise SdkitError(f"{slot.sample.path}: the autoencoder gives no finite latents for it", "leave it out")
        return {"mean": latents.mean.cpu(), "std": latents.std.cpu()}

    def _cond(self, caption: str, size: Size) -> Cond:
        key = cache_key("text", *(self._id(name) for name in self._backbone.text_encoders), caption, size)
        stored = self._cache.get(key, lambda: self._encode_text(caption, size))
        device, dtype = self._backbone.device, self._backbone.dtype
        added = {name: value.to(device) for name, value in stored.items() if name != "context"}
        return Cond(stored["context"].to(device, dtype), added)

    def _encode_text(self, caption: str, size: Size) -> dict[str, torch.Tensor]:
        import torch

        with torch.no_grad():
            cond = self._backbone.encode_text(self._backbone.tokenize([caption]), size)
        return {"context": cond.context.cpu(), **{name: value.cpu() for name, value in cond.added.items()}}

    def _id(self, component: str) -> str:
        if component not in self._ids:
            self._ids[component] = self._backbone.content_id(component)
        return self._ids[component]


def batches_per_epoch(counts: Sequence[int], batch: int) -> int:
    """Batches of an epoch, given how many showings each bucket holds."""
    return sum(-(-count // batch) for count in counts)


def _chunks(slots: list[_Slot], batch: int) -> list[list[_Slot]]:
    """Batches of exactly `batch` slots; what is missing at the end comes again from the beginning, as new showings."""
    chunks = [slots[start : start + batch] for start in range(0, len(slots), batch)]
    missing = batch - len(chunks[-1])
    highest = max(slot.number for slot in slots)
    for index in range(missing):
        again = slots[index % len(slots)]
        chunks[-1].append(_Slot(again.sample, again.size, highest + 1 + index))
    return chunks
