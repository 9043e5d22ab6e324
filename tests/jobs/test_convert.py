from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.core.errors import SdkitError, UsageError

PREFIX = "model.diffusion_model."


@pytest.fixture
def single(tmp_path: Path, tiny_base: Path) -> Path:
    """The small SD1 pipeline as a single file with its configurations."""
    return Path(sdkit.convert(tiny_base, "single", tmp_path / "single.safetensors", verify=False).output)


def changed(path: Path, more: dict[str, torch.Tensor], without: str = "", stated: bool = True) -> Path:
    """The file with other tensors in it."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor for name, tensor in load_file(path).items() if not without or without not in name}
    target = path.with_name(f"changed-{path.name}")
    save_file({**tensors, **more}, target, metadata if stated else {})
    return target


def ema_of(path: Path) -> dict[str, torch.Tensor]:
    """An EMA copy as latent diffusion's LitEma names it: dots and the outermost module left out."""
    unet = {name: tensor for name, tensor in load_file(path).items() if name.startswith(PREFIX)}
    return {f"model_ema.diffusion_model{name.removeprefix(PREFIX).replace('.', '')}": t + 1 for name, t in unet.items()}


def test_the_ema_copy_is_chosen_or_named_among_the_dropped(tmp_path: Path, single: Path, tiny_base: Path) -> None:
    copy = ema_of(single)
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    source = changed(single, copy | counters)
    plain = sdkit.convert(source, "diffusers", tmp_path / "plain", configs=tiny_base)
    (drop,) = plain.dropped
    assert set(drop.names) == {*copy, *counters} and "--ema" in drop.reason
    sdkit.convert(source, "diffusers", tmp_path / "ema", ema=True, configs=tiny_base)
    name = "unet/diffusion_pytorch_model.safetensors"
    before, after = load_file(tmp_path / "plain" / name), load_file(tmp_path / "ema" / name)
    assert all(torch.equal(after[key], tensor + 1) for key, tensor in before.items())
    with pytest.raises(SdkitError, match="no EMA copy"):
        sdkit.convert(single, "diffusers", tmp_path / "no", ema=True)
    half = changed(single, dict(list(copy.items())[:-1]))
    with pytest.raises(SdkitError, match="its EMA copy lacks"):
        sdkit.convert(half, "single", tmp_path / "no.safetensors", ema=True)


def test_pruning_a_single_file_leaves_the_weights(tmp_path: Path, single: Path) -> None:
    rests = {**ema_of(single), "betas": torch.rand(10), "optimizer.step": torch.ones(1)}
    source = changed(single, rests)
    kept = sdkit.convert(source, "single", tmp_path / "kept.safetensors")
    assert load_file(kept.output).keys() == load_file(source).keys() and kept.dropped == ()
    pruned = sdkit.convert(source, "single", tmp_path / "pruned.safetensors", prune=True)
    assert load_file(pruned.output).keys() == load_file(single).keys()
    assert {name for drop in pruned.dropped for name in drop.names} == set(rests)


def test_a_pickled_checkpoint_becomes_safetensors(tmp_path: Path, single: Path) -> None:
    tensors = load_file(single)
    torch.save({"state_dict": tensors, "epoch": 3, "optimizer_states": [{"step": torch.ones(3)}]}, tmp_path / "m.ckpt")
    report = sdkit.convert(tmp_path / "m.ckpt", "single", tmp_path / "m.safetensors")
    assert report.bytes == Path(report.output).stat().st_size
    after = load_file(report.output)
    assert after.keys() == tensors.keys() and all(torch.equal(after[name], tensors[name]) for name in tensors)


def test_another_type_rounds_each_number_once(tmp_path: Path, tiny_sdxl: Path) -> None:
    report = sdkit.convert(tiny_sdxl, "single", tmp_path / "half.safetensors", dtype="fp16")
    exact = sdkit.convert(tiny_sdxl, "single", tmp_path / "full.safetensors")
    assert report.proof is not None and not report.proof.exact and exact.proof is not None and exact.proof.exact
    full, half = load_file(exact.output), load_file(report.output)
    assert full.keys() == half.keys()
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in full.items())
    back = sdkit.convert(report.output, "single", tmp_path / "back.safetensors", dtype="fp32")
    assert back.proof is not None and back.proof.exact  # every number of fp16 is one of fp32


