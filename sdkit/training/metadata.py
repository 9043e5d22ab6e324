"""What a trained file says about itself: kohya's keys, ModelSpec's, and sdkit's own. No clock, no path."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import sdkit
from sdkit.core.hashing import quick_id
from sdkit.families.family import Model
from sdkit.runtime.backbone import Backbone
from sdkit.training.data import Dataset
from sdkit.training.options import SEVERAL, TrainOptions, keys
from sdkit.weights import open_weights
from sdkit.weights.metadata import RECIPE_KEY, TRIGGERS_KEY, VERSION_KEY, parent

_KOHYA_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-512",
    "sdxl": "stable-diffusion-xl-v1-base",
}


def training_metadata(
    method: str,
    name: str,
    backbone: Backbone,
    dataset: Dataset,
    options: TrainOptions,
    kind: str,
) -> dict[str, str]:
    """The metadata of a trained file.

    Args:
        method: the training method.
        name: of the result, as people call it.
        options: what the run was made with.
        kind: `Method.modelspec`.
    """
    shown, init = options.without_places(), options.init_file
    words = trigger_words(dataset, str(shown.get("token") or ""))
    parents = [parent(backbone.base_name, backbone.base_id, role="base")]
    if init is not None:
        with open_weights(init) as weights:
            parents.append(parent(init, quick_id(*weights.files), role="init"))
    recipe = {
        "verb": "train",
        "method": method,
        "parents": parents,
        "options": {key: value for key, value in shown.items() if key in _effective(options)},
        "pictures": len(dataset.samples),
        "data": dataset.id,
    }
    return {
        **(_kohya(name, backbone.model, dataset, options) if kind else {}),
        **_modelspec(name, backbone, words, kind),
        TRIGGERS_KEY: json.dumps(words, ensure_ascii=False),
        RECIPE_KEY: json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False),
        VERSION_KEY: sdkit.__version__,
    }


def _effective(options: TrainOptions) -> set[str]:
    """The options that change the result. A file to begin with is a parent instead."""
    known = keys(type(options)).values()
    words = {key.word for key in known if not key.declaration.without_effect}
    return words - {"init"} if options.init_file is not None else words


def of_kind(metadata: Mapping[str, str], kind: str) -> dict[str, str]:
    """The same of another file of the run, which is a `kind` as ModelSpec calls it."""
    key = "modelspec.architecture"
    return {**metadata, key: f"{metadata[key].partition('/')[0]}/{kind}"}


def trigger_words(dataset: Dataset, token: str) -> list[str]:
    """What calls the learnt thing up: the token (of several concepts, each), else the caption all pictures share."""
    if token:
        return token.split(SEVERAL)
    captions = {sample.caption for sample in dataset.samples if not sample.prior}
    return [captions.pop()] if len(captions) == 1 else []


def _kohya(name: str, model: Model, dataset: Dataset, options: TrainOptions) -> dict[str, str]:
    tags = Counter(tag.strip() for sample in dataset.samples for tag in sample.caption.split(",") if tag.strip())
    return {
        "ss_output_name": name,
        "ss_base_model_version": _KOHYA_VERSIONS.get(model.family, model.family),
        "ss_v2": str(model.family == "sd2"),
        "ss_num_train_images": str(sum(sample.repeats for sample in dataset.samples)),
        "ss_tag_frequency": json.dumps({"data": dict(tags.most_common(500))}, ensure_ascii=False),
        "ss_max_train_steps": str(options.steps),
        "ss_steps": str(options.steps),
        "ss_seed": str(options.seed),
        "ss_learning_rate": str(options.lr),
        "ss_optimizer": str(options.optimizer),
        "ss_total_batch_size": str(options.batch),
        "ss_gradient_accumulation_steps": str(options.accumulate),
    }


def _modelspec(name: str, backbone: Backbone, words: list[str], kind: str) -> dict[str, str]:
    architecture = _ARCHITECTURES.get(backbone.model.family, backbone.model.family)
    prediction = "v" if backbone.schedule.prediction == "v_prediction" else "epsilon"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.prediction_type": prediction,
        **({"modelspec.trigger_phrase": ", ".join(words)} if words else {}),
    }
