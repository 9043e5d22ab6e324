"""Looking into an adapter: what it changes, which model it was made for, and what does not fit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.conversion.adapter import kinds_of
from sdkit.core.errors import SdkitError
from sdkit.core.human import plural
from sdkit.families import FAMILIES
from sdkit.families.family import Model
from sdkit.formats import adapter_family, described, formats, read_adapter
from sdkit.formats._lycoris import REFUSED
from sdkit.jobs.fitting import fitting_model
from sdkit.jobs.inspect_problems import counted
from sdkit.jobs.inspection import AdapterFacts, Layers, Token
from sdkit.weights import Weights
from sdkit.weights.reader import Container

_RULED = frozenset(family.name for family in FAMILIES)
_OWN_KINDS = ("textual-inversion", "hypernetwork", "aesthetic", "custom-diffusion", "inversion")
_KIND_OF_FORMAT = {name: name for name in _OWN_KINDS}
_COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae")
_POSITION = re.compile(r"\w+\.\d+")
# The first that fits a module's name, dotted or flattened.
_SORTS = (
    (
        "modulation",
        re.compile(r"transformer[._].*norm\w*[._]linear|.*_mod(?:ulation)?\w*[._]lin(?:ear)?|.*adaLN_modulation.*"),
    ),
    ("joint attention", re.compile(r"transformer[._].*[._]attn2?[._].*")),
    ("self-attention", re.compile(r".*(?:attn1|self_attn|attention)[._].*")),
    ("cross-attention", re.compile(r".*attn2[._].*")),
    ("feed-forward", re.compile(r".*[._](?:ff|ff_context|feed_forward|mlp)[._].*")),
    ("projections", re.compile(r".*(?:proj_in|proj_out|text_projection)")),
    ("convolutions", re.compile(r"unet[._].*")),
)
_WIDTHS = {
    768: "the text encoder of Stable Diffusion 1, and the first of SDXL",
    1024: "the text encoder of Stable Diffusion 2",
    1280: "the second text encoder of SDXL",
    4096: "T5, as Stable Diffusion 3 and FLUX.1 have it",
}


@dataclass(frozen=True, slots=True)
class Description:
    """What was found out about an adapter.

    Attributes:
        kind: as `Inspection.kind`.
        family: the family it seems to be made for, or ``unknown``.
        adapter: what it changes.
        reasons: why this family.
        problems: what does not fit.
        notes: what the codec noted.
    """

    kind: str
    family: str
    adapter: AdapterFacts
    reasons: tuple[str, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def describe(weights: Weights, format: str) -> Description:
    """Describe an adapter that the codec `format` recognised.

    It is compared with the published layout of its family. Where its shapes are other ones (a model of another size),
    its modules keep the names they have in the file. Never raises because a file is broken or of a refused kind.
    """
    guess, evidence = adapter_family(weights)
    family = guess or "unknown"
    published = fitting_model(family, weights)
    artifact, reason = _read(weights, published)
    misfit = ""
    if artifact is None and published is not None:
        published, misfit = None, reason
        artifact, reason = _read(weights, None)
    if artifact is None:
        facts = _unread_facts(weights, format, reason)
        kind = _KIND_OF_FORMAT.get(format, "lora")
        return Description(kind, family, facts, (evidence,), tuple(_problems(facts, family)))
    facts = _facts(artifact, published, family)
    notes = (*artifact.notes, *([f"it does not fit the published {family}: {misfit}"] if misfit else []))
    return Description(artifact.kind, family, facts, _reasons(evidence, facts), tuple(_problems(facts, family)), notes)


def _read(weights: Weights, model: Model | None) -> tuple[Artifact | None, str]:
    """The adapter, or why it cannot be read."""
    try:
        artifact = read_adapter(weights, model)
    except SdkitError as error:
        return None, error.message.removeprefix(f"{weights.path}: ")
    if artifact.key_value is not None and not artifact.key_value.networks:
        return None, "no attention there reads what its networks are as wide as"
    return artifact, ""


def _facts(artifact: Artifact, model: Model | None, family: str) -> AdapterFacts:
    readers, format = _readers(artifact, family), described(formats()[artifact.format])
    said = set(format.said) - set(format.programs)
    return AdapterFacts(
        changes=artifact.changes,
        modules=artifact.modules,
        layers=_networks(artifact) if artifact.key_value else _layers(artifact.modules),
        blocks=_blocks(artifact.modules, model),
        tokens=tuple(_token(rows) for rows in artifact.tokens),
        layout=model.family if model is not None else "",
        unmatched=artifact.unmatched,
        structure=artifact.key_value.structure if artifact.key_value else None,
        loaders=tuple(f"{name}*" if name in said else name for name, reason in readers.items() if not reason),
        refusing={program: reason for program, reason in readers.items() if reason},
        advice=_advice(artifact, family),
    )


def _readers(artifact: Artifact, family: str) -> dict[str, str]:
    """The programs that read its format → why they would not load it whole; empty where they would."""
    pickled = artifact.source.container is Container.PICKLE
    return described(formats()[artifact.format]).readers(kinds_of(artifact), family, pickled=pickled)


def _advice(artifact: Artifact, family: str) -> str:
    """What to convert it to, where another format of the same kind has more readers."""
    read_here = family in _RULED or family == "unknown"
    held = described(formats()["kohya"]).holds_all(kinds_of(artifact))
    if artifact.kind != "lora" or artifact.format == "kohya" or not read_here or not held:
        return ""
    return "`sdkit convert --to kohya` writes what most programs read"


def _unread_facts(weights: Weights, format: str, reason: str) -> AdapterFacts:
    """What the names alone tell of an adapter that cannot be read."""
    if format != "kohya":
        return AdapterFacts(unread=reason)
    names = [name.partition(".") for name in weights.tensors]
    modules = tuple(sorted({module for module, _, _ in names}))
    refused = tuple(dict.fromkeys(REFUSED[role] for _, _, role in names if role in REFUSED))
    return AdapterFacts(modules=modules, layers=_layers(modules), unread=reason, refused=refused)


def _layers(modules: tuple[str, ...]) -> tuple[Layers, ...]:
    counts = Counter((_component(module), _sort(module)) for module in modules)
    return tuple(Layers(*key, count) for key, count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1])))


def _component(module: str) -> str:
    """Without a table of names a codec keeps those it cannot take apart: ``lycoris_…``, ``lora_te3_…``."""
    head = module.partition(".")[0]
    return head if head in _COMPONENTS else "_".join(head.split("_")[:2])


def _sort(module: str) -> str:
    if _POSITION.fullmatch(module):
        return "numbered"
    return next((sort for sort, pattern in _SORTS if pattern.fullmatch(module)), "other")


def _networks(artifact: Artifact) -> tuple[Layers, ...]:
    """A hypernetwork's networks by the width of what they transform."""
    widths = artifact.key_value.networks if artifact.key_value else ()
    return tuple(Layers("unet", f"networks of width {width}", 2) for width in widths)


