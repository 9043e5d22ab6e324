"""Say what a file is, how that is known, and what is doubtful about it.

    sdkit inspect model.safetensors
    sdkit inspect lora.safetensors --json

Nothing is read but headers and a few small tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkit.cli.names import REMOTE
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import human_bytes, plural

if TYPE_CHECKING:
    from sdkit.adapters.artifact import Change
    from sdkit.jobs.inspection import AdapterFacts, Inspection, Share

_KINDS = {
    "lora": "LoRA",
    "textual-inversion": "textual inversion",
    "aesthetic": "aesthetic embedding",
    "custom-diffusion": "Custom Diffusion",
    "inversion": "inverted picture",
    "undo": "undo file of a merge",
    "unknown": "unknown",
}
_CHANGES = {
    "lora": "LoRA",
    "locon": "LoCon",
    "tucker": "LoCon (Tucker)",
    "loha": "LoHa",
    "lokr": "LoKr",
    "full": "full difference",
}
# The entries people look for, the others are counted.
_METADATA = (
    "modelspec.title",
    "modelspec.author",
    "modelspec.license",
    "modelspec.architecture",
    "modelspec.description",
    "modelspec.usage_hint",
    "modelspec.merged_from",
    "ss_output_name",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_network_module",
    "ss_resolution",
    "ss_steps",
    "ss_num_epochs",
    "ss_learning_rate",
    "ss_optimizer",
    "ss_training_comment",
    "step",
    "sd_checkpoint_name",
    "global_step",
    "epoch",
)
_LONGEST_VALUE = 100
_LONGEST_LIST = 12
_PLAIN_NUMBER = 10_000


@click.command("inspect", no_args_is_help=True)
@click.argument("path", type=REMOTE, metavar="FILE|DIR|REFERENCE")
@output_options
def command(output: Output, path: Path) -> None:
    """Say what FILE or DIR is: a checkpoint or an adapter, of which family and why, what is in it, what is doubtful.

    Only headers are read, also of what lies on a hub (`hf:org/repo`). With -q: kind and family, as `lora sdxl`.
    """
    from sdkit.jobs.inspect import inspect

    found = inspect(path)
    output.result(found.as_dict(), describe(found), [f"{found.kind} {found.family}"])


def describe(found: Inspection) -> list[str]:
    """The inspection in lines for people, the most important first."""
    rows: list[tuple[str, Iterable[str]]] = [
        ("size", [_size(found)]),
        *_adapter_rows(found),
        ("parts", _components(found)),
        ("predicts", [found.prediction] if found.prediction else []),
        ("markers", [", ".join(found.markers)] if found.markers else []),
        ("triggers", [_listed(found.trigger_words)] if found.trigger_words else []),
        ("lineage", found.lineage),
        ("problems", found.problems or ([] if found.kind == "unknown" else ["none found"])),
        ("notes", found.notes),
        ("why", _reasons(found)),
        ("metadata", _metadata(found)),
    ]
    lines = [f"{found.path}: {_headline(found)}"]
    for label, texts in rows:
        lines += [f"  {label if first else '':<10}{text}" for first, text in _numbered(texts)]
    return lines


def _numbered(texts: Iterable[str]) -> Iterator[tuple[bool, str]]:
    return ((number == 0, text) for number, text in enumerate(texts))


def _headline(found: Inspection) -> str:
    kind = _KINDS.get(found.kind, found.kind)
    if found.kind == "lora" and found.adapter is not None:
        names = [*(_change_name(change) for change in found.adapter.changes), *found.adapter.refused]
        kind = " + ".join(dict.fromkeys(names)) or "adapter"
    family = f"{found.family_title} ({found.family})" if found.family_title else found.family
    known = found.family != "unknown"
    if found.adapter is not None:
        return f"{kind}{f' for {family}' if known else ', family unknown'}, {found.format} format"
    if found.kind == "component":
        kind += f" ({', '.join(share.name for share in found.components if share.name not in ('ema', 'other'))})"
    variant = f", {found.variant}" if found.variant else ""
    return f"{kind}, {family}{variant}" if known else kind


def _size(found: Inspection) -> str:
    files = f" in {plural(len(found.files), 'file')}" if len(found.files) > 1 else ""
    naming = f", {found.naming} names" if found.naming else ""
    parameters = f", {_human_count(found.parameters)} parameters" if found.parameters else ""
    return (
        f"{human_bytes(found.size)}{files}, {found.container}{naming}, {plural(found.tensors, 'tensor')}{parameters}"
        f"{_types(found.dtypes)}"
    )


def _types(dtypes: Sequence[Share]) -> str:
    if len(dtypes) < 2:
        return "".join(f": {share.name}" for share in dtypes)
    return f": {_listed([f'{share.tensors:,} {share.name}' for share in dtypes])}"


def _components(found: Inspection) -> list[str]:
    if len(found.components) == 1 and found.components[0].name == "other":
        return []
    return columns([_component(share) for share in found.components])


def _component(share: Share) -> tuple[str, ...]:
    types = ", ".join(share.dtypes)
    return (share.name, f"{_human_count(share.parameters)} parameters", human_bytes(share.bytes), types)


def _adapter_rows(found: Inspection) -> list[tuple[str, Iterable[str]]]:
    facts = found.adapter
    if facts is None:
        return []
    return [
        ("changes", _changes(facts)),
        ("structure", [str(facts.structure)] if facts.structure else []),
        ("modules", _modules(facts)),
        ("blocks", [_ranges(list(facts.blocks))] if facts.blocks else []),
        ("tokens", _shortened(_tokens(facts))),
        ("loads in", _loaders(facts)),
        ("not in", [f"{program}: {reason}" for program, reason in facts.refusing.items()]),
    ]


def _loaders(facts: AdapterFacts) -> list[str]:
    if facts.unread:
        return []
    programs = ", ".join(facts.loaders) or "no program known"
    untried = "* by its documentation" if "*" in programs else ""
    return ["; ".join(text for text in (programs, facts.advice, untried) if text)]


def _tokens(facts: AdapterFacts) -> list[str]:
    return [
        f"{_clipped(token.token)}: {plural(token.vectors, 'vector')} of {token.width} ({token.component})"
        for token in facts.tokens
    ]


def _changes(facts: AdapterFacts) -> list[str]:
    """One line per kind of change: how many, and their ranks and alphas."""
    kinds = groupby(sorted(facts.changes, key=lambda change: change.kind), key=lambda change: change.kind)
    return [_change_line(list(changes)) for _, changes in kinds]


def _change_line(changes: list[Change]) -> str:
    line = f"{plural(sum(change.count for change in changes), 'weight')} by {_change_name(changes[0])}"
    ranks = sorted({change.rank for change in changes if change.rank is not None})
    alphas = sorted({change.alpha for change in changes if change.alpha is not None})
    scales = sorted({change.alpha / change.rank for change in changes if change.alpha is not None and change.rank})
    for name, values in (("rank", ranks), ("alpha", alphas), ("scale", scales)):
        line += f", {name} {_span(values)}" if values else ""
    return line


def _span(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _change_name(change: Change) -> str:
    return _CHANGES.get(change.kind, change.kind)


def _modules(facts: AdapterFacts) -> list[str]:
    rows = []
    for component, layers in groupby(facts.layers, key=lambda layer: layer.component):
        sorts = list(layers)
        total = sum(layer.modules for layer in sorts)
        rows.append((component, f"{total:>5,}", ", ".join(f"{layer.modules:,} {layer.sort}" for layer in sorts)))
    return columns(rows) if rows else []


def _ranges(blocks: Sequence[str]) -> str:
    """``IN01, IN02, IN04`` → ``IN01-02, IN04``."""
    runs: list[list[str]] = []
    for block in blocks:
        if runs and _follows(runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1][-2:]}" for run in runs)


def _follows(one: str, other: str) -> bool:
    numbers = [name[-2:] for name in (one, other)]
    return one[:-2] == other[:-2] and all(map(str.isdigit, numbers)) and int(numbers[1]) == int(numbers[0]) + 1


def _reasons(found: Inspection) -> list[str]:
    """The evidence, without what is already said as a problem; for an unknown file also why it is no adapter."""
    reasons = [_clipped(reason, 2 * _LONGEST_VALUE) for reason in found.reasons if reason not in found.problems]
    if found.kind == "unknown":
        reasons += [f"not {name}: {_clipped(reason, 2 * _LONGEST_VALUE)}" for name, reason in found.formats.items()]
    return reasons


def _metadata(found: Inspection) -> list[str]:
    shown = [(key, _clipped(found.metadata[key])) for key in _METADATA if found.metadata.get(key)]
    rest = len(found.metadata) - len(shown)
    entries = "more" if shown else "entry" if rest == 1 else "entries"
    return [*(columns(shown) if shown else []), *([f"… {rest:,} {entries}; --json shows all"] if rest else [])]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(map(_clipped, _shortened(texts)))


def _shortened(texts: Sequence[str]) -> list[str]:
    rest = len(texts) - _LONGEST_LIST
    return [*texts[:_LONGEST_LIST], *([f"… {rest:,} more; --json shows all"] if rest > 0 else [])]


def _clipped(text: str, length: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _human_count(count: float) -> str:
    """``3.47 B`` as people count parameters."""
    if count < _PLAIN_NUMBER:
        return f"{count:,}"
    for unit in ("k", "M"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} B"
