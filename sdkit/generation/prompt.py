"""The prompt syntax of A1111's web UI, which is what people share.

    (word)              weight 1.1            ((word))  1.21, and so on
    (word:1.3)          weight 1.3; brackets within brackets multiply
    [word]              weight 1 / 1.1
    \\( \\) \\[ \\] \\\\      the signs themselves
    BREAK               what follows begins a new chunk of tokens
    <lora:name:0.8>     an adapter, live for the picture; <lora:name:0.8:0.5> for the text encoder and the U-Net apart,
                        as <lora:name:te=0.8:unet=0.5>; <lyco:…> is the same, <hypernet:name:1> a hypernetwork
    <aesthetic:name:0.9>  an aesthetic embedding at a weight, here with the steps, learning rate and blend that may
                        stand behind it: <aesthetic:name:0.9:steps=10:lr=1e-4:slerp=yes>
    <image:name:1>      the prompt ends in the pictures of an aesthetic embedding, at a weight

A bracket that is never closed weighs everything behind it, one that was never opened is an ordinary sign, and a
backslash before any other sign is dropped: all as there. Prompts that change from step to step (``[a:b:0.5]``,
``[a|b]``) and several prompts at once (``a AND b``) are refused: reading them as ordinary words would draw something
else.

Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PureWindowsPath

from sdkit.core.errors import UsageError
from sdkit.core.plugins import nearest_hint

ROUND, SQUARE = 1.1, 1 / 1.1
MAX_LENGTH = 10_000  # characters; reading nested brackets takes time with the square of it

_SIGNS = re.compile(
    r"\\(?P<escaped>[()\[\]\\]?)"
    r"|(?P<opening>[(\[])"
    r"|:\s*(?P<weight>[+-]?[.\d]+)\s*\)"
    r"|(?P<time>:\s*[+-]?[.\d]+\s*\])"
    r"|(?P<closing>[)\]])"
    r"|(?P<bar>\|)"
    r"|(?P<text>[^\\()\[\]:|]+|:)"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_KINDS = {"lora": "lora", "lyco": "lora", "hypernet": "hypernet", "aesthetic": "aesthetic", "image": "image"}
_STEERING = ("steps", "lr", "slerp")
_MAX_STEERING_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Tag:
    """An adapter a prompt asks for.

    Attributes:
        kind: ``lora`` (weight changes of any sort), ``hypernet``, ``aesthetic`` or ``image``.
        name: a path, or a file's name with or without its suffix.
        text_encoder: its strength in the text encoders.
        unet: its strength in the U-Net.
        steering: how an aesthetic embedding acts: ``steps``, ``lr`` and ``slerp``, those that are said.
    """

    kind: str
    name: str
    text_encoder: float = 1.0
    unet: float = 1.0
    steering: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        """As a prompt spells it."""
        strengths = f"{self.text_encoder:g}" + (f":{self.unet:g}" if self.unet != self.text_encoder else "")
        settings = "".join(f":{key}={value:g}" for key, value in self.steering)
        return f"<{self.kind}:{self.name}:{strengths}{settings}>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a prompt with one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt taken apart.

    Attributes:
        sections: what lies between the BREAKs; at least one.
        tags: the adapters it asks for.
    """

    sections: tuple[tuple[Piece, ...], ...]
    tags: tuple[Tag, ...] = ()

    @property
    def text(self) -> str:
        """Its words alone."""
        return " ".join(piece.text for section in self.sections for piece in section)


def literal(text: str) -> str:
    """A prompt that says just this text: a caption knows no weights."""
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


def parse_prompt(text: str) -> Prompt:
    """Take a prompt apart.

    Raises:
        UsageError: it is too long, or asks for something that would not be drawn as it is meant.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"the prompt has {len(text)} characters", f"at most {MAX_LENGTH} are read")
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        raise UsageError("the prompt holds bytes that are no text", "write it in UTF-8")
    words, tags = split_tags(text)
    if re.search(r"\bAND\b", words):
        raise UsageError(
            "AND in the prompt joins several prompts, which sdkit does not draw", "write `and` for the word"
        )
    return Prompt(tuple(_sections(_pieces(words))), tags)


def split_tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """A prompt without the adapters it asks for, and these."""
    tags = tuple(_tag(match[0], match[1], match[2].split(":")) for match in _TAG.finditer(text))
    return _TAG.sub("", text), tags


def without_folders(text: str) -> str:
    """A prompt whose adapters are named by their files alone: no picture tells how somebody's disk is laid out."""

    def shortened(match: re.Match[str]) -> str:
        (_, (tag,)) = split_tags(match[0])
        path = PureWindowsPath(tag.name)  # which knows both kinds of slashes
        return match[0] if path.name == tag.name else str(replace(tag, name=path.stem))

    return _TAG.sub(shortened, text)


