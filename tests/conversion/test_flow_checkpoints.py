"""Checkpoints of SD3 and FLUX.1 both ways, read by diffusers; and where T5's tokenizer comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import flow
import pytest
import torch
from header_files import single_file_shapes, weights_of
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.conversion.checkpoint import read_checkpoint
from sdkit.conversion.plan import Plan, Settings, load_target
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families import FAMILIES
from sdkit.families.describe import encoder_like
from sdkit.families.parts import find_parts

PREFIX = "model.diffusion_model."
COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


class Made(dict[str, Path]):
    """Pipeline folders by kind, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, kind: str) -> Path:
        self[kind] = flow.make_pipeline(kind, self.root / kind)
        return self[kind]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("flow"))


def pipeline_class(kind: str) -> Any:
    return flow.PIPELINES.get(kind, diffusers.StableDiffusion3Pipeline)


def states(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor
        for component in COMPONENTS
        if getattr(pipeline, component, None) is not None
        for name, tensor in getattr(pipeline, component).state_dict().items()
        if name != "encoder.embed_tokens.weight"  # T5's `shared` once more, which diffusers' reader leaves empty
    }


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("kind", flow.FAMILIES)
def test_diffusers_reads_the_same_model_from_file_and_folder(
    tmp_path: Path, made: Made, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.use_narrow_oracle(monkeypatch)
    folder, single = made[kind], tmp_path / "single.safetensors"
    there = sdkit.convert(folder, "comfyui", single)
    back = sdkit.convert(single, "diffusers", tmp_path / "back", configs=folder)
    assert there.proof is not None and there.proof.exact and there.prediction == "flow"
    assert {drop.reason.partition(",")[0].rstrip("_23") for drop in there.dropped} == {"the tokenizer"}
    assert back.proof is not None and back.proof.sha256 == there.proof.sha256
    pipeline = pipeline_class(kind)
    without: dict[str, Any] = dict.fromkeys(("tokenizer", "tokenizer_2", "tokenizer_3")[: 3 if "sd3" in kind else 2])
    before = pipeline.from_pretrained(folder, local_files_only=True, **without)
    alone = pipeline.from_single_file(single, config=str(folder), local_files_only=True, **without)
    after = pipeline.from_pretrained(tmp_path / "back", local_files_only=True, **without)
    assert_same(states(before), states(alone))
    assert_same(states(before), states(after))
    assert after.scheduler.config.shift == 3.0 and type(after) is pipeline
    sdkit.convert(tmp_path / "back", "single", tmp_path / "again.safetensors")
    assert_same(load_file(single), load_file(tmp_path / "again.safetensors"))


@pytest.mark.parametrize("kind", [pytest.param("sd3", marks=pytest.mark.slow), "schnell"])
def test_the_folder_draws_the_same_picture(tmp_path: Path, made: Made, kind: str) -> None:
    sdkit.convert(made[kind], "single", tmp_path / "single.safetensors")
    sdkit.convert(tmp_path / "single.safetensors", "diffusers", tmp_path / "back", configs=made[kind])
    pictures = []
    for folder in (made[kind], tmp_path / "back"):
        pipeline = pipeline_class(kind).from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(1)
        options = {"num_inference_steps": 2, "height": 16, "width": 16, "max_sequence_length": 12}
        pictures.append(pipeline("a small cat", generator=noise, output_type="np", **options).images)
    assert abs(pictures[0] - pictures[1]).max() < 1e-4 and pictures[0].std() > 0


def test_rows_lie_where_the_published_files_have_them(tmp_path: Path, made: Made) -> None:
    """By hand: fused projections one below the other, and the last modulation's shift before its scale."""
    sdkit.convert(made["flux"], "single", tmp_path / "flux.safetensors")
    single = load_file(tmp_path / "flux.safetensors")
    parts = load_file(made["flux"] / "transformer/diffusion_pytorch_model.safetensors")
    rows = [parts[f"single_transformer_blocks.1.{name}.weight"] for name in ("attn.to_q", "attn.to_k", "attn.to_v")]
    rows.append(parts["single_transformer_blocks.1.proj_mlp.weight"])
    assert torch.equal(single[f"{PREFIX}single_blocks.1.linear1.weight"], torch.cat(rows))
    scale, shift = parts["norm_out.linear.bias"].chunk(2)
    assert torch.equal(single[f"{PREFIX}final_layer.adaLN_modulation.1.bias"], torch.cat([shift, scale]))
    assert {name.split(".")[0] for name in single} == {"model", "vae", "text_encoders"}

    sdkit.convert(made["sd3"], "single", tmp_path / "sd3.safetensors")
    single = load_file(tmp_path / "sd3.safetensors")
    parts = load_file(made["sd3"] / "transformer/diffusion_pytorch_model.safetensors")
    scale, shift = parts["transformer_blocks.2.norm1_context.linear.weight"].chunk(2)
    stored = single[f"{PREFIX}joint_blocks.2.context_block.adaLN_modulation.1.weight"]
    assert torch.equal(stored, torch.cat([shift, scale]))
    assert {name.split(".")[0] for name in single} == {"model", "first_stage_model", "text_encoders"}


def test_the_proof_sees_a_modulation_that_was_not_swapped(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdkit.conversion.targets import single as target

    right = target.converted

    def wrong(*arguments: Any) -> Any:
        outputs = right(*arguments)
        for number, output in enumerate(outputs):
            if "final_layer.adaLN" in output.name:
                straight: Any = replace(output.expression, sources=output.expression.sources[::-1])  # type: ignore[type-var]
                outputs[number] = replace(output, expression=straight)
        return outputs

    monkeypatch.setattr(target, "converted", wrong)
    with pytest.raises(SdkitError, match=r"norm_out\.linear\.(weight|bias) does not read back"):
        sdkit.convert(made["sd3"], "single", tmp_path / "wrong.safetensors")


def test_the_transformer_alone_is_a_bare_file_and_comes_back(
    tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow.use_narrow_oracle(monkeypatch)
    bare = sdkit.convert(made["flux"], "single", tmp_path / "bare.safetensors", only="transformer").output
    assert "double_blocks.0.img_attn.qkv.weight" in load_file(bare)
    kind, source = diffusers.FluxTransformer2DModel, made["flux"] / "transformer"
    before = kind.from_pretrained(source).state_dict()
    read = kind.from_single_file(bare, config=str(source), local_files_only=True)
    assert_same(before, read.state_dict())
    sdkit.convert(bare, "diffusers", tmp_path / "transformer")  # what it was configured as is in the metadata
    assert_same(before, kind.from_pretrained(tmp_path / "transformer").state_dict())

    tensors = {f"{PREFIX}{name}": tensor for name, tensor in load_file(bare).items()}
    save_file(tensors, tmp_path / "prefixed.safetensors")
    with pytest.raises(SdkitError, match="divide among the axes"):
        sdkit.convert(tmp_path / "prefixed.safetensors", "diffusers", tmp_path / "no")
    configs = tmp_path / "configs"
    (configs / "transformer").mkdir(parents=True)
    (configs / "transformer/config.json").write_bytes((source / "config.json").read_bytes())
    sdkit.convert(tmp_path / "prefixed.safetensors", "diffusers", tmp_path / "again", configs=configs)
    assert_same(before, kind.from_pretrained(tmp_path / "again").state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_projection_that_the_file_leaves_out_is_the_identity(tmp_path: Path, made: Made, dtype: torch.dtype) -> None:
    """As ComfyUI and diffusers read such files; transformers would fill it with random numbers."""
    sdkit.convert(made["sd3"], "single", tmp_path / "whole.safetensors")
    key = "text_encoders.clip_l.transformer.text_projection.weight"
    tensors = load_file(tmp_path / "whole.safetensors")
    assert torch.equal(tensors.pop(key), torch.eye(16))
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, tmp_path / "less.safetensors")
    report = sdkit.convert(tmp_path / "less.safetensors", "diffusers", tmp_path / "folder", configs=made["sd3"])
    assert any("identity" in warning for warning in report.warnings)
    for component in ("text_encoder", "text_encoder_2"):
        name = f"{component}/model.safetensors"
        after = {key.removeprefix("text_model."): t for key, t in load_file(tmp_path / "folder" / name).items()}
        before = {key.removeprefix("text_model."): t for key, t in load_file(made["sd3"] / name).items()}
        assert_same({name: before[name].to(dtype) for name in after}, after)


def test_without_text_encoders_the_index_names_none(tmp_path: Path, made: Made) -> None:
    """As SD3 was published first: transformer and autoencoder in one file."""
    sdkit.convert(made["sd3"], "single", tmp_path / "whole.safetensors")
    tensors = {k: t for k, t in load_file(tmp_path / "whole.safetensors").items() if not k.startswith("text_encoders")}
    save_file(tensors, tmp_path / "less.safetensors")
    sdkit.convert(tmp_path / "less.safetensors", "diffusers", tmp_path / "folder", configs=made["sd3"])
    index = json.loads((tmp_path / "folder/model_index.json").read_text())
    missing = {name for name, value in index.items() if value == [None, None]}
    assert missing >= {f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")}
    assert not missing & {"scheduler", "transformer", "vae"}
    absent: dict[str, Any] = dict.fromkeys(name for name in missing if name.startswith("t"))
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(tmp_path / "folder", local_files_only=True, **absent)
    assert pipeline.text_encoder_3 is None and pipeline.transformer is not None


def test_files_that_comfyui_keeps_apart_become_one_model(tmp_path: Path, made: Made) -> None:
    kind, names = "flux", ["vae", "text_encoder", "text_encoder_2"]
    files = {
        name: sdkit.convert(made[kind], "single", tmp_path / f"{name}.safetensors", only=name, verify=False).output
        for name in ("transformer", *names)
    }
    parts = [files[name] for name in names]
    whole = sdkit.convert(made[kind], "single", tmp_path / "whole.safetensors").output
    for source in (files["transformer"], made[kind] / "transformer"):  # a bare file, or the component's folder
        joined = sdkit.convert(source, "single", tmp_path / "joined.safetensors", parts=parts, force=True)
        assert_same(load_file(whole), load_file(joined.output))
        assert [parent["role"] for parent in joined.parents] == ["source", *names]
    sdkit.convert(files["transformer"], "diffusers", tmp_path / "folder", parts=parts, tokenizer=made[kind])
    for component in ("transformer", *names):
        before, after = (
            {name.removeprefix("text_model."): tensor for file in (root / component).glob("*.safetensors")
             for name, tensor in load_file(file).items()}
            for root in (made[kind], tmp_path / "folder")
        )  # fmt: skip
        assert_same(before, after)
    with pytest.raises(SdkitError, match="takes a file with one component"):
        sdkit.convert(files["transformer"], "single", tmp_path / "no.safetensors", parts=[whole])
    with pytest.raises(SdkitError, match="is none of"):
        sdkit.convert(whole, "single", tmp_path / "no.safetensors", parts=[files["transformer"]])


def test_one_scale_counts_for_all_rows_of_a_fused_tensor(tmp_path: Path, single: Path, made: Made) -> None:
    """Of q, k and v, and of halves that change places."""
    tensors = load_file(single)
    stems = [f"{PREFIX}double_blocks.0.img_attn.qkv", f"{PREFIX}final_layer.adaLN_modulation.1"]
    for number, stem in enumerate(stems):
        tensors[f"{stem}.weight"] = tensors[f"{stem}.weight"].to(torch.float8_e4m3fn)
        tensors[f"{stem}.scale_weight"] = torch.tensor([2.0, 0.25][number])
    tensors[f"{PREFIX}scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "fp8.safetensors")
    sdkit.convert(tmp_path / "fp8.safetensors", "diffusers", tmp_path / "out", dtype="bf16", configs=made["flux"])
    parts = load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")
    rows = tensors[f"{stems[0]}.weight"].float().mul(2.0).bfloat16().chunk(3)
    for name, part in zip(("to_q", "to_k", "to_v"), rows, strict=True):
        assert torch.equal(parts[f"transformer_blocks.0.attn.{name}.weight"], part)
    shift, scale = tensors[f"{stems[1]}.weight"].float().mul(0.25).bfloat16().chunk(2)
    assert torch.equal(parts["norm_out.linear.weight"], torch.cat([scale, shift]))


# What headers alone say, of published sizes -------------------------------------------------------------------


def planned(shapes: Mapping[str, tuple[int, ...]], *, family: str | None = None, **settings: Any) -> Plan:
    checkpoint = read_checkpoint(weights_of(shapes), family=family)
    return load_target("diffusers")[1].plan(checkpoint, checkpoint, Settings(**settings))


@pytest.mark.parametrize(
    ("family", "variant", "pipeline", "says"),
    [
        ("sd3", "3.5-medium", "StableDiffusion3Pipeline", {"pos_embed_max_size": 384, "qk_norm": "rms_norm"}),
        ("sd3", "3.5-large", "StableDiffusion3Pipeline", {"num_layers": 38, "caption_projection_dim": 2432}),
        ("flux", "schnell", "FluxPipeline", {"guidance_embeds": False, "in_channels": 64}),
        ("flux", "fill", "FluxFillPipeline", {"in_channels": 384, "out_channels": 64}),
        ("flux", "control", "FluxControlPipeline", {"in_channels": 128, "out_channels": 64}),
    ],
)
def test_variants_are_configured_as_published(family: str, variant: str, pipeline: str, says: dict[str, Any]) -> None:
    plan = planned(single_file_shapes(family, variant, ("transformer", "vae")))
    assert json.loads(plan.side_files["model_index.json"])["_class_name"] == pipeline
    config = json.loads(plan.side_files["transformer/config.json"])
    assert says.items() <= config.items()
    with torch.device("meta"):
        module = getattr(diffusers, config["_class_name"]).from_config(config)
    (file,) = (file for file in plan.files if file.prefix == "transformer/")
    assert {output.name: output.shape for output in file.tensors} == {
        name: tuple(tensor.shape) for name, tensor in module.state_dict().items()
    }
    assert ("dual_attention_layers" in config) == (variant == "3.5-medium")


def test_a_text_encoder_is_known_by_its_width() -> None:
    families = {family.name: family for family in FAMILIES}
    for family, component in (("sd3", "text_encoder"), ("sd3", "text_encoder_2"), ("sd3", "text_encoder_3")):
        keys = single_file_shapes(family, "", (component,))
        shapes = {key.partition(".transformer.")[2]: shape for key, shape in keys.items()}
        shapes.pop("text_projection.weight", None)  # as many files of clip_l have it
        (part,) = find_parts(shapes).texts
        assert encoder_like(families[family], part.layout) == component
        assert encoder_like(families["sd1"], part.layout) == (None if component == "text_encoder_3" else "text_encoder")


@pytest.mark.parametrize(
    ("family", "component", "says"),
    [
        ("sd3", "text_encoder_2", {"hidden_size": 1280, "architectures": ["CLIPTextModelWithProjection"]}),
        ("flux", "text_encoder", {"hidden_size": 768, "architectures": ["CLIPTextModel"]}),
        ("flux", "text_encoder_2", {"d_model": 4096, "model_type": "t5"}),
    ],
)
def test_a_text_encoder_alone_is_configured_by_its_size(family: str, component: str, says: dict[str, Any]) -> None:
    """As ComfyUI keeps them: clip_g, clip_l, t5xxl, without a prefix."""
    keys = single_file_shapes(family, "", (component,))
    shapes = {key.partition(".transformer.")[2]: shape for key, shape in keys.items()} | {"logit_scale": ()}
    plan = planned(shapes)
    assert says.items() <= json.loads(plan.side_files["config.json"]).items()
    assert [output.name for output in plan.files[1].tensors] == ["logit_scale"]  # laid beside, for the way back
    single = load_target("single")[1]
    checkpoint = read_checkpoint(weights_of({key: shape for key, shape in shapes.items() if key != "logit_scale"}))
    kept = single.plan(checkpoint, checkpoint, Settings())
    assert {output.name for output in kept.tensors} == set(shapes) - {"logit_scale"}


def test_an_autoencoder_of_16_channels_is_asked_whose_it_is() -> None:
    shapes = {key.removeprefix("vae."): shape for key, shape in single_file_shapes("flux", "dev", ("vae",)).items()}
    with pytest.raises(SdkitError) as caught:
        planned(shapes)
    assert caught.value.hint == "say it: --family sd3 or flux"
    for family, shift in (("sd3", 0.0609), ("flux", 0.1159)):
        assert json.loads(planned(shapes, family=family).side_files["config.json"])["shift_factor"] == shift
    with pytest.raises(SdkitError, match="latents of 16 channels"):
        planned(shapes, family="sdxl")


def test_a_flow_is_no_choice(tmp_path: Path, made: Made) -> None:
    with pytest.raises(UsageError, match="predicts a flow"):
        sdkit.convert(made["sd3"], "single", tmp_path / "x.safetensors", prediction="epsilon")


# T5's tokenizer -----------------------------------------------------------------------------------------------


@pytest.fixture
def single(tmp_path: Path, made: Made) -> Path:
    """The small FLUX.1 as a file that says its configurations."""
    return Path(sdkit.convert(made["flux"], "single", tmp_path / "single.safetensors", verify=False).output)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of Hugging Face with nothing in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_t5s_tokenizer_is_asked_for_before_anything_is_written(
    tmp_path: Path, single: Path, made: Made, empty_cache: Path
) -> None:
    with pytest.raises(SdkitError, match="text_encoder_2 is a T5, whose tokenizer no single file holds") as caught:
        sdkit.convert(single, "diffusers", tmp_path / "out")
    assert "--tokenizer" in caught.value.hint and not (tmp_path / "out").exists()
    alone = flow.tokenizer_in(made["flux"], tmp_path / "alone")
    for number, given in enumerate((alone, made["flux"])):  # a folder of its own, or a pipeline's
        sdkit.convert(single, "diffusers", tmp_path / f"out{number}", tokenizer=given)
        written = tmp_path / f"out{number}" / "tokenizer_2" / "tokenizer.json"
        assert written.read_bytes() == (alone / "tokenizer.json").read_bytes()
    with pytest.raises(UsageError, match="holds no tokenizer of T5"):
        sdkit.convert(single, "diffusers", tmp_path / "no", tokenizer=tmp_path)
    many = {"model": {"vocab": [["a", 0.0]] * 300}, "added_tokens": []}
    (alone / "tokenizer.json").write_text(json.dumps(many))
    with pytest.raises(SdkitError, match="has 300 tokens, and the text encoder 64"):
        sdkit.convert(single, "diffusers", tmp_path / "no", tokenizer=alone)


def test_a_copy_in_the_cache_is_found(tmp_path: Path, single: Path, made: Made, empty_cache: Path) -> None:
    root = empty_cache / "models--black-forest-labs--FLUX.1-schnell"
    flow.tokenizer_in(made["flux"], root / "snapshots/abc/tokenizer_2")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("abc")
    sdkit.convert(single, "diffusers", tmp_path / "out")
    written = tmp_path / "out/tokenizer_2/tokenizer.json"
    assert written.read_bytes() == (made["flux"] / "tokenizer_2/tokenizer.json").read_bytes()
    older = empty_cache / "models--google--t5-v1_1-xxl/snapshots/def"
    older.mkdir(parents=True)
    (older / "spiece.model").write_bytes(b"pieces")
    (older.parents[1] / "refs").mkdir()
    (older.parents[1] / "refs/main").write_text("def")
    sdkit.convert(single, "diffusers", tmp_path / "older")
    assert [file.name for file in (tmp_path / "older/tokenizer_2").iterdir()] == ["spiece.model"]


def test_a_tokenizer_of_t5_is_of_no_use_without_t5(tmp_path: Path, tiny_base: Path, made: Made) -> None:
    with pytest.raises(UsageError, match="no T5 here"):
        sdkit.convert(tiny_base, "diffusers", tmp_path / "out", tokenizer=made["flux"])
    with pytest.raises(UsageError, match="a folder's"):
        sdkit.convert(made["flux"], "single", tmp_path / "out", tokenizer=made["flux"])
    with pytest.raises(UsageError, match="one component"):
        sdkit.convert(made["flux"], "diffusers", tmp_path / "out", tokenizer=made["flux"], only="transformer")
