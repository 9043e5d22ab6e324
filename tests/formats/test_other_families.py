"""LoRAs of families this version does not read are called by their names, and by none of those it reads.

The layers are those of diffusers' own models at their published sizes, on the meta device: shapes without numbers.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import models
import pytest
import torch
from header_files import weights_of

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.formats import adapter_family

MODELS = {
    "auraflow": "AuraFlowTransformer2DModel",
    "chroma": "ChromaTransformer2DModel",
    "flux": "FluxTransformer2DModel",
    "flux2": "Flux2Transformer2DModel",
    "hunyuan-video": "HunyuanVideoTransformer3DModel",
    "ltx": "LTXVideoTransformer3DModel",
    "lumina2": "Lumina2Transformer2DModel",
    "mochi": "MochiTransformer3DModel",
    "pixart": "PixArtTransformer2DModel",
    "qwen-image": "QwenImageTransformer2DModel",
    "sana": "SanaTransformer2DModel",
    "wan": "WanTransformer3DModel",
    "z-image": "ZImageTransformer2DModel",
}
ATTENTION = re.compile(r".*\.(?:to_[qkv]|add_[qkv]_proj)")


@cache
def layers(model: str) -> dict[str, tuple[int, int]]:
    """The linear layers of a model of diffusers, by name, and the shapes of their weights."""
    import diffusers

    if not hasattr(diffusers, model):
        pytest.skip(f"this diffusers has no {model}")
    with torch.device("meta"):
        made = getattr(diffusers, model)()
    linear = ((name, layer) for name, layer in made.named_modules() if isinstance(layer, torch.nn.Linear))
    return {name: (layer.out_features, layer.in_features) for name, layer in linear}


def lora_shapes(model: str, naming: str, *, attention: bool) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, (rows, columns) in layers(model).items():
        if attention and not ATTENTION.fullmatch(name):
            continue
        if naming == "diffusers":
            shapes |= {
                f"transformer.{name}.lora_A.weight": (4, columns),
                f"transformer.{name}.lora_B.weight": (rows, 4),
            }
        else:
            flat = f"lora_unet_{name.replace('.', '_')}"
            shapes |= {f"{flat}.lora_down.weight": (4, columns), f"{flat}.lora_up.weight": (rows, 4)}
    return shapes


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("attention", [False, True], ids=["all", "attention"])
@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", MODELS)
def test_every_family_by_its_own_names(family: str, naming: str, attention: bool) -> None:
    if family == "chroma" and attention:
        pytest.skip("nothing tells Chroma's attention from that of FLUX.1, out of which it was made")
    if family == "flux" and naming == "kohya":
        pytest.skip("no program flattens FLUX.1's names so")
    shapes = lora_shapes(MODELS[family], naming, attention=attention)
    assert len(shapes) > 50
    assert adapter_family(weights_of(shapes))[0] == family


NATIVE = {
    "flux2": {"double_blocks.0.img_mlp.0": (36864, 6144)},
    "flux2 of 4 billion": {"single_blocks.3.linear1": (27648, 3072)},
    "flux2 of 9 billion, attention alone": {"double_blocks.0.img_attn.qkv": (12288, 4096)},
    "flux2 of 4 billion, single blocks alone": {"single_blocks.3.linear2": (3072, 12288)},
    "flux2 of 9 billion, one stream": {"double_blocks.7.txt_attn.proj": (4096, 4096)},
    "flux": {"single_blocks.3.linear1": (21504, 3072)},
    "z-image": {"layers.0.attention.qkv": (11520, 3840)},
    "wan": {"blocks.0.self_attn.q": (5120, 5120)},
    "hunyuan-video": {"double_blocks.0.img_mlp.fc1": (12288, 3072)},
}


@pytest.mark.parametrize("case", NATIVE)
def test_the_makers_own_names(case: str) -> None:
    """A layer that ComfyUI and kohya's scripts call as the checkpoints do."""
    for prefix, flat in (("diffusion_model.", False), ("lora_unet_", True)):
        shapes = {}
        for name, (rows, columns) in NATIVE[case].items():
            module = prefix + (name.replace(".", "_") if flat else name)
            shapes |= {f"{module}.lora_down.weight": (4, columns), f"{module}.lora_up.weight": (rows, 4)}
        assert adapter_family(weights_of(shapes))[0] == case.partition(" ")[0]


