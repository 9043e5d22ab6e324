"""Blending whole checkpoints: which tensors, by which numbers, and what is refused before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from example_model import POSITION_IDS, TEXT, UNET, VAE, Sizes, make_checkpoint
from models import SDXL_TEXTS, sd1, sdxl
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families import identify
from sdkit.jobs.blend import blend
from sdkit.weights import open_weights

Tensors = dict[str, torch.Tensor]
CONV_IN = f"{UNET}.input_blocks.0.0.weight"
IN1 = f"{UNET}.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
IN4 = f"{UNET}.input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight"
TE = f"{TEXT}.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="session")
def tensors() -> list[Tensors]:
    """Three checkpoints."""
    return [sd1(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def files(tensors: list[Tensors], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same as files."""
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"{name}.safetensors" for name in "abc"]
    for path, model in zip(paths, tensors, strict=True):
        save_file(model, path, {"modelspec.title": path.stem})
    return paths


@pytest.fixture
def write(tmp_path: Path, tensors: list[Tensors]) -> Callable[..., Path]:
    """Write one of the checkpoints with changes: a tensor instead of another, None to leave it out."""

    def written(
        index: int, changes: dict[str, torch.Tensor | None], name: str = "x", metadata: dict[str, str] | None = None
    ) -> Path:
        model = {**tensors[index], **changes}
        path = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in model.items() if value is not None}, path, metadata)
        return path

    return written


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def near(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result.float(), expected.float(), rtol=1e-3, atol=1e-6)


