"""Control LoRAs of FLUX.1 as Black Forest Labs made them: a wider first layer, whole norms, biases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.adapters.artifact import Target
from sdkit.adapters.input_width import is_narrower, widens
from sdkit.core.errors import SdkitError
from sdkit.families import identify
from sdkit.families.family import Model, Place
from sdkit.families.flux_transformer import FluxLayout
from sdkit.formats import read_adapter, recognise, write_adapter
from sdkit.weights import open_weights

LAYOUT = FluxLayout(32, 16, 128, 2, 2, 8, 8, 10, 6, 256, guidance=True)
PREFIX = "model.diffusion_model."
PEER = {
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "guidance_embeds": True,
    "in_channels": 8,
    "joint_attention_dim": 10,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "pooled_projection_dim": 6,
}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors_of(layout: FluxLayout) -> dict[str, tuple[int, ...]]:
    """The tensors of a single file, without a prefix, and their shapes."""
    return {row.ldm: (row.height, *row.shape[1:]) if row.rows else row.shape for row in layout.parameters()}


def control_lora(layout: FluxLayout = LAYOUT, inputs: int = 16, rank: int = 2) -> dict[str, torch.Tensor]:
    """A pair and a bias for every layer, `img_in` twice as wide as the plain model's, and every norm of q and k."""
    tensors = {}
    for seed, (name, shape) in enumerate(tensors_of(layout).items()):
        module = name.rpartition(".")[0]
        if name.endswith(".scale"):
            tensors[name] = 1 + 0.1 * normal(*shape, seed=seed)
        elif name.endswith(".weight"):
            columns = inputs if module == "img_in" else shape[1]
            tensors[f"{module}.lora_A.weight"] = 0.2 * normal(rank, columns, seed=seed)
            tensors[f"{module}.lora_B.weight"] = 0.2 * normal(shape[0], rank, seed=1000 + seed)
            tensors[f"{module}.lora_B.bias"] = 0.2 * normal(shape[0], seed=2000 + seed)
    return tensors


def base(inputs: int = 8) -> dict[str, torch.Tensor]:
    shapes = tensors_of(LAYOUT) | {"img_in.weight": (LAYOUT.width, inputs)}
    made = {name: 0.1 * normal(*shape, seed=3000 + seed) for seed, (name, shape) in enumerate(shapes.items())}
    return {f"{PREFIX}{name}": 1 + tensor if name.endswith("scale") else tensor for name, tensor in made.items()}


