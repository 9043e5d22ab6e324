"""Which of a repository's files make the model: by their names alone, and with the reason."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdkit.core.errors import UsageError

_SUFFIXES = ("safetensors", "bin", "ckpt", "pt", "pth")  # the preferred one first
_FOLDER_SUFFIXES = _SUFFIXES[:2]
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SET = re.compile(
    rf"(?P<stem>{'|'.join(_STEMS)})(\.(?P<variant>\w+))?(-\d+-of-\d+)?(\.(?P<late>\w+))?"
    rf"\.(?P<suffix>{'|'.join(_FOLDER_SUFFIXES)})(?P<index>\.index(\.(?P<last>\w+))?\.json)?"
)
_CONFIGURATIONS = (".json", ".txt", ".model", ".jinja")
_ADAPTER = ("pytorch_lora_weights", "learned_embeds")  # what diffusers calls an adapter, and an embedding
_NO_MODELS = re.compile(r"(optimizer|scheduler|training_args|random_states|rng_state|scaler|pytorch_model_fsdp).*")
# Words that tell versions of one model apart.
_VERSION = re.compile(r"[-_.]?(fp16|fp32|bf16|half|pruned|ema[-_]?only|non[-_]?ema|no[-_]?ema|ema|full)(?![a-z])", re.I)
_LISTED = 12


@dataclass(frozen=True, slots=True)
class Choice:
    """What to download.

    Attributes:
        names: files, as the repository names them.
        is_folder: whether they are a folder.
        why: the reason, in half a sentence; empty where there was no choice.
        others: files and folders that could be named instead.
    """

    names: tuple[str, ...]
    is_folder: bool
    why: str = ""
    others: tuple[str, ...] = ()


def choose(names: Iterable[str], path: str, what: str) -> Choice:
    """The files of the model at `path` in a repository.

    A pipeline or component of diffusers is a folder; of its variants, fp16 in safetensors is preferred. Else one file:
    that of an adapter by its usual name, or the only one there is.

    Args:
        names: all files of the repository, with ``/``.
        path: a file or folder in it; empty for the whole.
        what: what a person calls it, for messages.

    Raises:
        UsageError: there is no such file, no weights, or several files are equally likely.
    """
    listed = sorted(names)
    if path in listed:
        return Choice((path,), is_folder=False)
    inside = f"{path}/" if path else ""
    here = [name for name in listed if name.startswith(inside)]
    if not here:
        near = [name for name in listed if _is_weight(name)]
        raise UsageError(f"{what}: has no file {path!r}", f"there are: {_listing(near or listed)}")
    tops = [name for name in here if "/" not in name.removeprefix(inside)]
    if f"{inside}model_index.json" in here:
        return _pipeline(here, tops, inside)
    if f"{inside}adapter_config.json" in tops:
        return _peft(tops, inside)
    component = _sets(tops)
    if f"{inside}config.json" in tops and component:
        names, variant = _best(component, "fp16" in {variant for _, variant in component})
        configurations = [name for name in tops if name.endswith(_CONFIGURATIONS) and not _SET.fullmatch(_base(name))]
        return Choice((*configurations, *names), True, f"a component of diffusers, {variant}", _files(tops, names))
    return _single(tops, here, what)


def _pipeline(here: Sequence[str], tops: Sequence[str], inside: str) -> Choice:
    """A pipeline's folder: its components, each in the best form that all of them have."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for name in here:
        folder, _, rest = name.removeprefix(inside).partition("/")
        if rest and "/" not in rest:
            folders[folder].append(name)
    sets = {folder: found for folder, names in folders.items() if (found := _sets(names))}
    half = all("fp16" in {variant for _, variant in found} for found in sets.values())
    chosen = [f"{inside}model_index.json"]
    forms: list[str] = []
    for folder, names in folders.items():
        configurations = [name for name in names if name.endswith(_CONFIGURATIONS)]
        chosen += [name for name in configurations if not _SET.fullmatch(_base(name))]
        if folder in sets:
            weights, form = _best(sets[folder], half)
            chosen += weights
            forms.append(form)
    why = f"the pipeline's folder, {', '.join(dict.fromkeys(forms))}"
    return Choice(tuple(chosen), True, why, _files(tops, ()))


def _peft(tops: Sequence[str], inside: str) -> Choice:
    suffix = next((suffix for suffix in _FOLDER_SUFFIXES if f"{inside}adapter_model.{suffix}" in tops), "safetensors")
    names = (f"{inside}adapter_config.json", f"{inside}adapter_model.{suffix}")
    return Choice(names, True, "an adapter of PEFT, whose scale is in its configuration", _files(tops, names))


def _single(tops: Sequence[str], here: Sequence[str], what: str) -> Choice:
    """The one file that is the model."""
    for suffix in _SUFFIXES:
        found = [name for name in tops if name.endswith(f".{suffix}") and _is_weight(name)]
        if not found:
            continue
        known = [name for name in found if _stem(name) in _ADAPTER]
        chosen = known or found
        others = _files(tops, chosen[:1])
        if len(chosen) == 1:
            return Choice(tuple(chosen), False, _reason(chosen[0], others), others)
        if len({_VERSION.sub("", _stem(name)).lower() for name in chosen}) == 1:
            best = min(chosen, key=lambda name: (not _is_half(name), "ema" not in name.lower(), len(name)))
            kind = "fp16 " if _is_half(best) else ""
            why = f"the smallest version in {kind}{suffix}" if not _is_half(best) else f"the fp16 version in {suffix}"
            return Choice((best,), False, why, _files(tops, (best,)))
        raise UsageError(f"{what}: holds several models", f"name one of them: {_listing(found)}")
    weights = [name for name in here if _is_weight(name)]
    if not weights:
        raise UsageError(f"{what}: holds no weights", f"there are: {_listing(here)}")
    raise UsageError(f"{what}: its models lie in folders", f"name one of them: {_listing(weights)}")


def _reason(name: str, others: Sequence[str]) -> str:
    if _stem(name) in _ADAPTER:
        return "what diffusers calls it"
    if not others:
        return "the only weights there are"
    return "the only safetensors file" if name.endswith(".safetensors") else "the only file of its kind"


def _sets(names: Iterable[str]) -> dict[tuple[str, str], list[str]]:
    """Weights of a component by suffix and variant, each with its shards and their index."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        match = _SET.fullmatch(_base(name))
        if match:
            variant = match["variant"] or match["late"] or match["last"] or ""
            found[match["suffix"], variant].append(name)
    return dict(found)


def _best(sets: dict[tuple[str, str], list[str]], half: bool) -> tuple[list[str], str]:
    """The preferred of a component's forms: safetensors, then the wanted precision."""
    wanted = "fp16" if half else ""
    suffix, variant = min(sets, key=lambda form: (_FOLDER_SUFFIXES.index(form[0]), form[1] != wanted, form[1]))
    return sets[suffix, variant], f"{variant} {suffix}".strip()


def _files(tops: Iterable[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """The other weight files beside those chosen."""
    return tuple(name for name in tops if _is_weight(name) and name not in chosen)


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] in _SUFFIXES and not _NO_MODELS.fullmatch(_base(name))


def _is_half(name: str) -> bool:
    return "fp16" in name.lower()


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    return _base(name).rpartition(".")[0]


def _listing(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
