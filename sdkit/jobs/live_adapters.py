"""The adapters that are live while pictures are drawn: opened by the names that prompts give them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats import adapter_family, embeddings_beside, negative_beside, read_adapter, recognise
from sdkit.generation.prompt import Tag
from sdkit.jobs.find_adapter import Shelf
from sdkit.jobs.merge_checks import check_is_adapter
from sdkit.runtime.install import install
from sdkit.runtime.steering import SteeringSettings, inverting, steering
from sdkit.weights import Weights, open_weights
from sdkit.weights.hashes import hash_file

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone

_NAMED_EMBEDDING = re.compile(r"\bembedding:([\w.\-]+)")  # as ComfyUI spells them


@dataclass(frozen=True, slots=True)
class UsedAdapter:
    """An adapter that was live while pictures were drawn.

    Attributes:
        name: its file's name, as a prompt calls it.
        path: its file.
        kind: as `Artifact.kind`.
        unet: its strength in the U-Net.
        text_encoder: its strength in the text encoders.
    """

    name: str
    path: str
    kind: str
    unet: float
    text_encoder: float


@dataclass(frozen=True, slots=True)
class Dose:
    """An adapter, opened, and how strongly it acts where."""

    artifact: Artifact
    tag: Tag

    def used(self) -> UsedAdapter:
        """For the report."""
        path = self.artifact.source.path
        return UsedAdapter(self.name, str(path), self.artifact.kind, self.tag.unet, self.tag.text_encoder)

    def parts(self) -> Iterator[tuple[Artifact, float]]:
        """The adapter as `install` takes it: at one strength, or its two parts each at its own."""
        if self.tag.unet == self.tag.text_encoder or self.artifact.kind != "lora":
            yield self.artifact, self.tag.unet
            return
        deltas = self.artifact.deltas.items()
        text = {target: delta for target, delta in deltas if target.component.startswith("text_encoder")}
        rest = {target: delta for target, delta in deltas if target not in text}
        if text or self.artifact.tokens:
            yield replace(self.artifact, deltas=text), self.tag.text_encoder
        if rest:
            yield replace(self.artifact, deltas=rest, tokens=()), self.tag.unet

    @property
    def steering(self) -> SteeringSettings:
        """How an aesthetic embedding acts."""
        said = dict(self.tag.steering)
        usual = SteeringSettings(self.tag.unet)
        steps, slerp = int(said.get("steps", usual.steps)), bool(said.get("slerp", usual.slerp))
        return replace(usual, steps=steps, lr=said.get("lr", usual.lr), slerp=slerp)

    @property
    def name(self) -> str:
        """Its file's name, as web UIs know it."""
        return self.artifact.source.path.stem

    def short_tag(self) -> Tag:
        """The tag by which a prompt elsewhere names the same file."""
        kind = {"hypernetwork": "hypernet", "aesthetic": "aesthetic"}.get(self.artifact.kind, "lora")
        kind = "image" if self.tag.kind == "image" else kind
        return replace(self.tag, kind=kind, name=self.name)

    def digest(self) -> str:
        """The hash by which web UIs know a LoRA (AutoV3); empty for anything else."""
        path = self.artifact.source.path
        if path.is_dir() or self.artifact.kind != "lora":
            return ""
        hashes = hash_file(path)
        return hashes.autov3 or hashes.autov2


@contextmanager
def live(backbone: Backbone, doses: Sequence[Dose], projections: Sequence[torch.Tensor] = ()) -> Iterator[None]:
    """Put adapters live while the context lasts.

    Args:
        projections: for aesthetic embeddings without one, see `sdkit.runtime.steering.steering`.
    """
    with ExitStack() as stack:
        for dose in doses:
            if dose.tag.kind == "image":
                stack.enter_context(inverting(backbone, dose.artifact, dose.tag.unet, projections))
                continue
            if dose.artifact.steering:
                stack.enter_context(steering(backbone, dose.artifact, dose.steering, projections))
                continue
            for part, strength in dose.parts():
                stack.enter_context(install(part, backbone, strength))
        yield