@pytest.mark.parametrize("piece", [1 << 20, 100])  # more than any tensor here holds, and less than most do
def test_the_proof_names_models_of_equal_weights_alike(
    tmp_path: Path, tiny_sdxl: Path, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdkit.conversion.proof._PIECE_ELEMENTS", piece)
    one = sdkit.convert(tiny_sdxl, "single", tmp_path / "one.safetensors").proof
    two = sdkit.convert(tmp_path / "one.safetensors", "diffusers", tmp_path / "two", configs=tiny_sdxl).proof
    assert one is not None and two is not None and one.sha256 == two.sha256 and one.parameters == two.parameters


@pytest.mark.parametrize("harm", ["swap", "transpose"])
def test_the_proof_sees_what_shapes_cannot_show(
    tmp_path: Path, tiny_sdxl: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused rows in another order have the same names and shapes; so has a square projection left untransposed."""
    from dataclasses import replace

    from sdkit.conversion.targets import single as target

    right = target.converted

    def wrong(*arguments: object) -> object:
        outputs = right(*arguments)  # type: ignore[arg-type]
        for number, output in enumerate(outputs):
            if harm == "swap" and output.name.endswith("resblocks.1.attn.in_proj_weight"):
                flipped = replace(output.expression, sources=output.expression.sources[::-1])  # type: ignore[type-var]
                outputs[number] = replace(output, expression=flipped)  # type: ignore[arg-type]
            if harm == "transpose" and output.name.endswith("resblocks.0.attn.out_proj.weight"):
                from sdkit.streaming import Transpose

                outputs[number] = replace(output, expression=Transpose(output.expression))
        return outputs

    monkeypatch.setattr(target, "converted", wrong)
    with pytest.raises(SdkitError, match="does not read back"):
        sdkit.convert(tiny_sdxl, "single", tmp_path / "wrong.safetensors")
    assert not (tmp_path / "wrong.safetensors").exists()


def test_another_autoencoder_is_baked_in(tmp_path: Path, tiny_base: Path, tiny_sdxl: Path, single: Path) -> None:
    other = sdkit.convert(tiny_sdxl, "single", tmp_path / "vae.safetensors", only="vae").output
    report = sdkit.convert(single, "diffusers", tmp_path / "baked", bake_vae=other, configs=tiny_base)
    vae = load_file(tmp_path / "baked/vae/diffusion_pytorch_model.safetensors")
    wanted = load_file(tiny_sdxl / "vae/diffusion_pytorch_model.safetensors")
    assert vae.keys() == wanted.keys() and all(torch.equal(vae[name], wanted[name]) for name in wanted)
    assert [parent["role"] for parent in report.parents] == ["source", "vae"]
    assert any("another autoencoder" in drop.reason for drop in report.dropped)
    unet = load_file(tmp_path / "baked/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(unet["conv_in.weight"], load_file(single)[f"{PREFIX}input_blocks.0.0.weight"])


def test_another_text_encoder_is_put_in(tmp_path: Path, tiny_base: Path, tiny_sdxl: Path) -> None:
    other = sdkit.convert(tiny_sdxl, "single", tmp_path / "clip.safetensors", only="text-encoder").output
    wide = sdkit.convert(tiny_sdxl, "single", tmp_path / "wide.safetensors", only="text-encoder-2").output
    for target in ("single", "diffusers"):
        report = sdkit.convert(tiny_base, target, tmp_path / target, parts=[other])
        assert report.proof is not None and [parent["role"] for parent in report.parents] == ["source", "text_encoder"]
    written = load_file(tmp_path / "diffusers/text_encoder/model.safetensors")
    wanted = load_file(tiny_sdxl / "text_encoder/model.safetensors")
    assert all(torch.equal(written[f"text_model.{name.removeprefix('text_model.')}"], wanted[name]) for name in wanted)
    assert any("another text_encoder takes their place" in drop.reason for drop in report.dropped)
    with pytest.raises(SdkitError, match="is 40 wide, and the text_encoder it would replace 24"):
        sdkit.convert(tiny_base, "single", tmp_path / "no.safetensors", parts=[wide])


def test_parts_are_written_as_programs_load_them(tmp_path: Path, tiny_sdxl: Path) -> None:
    for name, key in (
        ("unet", f"{PREFIX}input_blocks.0.0.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("text_encoder_2", "text_model.embeddings.token_embedding.weight"),
    ):
        report = sdkit.convert(tiny_sdxl, "comfyui", tmp_path / f"{name}.safetensors", only=name)
        assert key in load_file(report.output) and report.components == (name,)
        assert {drop.reason for drop in report.dropped} == {"not asked for"}
    with pytest.raises(UsageError, match="text_encoder_3"):
        sdkit.convert(tiny_sdxl, "single", tmp_path / "x.safetensors", only="text_encoder_3")


def test_an_autoencoder_alone_needs_to_be_told_whose_it_is(tmp_path: Path, tiny_base: Path) -> None:
    """Its shapes are every family's; its scale is not."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    sizes = {"block_out_channels": [32, 64], "down_block_types": ["DownEncoderBlock2D"] * 2, "latent_channels": 4}
    AutoencoderKL(**sizes, up_block_types=["UpDecoderBlock2D"] * 2).save_pretrained(tmp_path / "source")
    vae = sdkit.convert(tmp_path / "source", "single", tmp_path / "vae.safetensors").output
    save_file(load_file(vae), vae)  # without what sdkit says in the metadata
    with pytest.raises(SdkitError, match="how its latents are scaled"):
        sdkit.convert(vae, "diffusers", tmp_path / "unknown")
    for family, scale in (("sd1", 0.18215), ("sdxl", 0.13025)):
        sdkit.convert(vae, "diffusers", tmp_path / family, family=family)
        assert AutoencoderKL.from_pretrained(tmp_path / family).config.scaling_factor == scale


def test_shards_and_the_fp16_variant_are_read(tmp_path: Path, tiny_base: Path) -> None:
    from shutil import copytree

    from diffusers import UNet2DConditionModel

    whole = sdkit.convert(tiny_base, "single", tmp_path / "whole.safetensors", dtype="fp16").output
    copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base/unet/diffusion_pytorch_model.safetensors").unlink()
    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet").half()
    unet.save_pretrained(tmp_path / "base/unet", variant="fp16", max_shard_size="300KB")
    assert len(list((tmp_path / "base/unet").glob("*fp16*.safetensors"))) > 2
    parts = sdkit.convert(tmp_path / "base", "single", tmp_path / "parts.safetensors", dtype="fp16").output
    one, two = load_file(whole), load_file(parts)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_shards_and_variants_are_written_as_diffusers_loads_them(tmp_path: Path, tiny_sdxl: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    single = sdkit.convert(tiny_sdxl, "single", tmp_path / "single.safetensors", dtype="fp16").output
    options = {"configs": tiny_sdxl, "variant": "fp16", "shard_size": "60KB"}
    out, report = tmp_path / "out", sdkit.convert(single, "diffusers", tmp_path / "out", **options)
    assert report.proof is not None and report.proof.exact
    files = [path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")]
    assert all(".fp16" in name for name in files) and "text_encoder/model.fp16.safetensors" in files
    assert len([name for name in files if name.startswith("text_encoder_2/")]) == 2
    index = json.loads((out / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").read_text())
    shards = [load_file(out / "unet" / name) for name in sorted(set(index["weight_map"].values()))]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for shard in shards for tensor in shard.values())
    assert all(len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= 60_000 for shard in shards)
    after = StableDiffusionXLPipeline.from_pretrained(out, variant="fp16", local_files_only=True)
    before = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    for component in ("unet", "vae", "text_encoder", "text_encoder_2"):
        one, two = (getattr(pipeline, component).state_dict() for pipeline in (before, after))
        assert one.keys() == two.keys() and all(torch.equal(one[name].half(), two[name].half()) for name in one)
    back = load_file(sdkit.convert(out, "single", tmp_path / "back.safetensors").output)
    assert all(torch.equal(back[name], tensor) for name, tensor in load_file(single).items())
    with pytest.raises(UsageError, match="a folder's"):
        sdkit.convert(single, "single", tmp_path / "no.safetensors", shard_size="1GB")
    with pytest.raises(UsageError, match="no size"):
        sdkit.convert(single, "diffusers", tmp_path / "no", shard_size="10")
    with pytest.raises(UsageError, match="no variant"):
        sdkit.convert(single, "diffusers", tmp_path / "no", variant="../x")


def test_an_sd2_file_that_does_not_say_what_it_predicts_is_asked(tmp_path: Path) -> None:
    from dataclasses import replace

    import models

    from sdkit.families.clip import TextLayout, text_parameters
    from sdkit.families.unet import unet_parameters
    from sdkit.families.vae import vae_parameters

    unet = replace(models.SD1_UNET, linear=True, channels=(64,) * 4, time_dim=256, cross_dim=64)
    text = TextLayout(64, 128, 24, 49408, 77, projection=64)  # the 24th layer and the projection are never read
    tables = {
        models.UNET: unet_parameters(unet),
        "cond_stage_model.model.": text_parameters(text, "openclip"),
        models.VAE: vae_parameters(models.AUTOENCODER),
    }
    tensors = models._tensors(tables, 0, torch.float16)
    tensors |= {name: t[:, :, None, None] for name, t in tensors.items() if ".attn_1." in name and t.ndim == 2}
    source = models.save(tensors, tmp_path / "sd2.safetensors")
    with pytest.raises(SdkitError, match="noise or the velocity") as caught:
        sdkit.convert(source, "diffusers", tmp_path / "out")
    assert "--prediction" in caught.value.hint
    report = sdkit.convert(source, "diffusers", tmp_path / "out", prediction="epsilon")
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == report.prediction == "epsilon"
    assert len(report.warnings) == 2 and all("the file does not say" in warning for warning in report.warnings)
    assert json.loads((tmp_path / "out/text_encoder/config.json").read_text())["num_hidden_layers"] == 23
    assert report.kept_beside == 13  # one layer and the projection
    back = load_file(sdkit.convert(tmp_path / "out", "single", tmp_path / "back.safetensors").output)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_what_cannot_be_converted_is_refused_before_anything_is_written(
    tmp_path: Path, single: Path, tiny_base: Path
) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match="nothing is written as 'diffuser'") as caught:
        sdkit.convert(single, "diffuser", out)
    assert "diffusers" in caught.value.hint
    with pytest.raises(SdkitError, match="is missing|missing of this layout"):
        sdkit.convert(changed(single, {}, without="input_blocks.1.0.in_layers.0"), "single", out)
    odd = changed(single, {f"{PREFIX}out.2.weight_scale": torch.ones(4)})
    with pytest.raises(SdkitError, match="shape, type or scale"):
        sdkit.convert(odd, "single", out)
    with pytest.raises(SdkitError, match="attention heads"):
        sdkit.convert(changed(single, {}, stated=False), "diffusers", tmp_path / "out")
    save_file({"lora_unet_x.diff": torch.ones(1, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(SdkitError, match="is an adapter"):
        sdkit.convert(tmp_path / "lora.safetensors", "single", out)
    wrong = json.loads((tiny_base / "unet/config.json").read_text()) | {"block_out_channels": [32, 96]}
    (tmp_path / "wrong/unet").mkdir(parents=True)
    (tmp_path / "wrong/unet/config.json").write_text(json.dumps(wrong))
    with pytest.raises(SdkitError, match="describes other tensors"):
        sdkit.convert(single, "diffusers", tmp_path / "out", configs=tmp_path / "wrong")
    with pytest.raises(SdkitError, match="is an input"):
        sdkit.convert(single, "single", single, force=True)
    assert not out.exists() and not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path: Path, single: Path, tiny_base: Path) -> None:
    plan = sdkit.convert(single, "diffusers", tmp_path / "out", configs=tiny_base, dry_run=True)
    assert plan.dry_run and plan.proof is None and not (tmp_path / "out").exists()
    done = sdkit.convert(single, "diffusers", tmp_path / "out", configs=tiny_base, verify=False)
    assert (plan.consumed, plan.renamed, plan.tensors) == (done.consumed, done.renamed, done.tensors)
    assert 0.9 * done.bytes < plan.bytes < done.bytes  # of the tensors alone, before there are files
    assert done.proof is None
    with pytest.raises(SdkitError, match="already exists"):
        sdkit.convert(single, "diffusers", tmp_path / "out", configs=tiny_base)


def test_the_same_command_gives_the_same_bytes(tmp_path: Path, tiny_sdxl: Path) -> None:
    for name, threads in (("one", 1), ("two", 2)):
        sdkit.convert(tiny_sdxl, "single", tmp_path / f"{name}.safetensors", threads=threads)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_private_paths_stay_private(tmp_path: Path, tiny_base: Path) -> None:
    from shutil import copytree

    copytree(tiny_base, tmp_path / "base")
    config = tmp_path / "base/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": "/home/ada/secret"}))
    sdkit.convert(tmp_path / "base", "single", tmp_path / "single.safetensors")
    assert b"/home/ada" not in (tmp_path / "single.safetensors").read_bytes()


def test_a_safety_checker_stays_in_a_folder_and_is_dropped_from_a_file(tmp_path: Path, tiny_base: Path) -> None:
    from shutil import copytree

    base = copytree(tiny_base, tmp_path / "base")
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (base / "model_index.json").write_text(json.dumps(index))
    (base / "safety_checker").mkdir()
    save_file({"concept_embeds": torch.rand(3, 4)}, base / "safety_checker/model.safetensors")
    (base / "safety_checker/config.json").write_text("{}")

    sdkit.convert(base, "diffusers", tmp_path / "copy", prune=True)
    kept = load_file(tmp_path / "copy/safety_checker/model.safetensors")
    assert torch.equal(kept["concept_embeds"], load_file(base / "safety_checker/model.safetensors")["concept_embeds"])
    assert json.loads((tmp_path / "copy/model_index.json").read_text())["safety_checker"] == index["safety_checker"]
    report = sdkit.convert(base, "single", tmp_path / "one.safetensors")
    assert [(drop.reason.partition(",")[0], drop.names) for drop in report.dropped] == [
        ("the safety_checker", ("safety_checker/concept_embeds", "safety_checker/config.json")),
        ("the tokenizer", ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")),
    ]
    sdkit.convert(report.output, "diffusers", tmp_path / "back", configs=base)
    assert json.loads((tmp_path / "back/model_index.json").read_text())["safety_checker"] == [None, None]


def test_the_component_folder_of_a_unet_becomes_a_file(tmp_path: Path, tiny_base: Path) -> None:
    report = sdkit.convert(tiny_base / "unet", "single", tmp_path / "unet.safetensors")
    after, before = load_file(report.output), load_file(tiny_base / "unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(after[f"{PREFIX}input_blocks.0.0.weight"], before["conv_in.weight"])
    assert len(after) == len(before) and report.prediction is None
    back = sdkit.convert(report.output, "diffusers", tmp_path / "unet")
    again = load_file(tmp_path / "unet/diffusion_pytorch_model.safetensors")
    assert again.keys() == before.keys() and back.components == ("unet",)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    assert config == json.loads((tiny_base / "unet/config.json").read_text())


def test_what_no_other_layout_can_say_is_not_called_noise(tmp_path: Path, tiny_base: Path) -> None:
    from shutil import copytree

    base = copytree(tiny_base, tmp_path / "base")
    scheduler = base / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "sample"}))
    with pytest.raises(SdkitError, match="predicts 'sample'"):
        sdkit.convert(base, "single", tmp_path / "one.safetensors")
    assert sdkit.convert(base, "single", tmp_path / "one.safetensors", prediction="epsilon").prediction == "epsilon"


def test_a_folder_says_once_what_it_predicts(tmp_path: Path, single: Path, tiny_base: Path) -> None:
    """So that a scheduler somebody mends is believed."""
    with safe_open(single, "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "epsilon"
    sdkit.convert(single, "diffusers", tmp_path / "folder", configs=tiny_base)
    scheduler = tmp_path / "folder/scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "v_prediction"}))
    back = sdkit.convert(tmp_path / "folder", "single", tmp_path / "back.safetensors")
    assert back.prediction == "v_prediction" and "v_pred" in load_file(back.output)


def scaled(tensors: dict[str, torch.Tensor], newer: bool) -> dict[str, torch.Tensor]:
    """The matrices of the U-Net as fp8 times a number, in either spelling of ComfyUI."""
    stored = dict(tensors)
    if not newer:
        stored["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    for name, tensor in tensors.items():
        if name.startswith(PREFIX) and name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stem = name.removesuffix(".weight")
            stored[f"{stem}.{'weight_scale' if newer else 'scale_weight'}"] = scale
            if newer:
                stored[f"{stem}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
            else:
                stored[f"{stem}.scale_input"] = torch.ones(())
    return stored


@pytest.mark.parametrize("newer", [False, True], ids=["scaled_fp8", "comfy_quant"])
def test_scaled_fp8_is_worked_out(tmp_path: Path, tiny_sdxl: Path, newer: bool) -> None:
    single = sdkit.convert(tiny_sdxl, "single", tmp_path / "single.safetensors").output
    tensors = scaled(load_file(single), newer)
    assert len(tensors) > len(load_file(single)) + 20
    with safe_open(single, "pt") as file:
        save_file(tensors, tmp_path / "fp8.safetensors", file.metadata())
    for to in ("single", "diffusers"):
        with pytest.raises(SdkitError, match="with scales beside them") as caught:
            sdkit.convert(tmp_path / "fp8.safetensors", to, tmp_path / "no", configs=tiny_sdxl)
        assert "--dtype bf16" in caught.value.hint
    report = sdkit.convert(tmp_path / "fp8.safetensors", "diffusers", tmp_path / "out", dtype="bf16", configs=tiny_sdxl)
    assert report.proof is not None and "worked into the weights" in report.dropped[0].reason
    unet = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    stem = "input_blocks.3.1.transformer_blocks.0.attn2.to_k"
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    scale = tensors[f"{PREFIX}{stem}.{'weight_scale' if newer else 'scale_weight'}"]
    assert torch.equal(unet[key], (tensors[f"{PREFIX}{stem}.weight"].float() * scale).bfloat16())
    assert {tensor.dtype for tensor in unet.values()} == {torch.bfloat16}


def test_plain_fp8_keeps_its_bits_or_is_widened(tmp_path: Path, tiny_sdxl: Path) -> None:
    small = sdkit.convert(tiny_sdxl, "single", tmp_path / "fp8.safetensors", dtype="fp8_e4m3").output
    kept = sdkit.convert(small, "diffusers", tmp_path / "kept", configs=tiny_sdxl)
    wide = sdkit.convert(small, "diffusers", tmp_path / "wide", dtype="bf16", configs=tiny_sdxl)
    assert kept.proof is not None and kept.proof.exact and wide.proof is not None and wide.proof.exact
    name = "unet/diffusion_pytorch_model.safetensors"
    one, two = load_file(tmp_path / "kept" / name), load_file(tmp_path / "wide" / name)
    assert {tensor.dtype for tensor in one.values()} == {torch.float8_e4m3fn}
    assert all(torch.equal(one[key].bfloat16(), two[key]) for key in two)
