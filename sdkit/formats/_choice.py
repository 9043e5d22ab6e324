"""Which format, and which of its dialects, a person means by a word: a format, a dialect or a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import Plugin, canonical, nearest_hint
from sdkit.formats._programs import PROGRAMS, canonical_program, objection
from sdkit.formats.codec import Dialect

EVERY_KIND = ("lora",)
PICKLED = (".pt", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class Format:
    """What a codec says of itself.

    Attributes:
        name: the format's.
        summary: first line of its documentation.
        holds: kinds of artifact.
        changes: kinds of weight change; None for all there are.
        families: model families it has names for; None for all.
        words: whether it holds words beside weight changes.
        programs: those shown to read it, in any dialect.
        said: further ones that say they do.
        dialects: how it is written; none for a format that is only read.
    """

    name: str
    summary: str
    holds: tuple[str, ...]
    changes: tuple[str, ...] | None
    families: tuple[str, ...] | None
    words: bool
    programs: tuple[str, ...]
    said: tuple[str, ...]
    dialects: tuple[Dialect, ...]

    def readers(self, kinds: Iterable[str], family: str, *, pickled: bool) -> dict[str, str]:
        """Each program that reads a file of this format → why it would not apply all the file holds, else nothing.

        Args:
            kinds: kinds of weight change in it.
            family: of the model it was made for; empty or ``unknown`` where nothing tells.
            pickled: whether it is a pickle.
        """
        spoken = [entry for entry in self.dialects if not entry.suffix or pickled == (entry.suffix in PICKLED)]
        ways: dict[str, list[Dialect]] = {}
        for entry in spoken:
            for name in (*entry.programs, *entry.said):
                ways.setdefault(name, []).append(entry)
        if not ways:
            ways = {name: [Dialect(())] for name in (*self.programs, *self.said)}
        found: dict[str, str] = {}
        for name, dialects in ways.items():
            # A header rarely tells a format's dialects apart, so what is read in any of them counts.
            reasons = [
                objection(
                    name, frozenset(kinds), family, entry.families.get(name), frozenset(entry.leaves.get(name, ()))
                )
                for entry in dialects
            ]
            found[name] = "" if "" in reasons else reasons[0]
        return found

    def holds_all(self, kinds: Iterable[str]) -> bool:
        """Whether it has a place for changes of all these kinds (`conversion.adapter.kinds_of`)."""
        if self.changes is None:
            return "replacement" not in kinds
        held = {*self.changes, *(("bias",) if "full" in self.changes else ())}  # a bias' difference is one, too
        return held.issuperset(kinds)

    @property
    def writes(self) -> bool:
        """Whether it is written too."""
        return bool(self.dialects)


def described(plugin: Plugin) -> Format:
    """What the codec `plugin` says of itself."""
    module = plugin.load()
    dialects = getattr(module, "DIALECTS", (Dialect(()),)) if hasattr(module, "write") else ()
    spoken = dict.fromkeys(program for dialect in dialects for program in dialect.programs)
    said = dict.fromkeys(program for dialect in dialects for program in dialect.said if program not in spoken)
    return Format(
        plugin.name,
        plugin.summary,
        getattr(module, "HOLDS", EVERY_KIND),
        getattr(module, "CHANGES", None),
        getattr(module, "FAMILIES", None),
        getattr(module, "WORDS", False),
        tuple(spoken) or tuple(getattr(module, "PROGRAMS", ())),
        tuple(said) or (() if spoken else tuple(getattr(module, "SAID", ()))),
        tuple(dialects),
    )


def choose_format(
    word: str, kind: str, known: dict[str, Plugin], changes: frozenset[str] = frozenset()
) -> tuple[Format, Dialect]:
    """The format and dialect that `word` means for an artifact of `kind`.

    Formats come before dialects, and dialects before programs; ``format:dialect`` names both. Of what a program reads
    it is what most others read, too, and if need be what holds all of these `changes`.

    Raises:
        UsageError: nobody calls anything so.
        SdkitError: what is called so cannot hold such an artifact.
    """
    wanted = canonical(word.strip().lower())
    program = canonical_program(wanted)
    formats = [format for plugin in known.values() if (format := described(plugin)).writes]
    fitting = [(format, dialect) for format in formats if kind in format.holds for dialect in format.dialects]
    fitting.sort(key=lambda pair: (not pair[0].holds_all(changes), -len(_program_names(*pair))))
    for names in (_full_names, _format_names, _dialect_names, _program_names):
        for format, dialect in fitting:
            if wanted in names(format, dialect) or program in names(format, dialect):
                return format, dialect
    if wanted in {format for format in known} | set(PROGRAMS) | {name for f in formats for name in _all_names(f)}:
        able = ", ".join(dict.fromkeys(format.name for format, _ in fitting)) or "no format"
        raise SdkitError(f"{word} has no place for an adapter of kind {kind}", f"{able} holds it; see `sdkit formats`")
    words = {name for format in formats for name in _all_names(format)}
    raise UsageError(f"nothing is written as {word!r}", nearest_hint(wanted, words))


def _full_names(format: Format, dialect: Dialect) -> tuple[str, ...]:
    return (f"{format.name}:{dialect.name}",) if dialect.name else ()


def _format_names(format: Format, dialect: Dialect) -> tuple[str, ...]:
    return (format.name,)


def _dialect_names(format: Format, dialect: Dialect) -> tuple[str, ...]:
    return (dialect.name,) if dialect.name else ()


def _program_names(format: Format, dialect: Dialect) -> tuple[str, ...]:
    return (*dialect.programs, *dialect.said)


def _all_names(format: Format) -> Iterator[str]:
    for dialect in format.dialects:
        for names in (_full_names, _format_names, _dialect_names, _program_names):
            yield from names(format, dialect)