KLEIN = {"double_blocks.4.img_attn.qkv": (9216, 3072), "double_blocks.0.txt_attn.proj": (3072, 3072)}
KLEIN_IN_DIFFUSERS = {
    f"transformer_blocks.{number}.attn.to_{slot}": (3072, 3072) for number in range(5) for slot in "qkv"
}


@pytest.mark.parametrize(
    ("prefix", "modules"), [("diffusion_model.", KLEIN), ("", KLEIN), ("transformer.", KLEIN_IN_DIFFUSERS)]
)
def test_what_two_families_have_alike_is_not_guessed(tmp_path: Path, prefix: str, modules: dict) -> None:
    """The attention of FLUX.2 klein-4b's five blocks of two streams has FLUX.1's names and shapes."""
    shapes = {}
    for name, (rows, columns) in modules.items():
        shapes |= {f"{prefix}{name}.lora_A.weight": (4, columns), f"{prefix}{name}.lora_B.weight": (rows, 4)}
    family, reason = adapter_family(weights_of(shapes))
    assert family is None and "as in FLUX.1 and in FLUX.2 klein-4b" in reason
    for claim in ("flux2", "flux1"):
        told = adapter_family(weights_of(shapes, metadata={"ss_base_model_version": claim}))
        assert told[0] == claim.removesuffix("1")
    further = dict(zip(("lora_A.weight", "lora_B.weight"), ((4, 3072), (3072, 4)), strict=True))
    for layer in ("double_blocks.5.img_attn.proj", "double_blocks.0.img_mod.lin"):
        more = {f"diffusion_model.{layer}.{role}": shape for role, shape in further.items()}
        assert adapter_family(weights_of(shapes | more))[0] == "flux"
    path = models.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "klein.safetensors")
    with pytest.raises(SdkitError, match="as in FLUX.1 and in FLUX.2 klein-4b") as error:
        sdkit.convert(path, "kohya", tmp_path / "k.safetensors", dry_run=True)
    assert "--family" in error.value.hint
    assert sdkit.convert(path, "kohya", tmp_path / "k.safetensors", family="flux2", dry_run=True).changes


WIDE = {"flux2": ("klein-9b", 8, 4096), "krea2": ("Krea 2", 28, 6144), "qwen-image": ("Qwen-Image 2.1", 32, 4096)}


@pytest.mark.parametrize("family", WIDE)
def test_blocks_are_counted_where_widths_are_the_same(family: str) -> None:
    _, blocks, width = WIDE[family]
    names = [f"transformer.transformer_blocks.{number}.attn.to_q" for number in range(blocks)]
    shapes = {f"{name}.lora_A.weight": (4, width) for name in names}
    shapes |= {f"{name}.lora_B.weight": (width, 4) for name in names}
    assert adapter_family(weights_of(shapes))[0] == family


@pytest.mark.parametrize("prefix", ["lycoris_", "transformer."])
def test_names_tell_whatever_the_kind_of_change(prefix: str) -> None:
    module = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    module = module.replace(".", "_") if prefix == "lycoris_" else module
    shapes = {f"{prefix}{module}.lokr_w1": (4, 4), f"{prefix}{module}.lokr_w2": (768, 768)}
    assert adapter_family(weights_of(shapes))[0] == "flux2"


def test_they_are_named_and_honestly_refused(tmp_path: Path) -> None:
    name = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 1536), f"{name}.lora_up.weight": torch.ones(1536, 2)}
    path = models.save(tensors, tmp_path / "wan.safetensors")
    found = sdkit.inspect(path)
    assert found.family == "wan" and "does not read models of this family yet" in found.problems[0]
    with pytest.raises(SdkitError, match="this version recognises wan and does not read its models"):
        sdkit.convert(path, "kohya", tmp_path / "k.safetensors")
    same = sdkit.convert(path, "comfyui-native", tmp_path / "same.safetensors")
    assert set(models.load(same.output)) >= set(tensors)
