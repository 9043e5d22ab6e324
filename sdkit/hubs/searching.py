"""What searching a hub gives. A hub that can be searched defines `search` (`SearchingHub`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Found:
    """A model that was found. All texts are hostile.

    Attributes:
        hub: name of the hub's module.
        reference: what `sdkit pull` takes.
        name: as its makers call it.
        kind: as `sdkit inspect` says; a hub's own word where sdkit has none, empty where it does not tell.
        base: what it was made for, as the hub words it.
        author: who published it.
        downloads: how often it was downloaded, as the hub counts.
        likes: how many people liked it.
        dislikes: how many did not; None where the hub does not ask.
        licence: as the hub words it.
        triggers: words that call it up.
        page: where a person reads about it.
    """

    hub: str
    reference: str
    name: str
    kind: str
    base: str
    author: str
    downloads: int
    likes: int
    dislikes: int | None = None
    licence: str = ""
    triggers: tuple[str, ...] = ()
    page: str = ""


class SearchingHub(Protocol):
    """A hub that can be searched."""

    def search(self, query: str, *, kind: str = "", family: str = "", limit: int = 20) -> list[Found]:
        """The models that match, the most downloaded first.

        Args:
            query: words.
            kind: only of this kind (`sdkit.core.civitai.TYPES`).
            family: only for this family (``sd1``, ``sd2``, ``sdxl``).
            limit: at most so many.
        """
        ...
