"""Every key of the published single files, both ways, from headers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from header_files import real_header, weights_of

from sdkit.conversion.checkpoint import read_checkpoint
from sdkit.conversion.plan import Plan, Settings, load_target
from sdkit.families import reference
from sdkit.weights import TensorInfo, Weights
from sdkit.weights.reader import Container

FILES = [("sd1-ldm", "sd1"), ("sdxl-sgm", "sdxl"), ("sd3-comfyui", "sd3"), ("flux-bfl", "flux")]


def planned(weights: Weights, to: str, leftovers: Weights | None = None, **settings: Any) -> Plan:
    _, target = load_target(to)
    checkpoint = read_checkpoint(weights, leftovers=leftovers)
    return target.plan(checkpoint, checkpoint, Settings(**settings))


def as_written(plan: Plan) -> tuple[Weights, Weights]:
    """The folder a plan would write, as it would be opened, and what lies beside its components."""
    tensors, beside = {}, {}
    for file in plan.files:
        table = tensors if file.prefix else beside
        for output in file.tensors:
            name = file.prefix + output.name
            table[name] = TensorInfo(name, output.dtype, output.shape, 0)
    configs = {
        name.split("/")[0].removesuffix(".json"): json.loads(data)
        for name, data in plan.side_files.items()
        if name.endswith("config.json") and not name.startswith("tokenizer")
    }
    path = Path("folder")
    folder = Weights(path, Container.FOLDER, [path], tensors, {}, configs=configs)
    return folder, Weights(path, Container.SAFETENSORS, [path], beside, {})


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """As many tokens as T5 has."""
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", 0.0]] * 32100}}))
    return tmp_path


@pytest.mark.parametrize(("name", "family"), FILES)
def test_every_key_has_its_place_in_a_folder_and_comes_back(name: str, family: str, tokenizer: Path) -> None:
    single = real_header(name)
    t5 = {"tokenizer": tokenizer} if family in ("sd3", "flux") else {}
    plan = planned(single, "diffusers", **t5)
    folder, beside = as_written(plan)

    weights = {key.replace("/", "."): info.shape for key, info in folder.tensors.items() if "position_ids" not in key}
    assert weights == {hub: place.shape for hub, place in reference(family).places.items()}
    dropped = {key for drop in plan.rest.dropped for key in drop.names}
    assert dropped == {key for key in single.tensors if key.startswith("model_ema.")}

    back = planned(folder, "single", beside)
    written = {output.name: (output.dtype, output.shape) for output in back.tensors}
    assert written == {key: (info.dtype, info.shape) for key, info in single.tensors.items() if key not in dropped}
    assert back.rest.dropped == []


@pytest.mark.parametrize(("name", "family"), FILES)
def test_the_configurations_of_published_files_are_the_published_ones(
    name: str, family: str, published: Callable[[str, str], dict[str, Any]], tokenizer: Path
) -> None:
    plan = planned(real_header(name), "diffusers", **({"tokenizer": tokenizer} if family in ("sd3", "flux") else {}))
    for component in plan.parts:
        assert json.loads(plan.side_files[f"{component}/config.json"]) == published(family, component)
    # The file holds every marker there is, one for noise levels that a scheduler cannot say; nothing is supposed.
    assert len(plan.warnings) == (family == "sdxl") and all("edm_vpred" in warning for warning in plan.warnings)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
@pytest.mark.parametrize(("name", "family"), FILES[2:])
def test_every_key_of_a_transformer_alone_has_its_place_and_comes_back(name: str, family: str, prefix: str) -> None:
    published, usual = real_header(name).tensors, "model.diffusion_model."
    shapes = {prefix + key.removeprefix(usual): info.shape for key, info in published.items() if key.startswith(usual)}
    plan = planned(weights_of(shapes), "diffusers")
    (file,) = plan.files
    assert {f"transformer.{output.name}": output.shape for output in file.tensors} == {
        hub: place.shape for hub, place in reference(family).places.items() if hub.startswith("transformer.")
    }
    back = planned(weights_of({output.name: output.shape for output in file.tensors}), "single")
    bare = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
    assert {output.name: output.shape for output in back.tensors} == bare


@pytest.fixture
def published(test_data: Path) -> Callable[[str, str], dict[str, Any]]:
    """A configuration as the published repository has it."""
    folders = {"sd1": "stable-diffusion-v1-5", "sdxl": "stable-diffusion-xl-base-1.0", "flux": "FLUX.1-dev"}
    folders["sd3"] = "stable-diffusion-3-medium-diffusers"

    def read(family: str, component: str) -> dict[str, Any]:
        file = test_data / "data" / "models" / folders[family] / component / "config.json"
        fields: dict[str, Any] = json.loads(file.read_text())
        return {key: value for key, value in fields.items() if key != "_name_or_path"}

    return read


def test_pruned_keeps_what_says_how_to_sample() -> None:
    single = real_header("sdxl-sgm")
    pruned = planned(single, "single", prune=True)
    names = {output.name for output in pruned.tensors}
    assert {"v_pred", "ztsnr", "edm_vpred.sigma_max"} <= names
    assert not names & {"betas", "alphas_cumprod", "conditioner.embedders.1.model.logit_scale"}
    drops = {key for drop in pruned.rest.dropped for key in drop.names}
    assert names | drops == set(single.tensors) and not names & drops