def expected(
    weights: dict[str, torch.Tensor], lora: dict[str, torch.Tensor], strength: float
) -> dict[str, torch.Tensor]:
    """W + k · B A behind columns of zeros, bias + k · b, norm + k · (n − norm)."""
    found = {}
    for name, weight in weights.items():
        bare, weight = name.removeprefix(PREFIX), weight.double()
        module, _, parameter = bare.rpartition(".")
        if parameter == "scale":
            found[name] = weight + strength * (lora[bare].double() - weight)
        elif parameter == "bias":
            found[name] = weight + strength * lora[f"{module}.lora_B.bias"].double()
        else:
            change = strength * (lora[f"{module}.lora_B.weight"].double() @ lora[f"{module}.lora_A.weight"].double())
            found[name] = torch.nn.functional.pad(weight, (0, change.shape[1] - weight.shape[1])) + change
    return found


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    save_file(base(), tmp_path / "base.safetensors")
    save_file(control_lora(), tmp_path / "control.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "control.safetensors"


def test_it_is_read_whole_and_written_back_bit_by_bit(saved: tuple[Path, Path], tmp_path: Path) -> None:
    with open_weights(saved[0]) as plain, open_weights(saved[1]) as weights:
        model = identify(plain)
        assert recognise(weights)[0] == "flux-native"
        artifact = read_adapter(weights, model)
        assert artifact.unmatched == ()
        kinds = {change.kind: change.count for change in artifact.changes}
        assert kinds == {"lora": 50, "full": 50, "replacement": 12}  # 31 layers in the file, q, k and v apart
        write_adapter(artifact, model, tmp_path / "again.safetensors", {}, format="flux-native")
    again, lora = load_file(tmp_path / "again.safetensors"), control_lora()
    assert again.keys() == lora.keys() and all(torch.equal(again[name], lora[name]) for name in lora)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_merging_widens_the_first_layer(saved: tuple[Path, Path], tmp_path: Path, strength: float) -> None:
    report = sdkit.merge(saved[0], [(saved[1], strength)], tmp_path / "merged.safetensors")
    merged, wanted = load_file(tmp_path / "merged.safetensors"), expected(base(), control_lora(), strength)
    assert merged.keys() == wanted.keys()
    assert all(torch.allclose(merged[name].double(), wanted[name], atol=1e-6) for name in wanted)
    assert merged[f"{PREFIX}img_in.weight"].shape == (32, 16)
    assert any("reads 16 inputs now" in warning for warning in report.warnings)


def test_other_adapters_keep_to_the_columns_they_know(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """A plain LoRA goes beside the control LoRA, and into the model that came of it."""
    pair = {"lora_unet_img_in.lora_down.weight": normal(2, 8, seed=1)}
    pair |= {"lora_unet_img_in.lora_up.weight": normal(32, 2, seed=2), "lora_unet_img_in.alpha": torch.tensor(2.0)}
    save_file(pair, tmp_path / "plain.safetensors")
    together, first, then = (tmp_path / f"{name}.safetensors" for name in ("together", "first", "then"))
    sdkit.merge(saved[0], [(saved[1], 1.0), (tmp_path / "plain.safetensors", 0.5)], together)
    sdkit.merge(saved[0], saved[1], first)
    sdkit.merge(first, [(tmp_path / "plain.safetensors", 0.5)], then)
    up, down = pair["lora_unet_img_in.lora_up.weight"], pair["lora_unet_img_in.lora_down.weight"]
    wanted = expected(base(), control_lora(), 1.0)[f"{PREFIX}img_in.weight"]
    wanted[:, :8] += 0.5 * (up.double() @ down.double())
    for path in (together, then):
        assert torch.allclose(load_file(path)[f"{PREFIX}img_in.weight"].double(), wanted, atol=1e-6)


def test_what_cannot_be_widened_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    save_file(base(inputs=48), tmp_path / "fill.safetensors")
    with pytest.raises(
        SdkitError, match=r"img_in changes a weight of shape \[32, 16\], but .* has \[32, 48\]"
    ) as error:
        sdkit.merge(tmp_path / "fill.safetensors", saved[1], out)
    assert "widens the plain FLUX.1 alone" in error.value.hint
    save_file(control_lora(inputs=24), tmp_path / "wider.safetensors")
    with pytest.raises(SdkitError, match="one adapter widens it to 16 inputs and another to 24"):
        sdkit.merge(saved[0], [saved[1], tmp_path / "wider.safetensors"], out)
    with pytest.raises(SdkitError, match="--undo restores tensors that keep their shape"):
        sdkit.merge(saved[0], saved[1], out, undo=tmp_path / "undo.safetensors")
    assert not out.exists()


def test_a_strength_of_zero_widens_nothing(saved: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sdkit.merge(saved[0], [(saved[1], 0.0)], out, dtype="fp16")
    assert load_file(out)[f"{PREFIX}img_in.weight"].shape == (32, 8)


def test_one_without_its_norms_or_layers_is_not_written_in_the_makers_names(saved: tuple[Path, Path]) -> None:
    lora = control_lora()
    norms = {name: tensor for name, tensor in lora.items() if name.endswith(".scale")}
    rest = {name: tensor for name, tensor in lora.items() if name not in norms}
    few = {name: tensor for name, tensor in lora.items() if not name.startswith("txt_in")}
    path = saved[1].with_stem("other")
    with open_weights(saved[0]) as plain:
        model = identify(plain)
        for tensors, reason in ((rest, "only control LoRAs are written"), (few, r"1 lack one \(transformer.context")):
            save_file(tensors, path)
            with open_weights(path) as weights, pytest.raises(SdkitError, match=reason):
                write_adapter(read_adapter(weights, model), model, path.with_stem("w"), {}, format="flux-native")


@pytest.mark.parametrize("whole", [True, False])
def test_diffusers_computes_with_both_what_is_merged(saved: tuple[Path, Path], tmp_path: Path, whole: bool) -> None:
    """Its FluxControlPipeline takes the file written for it; its transformer reads the merged folder."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(**PEER)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            parameter.normal_(mean=float(".norm_" in name), std=0.2 if ".norm_" not in name else 0.05)
    folder = tmp_path / "base"
    transformer.save_pretrained(folder / "transformer")
    if whole:
        index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
        (folder / "model_index.json").write_text(json.dumps(index))
    source = folder if whole else folder / "transformer"
    sdkit.merge(source, saved[1], tmp_path / "merged")
    sdkit.convert(saved[1], "diffusers", tmp_path / "lora.safetensors", base=source)

    merged_folder = tmp_path / "merged" / "transformer" if whole else tmp_path / "merged"
    config = json.loads((merged_folder / "config.json").read_text())
    assert (config["in_channels"], config["out_channels"]) == (16, 8)
    if whole:
        merged_index = json.loads((tmp_path / "merged" / "model_index.json").read_text())
        assert merged_index["_class_name"] == "FluxControlPipeline"
    merged = diffusers.FluxTransformer2DModel.from_pretrained(merged_folder)
    nothing = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = diffusers.FluxControlPipeline(**nothing, transformer=transformer)
    pipeline.load_lora_weights(tmp_path / "lora.safetensors")
    inputs = {
        "hidden_states": normal(1, 4, 16, seed=1),
        "encoder_hidden_states": normal(1, 3, 10, seed=2),
        "pooled_projections": normal(1, 6, seed=3),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": normal(4, 3, seed=4).abs().round(),
        "txt_ids": torch.zeros(3, 3),
    }
    with torch.no_grad():
        theirs, ours = pipeline.transformer(**inputs).sample, merged(**inputs).sample
    assert torch.allclose(theirs, ours, atol=1e-4 * float(theirs.abs().max()))
    pipeline.unload_lora_weights()
    with torch.no_grad():
        assert not torch.allclose(pipeline.transformer(**inputs).sample, ours, atol=0.1)


def test_a_program_means_the_format_that_holds_all_of_it(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """ComfyUI reads kohya's files too, which have no place for whole norms."""
    report = sdkit.convert(saved[1], "comfyui", tmp_path / "c.safetensors", base=saved[0])
    assert (report.to, report.approximations) == ("flux-native", ()) and "comfyui" in report.programs
    with pytest.raises(SdkitError, match="of the kind replacement, which kohya cannot hold") as error:
        sdkit.convert(saved[1], "kohya", tmp_path / "k.safetensors", base=saved[0])
    assert "--to diffusers or flux-native holds all of it" in error.value.hint


def test_without_a_model_it_can_be_looked_at(saved: tuple[Path, Path]) -> None:
    found = sdkit.inspect(saved[1])
    assert (found.kind, found.format, found.family) == ("lora", "flux-native", "flux")
    assert found.adapter is not None and found.adapter.advice == ""
    assert found.adapter.loaders == ("comfyui", "diffusers")
    with open_weights(saved[1]) as weights:
        artifact = read_adapter(weights)
    assert Target("transformer.double_blocks.0.img_attn.norm.query_norm") in artifact.deltas


def test_first_convolutions_are_not_widened() -> None:
    """An inpainting model is no plain one with an adapter, and its channels are not pix2pix'."""
    shapes = {"unet.conv_in.weight": (32, 4, 3, 3), "unet.conv_out.weight": (4, 32, 3, 3)}
    plain = Model("sd1", places={name: Place(name, shape) for name, shape in shapes.items()})
    wide = Model("sd1", places={**plain.places, "unet.conv_in.weight": Place("unet.conv_in.weight", (32, 9, 3, 3))})
    target = Target("unet.conv_in")
    assert not widens(target, (32, 9, 3, 3), plain) and not is_narrower(target, (32, 9, 3, 3), plain)
    assert is_narrower(target, (32, 4, 3, 3), wide) and not is_narrower(target, (32, 8, 3, 3), wide)


def test_what_diffusers_multiplies_or_does_not_look_at_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """A bias beside a pair of scale 0, and whole norms of another family's transformer."""
    with open_weights(saved[0]) as plain, open_weights(saved[1]) as weights:
        model = identify(plain)
        artifact = read_adapter(weights, model)
        name = "transformer.transformer_blocks.0.attn.to_q"
        mute = {**artifact.deltas, Target(name): replace(artifact.deltas[Target(name)], scale=0.0)}
        with pytest.raises(SdkitError, match=r"attn.to_q: its LoRA has the scale 0"):
            write_adapter(replace(artifact, deltas=mute), model, tmp_path / "d.safetensors", {}, format="diffusers")
        norm = Target("transformer.transformer_blocks.0.attn.norm_q")
        alone = replace(artifact, deltas={norm: artifact.deltas[norm]})
        other = replace(model, family="sd3")
        with pytest.raises(SdkitError, match="norm_q.*replacement cannot be written in diffusers's format"):
            write_adapter(alone, other, tmp_path / "d.safetensors", {}, format="diffusers")
