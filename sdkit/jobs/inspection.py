"""What `sdkit.inspect` answers: the facts about one file, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sdkit.core.report import Report

if TYPE_CHECKING:
    from sdkit.adapters.artifact import Change
    from sdkit.adapters.key_value import Structure


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a file's tensors: those of one component, or of one element type.

    Attributes:
        name: the component (``unet``, ``ema``, ``other``, …) or the element type.
        tensors: how many tensors.
        parameters: elements of all of them.
        bytes: their size.
        dtypes: element type → number of tensors.
    """

    name: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Layers:
    """How many modules of one sort an adapter changes.

    Attributes:
        component: ``unet``, ``text_encoder``, …
        sort: ``self-attention``, ``feed-forward``, ``convolutions``, …
        modules: their number.
    """

    component: str
    sort: str
    modules: int


@dataclass(frozen=True, slots=True)
class Token:
    """Rows for a text encoder's token table.

    Attributes:
        token: the trigger, as the file spells it; hostile text.
        component: the text encoder.
        vectors: number of rows.
        width: numbers in each.
    """

    token: str
    component: str
    vectors: int
    width: int


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What an adapter changes.

    Attributes:
        changes: kinds, ranks and alphas with their counts, most frequent first.
        modules: the modules it changes: in diffusers' names where `layout` is set, else as the file has them.
        layers: the same, counted by sort.
        blocks: block as the web UIs call it → number of modules; empty without `layout`.
        tokens: what it teaches the tokenizer.
        layout: the family whose published layout it was compared with; empty when it fits none or none is known.
        unmatched: modules that layout has no place for, in the file's names.
        unread: why this version cannot apply it; empty when it can.
        refused: the kinds of change in it that this version cannot apply (``DoRA``, ``GLoRA``, …).
        structure: how the networks of a hypernetwork are built.
        loaders: the programs that read this format and apply every kind of change in it; with a * on the word of
            their documentation alone.
        refusing: those that read it and would not, with the reason.
        advice: what to convert it to where few programs do; empty elsewhere.
    """

    changes: tuple[Change, ...] = ()
    modules: tuple[str, ...] = ()
    layers: tuple[Layers, ...] = ()
    blocks: Mapping[str, int] = field(default_factory=dict)
    tokens: tuple[Token, ...] = ()
    layout: str = ""
    unmatched: tuple[str, ...] = ()
    unread: str = ""
    refused: tuple[str, ...] = ()
    structure: Structure | None = None
    loaders: tuple[str, ...] = ()
    refusing: Mapping[str, str] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Inspection(Report):
    """What a file is, and how that is known.

    Attributes:
        path: the file or folder, as given.
        kind: ``checkpoint``, ``component``, ``lora`` (every kind of weight change), ``textual-inversion``,
            ``hypernetwork``, ``aesthetic``, ``custom-diffusion``, ``inversion``, ``undo`` (what `sdkit merge --undo`
            wrote), or ``unknown``.
        family: of a checkpoint; for an adapter, the family it seems to be made for. ``unknown`` without evidence.
        family_title: the family as people write it; empty when unknown.
        variant: ``base``, ``inpainting``, …; empty for adapters and unknown files.
        prediction: ``epsilon`` or ``v_prediction`` where something in the file says so.
        reasons: the evidence for all that, and against the other families, one sentence each.
        container: ``safetensors``, ``pickle`` or ``folder``.
        format: the adapter codec that recognised it; None for everything else.
        formats: what every codec said; empty when none needed to be asked.
        naming: of a checkpoint: ``ldm`` or ``diffusers``.
        size: bytes of all its files.
        files: the names of its files, below `path` when that is a folder.
        tensors: their number.
        parameters: elements of all tensors, without the EMA copy.
        components: the tensors by component, in file order of names; ``ema`` and ``other`` are none.
        dtypes: the tensors by element type, largest first.
        adapter: what it changes, for adapters.
        markers: keys that are flags (``v_pred``, ``ztsnr``).
        ema: tensors of the EMA copy inside.
        unclaimed: keys no rule explains.
        trigger_words: words that call up what it learned, from its metadata and tokens.
        metadata: its own metadata; hostile text.
        lineage: the merge that made it, then the one that made its base, and so on, one sentence each; hostile text.
        problems: what is doubtful about it, one sentence each.
        notes: what else a person should know.
    """

    path: str
    kind: str
    family: str
    container: str
    size: int
    files: tuple[str, ...]
    tensors: int
    parameters: int
    components: tuple[Share, ...]
    dtypes: tuple[Share, ...]
    family_title: str = ""
    variant: str = ""
    prediction: str | None = None
    reasons: tuple[str, ...] = ()
    format: str | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    naming: str = ""
    adapter: AdapterFacts | None = None
    markers: tuple[str, ...] = ()
    ema: int = 0
    unclaimed: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