class Library:
    """Opens adapters for one model."""

    def __init__(self, stack: ExitStack, shelf: Shelf, model: Model) -> None:
        self._stack = stack
        self._shelf = shelf
        self._model = model
        self._opened: dict[Path, Artifact] = {}
        self.notes: list[str] = []

    def dose(self, tag: Tag) -> Dose:
        """The adapter a tag names.

        Raises:
            SdkitError: there is none of that name, or it is none, or one for another family.
        """
        path = self._shelf.find(tag.name)
        known = self._opened.get(path.resolve())
        artifact = known or self._read(self._open(path))
        if tag.kind in ("aesthetic", "image") and not artifact.steering:
            raise SdkitError(f"{path}: is no aesthetic embedding but a {artifact.kind}", f"write <lora:{path.stem}>")
        return Dose(artifact, tag)

    def embeddings(self, text: str, doses: Sequence[Dose]) -> list[Dose]:
        """The embeddings whose names stand in a text, without those that are there already.

        Raises:
            SdkitError: there is none of a name behind ``embedding:``, or none for this model.
        """
        named = [self.dose(Tag("embedding", name)) for name in _NAMED_EMBEDDING.findall(text)]
        called = [self._embedding(path) for path in self._shelf.named_in(text)]
        there = {dose.artifact.source.path.resolve() for dose in doses}
        found = {dose.artifact.source.path.resolve(): dose for dose in (*named, *called) if dose is not None}
        return [dose for path, dose in found.items() if path not in there]

    def negatives(self, doses: Sequence[Dose]) -> list[Dose]:
        """The negative halves of the pairs of embeddings of which only the positive ones are among `doses`."""
        paths = [dose.artifact.source.path for dose in doses if dose.artifact.kind == "textual-inversion"]
        there = {path.resolve() for path in paths}
        files = [file for path in paths if (file := negative_beside(path)) is not None and file.resolve() not in there]
        self.notes += [f"{file.stem} is the negative prompt, as the other half of its pair is called" for file in files]
        return [self.dose(Tag("embedding", str(file))) for file in files]

    def _embedding(self, path: Path) -> Dose | None:
        """A file whose name stands in a prompt, if it is an embedding: most are called by words of every day."""
        try:
            with open_weights(path) as weights:
                is_one = recognise(weights)[0] == "textual-inversion"
            return self.dose(Tag("embedding", str(path))) if is_one else None
        except SdkitError as error:
            self.notes.append(f"{path} is called as a word of the prompt, and is no embedding for it: {error.message}")
            return None

    def _open(self, path: Path) -> Weights:
        return self._stack.enter_context(open_weights(path))

    def _read(self, weights: Weights) -> Artifact:
        check_is_adapter(weights)
        family, reason = adapter_family(weights)
        if family is not None and family != self._model.family:
            raise SdkitError(
                f"{weights.path}: was made for {family} ({reason}), the base is {self._model.family}",
                f"draw with a {family} base",
            )
        artifact = self._with_words(_called_by_file(read_adapter(weights, self._model)))
        self._opened[weights.path.resolve()] = artifact
        self.notes += [f"{weights.path.name}: {note}" for note in artifact.notes]
        return artifact

    def _with_words(self, artifact: Artifact) -> Artifact:
        """The adapter with the words that lie in files of their own beside it."""
        files = embeddings_beside(artifact) if artifact.kind != "textual-inversion" else []
        words = [read_adapter(self._open(file), self._model).tokens for file in files]
        return replace(artifact, tokens=(*artifact.tokens, *(rows for own in words for rows in own)))


def _called_by_file(artifact: Artifact) -> Artifact:
    """An embedding under its file's name as well: web UIs go by that, diffusers by the word inside."""
    words = {rows.token for rows in artifact.tokens}
    name = artifact.source.path.stem
    if artifact.kind != "textual-inversion" or len(words) != 1 or name.lower() == next(iter(words)).lower():
        return artifact
    return replace(artifact, tokens=(*artifact.tokens, *(replace(rows, token=name) for rows in artifact.tokens)))


def plain_names(text: str) -> str:
    """A prompt with ``embedding:name`` as ``name``."""
    return _NAMED_EMBEDDING.sub(r"\1", text)
