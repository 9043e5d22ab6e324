"""What a person needs to publish on Civitai, which lets no program do it: texts for the fields of its form."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator

from sdkit.core.civitai import BASE_MODELS, TYPES
from sdkit.hubs._card import About
from sdkit.hubs.hub import Upload

FORM = "https://civitai.com/models/create"
DETAILS, DESCRIPTION = "details.json", "description.html"
NEXT_STEP = (
    f"open {FORM}, drop the weights and the pictures of the folder on it, paste {DESCRIPTION} (opened in a browser) "
    f"as the description, and fill in the rest from {DETAILS}"
)


def bundle(about: About) -> tuple[list[Upload], str]:
    """The texts that belong beside weights and pictures, and what a person does next."""
    details = json.dumps(_details(about), indent=2, ensure_ascii=False) + "\n"
    texts = {DETAILS: details, DESCRIPTION: "\n".join(_description(about)) + "\n"}
    return [Upload(name, text.encode()) for name, text in texts.items()], NEXT_STEP


def _details(about: About) -> dict[str, object]:
    """The fields of the form, in its own words."""
    return {
        "name": about.name,
        "type": TYPES.get(about.kind, ("Other",))[0],
        "baseModel": BASE_MODELS.get(about.family, ("Other",))[0],
        "trainedWords": list(about.triggers),
        "tags": [word for word in (about.kind, about.family) if word and word != "unknown"],
        "licence": about.licence,
        "madeFrom": list(about.base_model),
        "files": [
            {"name": name, "size": size, "hashes": {"SHA256": sha256.upper(), "AutoV2": sha256[:10].upper()}}
            for name, size, sha256 in about.files
            if sha256
        ],
        "samples": [
            {"name": sample.name, "prompt": sample.prompt, "negativePrompt": sample.negative}
            for sample in about.samples
        ],
        "recipe": about.recipe or {},
    }


def _description(about: About) -> Iterator[str]:
    """HTML, because its editor takes pasted text with its form. Names and words may come from strangers."""
    yield "<!doctype html><meta charset='utf-8'>"
    if about.triggers:
        yield f"<p>Trigger words: {', '.join(f'<code>{html.escape(word)}</code>' for word in about.triggers)}</p>"
    recipe = about.recipe or {}
    made = " ".join(str(recipe[key]) for key in ("verb", "method") if isinstance(recipe.get(key), str))
    if made:
        yield f"<p>Made with sdkit: {html.escape(made)}.</p>"
    if about.base_model:
        yield f"<p>Made for or from: {html.escape(', '.join(about.base_model))}.</p>"
    options = recipe.get("options")
    if isinstance(options, dict):
        plain = {key: value for key, value in options.items() if isinstance(value, (int, float, bool))}
        rows = "".join(f"<li>{html.escape(str(key))}: {value}</li>" for key, value in sorted(plain.items()))
        yield f"<p>Settings:</p><ul>{rows}</ul>" if rows else ""
    if about.licence:
        yield f"<p>Licence: {html.escape(about.licence)}</p>"
