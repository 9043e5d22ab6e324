"""The model card of a published model, as Hugging Face reads it: a head in YAML, then Markdown.

Texts come from files and people, so none may end the head, begin a table's column or become HTML: the head is dumped by
a YAML library, and what stands in the body is escaped.
https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MARK = "<!-- written by sdkit push -->"  # a card without it is somebody's own
_FAMILY_TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
_KIND_TAGS = {
    "lora": ("lora", "template:sd-lora"),
    "textual-inversion": ("textual_inversion",),
    "hypernetwork": ("hypernetwork",),
}
_DIFFUSERS_KINDS = frozenset({"lora", "textual-inversion", "checkpoint", "component"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]+")
_MARKUP = re.compile(r"([\\`*_{}\[\]|~])")
_LICENCE_IDS = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture to show.

    Attributes:
        name: of its file in the repository.
        prompt: it was drawn with.
        negative: its negative prompt.
    """

    name: str
    prompt: str
    negative: str = ""


@dataclass(frozen=True, slots=True)
class About:
    """What a card tells.

    Attributes:
        name: of the model.
        repo: ``user/repo``.
        kind: ``lora``, ``checkpoint``, …
        family: ``sd1``, …
        base_model: repositories it was made for or from.
        licence: an identifier of the Hub's, or any other words.
        triggers: words that call it up.
        files: name, size in words and sha256 of each file.
        samples: pictures.
        recipe: how it was made, from its metadata; empty where that is not known.
        version: of sdkit, where sdkit has made it.
    """

    name: str
    repo: str
    kind: str
    family: str
    base_model: tuple[str, ...] = ()
    licence: str = ""
    triggers: tuple[str, ...] = ()
    files: tuple[tuple[str, str, str], ...] = ()
    samples: tuple[Sample, ...] = ()
    recipe: Mapping[str, Any] | None = None
    version: str = ""

    @property
    def relation(self) -> str:
        """What it is to its base, in the Hub's words; empty where these have none, as for a conversion."""
        verb, kind = str((self.recipe or {}).get("verb")), self.kind
        if kind not in ("checkpoint", "component", "unknown"):
            return "adapter"
        return {"merge": "merge", "blend": "merge", "train": "finetune"}.get(verb, "")


def write_card(about: About) -> str:
    """The card."""
    from huggingface_hub import ModelCardData

    head = ModelCardData(ignore_metadata_errors=False, **_head(about)).to_yaml()
    return f"---\n{head}\n---\n{MARK}\n" + "\n".join(_body(about)) + "\n"


def _head(about: About) -> dict[str, Any]:
    tags = ["text-to-image", *_KIND_TAGS.get(about.kind, ()), _FAMILY_TAGS.get(about.family, "")]
    if about.kind in _DIFFUSERS_KINDS:
        tags.append("diffusers")
    if about.relation == "merge":
        tags.append("merge")
    head: dict[str, Any] = {
        **_licence(about.licence),
        "base_model": list(about.base_model) if len(about.base_model) > 1 else next(iter(about.base_model), None),
        "base_model_relation": about.relation if about.base_model else "",
        "library_name": "diffusers" if about.kind in _DIFFUSERS_KINDS else None,
        "pipeline_tag": "text-to-image",
        "tags": [tag for tag in tags if tag],
        "instance_prompt": ", ".join(map(_clean, about.triggers)),
        "widget": [_widget(sample) for sample in about.samples],
    }
    return {key: value for key, value in head.items() if value}


def _licence(licence: str) -> dict[str, str]:
    """The Hub knows licences by identifiers; all others are ``other`` with a name."""
    if not licence:
        return {}
    if _LICENCE_IDS.fullmatch(licence):
        return {"license": licence}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9]+", "-", licence.lower()).strip("-")[:80] or "own"}


def _widget(sample: Sample) -> dict[str, Any]:
    negative = {"parameters": {"negative_prompt": _clean(sample.negative)}} if sample.negative else {}
    return {"text": _clean(sample.prompt) or "-", **negative, "output": {"url": sample.name}}