def _tag(text: str, kind: str, fields: list[str]) -> Tag:
    if kind.lower() not in _KINDS:
        raise UsageError(f"{text} in the prompt: {kind} is no kind of adapter", nearest_hint(kind.lower(), _KINDS))
    plain = [field.strip() for field in fields if "=" not in field]
    named = dict(field.strip().split("=", 1) for field in fields if "=" in field)
    if _KINDS[kind.lower()] in ("aesthetic", "image"):
        return _aesthetic(text, kind.lower(), plain, named)
    strange = [name for name in named if name not in ("te", "unet")]
    if strange or not 1 <= len(plain) <= 3 or not plain[0]:
        raise UsageError(f"{text} in the prompt is no adapter", "write <lora:name:0.8> or <lora:name:te=0.8:unet=0.5>")
    numbers = [_number(entry, text) for entry in plain[1:]]
    te = _number(named["te"], text) if "te" in named else numbers[0] if numbers else 1.0
    unet = _number(named["unet"], text) if "unet" in named else numbers[1] if len(numbers) > 1 else te
    return Tag(_KINDS[kind.lower()], plain[0], te, unet)


def _aesthetic(text: str, kind: str, plain: list[str], named: dict[str, str]) -> Tag:
    hint = "write <aesthetic:name:0.9>, <aesthetic:name:0.9:steps=10:lr=1e-4:slerp=yes> or <image:name:1>"
    known = _STEERING if kind == "aesthetic" else ()
    if any(name not in known for name in named) or not 1 <= len(plain) <= 2 or not plain[0]:
        raise UsageError(f"{text} in the prompt is no aesthetic embedding", hint)
    words = {"yes": "1", "no": "0"}
    numbers = {name: _number(words.get(value, value), text, hint) for name, value in named.items()}
    steps, rate = numbers.get("steps", 1.0), numbers.get("lr", 1.0)
    if steps != int(steps) or not 0 <= steps <= _MAX_STEERING_STEPS:
        raise UsageError(f"{text} in the prompt: steps are a whole number up to {_MAX_STEERING_STEPS}", hint)
    if rate < 0 or numbers.get("slerp", 0.0) not in (0.0, 1.0):
        raise UsageError(f"{text} in the prompt: lr is at least 0, and slerp yes or no", hint)
    weight = _number(plain[1], text, hint) if len(plain) > 1 else 1.0
    return Tag(kind, plain[0], weight, weight, tuple(numbers.items()))


def _number(entry: str, text: str, hint: str = "write <lora:name:0.8>") -> float:
    try:
        value = float(entry)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text} in the prompt: {entry!r} is no number", hint)
    return value


def _pieces(text: str) -> list[Piece]:
    """The weighted pieces of a prompt without tags, neighbours of one weight as one."""
    texts: list[str] = []
    weights: list[float] = []
    brackets: dict[str, list[int]] = {"(": [], "[": []}  # where each open bracket's content begins

    def weigh(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for sign in _SIGNS.finditer(text):
        kind = str(sign.lastgroup)
        if kind in ("time", "bar") and brackets["["]:
            raise UsageError(
                f"the prompt changes from step to step ({_around(text, sign)}), which sdkit does not draw",
                r"write \[ and \] for brackets that are meant as such",
            )
        if kind == "opening":
            brackets[sign[0]].append(len(texts))
        elif kind == "weight" and brackets["("]:
            weigh(brackets["("].pop(), _weight(sign["weight"], sign[0]))
        elif sign[0] == ")" and brackets["("]:
            weigh(brackets["("].pop(), ROUND)
        elif sign[0] == "]" and brackets["["]:
            weigh(brackets["["].pop(), SQUARE)
        else:
            texts.append(sign["escaped"] if kind == "escaped" else sign[0])
            weights.append(1.0)
    for factor, starts in ((ROUND, brackets["("]), (SQUARE, brackets["["])):
        for start in starts:
            weigh(start, factor)
    return list(_joined(texts, weights))


def _weight(number: str, text: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise UsageError(f"{number!r} in {text} is no weight", "write (word:1.2)") from None


def _around(text: str, sign: re.Match[str]) -> str:
    return text[max(text.rfind("[", 0, sign.start()), 0) : sign.end()][-60:]


def _joined(texts: list[str], weights: list[float]) -> Iterator[Piece]:
    for weight, run in groupby(zip(texts, weights, strict=True), key=lambda entry: entry[1]):
        text = "".join(part for part, _ in run)
        if not math.isfinite(weight):
            raise UsageError(f"the weight of {text[:60]!r} is no finite number", "use fewer brackets")
        yield Piece(text, weight)


def _sections(pieces: list[Piece]) -> Iterator[tuple[Piece, ...]]:
    """The pieces between the BREAKs."""
    section: list[Piece] = []
    for piece in pieces:
        first, *others = _BREAK.split(piece.text)
        section.append(Piece(first, piece.weight))
        for text in others:
            yield tuple(part for part in section if part.text)
            section = [Piece(text, piece.weight)]
    yield tuple(part for part in section if part.text)