def test_weighted_sum_of_checkpoints(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    report = sdkit.blend(files[:2], tmp_path / "out.safetensors", alpha=0.3)
    out = load_file(tmp_path / "out.safetensors")
    a, b = tensors[:2]
    assert set(out) == set(a)
    for key, value in out.items():
        assert value.dtype == a[key].dtype
        if key.startswith(VAE) or key == POSITION_IDS:
            assert torch.equal(value, a[key])
        else:
            near(value, 0.7 * a[key].float() + 0.3 * b[key].float())
    assert report.blended + report.copied == len(a)
    assert report.family == "sd1" and report.parameters == {"alpha": 0.3}


@pytest.mark.parametrize(("alpha", "index"), [(0.0, 0), (1.0, 1)])
def test_at_the_ends_bits_are_copied(
    alpha: float, index: int, files: list[Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    report = blend(files[:2], tmp_path / "out.safetensors", alpha=alpha, blend_vae=True)
    assert report.blended == 0
    out = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(value, tensors[index][key]) for key, value in out.items())


def test_adding_a_difference(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    blend(files, tmp_path / "out.safetensors", method="add_difference", alpha=0.5)
    out, (a, b, c) = load_file(tmp_path / "out.safetensors"), tensors
    near(out[IN4], a[IN4].float() + 0.5 * (b[IN4].float() - c[IN4].float()))


@pytest.mark.parametrize("method", ["dare-ties", "della", "ties", "slerp"])
def test_bytes_depend_on_nothing_but_the_recipe(method: str, files: list[Path], tmp_path: Path) -> None:
    base = files[2] if method != "slerp" else None
    for threads in (1, 3):
        blend(files[:2], tmp_path / f"{threads}.safetensors", method=method, base=base, threads=threads, seed=7)
    one, other = (digest(tmp_path / f"{threads}.safetensors") for threads in (1, 3))
    assert one == other
    if method in ("dare-ties", "della"):
        blend(files[:2], tmp_path / "other.safetensors", method=method, base=base, seed=8)
        assert digest(tmp_path / "other.safetensors") != one


def test_blocks_components_and_rules(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    blend(
        files[:2],
        tmp_path / "out.safetensors",
        alpha=0.5,
        blocks="IN01=1",
        te_alpha=0.0,
        rules=[r"attn1\.to_q=0.25", r"up_blocks=alpha:0"],
    )
    out, (a, b, _) = load_file(tmp_path / "out.safetensors"), tensors
    near(out[IN4], 0.75 * a[IN4].float() + 0.25 * b[IN4].float())  # the rule wins over the block
    other = IN1.replace("to_q", "to_k")
    assert torch.equal(out[other], b[other])
    assert torch.equal(out[TE], a[TE])
    assert all(torch.equal(out[key], a[key]) for key in out if f"{UNET}.output_blocks" in key)


@pytest.mark.parametrize("count", [25, 26])
def test_lists_of_block_weights_are_alphas(
    count: int, files: list[Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    numbers = [0.0] * (count - 25) + [0.0] * 25
    numbers[count - 25 + 4] = 1.0  # IN04
    blend(files[:2], tmp_path / "out.safetensors", alpha=1.0, blocks=numbers)
    out, (a, b, _) = load_file(tmp_path / "out.safetensors"), tensors
    assert torch.equal(out[IN4], b[IN4]) and torch.equal(out[IN1], a[IN1])
    assert torch.equal(out[TE], (a if count == 26 else b)[TE])  # without BASE it keeps --alpha


def test_a_gradient_runs_from_input_to_output(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    blend(files[:2], tmp_path / "out.safetensors", alpha=(0.0, 1.0))
    out, (a, b, _) = load_file(tmp_path / "out.safetensors"), tensors
    assert torch.equal(out[CONV_IN], a[CONV_IN])
    last = f"{UNET}.output_blocks.11.1.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(out[last], b[last])
    middle = f"{UNET}.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    near(out[middle], (a[middle].float() + b[middle].float()) / 2)


def test_weights_behind_models(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    models = list(zip(files, (0.5, 0.25, 0.25), strict=True))
    blend(models, tmp_path / "out.safetensors", method="linear")
    a, b, c = (model[IN4].float() for model in tensors)
    near(load_file(tmp_path / "out.safetensors")[IN4], 0.5 * a + 0.25 * b + 0.25 * c)
    with pytest.raises(UsageError, match="takes no weight"):
        blend(models[:2], tmp_path / "out2.safetensors")


# The autoencoder, positions, flags, averages


def test_the_autoencoder_is_as_unless_one_is_baked_or_both_are_blended(
    files: list[Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    key = f"{VAE}.decoder.conv_in.weight"
    blend(files[:2], tmp_path / "baked.safetensors", vae=files[2])
    assert torch.equal(load_file(tmp_path / "baked.safetensors")[key], tensors[2][key])
    blend(files[:2], tmp_path / "blended.safetensors", blend_vae=True)
    near(load_file(tmp_path / "blended.safetensors")[key], (tensors[0][key].float() + tensors[1][key].float()) / 2)


def test_an_autoencoder_alone_can_be_baked(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    alone = {key.removeprefix(f"{VAE}."): value for key, value in tensors[2].items() if key.startswith(VAE)}
    save_file(alone, tmp_path / "vae.safetensors")
    blend(files[:2], tmp_path / "out.safetensors", vae=tmp_path / "vae.safetensors")
    key = f"{VAE}.decoder.conv_in.weight"
    assert torch.equal(load_file(tmp_path / "out.safetensors")[key], tensors[2][key])


def test_damaged_position_ids_are_counted_anew(files: list[Path], write: Callable[..., Path], tmp_path: Path) -> None:
    """Mergers that averaged them left 0.583, 1.166, … behind, and half floats that skip numbers."""
    drifted = write(0, {POSITION_IDS: 0.583 * torch.arange(77)[None].half()})
    report = blend([drifted, files[1]], tmp_path / "out.safetensors")
    assert torch.equal(load_file(tmp_path / "out.safetensors")[POSITION_IDS], torch.arange(77)[None])
    assert any("position counter" in warning for warning in report.warnings)
    shifted = write(0, {POSITION_IDS: torch.arange(1, 78)[None]}, "shifted")
    blend([shifted, files[1]], tmp_path / "out2.safetensors")
    assert torch.equal(load_file(tmp_path / "out2.safetensors")[POSITION_IDS], torch.arange(77)[None])


def test_flags_of_every_model_reach_the_output(write: Callable[..., Path], tmp_path: Path) -> None:
    """web UIs' mergers lose flags only B has, and sd-mecha all that any model lacks."""
    a = write(0, {"v_pred": torch.empty(0)}, "va")
    b = write(1, {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}, "vb")
    blend([a, b], tmp_path / "out.safetensors")
    assert {"v_pred", "ztsnr"} <= set(load_file(tmp_path / "out.safetensors"))


def test_noise_and_velocity_are_not_mixed_unknowingly(
    files: list[Path], write: Callable[..., Path], tmp_path: Path
) -> None:
    velocity = write(1, {"v_pred": torch.empty(0)})
    with pytest.raises(SdkitError, match="predicts the velocity"):
        blend([files[0], velocity], tmp_path / "out.safetensors")
    blend([files[0], velocity], tmp_path / "out.safetensors", allow_prediction_mix=True)
    assert "v_pred" in load_file(tmp_path / "out.safetensors")


def average(key: str) -> str:
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def test_averaged_copies(write: Callable[..., Path], tensors: list[Tensors], tmp_path: Path) -> None:
    changes = [{average(IN4): tensors[index][IN4] + 1, "model_ema.decay": torch.tensor(0.5)} for index in range(2)]
    a, b = write(0, changes[0], "ea"), write(1, changes[1], "eb")
    report = blend([a, b], tmp_path / "drop.safetensors", alpha=0.25)
    assert not any(key.startswith("model_ema") for key in load_file(tmp_path / "drop.safetensors"))
    assert report.dropped == 2
    plain = 0.75 * tensors[0][IN4].float() + 0.25 * tensors[1][IN4].float()
    blend([a, b], tmp_path / "keep.safetensors", alpha=0.25, ema="keep")
    kept = load_file(tmp_path / "keep.safetensors")
    near(kept[IN4], plain)
    torch.testing.assert_close(kept[average(IN4)].float(), plain + 1, rtol=2e-3, atol=1e-3)
    assert kept["model_ema.decay"] == 0.5
    blend([a, b], tmp_path / "use.safetensors", alpha=0.25, ema="use")
    used = load_file(tmp_path / "use.safetensors")
    torch.testing.assert_close(used[IN4].float(), plain + 1, rtol=2e-3, atol=1e-3)
    assert average(IN4) not in used
    blend([a, b], tmp_path / "use_a.safetensors", alpha=0.0, ema="use")
    assert torch.equal(load_file(tmp_path / "use_a.safetensors")[IN4], tensors[0][IN4] + 1)
    with pytest.raises(SdkitError, match="not every model has the averaged copy"):
        blend([a, write(1, {}, "plain")], tmp_path / "no.safetensors", ema="keep")


# Other layouts


@pytest.mark.parametrize("first", [True, False])
def test_an_inpainting_model_blends_in_either_order(
    first: bool, files: list[Path], write: Callable[..., Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    wide = torch.cat([tensors[1][CONV_IN], torch.ones(32, 5, 3, 3).half()], 1)
    inpainting = write(1, {CONV_IN: wide})
    order = [inpainting, files[0]] if first else [files[0], inpainting]
    blend(order, tmp_path / "out.safetensors", alpha=0.25)
    out = load_file(tmp_path / "out.safetensors")[CONV_IN]
    share = 0.75 if first else 0.25
    near(out[:, :4], share * tensors[1][CONV_IN].float() + (1 - share) * tensors[0][CONV_IN].float())
    assert torch.equal(out[:, 4:], wide[:, 4:])
    assert out.shape == wide.shape


def test_the_classic_inpainting_recipe(
    files: list[Path], write: Callable[..., Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    """inpainting + (custom − base): the wide convolution first, two narrow ones subtracted."""
    wide = torch.cat([tensors[0][CONV_IN], torch.ones(32, 5, 3, 3).half()], 1)
    blend([write(0, {CONV_IN: wide}), *files[1:]], tmp_path / "out.safetensors", method="add-difference")
    out, (a, b, c) = load_file(tmp_path / "out.safetensors"), (model[CONV_IN].float() for model in tensors)
    near(out[CONV_IN][:, :4], a + b - c)
    assert torch.equal(out[CONV_IN][:, 4:], wide[:, 4:])


def test_two_kinds_of_wide_models_are_refused(
    write: Callable[..., Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    widths = {"inpainting": 5, "pix2pix": 4}
    models = [
        write(0, {CONV_IN: torch.cat([tensors[0][CONV_IN], torch.ones(32, extra, 3, 3).half()], 1)}, name)
        for name, extra in widths.items()
    ]
    with pytest.raises(SdkitError, match="mean different things"):
        blend(models, tmp_path / "out.safetensors")


def diffusers_folder(source: Path, folder: Path) -> Path:
    """The checkpoint as a diffusers folder, by the places the family's rules give."""
    with open_weights(source) as weights:
        model = identify(weights)
    stored = load_file(source)
    components: dict[str, Tensors] = {}
    for hub, place in model.places.items():
        component, _, name = hub.partition(".")
        value = stored[place.key] if place.rows is None else stored[place.key][slice(*place.rows)]
        value = value.T if place.transposed else value
        components.setdefault(component, {})[name] = value.reshape(place.shape).contiguous()
    for component, values in components.items():
        (folder / component).mkdir(parents=True)
        save_file(values, folder / component / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableDiffusionPipeline", **{name: ["diffusers", "Any"] for name in components}})
    )
    return folder


def test_a_single_file_blends_with_a_folder(files: list[Path], tmp_path: Path) -> None:
    folder = diffusers_folder(files[1], tmp_path / "b")
    blend(files[:2], tmp_path / "same.safetensors", alpha=0.3)
    blend([files[0], folder], tmp_path / "mixed.safetensors", alpha=0.3)
    same, mixed = (load_file(tmp_path / f"{name}.safetensors") for name in ("same", "mixed"))
    assert all(torch.equal(value, mixed[key]) for key, value in same.items())
    blend([folder, files[0]], tmp_path / "folder", alpha=0.7)
    unet = load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    hub = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    near(unet[hub], same[IN4])


def test_fused_and_transposed_tensors_meet_their_parts(tmp_path: Path) -> None:
    """SDXL's second text encoder: one tensor for q, k and v and a transposed projection, against a diffusers folder."""
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first, second = sdxl(0), sdxl(1)
    save_file(first, a)
    save_file(second, b)
    folder = diffusers_folder(b, tmp_path / "folder")
    blend([a, b], tmp_path / "same.safetensors", alpha=0.25)
    blend([a, folder], tmp_path / "mixed.safetensors", alpha=0.25)
    same, mixed = (load_file(tmp_path / f"{name}.safetensors") for name in ("same", "mixed"))
    assert all(torch.equal(value, mixed[key]) for key, value in same.items())
    projection = f"{SDXL_TEXTS[1]}text_projection"
    near(mixed[projection], 0.75 * first[projection].float() + 0.25 * second[projection].float())
    blend([folder, a], tmp_path / "out", alpha=1.0, blend_vae=True)
    expected = diffusers_folder(a, tmp_path / "expected")
    for component in ("unet", "text_encoder", "text_encoder_2"):
        name = f"{component}/diffusion_pytorch_model.safetensors"
        out, wanted = load_file(tmp_path / "out" / name), load_file(expected / name)
        assert all(torch.equal(out[key], value) for key, value in wanted.items())


def test_a_rule_may_hold_for_one_of_several_fused_projections(tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first, second = sdxl(0), sdxl(1)
    save_file(first, a)
    save_file(second, b)
    blend([a, b], tmp_path / "out.safetensors", alpha=0.0, rules=[r"text_encoder_2\..*k_proj=1"])
    key = f"{SDXL_TEXTS[1]}transformer.resblocks.1.attn.in_proj_weight"
    out = load_file(tmp_path / "out.safetensors")[key]
    assert torch.equal(out[48:96], second[key][48:96])
    assert torch.equal(out[:48], first[key][:48]) and torch.equal(out[96:], first[key][96:])


@pytest.mark.parametrize("count", [19, 20, 21])
def test_lists_of_block_weights_for_sdxl(count: int, tmp_path: Path) -> None:
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first, second = sdxl(0), sdxl(1)
    save_file(first, a)
    save_file(second, b)
    numbers = ([0.0] if count > 19 else []) + [0.0] * 19 + ([1.0] if count == 21 else [])
    numbers[(count > 19) + 4] = 1.0  # IN04
    blend([a, b], tmp_path / "out.safetensors", alpha=0.0, blocks=numbers, blend_vae=True)
    out = load_file(tmp_path / "out.safetensors")
    changed = {key for key, value in out.items() if not torch.equal(value, first[key])}
    assert any(f"{UNET}.input_blocks.4." in key for key in changed)
    rest = {key for key in changed if f"{UNET}.input_blocks.4." not in key}
    assert all(key.startswith(VAE) for key in rest) and bool(rest) == (count == 21)
    if count == 21:
        key = f"{VAE}.decoder.conv_in.weight"
        assert torch.equal(out[key], second[key])


def test_models_of_no_known_family_blend_by_name(tmp_path: Path) -> None:
    for index, name in enumerate("ab"):
        save_file(
            {"blocks.0.weight": torch.full((4, 4), float(index)), "step": torch.tensor([index])},
            tmp_path / f"{name}.safetensors",
        )
    report = blend([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "o.safetensors", alpha=0.25)
    out = load_file(tmp_path / "o.safetensors")
    assert torch.equal(out["blocks.0.weight"], torch.full((4, 4), 0.25)) and out["step"].tolist() == [0]
    assert any("by their names alone" in warning for warning in report.warnings)


def test_scaled_fp8_weights_count_in_real_units(
    files: list[Path], write: Callable[..., Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    scale = torch.tensor(0.5)
    stored = (tensors[1][IN4].float() / 0.5).to(torch.float8_e4m3fn)
    scaled = write(1, {IN4: stored, IN4.removesuffix("weight") + "scale_weight": scale})
    blend([files[0], scaled], tmp_path / "out.safetensors", alpha=0.25)
    real = stored.float() * 0.5
    near(load_file(tmp_path / "out.safetensors")[IN4], 0.75 * tensors[0][IN4].float() + 0.25 * real)
    blend([scaled, files[0]], tmp_path / "back.safetensors", alpha=0.75)
    back = load_file(tmp_path / "back.safetensors")
    assert back[IN4].dtype == torch.float8_e4m3fn
    expected = 0.25 * real + 0.75 * tensors[0][IN4].float()
    torch.testing.assert_close(back[IN4].float() * 0.5, expected, rtol=0.07, atol=2e-3)
    with pytest.raises(SdkitError, match="scaled fp8"):
        blend([scaled, files[0]], tmp_path / "no.safetensors", dtype="fp16")
    with pytest.raises(SdkitError, match="quantised"):
        blend([files[0], write(1, {IN4 + ".absmax": torch.ones(1)}, "q")], tmp_path / "no.safetensors")


# Element types, metadata, dry runs


def test_element_types(files: list[Path], tensors: list[Tensors], tmp_path: Path) -> None:
    blend(files[:2], tmp_path / "out.safetensors", alpha=0.3, dtype="fp32")
    out = load_file(tmp_path / "out.safetensors")
    exact = 0.7 * tensors[0][IN4].double() + 0.3 * tensors[1][IN4].double()
    assert torch.equal(out[IN4], exact.float())  # float64 arithmetic, rounded once
    report = blend(files[:2], tmp_path / "bf16.safetensors", alpha=0.3, dtype="bf16")
    assert any("--stochastic" in warning for warning in report.warnings)
    blend(files[:2], tmp_path / "random.safetensors", alpha=0.3, dtype="bf16", stochastic=1)
    rounded, random = (load_file(tmp_path / f"{name}.safetensors")[IN4].double() for name in ("bf16", "random"))
    assert 0 < float((rounded != random).double().mean()) < 1
    assert float((random - exact).mean().abs()) < 1e-4


def test_the_recipe_travels_in_the_file(files: list[Path], tmp_path: Path) -> None:
    blend(files, tmp_path / "out.safetensors", method="add_difference", alpha=0.7, rules=["attn1=0.1"])
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["sdkit.recipe"])
    assert recipe["verb"] == "blend" and recipe["method"] == "add-difference"
    assert recipe["parameters"] == {"alpha": 0.7} and recipe["rules"] == ["attn1=alpha:0.1"]
    assert [parent["name"] for parent in recipe["parents"]] == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert [parent["role"] for parent in recipe["parents"]] == ["A", "B", "C"]
    assert metadata["modelspec.merged_from"] == "a.safetensors, b.safetensors, c.safetensors"
    assert str(tmp_path) not in json.dumps(metadata)


def test_a_dry_run_writes_nothing(files: list[Path], tmp_path: Path) -> None:
    report = blend(files[:2], tmp_path / "out.safetensors", dry_run=True)
    assert report.dry_run and report.blended and not list(tmp_path.iterdir())


# What is refused, before a byte is written


def test_weights_only_some_models_have(
    files: list[Path], write: Callable[..., Path], tensors: list[Tensors], tmp_path: Path
) -> None:
    lacking = write(1, {TE: None})
    for models in ([files[0], lacking], [lacking, files[0]]):
        with pytest.raises(SdkitError, match="missing in") as caught:
            blend(models, tmp_path / "out.safetensors")
        assert "--missing from-a" in caught.value.hint
    report = blend([files[0], lacking], tmp_path / "from_a.safetensors", missing="from-a", alpha=1.0)
    assert torch.equal(load_file(tmp_path / "from_a.safetensors")[TE], tensors[0][TE]) and len(report.missing) == 1
    blend([files[0], lacking], tmp_path / "skip.safetensors", missing="skip")
    assert TE not in load_file(tmp_path / "skip.safetensors")
    report = blend([lacking, files[0]], tmp_path / "extra.safetensors", missing="from_a")
    assert TE not in load_file(tmp_path / "extra.safetensors") and len(report.extra) == 1


def test_what_does_not_fit_is_refused(files: list[Path], write: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    larger = tmp_path / "larger.safetensors"
    save_file(make_checkpoint(Sizes(text=128, layers=1)), larger)
    lora = tmp_path / "lora.safetensors"
    save_file(
        {
            "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(1, 128),
            "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(128, 1),
        },
        lora,
    )
    strange = tmp_path / "strange.safetensors"
    save_file({"w": torch.ones(4, 4)}, strange)
    for models, options, message in [
        ([files[0], larger], {}, "has the shape"),
        ([files[0], lora], {}, "is an adapter"),
        ([files[0], strange], {}, "of no family sdkit knows"),
        ([files[0]], {}, "takes 2 models; 1 were given"),
        (files, {}, "takes 2 models; 3 were given"),
        (files[:2], {"method": "ties"}, "no base was given"),
        (files, {"method": "add-difference", "base": files[0]}, "takes no base"),
        (files[:2], {"alpha": 2.0, "method": "sigmoid"}, "must be a number in 0 … 1"),
        (files[:2], {"alpha": float("nan")}, "must be a number"),
        (files[:2], {"gamma": 1.0}, "no parameter 'gamma'"),
        (files[:2], {"rules": ["attn9=1"]}, "matches no blended weight"),
        (files[:2], {"rules": ["(=1"]}, "--rule"),
        (files[:2], {"rules": ["attn1=beta:1"]}, "has no number 'beta'"),
        (files[:2], {"blocks": "IN99=1"}, "no block is called"),
        (files[:2], {"blocks": "VAE=1"}, "the autoencoder is A's"),
        (files[:2], {"method": "n-average", "te_alpha": 0.0}, "has no alpha"),
        (files[:2], {"missing": "maybe"}, "there is no such choice"),
        (files[:2], {"vae": strange}, "no autoencoder that fits"),
        ([files[0], tmp_path / "nothing.safetensors"], {}, "no such file"),
    ]:
        with pytest.raises(SdkitError, match=message):
            blend(models, out, **options)  # type: ignore[arg-type]
        assert not out.exists(), message
    with pytest.raises(SdkitError, match="is an input"):
        blend(files[:2], files[1], force=True)


def test_a_method_that_does_not_exist_names_its_neighbour(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        blend(files[:2], tmp_path / "out.safetensors", method="add_diference")
    assert "did you mean add-difference" in caught.value.hint


def test_results_that_fit_no_number_are_refused(files: list[Path], write: Callable[..., Path], tmp_path: Path) -> None:
    broken = write(1, {IN4: torch.full((64, 64), float("nan")).half()})
    with pytest.raises(SdkitError, match="not a number"):
        blend([files[0], broken], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    blend([files[0], broken], tmp_path / "out.safetensors", alpha=0.0)  # B is not even read
