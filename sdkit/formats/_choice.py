"""Which format, and which of its dialects, a person means by a word: a format, a dialect or a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.plugins import Plugin, canonical, nearest_hint
from sdkit.formats._programs import APPLIED, PROGRAMS, canonical_program
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
        words: whether it holds words beside weight changes.
        programs: those that read it, in any dialect.
        dialects: how it is written; none for a format that is only read.
    """

    name: str
    summary: str
    holds: tuple[str, ...]
    changes: tuple[str, ...] | None
    words: bool
    programs: tuple[str, ...]
    dialects: tuple[Dialect, ...]

    def loaders(self, kinds: Iterable[str], *, pickled: bool) -> tuple[str, ...]:
        """The programs that read a file of this format and apply all it holds.

        Args:
            kinds: kinds of weight change in it.
            pickled: whether it is a pickle.
        """
        wanted = set(kinds)
        spoken = [entry for entry in self.dialects if not entry.suffix or pickled == (entry.suffix in PICKLED)]
        programs = dict.fromkeys(name for entry in spoken for name in entry.programs) or self.programs
        return tuple(name for name in programs if wanted <= APPLIED.get(name, wanted))

    @property
    def writes(self) -> bool:
        """Whether it is written too."""
        return bool(self.dialects)


def described(plugin: Plugin) -> Format:
    """What the codec `plugin` says of itself."""
    module = plugin.load()
    dialects = getattr(module, "DIALECTS", (Dialect(()),)) if hasattr(module, "write") else ()
    spoken = dict.fromkeys(program for dialect in dialects for program in dialect.programs)
    return Format(
        plugin.name,
        plugin.summary,
        getattr(module, "HOLDS", EVERY_KIND),
        getattr(module, "CHANGES", None),
        getattr(module, "WORDS", False),
        tuple(spoken) or _programs(module),
        tuple(dialects),
    )


def _programs(module: ModuleType) -> tuple[str, ...]:
    return tuple(getattr(module, "PROGRAMS", ()))


def choose_format(word: str, kind: str, known: dict[str, Plugin]) -> tuple[Format, Dialect]:
    """The format and dialect that `word` means for an artifact of `kind`.

    Formats come before dialects, and dialects before programs; ``format:dialect`` names both. Of what a program reads
    it is what most others read, too.

    Raises:
        UsageError: nobody calls anything so.
        SdkitError: what is called so cannot hold such an artifact.
    """
    wanted = canonical(word.strip().lower())
    program = canonical_program(wanted)
    formats = [format for plugin in known.values() if (format := described(plugin)).writes]
    fitting = [(format, dialect) for format in formats if kind in format.holds for dialect in format.dialects]
    fitting.sort(key=lambda pair: -len(pair[1].programs))
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
    return dialect.programs


def _all_names(format: Format) -> Iterator[str]:
    for dialect in format.dialects:
        for names in (_full_names, _format_names, _dialect_names, _program_names):
            yield from names(format, dialect)
