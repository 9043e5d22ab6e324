"""Who is compared: words like ``lora:rank=8`` and keys for all of them, as methods with their options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdkit.core.errors import UsageError
from sdkit.runtime.tokens import mentions
from sdkit.training.captions import PLACE
from sdkit.training.method import Method, load_method
from sdkit.training.options import spelled, unknown_option

WORD = "sks"  # what the new thing is called: means nothing to any base
_SETTING = re.compile(r":(?=[\w-]+=)")  # a colon that begins a setting, and is not part of a value
_OURS = {"validation": "--held-out says what is held out", "sample": "--prompt says what is drawn"}


@dataclass(frozen=True, slots=True)
class Contestant:
    """A method with its options.

    Attributes:
        word: as it was asked for: ``lora:rank=8``.
        label: the same with no more than it takes to tell it from the others.
        method: the method's name.
        options: keys and values, those for all included.
        phrase: what stands in captions and prompts where the thing is named; empty where nothing says.
        token: a word that must be in every caption and prompt; empty for methods that learn none.
    """

    word: str
    label: str
    method: str
    options: Mapping[str, Any]
    phrase: str
    token: str

    @property
    def folder(self) -> str:
        """The word as a folder's name."""
        return re.sub(r"\W+", "-", self.word).strip("-")

    def naming(self, text: str) -> str:
        """A caption or prompt with the thing called as this method calls it."""
        return named(text, self.phrase, self.token)


def named(text: str, phrase: str, token: str = "") -> str:
    """A text with `phrase` in the place of ``{}``, and with `token` in front where it must be there and is not."""
    said = text.replace(PLACE, phrase)
    return said if not token or mentions(said, token) else f"{token}, {said}"


def read_contestants(words: Sequence[str], common: Mapping[str, Any], subject: str, steps: int) -> list[Contestant]:
    """Those that are asked for.

    Args:
        words: ``METHOD`` or ``METHOD:KEY=VALUE:KEY=VALUE``.
        common: keys for all methods that know them.
        subject: what the new thing is, in words the base knows; empty where there is none.
        steps: for those that are not given any.

    Raises:
        UsageError: there is no such method or key, or the same is asked for twice.
    """
    if not words:
        raise UsageError("no method is given", "name two or more: sdkit compare lora textual-inversion …")
    read = [_read(word, common, subject, steps) for word in words]
    known = {key for _, keys in read for key in keys}
    strange = next((key for key in common if spelled(key) not in known), None)
    if strange is not None:
        raise unknown_option(strange, known, "the methods that are compared")
    contestants = [contestant for contestant, _ in read]
    folders = [contestant.folder for contestant in contestants]
    alike = next((each for each in contestants if folders.count(each.folder) > 1), None)
    if alike is not None:
        raise UsageError(f"{alike.word} is given twice", f"say what differs: {alike.method}:seed=1")
    return [replace(each, label=_label(each.word, words)) for each in contestants]


def _label(word: str, words: Sequence[str]) -> str:
    """A word without the settings that all words of its method have."""
    name, *settings = _SETTING.split(word)
    alike = [set(others) for method, *others in map(_SETTING.split, words) if method == name]
    shared = set.intersection(*alike)
    return ":".join([name, *(setting for setting in settings if setting not in shared)])


def _read(word: str, common: Mapping[str, Any], subject: str, steps: int) -> tuple[Contestant, Mapping[str, Any]]:
    """A contestant, and the keys its method knows."""
    name, *settings = _SETTING.split(word)
    name, method = load_method(name)
    own = {spelled(key): value for key, _, value in (setting.partition("=") for setting in settings)}
    kind, _ = method.resolve(name, own)
    given = {spelled(key): value for key, value in common.items() if spelled(key) in kind.keys} | own
    ours = next((key for key in given if key in _OURS), None)
    if ours is not None:
        raise UsageError(f"{ours}= is the same for all that are compared", _OURS[ours])
    options = {**_usual(kind, subject, steps), **given}
    kind.resolve(name, options)
    token = str(options.get("token", WORD))
    learns = learns_word(kind)
    phrase = token if learns and "class" not in kind.keys else f"{token} {subject}"
    contestant = Contestant(word, word, name, options, phrase if subject else "", token if learns else "")
    return contestant, kind.keys


def _usual(kind: Method[Any], subject: str, steps: int) -> dict[str, Any]:
    """What a comparison decides where nobody else does: everyone's word, and that a new word begins as the subject.

    A word of their own stands for the whole thing in methods that learn little else; where the class is part of the
    method (DreamBooth, Custom Diffusion) or nothing but the word's surroundings learn, it stands before the class.
    """
    options: dict[str, Any] = {"steps": steps} if "steps" in kind.keys else {}
    if "token" in kind.keys and (subject or learns_word(kind)):
        options["token"] = WORD
    if subject and learns_word(kind) and kind.keys["init"].default == "":
        options["init"] = subject
    return options


def learns_word(kind: Method[Any]) -> bool:
    """Whether a method learns a word's vectors: then it calls the word by the result's name where nobody names it."""
    unnamed = kind.options()
    return bool(getattr(kind.settle(unnamed, "x"), "token", "")) and not getattr(unnamed, "token", "")
