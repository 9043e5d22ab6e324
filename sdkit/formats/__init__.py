"""File formats of adapters: one codec per file, found by its name, chosen by what a file's header shows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import cast

from sdkit.adapters.artifact import Artifact
from sdkit.core.errors import SdkitError
from sdkit.core.plugins import Plugin, choose, find_plugins
from sdkit.families.family import Model
from sdkit.formats._beside import NEGATIVE, embeddings_beside, negative_beside, word_of
from sdkit.formats._choice import Format, choose_format, described
from sdkit.formats._family import adapter_family, claimed_family
from sdkit.formats._verify import ROUNDING, verify, verify_rest, without_idle
from sdkit.formats.codec import Codec, Dialect, Verdict, WritingCodec
from sdkit.weights import Weights, open_weights

__all__ = [
    "NEGATIVE",
    "ROUNDING",
    "Dialect",
    "Format",
    "Verdict",
    "adapter_family",
    "check_writable",
    "claimed_family",
    "described",
    "embeddings_beside",
    "format_for",
    "formats",
    "holding",
    "negative_beside",
    "own_metadata",
    "read_adapter",
    "recognise",
    "verify_rest",
    "without_idle",
    "word_of",
    "write_adapter",
    "writing_codec",
]


def formats() -> dict[str, Plugin]:
    """The known formats by name: this package's, and those of the entry points ``sdkit.formats``."""
    return find_plugins(__name__, "sdkit.formats", skip=("codec",))


def format_for(word: str, kind: str, changes: frozenset[str] = frozenset()) -> tuple[Format, Dialect]:
    """The format and dialect that a word (a format, a dialect, a program) means for an artifact of `kind`.

    Args:
        changes: kinds of weight change in it; of what a program reads, a format that holds them all comes first.

    Raises:
        UsageError: nobody calls anything so.
        SdkitError: what is called so cannot hold such an artifact.
    """
    return choose_format(word, kind, formats(), changes)


def holding(kinds: Collection[str]) -> tuple[str, ...]:
    """The formats that are written and hold changes of all these kinds (`conversion.adapter.kinds_of`)."""
    known = (described(plugin) for plugin in formats().values())
    return tuple(
        format.name for format in known if format.writes and "lora" in format.holds and format.holds_all(kinds)
    )


def own_metadata(metadata: Mapping[str, str]) -> frozenset[str]:
    """The keys by which some format says what its own tensors mean; in another format they mean nothing."""
    patterns = [codec.OWN_METADATA for codec in _codecs().values() if hasattr(codec, "OWN_METADATA")]
    return frozenset(key for key in metadata if any(pattern.fullmatch(key) for pattern in patterns))


def recognise(weights: Weights) -> tuple[str | None, dict[str, Verdict]]:
    """Which format a file is in, and what every codec said about it.

    Returns:
        The name of the only codec that recognises the file, None when none does or several do; and each verdict.
    """
    verdicts = {name: codec.detect(weights) for name, codec in _codecs().items()}
    recognised = [name for name, verdict in verdicts.items() if verdict.recognised]
    return (recognised[0] if len(recognised) == 1 else None), verdicts


def read_adapter(weights: Weights, model: Model | None = None) -> Artifact:
    """The adapter in the internal form; only headers and scalars are read.

    Args:
        weights: the opened file or folder.
        model: the base it will be applied to; None to look at the file alone, with the file's own module names.

    Raises:
        SdkitError: no format fits (the hint lists each codec's reason), several do, or the file is broken.
    """
    name, verdicts = recognise(weights)
    if name is not None:
        return _codecs()[name].read(weights, model)
    several = [name for name, verdict in verdicts.items() if verdict.recognised]
    if several:
        raise SdkitError(
            f"{weights.path}: it mixes the formats {' and '.join(several)}",
            "split it into one file per format",
        )
    reasons = "; ".join(f"{name}: {verdict.reason}" for name, verdict in verdicts.items())
    raise SdkitError(f"{weights.path}: not an adapter in a known format", reasons)


def write_adapter(
    artifact: Artifact,
    model: Model | None,
    path: Path,
    metadata: Mapping[str, str],
    *,
    format: str = "kohya",
    dialect: str = "",
    overwrite: bool = False,
) -> None:
    """Write an adapter, read it back, and compare everything in it with what was meant.

    Args:
        artifact: its targets are modules of `model`.
        model: gives modules their names and shapes; None for an artifact that was read without a model in this same
            format, whose modules keep their own names.
        path: the file to write (PEFT: the folder).
        metadata: the header's ``__metadata__``.
        format: the codec's name.
        dialect: of a format that has several, which one; by default the codec chooses.
        overwrite: whether something already at `path` may be replaced.

    Raises:
        SdkitError: there is no such format, it cannot hold this adapter, `path` cannot be written, or what was read
            back differs (the file stays, for looking at).
    """
    codec = writing_codec(format)
    chosen = {"dialect": dialect} if dialect else {}
    codec.write(artifact, model, path, metadata, overwrite=overwrite, **chosen)
    for part in _written_parts(path):
        with open_weights(part) as weights:
            verify(artifact, without_idle(artifact, codec.read(weights, model)), part)


def check_writable(artifact: Artifact, model: Model | None, format: str) -> None:
    """Refuse what a format cannot hold, before anything is computed. No tensor is read.

    Raises:
        SdkitError: there is no such format, or it cannot hold this adapter.
    """
    codec = writing_codec(format)
    if hasattr(codec, "check"):
        codec.check(artifact, model)


def writing_codec(format: str) -> WritingCodec:
    """The codec that writes a format.

    Raises:
        SdkitError: there is no such format, or it is only read.
    """
    plugin = choose(format, formats(), "format")
    module = plugin.load()
    if not hasattr(module, "write"):
        raise SdkitError(
            f"the format {plugin.name} is read but not written", "`sdkit formats` lists those that are written"
        )
    return cast(WritingCodec, module)


def _written_parts(path: Path) -> list[Path]:
    """A file, a folder of weights, or the folders of an adapter's components."""
    if path.is_dir() and not any(entry.is_file() for entry in path.iterdir()):
        return sorted(path.iterdir())
    return [path]


@cache
def _codecs() -> dict[str, Codec]:
    """The imported codecs.

    Raises:
        SdkitError: a plugin cannot be imported, or is no codec.
    """
    codecs: dict[str, Codec] = {}
    for name, plugin in formats().items():
        module = plugin.load()
        if not hasattr(module, "detect") or not hasattr(module, "read"):
            raise SdkitError(f"the format {name} ({plugin.module}) lacks detect or read", "uninstall or repair it")
        codecs[name] = cast(Codec, module)
    return codecs