def _body(about: About) -> Iterator[str]:
    yield f"\n# {_plain(about.name)}\n"
    if about.samples:
        yield "<Gallery />\n"
    if about.triggers:
        yield f"Trigger words: {', '.join(_code(word) for word in about.triggers)}\n"
    yield from _usage(about)
    recipe = about.recipe
    if recipe is not None:
        yield "## How it was made\n"
        yield from _made(recipe, "", 0)
        if about.version:
            yield f"\nThe file says so itself; sdkit {_plain(about.version)} has made it.\n"
        yield from _training(recipe)
    if about.licence and not _LICENCE_IDS.fullmatch(about.licence):
        yield f"## Licence\n\n{_plain(about.licence)}\n"
    yield "## Files\n"
    yield from _table(("file", "size", "sha256"), about.files)


def _usage(about: About) -> Iterator[str]:
    base = about.base_model[0] if len(about.base_model) == 1 else "BASE"
    name = _loaded_by_diffusers(about)
    yield "## Use\n"
    if about.relation == "adapter":
        model = base if base == "BASE" else f"hf:{base}"
        yield f"```sh\nsdkit merge {model} hf:{about.repo} -o merged.safetensors\n```\n"
    else:
        yield f"```sh\nsdkit pull hf:{about.repo}\n```\n"
    load = {
        "lora": f'pipe.load_lora_weights("{about.repo}", weight_name="{name}")',
        "textual-inversion": f'pipe.load_textual_inversion("{about.repo}", weight_name="{name}")',
    }.get(about.kind)
    if load is not None and name:
        yield "```python\nfrom diffusers import DiffusionPipeline\n"
        yield f'pipe = DiffusionPipeline.from_pretrained("{base}")\n{load}\n```\n'


def _loaded_by_diffusers(about: About) -> str:
    """The first file of weights that is an adapter by itself; PEFT's needs the configuration that lies beside it."""
    folders = {name.rpartition("/")[0] for name, _, _ in about.files if name.endswith("adapter_config.json")}
    alone = (name for name, _, sha256 in about.files if sha256 and name.rpartition("/")[0] not in folders)
    return next(alone, "")


def _made(recipe: Mapping[str, Any], indent: str, depth: int) -> Iterator[str]:
    """What was done to what, as a nested list."""
    method = recipe.get("method")
    yield f"{indent}- {_plain(recipe.get('verb', '?'))}{f' ({_plain(method)})' if method else ''}"
    steps = recipe.get("steps")
    for parent in recipe.get("parents") or ():
        if not isinstance(parent, Mapping):
            continue
        strength = parent.get("strength")
        times = f" × {strength:g}" if isinstance(strength, (int, float)) else ""
        source = f" ({_code(str(parent['source']))})" if "source" in parent else ""
        yield f"{indent}  - {_plain(parent.get('role', 'input'))}: {_plain(parent.get('name', '?'))}{times}{source}"
        step = steps.get(parent.get("step")) if isinstance(steps, Mapping) else None
        if isinstance(step, Mapping) and depth < _DEEPEST:
            yield from _made({**step, "steps": steps}, f"{indent}    ", depth + 1)
    before = recipe.get("base_recipe")
    if isinstance(before, Mapping) and depth < _DEEPEST:
        yield f"{indent}  - and the base before that:"
        yield from _made(before, f"{indent}    ", depth + 1)


# Settings of a run that say nothing of the machine or the pictures.
_TRAINING = (
    "algo",
    "rank",
    "alpha",
    "vectors",
    "token",
    "steps",
    "batch",
    "accumulate",
    "lr",
    "te_lr",
    "optimizer",
    "schedule",
    "resolution",
    "seed",
    "precision",
)


def _training(recipe: Mapping[str, Any]) -> Iterator[str]:
    """What a training run was told."""
    options = recipe.get("options")
    if recipe.get("verb") != "train" or not isinstance(options, Mapping):
        return
    rows = [(key, str(options[key])) for key in _TRAINING if options.get(key) not in (None, "")]
    pictures = recipe.get("pictures")
    yield "## Training\n"
    yield from _table(("setting", "value"), [*rows, *([("pictures", str(pictures))] if pictures else [])])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(map(_plain, row))} |"
    yield ""


def _clean(text: object) -> str:
    """A text on one line, without what a reader cannot see."""
    return _CONTROL.sub(" ", str(text)).strip()[:2000]


def _plain(text: object) -> str:
    """A text that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\1", _clean(text).replace("&", "&amp;").replace("<", "&lt;"))


def _code(text: str) -> str:
    return f"`{_clean(text).replace('`', chr(39))}`"
