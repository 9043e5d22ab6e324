"""Words of one's own in a model's text: rows spliced in where a token table is looked up.

The vocabulary is never resized. An installed word has negative ids: −1−k is row k of the rows installed for that text
encoder, so no id of the vocabulary moves and no part of a model that compares ids mistakes it for a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.streaming.expression import Read

if TYPE_CHECKING:
    import torch

    from sdkit.runtime.backbone import Backbone

TABLE = "text_model.embeddings.token_embedding"  # the hub name, within a text encoder

# Rows [n, width] by text encoder's component.
Rows = Mapping[str, "torch.Tensor"]


@contextmanager
def spliced(backbone: Backbone, words: Mapping[str, Rows]) -> Iterator[None]:
    """Let the model's text know `words` while the context lasts. Nested installs add up.

    Gradients flow to rows that are parameters.

    Args:
        backbone: its tokenizing and its text encoders change; afterwards its modules are those it had.
        words: word → its rows. A text encoder a word has no rows for reads it as ordinary text.

    Raises:
        SdkitError: a word is no word, is installed already, or its rows are not as wide as the text encoder's tokens.
    """
    with ExitStack() as stack:
        for component in backbone.text_encoders:
            rows = {word: by_component[component] for word, by_component in words.items() if component in by_component}
            if rows:
                hub = f"{component}.{TABLE}"
                original = backbone.module(hub)
                backbone.replace(hub, _extended(backbone, component, original, rows))
                stack.callback(backbone.replace, hub, original)
        yield


def words_of(artifact: Artifact, backbone: Backbone) -> Mapping[str, Rows]:
    """The words of an adapter, with their rows in float32.

    Raises:
        SdkitError: they were made for another family: for other text encoders, or for tokens of another width.
    """
    widths = {component: token_table(backbone, component).weight.shape[1] for component in backbone.text_encoders}
    check_fits(artifact, widths, f"{backbone.base_name} ({backbone.model.family})")
    words: dict[str, dict[str, torch.Tensor]] = {}
    for part in artifact.tokens:
        rows = Read(part.weights, part.info).load().float()
        words.setdefault(part.token, {})[part.component] = rows.reshape(-1, rows.shape[-1])
    return words


def check_fits(artifact: Artifact, widths: Mapping[str, int], base: str) -> None:
    """Refuse an adapter with words for other text encoders, or of another width, than a base's.

    Args:
        widths: of the base's tokens, by text encoder's component.
        base: what messages call it.

    Raises:
        SdkitError: it does not fit, or holds no word.
    """
    path = artifact.source.path
    words: dict[str, dict[str, int]] = {}
    for rows in artifact.tokens:
        words.setdefault(rows.token, {})[rows.component] = rows.info.shape[-1]
    if not words:
        raise SdkitError(f"{path}: holds no embedding", "`sdkit inspect` shows what it holds")
    for word, found in words.items():
        if found != widths:
            raise SdkitError(
                f"{path}: {word} is made of {_widths(found)}, but {base} reads {_widths(widths)}",
                "it was made for another model family",
            )


def installed_words(backbone: Backbone, component: str) -> dict[str, tuple[int, ...]]:
    """Word → ids of its rows, of the words a text encoder knows at the moment."""
    words: dict[str, tuple[int, ...]] = getattr(token_table(backbone, component), "words", {})
    return words


def token_table(backbone: Backbone, component: str) -> Any:
    """The module that turns a text encoder's ids into vectors; its weight is [vocabulary, width]."""
    return backbone.module(f"{component}.{TABLE}")


def token_widths(model: Model) -> dict[str, int]:
    """Width of a token's vector by text encoder's component, from the header alone."""
    names = (component for component in model.components if component.startswith("text_encoder"))
    places = {component: model.places.get(f"{component}.{TABLE}.weight") for component in names}
    return {component: place.shape[1] for component, place in places.items() if place is not None}


def mentions(text: str, word: str) -> bool:
    """Whether a text has the word where it would be taken for an installed one."""
    return _pattern({word: ()}).search(text) is not None


def token_ids(tokenizer: Any, words: Mapping[str, Sequence[int]], text: str) -> list[int]:
    """Ids of a text without marks of start and end, installed words as their rows' ids.

    The longest word wins where several begin. A word stands for itself alone, not within a longer one; case does not
    matter, as it does not for CLIP.
    """
    ids: list[int] = []
    end = 0
    for match in _pattern(words).finditer(text) if words else ():
        ids += _plain_ids(tokenizer, text[end : match.start()])
        ids += list(words.values())[int(match.lastgroup[1:])]  # type: ignore[index]
        end = match.end()
    return ids + _plain_ids(tokenizer, text[end:])


def marked_ids(tokenizer: Any, ids: Sequence[int], length: int) -> list[int]:
    """`ids` between the marks of start and end, cut and padded to `length`."""
    marked = [tokenizer.bos_token_id, *ids[: length - 2], tokenizer.eos_token_id]
    return marked + [tokenizer.pad_token_id] * (length - len(marked))


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    # Without `verbose` the tokenizer warns of long texts, which are cut or divided later.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _pattern(words: Mapping[str, object]) -> re.Pattern[str]:
    """Matches any of the words, the longest first; the group ``wN`` tells which."""
    numbered = sorted(enumerate(words), key=lambda entry: -len(entry[1]))
    return re.compile("|".join(f"(?P<w{number}>{_whole(word)})" for number, word in numbered), re.IGNORECASE)


def _whole(word: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    behind = r"(?!\w)" if re.search(r"\w\Z", word) else ""
    return f"{before}{re.escape(word)}{behind}"


def _widths(widths: Mapping[str, int]) -> str:
    return " and ".join(f"{width} numbers a token in the {component}" for component, width in widths.items())


def _extended(backbone: Backbone, component: str, table: Any, rows: Mapping[str, torch.Tensor]) -> Any:
    """The token embedding `table` with further rows."""
    from sdkit.runtime.layers.spliced import SplicedEmbedding

    known = dict(installed_words(backbone, component))
    parts = list(table.rows) if isinstance(table, SplicedEmbedding) else []
    next_row = sum(len(part) for part in parts)
    for word, part in rows.items():
        _check(backbone, component, word, part, known)
        known[word] = tuple(-1 - row for row in range(next_row, next_row + len(part)))
        next_row += len(part)
        parts.append(part)
    return SplicedEmbedding(getattr(table, "table", table), parts, known)


def _check(
    backbone: Backbone, component: str, word: str, rows: torch.Tensor, known: Mapping[str, tuple[int, ...]]
) -> None:
    if not word.strip() or word != word.strip():
        raise SdkitError(f"{word!r} cannot be a word of a prompt", "it may not be empty or begin or end with spaces")
    if word.lower() in (other.lower() for other in known):
        raise SdkitError(f"the word {word} is installed twice", "give one of the embeddings another name")
    width = token_table(backbone, component).weight.shape[1]
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != width:
        raise SdkitError(
            f"{word}: its vectors have the shape {list(rows.shape)}, but the {component} of "
            f"{backbone.base_name} ({backbone.model.family}) reads vectors of {width}",
            "it was made for another model family",
        )