def _blocks(modules: tuple[str, ...], model: Model | None) -> dict[str, int]:
    if model is None:
        return {}
    found = Counter(model.block_of(name) for name in modules if _component(name) in ("unet", "transformer"))
    return dict(sorted(found.items()))


def _token(rows: TokenRows) -> Token:
    *vectors, width = rows.info.shape or (1,)
    return Token(rows.token, rows.component, vectors[0] if vectors else 1, width)


def _reasons(evidence: str, facts: AdapterFacts) -> tuple[str, ...]:
    widths = {token.width: _WIDTHS[token.width] for token in facts.tokens if token.width in _WIDTHS}
    return (evidence, *(f"tokens {width} wide belong to {encoder}" for width, encoder in widths.items()))


def _problems(facts: AdapterFacts, family: str) -> Iterator[str]:
    if facts.unread:
        yield f"this version cannot apply it: {facts.unread}"
    elif family != "unknown" and family not in _RULED:
        yield "this version does not read models of this family yet, so nothing can be merged into them"
    if facts.unmatched:
        owner = f"the published {facts.layout} has no place for" if facts.layout else "no rule explains"
        yield f"{owner} {counted(facts.unmatched, 'module')}"
    useless = sum(change.count for change in facts.changes if change.alpha == 0)
    if useless:
        yield f"alpha is 0 at {plural(useless, 'weight')}, so nothing changes there"
