"""LoRAs of SD3, FLUX and Z-Image in every dialect, against diffusers' converters and its models' own single files."""

from __future__ import annotations

import pytest
import torch
from header_files import weights_of

from sdkit.adapters.artifact import Target
from sdkit.core.errors import SdkitError
from sdkit.families import identify, reference
from sdkit.families.flux2_transformer import Flux2Layout
from sdkit.families.flux_transformer import FluxLayout
from sdkit.families.sd3_transformer import Sd3Layout
from sdkit.families.z_image_transformer import ZImageLayout
from sdkit.formats import adapter_family, read_adapter, recognise, write_adapter
from sdkit.weights import open_weights

# The oracle's converter for FLUX.1 divides single blocks by the published sizes; blocks are few, not narrow.
WIDTH = 3072
LAYOUT = FluxLayout(WIDTH, 128, 4 * WIDTH, 1, 1, 64, 64, 4096, 768, 256, guidance=True)
SMALL = FluxLayout(12, 4, 48, 2, 2, 8, 8, 10, 6, 256, guidance=True)
FLUX2 = Flux2Layout(12, 4, 36, 2, 2, 8, 8, 10, 256, guidance=True)
Z_IMAGE = ZImageLayout(12, 4, 32, 2, 1, 4, 10, 256, 1024, 12)
SD3 = Sd3Layout(8, 2, 1, 4, 32, 2, 4, 16, 9, 10, 6, 256)


def model_of(layout, naming="ldm"):
    prefix = "model.diffusion_model." if naming == "ldm" else "transformer/"
    shapes = {}
    for row in layout.parameters():
        whole = (row.height, *row.shape[1:]) if row.rows else row.shape
        shapes[prefix + (row.ldm if naming == "ldm" else row.hub)] = whole if naming == "ldm" else row.shape
    return identify(weights_of(shapes))


@pytest.fixture(scope="module")
def flux():
    return model_of(LAYOUT)


@pytest.fixture(scope="module")
def small():
    return model_of(SMALL)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kohya_pairs(model, rank=2, alpha=None, only=lambda name: True):
    """A LoRA of every layer of the transformer in sd-scripts' names; each alpha another one."""
    tensors = {}
    for number, (flat, module) in enumerate(model.kohya_modules.items()):
        if not flat.startswith("lora_unet_") or not only(flat):
            continue
        stack = model.stacks.get(module)
        hub = stack.members[0][0] if stack else module
        shape = model.places[f"{hub}.weight"].shape
        if len(shape) != 2:
            continue
        rows = sum(count for _, count in stack.members) if stack else shape[0]
        tensors[f"{flat}.lora_down.weight"] = normal(rank, shape[1], seed=number)
        tensors[f"{flat}.lora_up.weight"] = normal(rows, rank, seed=number + 1)
        tensors[f"{flat}.alpha"] = torch.tensor(float(1 + number % 3) if alpha is None else alpha)
    return tensors


def whole_change(tensors, flat):
    down, up = (tensors[f"{flat}.lora_{side}.weight"].double() for side in ("down", "up"))
    return up @ down * (tensors[f"{flat}.alpha"].item() / down.shape[0])


def acting_on(delta, probe):
    """ΔW @ probe: at FLUX.1's own width the change itself would be large."""
    prepared = delta.prepare(1.0, torch.float64)
    return prepared.up @ (prepared.down @ probe)


def test_kohya_flux_is_what_diffusers_makes_of_it(save, flux):
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers as oracle

    # What the oracle renames without its prefix or without its alpha is compared by hand below.
    tensors = kohya_pairs(flux, only=lambda name: "_blocks_" in name)
    artifact = read_adapter(save(tensors), flux)
    assert artifact.unmatched == ()
    expected = oracle(dict(tensors))
    modules = {key.rpartition(".lora_")[0] for key in expected}
    assert {target.module for target in artifact.deltas} == modules and len(modules) == 10 + 4 + 6
    for module in modules:
        a, b = (expected[f"{module}.lora_{side}.weight"].double() for side in "AB")
        probe = normal(a.shape[1], 2, seed=7).double()
        assert torch.allclose(acting_on(artifact.deltas[Target(module)], probe), b @ (a @ probe), rtol=1e-4, atol=1e-3)


def test_the_layers_around_the_blocks_too(save, dense, small):
    names = {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
        "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
        "final_layer_linear": "proj_out",
    }
    tensors = kohya_pairs(small)
    artifact = read_adapter(save(tensors), small)
    for flat, hub in names.items():
        assert torch.allclose(dense(artifact, f"transformer.{hub}"), whole_change(tensors, f"lora_unet_{flat}"))
    shift, scale = whole_change(tensors, "lora_unet_final_layer_adaLN_modulation_1").chunk(2)
    assert torch.allclose(dense(artifact, "transformer.norm_out.linear"), torch.cat([scale, shift]))


@pytest.mark.parametrize("layout", [SMALL, FLUX2, SD3, Z_IMAGE])
@pytest.mark.parametrize("naming", ["ldm", "diffusers"])
def test_merging_adds_the_same_whichever_way_file_and_base_name_their_layers(tmp_path, layout, naming):
    """The base's own tensors plus up @ down, written out for the single file; diffusers' parts follow by its rule."""
    import sdkit

    tables = {row.ldm: row for row in layout.parameters()}
    single = {}
    for number, row in enumerate(tables.values()):
        shape = (row.height, *row.shape[1:]) if row.rows else row.shape
        single[f"model.diffusion_model.{row.ldm}"] = normal(*shape, seed=1000 + number)
    parts = {}
    for row in layout.parameters():
        tensor = single[f"model.diffusion_model.{row.ldm}"]
        part = tensor[slice(*row.rows)] if row.rows else tensor
        parts[f"transformer.{row.hub}"] = torch.cat(part.chunk(2)[::-1]) if row.swapped else part
    lora = kohya_pairs(model_of(layout))
    base, adapter, out = (tmp_path / f"{name}.safetensors" for name in ("base", "lora", "out"))
    from safetensors.torch import load_file, save_file

    bare = {name.removeprefix("transformer."): part.contiguous() for name, part in parts.items()}
    save_file(single if naming == "ldm" else bare, base)
    save_file(lora, adapter)
    sdkit.merge(base, [(adapter, 0.5)], out)
    merged = load_file(out)
    model = model_of(layout)
    expected = {name: tensor.double() for name, tensor in single.items()}
    for flat in {key.partition(".")[0] for key in lora}:
        native = model.native_modules[model.kohya_modules[flat]]
        expected[f"model.diffusion_model.{native}.weight"] += 0.5 * whole_change(lora, flat)
    if naming == "diffusers":
        whole, expected = expected, {}
        for row in layout.parameters():
            tensor = whole[f"model.diffusion_model.{row.ldm}"]
            part = tensor[slice(*row.rows)] if row.rows else tensor
            expected[row.hub] = torch.cat(part.chunk(2)[::-1]) if row.swapped else part
    assert set(merged) == set(expected)
    for name, tensor in expected.items():
        assert torch.allclose(merged[name].double(), tensor, atol=1e-5), name


@pytest.mark.parametrize("layout", [SMALL, FLUX2, SD3, Z_IMAGE])
def test_kohya_to_diffusers_and_back_gives_the_same_bytes(save, tmp_path, layout):
    model = model_of(layout)
    tensors = kohya_pairs(model)
    source = read_adapter(save(tensors), model)
    first, second = tmp_path / "diffusers.safetensors", tmp_path / "kohya.safetensors"
    write_adapter(source, model, first, {}, format="diffusers")
    write_adapter(read_adapter(open_weights(first), model), model, second, {}, format="kohya")
    from safetensors.torch import load_file

    again = load_file(second)
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name


DIFFUSERS = {
    "num_layers": 2,
    "num_attention_heads": 3,
    "attention_head_dim": 4,
    "joint_attention_dim": 10,
    "pooled_projection_dim": 6,
}
FLUX_PEER = {"num_single_layers": 2, "in_channels": 8, "guidance_embeds": True}
SD3_PEER = {"num_attention_heads": 2, "caption_projection_dim": 8, "in_channels": 4, "out_channels": 4, "patch_size": 2}
SD3_PEER |= {"pos_embed_max_size": 3, "sample_size": 4, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}
PEERS = [("FluxTransformer2DModel", FLUX_PEER, SMALL), ("SD3Transformer2DModel", SD3_PEER, SD3)]


@pytest.mark.parametrize(("kind", "config", "layout"), PEERS)
def test_diffusers_loads_what_is_written_for_it(save, tmp_path, dense, kind, config, layout):
    """A kohya file becomes diffusers', a model of diffusers' fuses it, and every weight has changed as it should."""
    import diffusers

    module = getattr(diffusers, kind)(**{**DIFFUSERS, **config}).double()
    model = identify(weights_of({f"transformer/{name}": tuple(t.shape) for name, t in module.state_dict().items()}))
    source = read_adapter(save(kohya_pairs(model_of(layout))), model)
    path = tmp_path / "lora.safetensors"
    write_adapter(source, model, path, {}, format="diffusers")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.load_lora_adapter(tmp_path, weight_name=path.name)  # without a name it leaves out the alphas
    module.fuse_lora()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in module.state_dict().items()}
    assert source.unmatched == () and len(source.deltas) > 20
    for name, tensor in before.items():
        hub = f"transformer.{name.removesuffix('.weight')}"
        expected = tensor + dense(source, hub).reshape(tensor.shape) if Target(hub) in source.deltas else tensor
        assert torch.allclose(after[name], expected, atol=1e-4), name


CLIP, T5 = "text_model_encoder_layers_0_self_attn_q_proj", "encoder_block_0_layer_0_SelfAttention_q"
TEXTS = {
    "sd3": {f"lora_te1_{CLIP}": 768, f"lora_te2_{CLIP}": 1280, f"lora_te3_{T5}": 4096},
    "flux": {f"lora_te1_{CLIP}": 768, f"lora_te3_{T5}": 4096},
}
COMFYUI = {
    "lora_te1": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    "lora_te2": "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    "lora_te3": "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
}


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("to", ["kohya", "comfyui-native", "omi", "peft"])
def test_loras_of_text_encoders_go_through_every_format(save, tmp_path, family, to):
    """T5 is OneTrainer's second text encoder of FLUX.1, and the third everywhere else."""
    tensors = {}
    for number, (flat, width) in enumerate(TEXTS[family].items()):
        tensors[f"{flat}.lora_down.weight"] = normal(2, width, seed=number)
        tensors[f"{flat}.lora_up.weight"] = normal(width, 2, seed=number + 9)
        tensors[f"{flat}.alpha"] = torch.tensor(0.5 + number)
    model = reference(family)
    weights = save(tensors)
    assert adapter_family(weights)[0] == family
    source = read_adapter(weights, model)
    assert source.unmatched == () and len(source.deltas) == len(TEXTS[family])
    write_adapter(source, model, tmp_path / "there", {}, format=to)
    with open_weights(tmp_path / "there") as there:
        if to == "comfyui-native":
            assert {name.partition(".lora_")[0].removesuffix(".alpha") for name in there.tensors} == {
                COMFYUI[flat[:8]] for flat in TEXTS[family]
            }
        write_adapter(read_adapter(there, model), model, tmp_path / "back.safetensors", {})
    from safetensors.torch import load_file

    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    with pytest.raises(SdkitError, match="diffusers loads no LoRA of T5"):
        write_adapter(source, model, tmp_path / "d.safetensors", {}, format="diffusers")
    if family == "flux":
        old = {name.replace("lora_te3_", "lora_te2_"): tensor for name, tensor in tensors.items()}
        legacy = save(old, name="old")
        assert adapter_family(legacy)[0] == "flux" and read_adapter(legacy, model).deltas.keys() == source.deltas.keys()


def test_the_open_model_initiatives_names_number_what_a_single_file_stacks(save, tmp_path, small, dense):
    """OneTrainer's tables: q, k and v are .0, .1 and .2; the halves of the last modulation as in the single file."""
    names = {
        "transformer.double_blocks.0.img_attn.qkv.0": "transformer_blocks.0.attn.to_q",
        "transformer.double_blocks.1.txt_attn.qkv.2": "transformer_blocks.1.attn.add_v_proj",
        "transformer.single_blocks.0.linear1.1": "single_transformer_blocks.0.attn.to_k",
        "transformer.single_blocks.0.linear1.3": "single_transformer_blocks.0.proj_mlp",
        "transformer.single_blocks.1.linear2": "single_transformer_blocks.1.proj_out",
        "transformer.img_in.proj": "x_embedder",
        "transformer.final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    tensors = {}
    for number, (name, hub) in enumerate(names.items()):
        rows, columns = small.places[f"transformer.{hub}.weight"].shape
        tensors[f"{name}.lora_down.weight"] = normal(2, columns, seed=number)
        tensors[f"{name}.lora_up.weight"] = normal(rows, 2, seed=number + 9)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    weights = save(tensors, {"ot_branch": "omi_format"})
    assert recognise(weights)[0] == "omi" and adapter_family(weights)[0] == "flux"
    artifact = read_adapter(weights, small)
    assert artifact.unmatched == () and len(artifact.deltas) == len(names)
    for name, hub in names.items():
        change = tensors[f"{name}.lora_up.weight"].double() @ tensors[f"{name}.lora_down.weight"].double() / 2
        if hub == "norm_out.linear":
            change = torch.cat(change.chunk(2)[::-1])
        assert torch.allclose(dense(artifact, f"transformer.{hub}"), change), hub
    write_adapter(artifact, small, tmp_path / "o.safetensors", {}, format="omi")
    with open_weights(tmp_path / "o.safetensors") as written:
        assert written.tensors.keys() == weights.tensors.keys() and written.metadata["ot_branch"] == "omi_format"


def diffusers_pairs(hubs, model, rank=2):
    tensors = {}
    for number, hub in enumerate(hubs):
        out, into = model.places[f"transformer.{hub}.weight"].shape
        tensors[f"transformer.{hub}.lora_A.weight"] = normal(rank + number % 2, into, seed=number)
        tensors[f"transformer.{hub}.lora_B.weight"] = normal(out, rank + number % 2, seed=number + 50)
    return tensors


STACKED = {
    ("kohya", ""): "lora_unet_single_blocks_1_linear1",
    ("kohya", "diffusers-names"): "lora_transformer_single_transformer_blocks_1_attn_to_k",
    ("comfyui-native", ""): "diffusion_model.single_blocks.1.linear1",
}


@pytest.mark.parametrize(("format", "dialect"), STACKED)
@pytest.mark.parametrize("half", [False, True])
def test_separate_projections_read_back_the_same(save, tmp_path, small, dense, format, half, dialect):
    block = "single_transformer_blocks.1"
    names = [f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp"]
    names += ["transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn.to_q", "norm_out.linear"]
    tensors = diffusers_pairs(names[1:] if half else names, small)
    source = read_adapter(save({key: tensor.half() for key, tensor in tensors.items()}), small)
    path = tmp_path / "out.safetensors"
    write_adapter(source, small, path, {}, format=format, **({"dialect": dialect} if dialect else {}))
    read = read_adapter(open_weights(path), small)
    for target in source.deltas:
        assert torch.equal(dense(read, target.module), dense(source, target.module)), target
    for target in set(read.deltas) - set(source.deltas):
        assert not dense(read, target.module).any()
    name = STACKED[format, dialect]
    assert f"{name}.lora_down.weight" in open_weights(path).tensors


def test_unequal_scales_go_into_the_factors(save, tmp_path, small, dense):
    names = [f"transformer_blocks.1.attn.to_{slot}" for slot in "qkv"]
    config = '{"transformer.r": 2, "transformer.lora_alpha": 2, "transformer.rank_pattern": {"to_k": 3}, '
    config += '"transformer.alpha_pattern": {"to_v": 7}}'
    source = read_adapter(save(diffusers_pairs(names, small), {"lora_adapter_metadata": config}), small)
    assert len({delta.scale for delta in source.deltas.values()}) > 1
    path = tmp_path / "out.safetensors"
    write_adapter(source, small, path, {}, format="kohya")
    read = read_adapter(open_weights(path), small)
    for target in source.deltas:
        assert torch.allclose(dense(read, target.module), dense(source, target.module), rtol=1e-6)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_xlabs_is_what_diffusers_makes_of_it(save, dense, small, prefix):
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers as oracle

    width, inner, tensors = SMALL.width, SMALL.inner, {}
    layers = {}
    for stream in "12":
        processor = "double_blocks.{}.processor.{}_lora" + stream
        layers |= {processor.format(block, "qkv"): 3 * width for block in range(2)}
        layers |= {processor.format(block, "proj"): width for block in range(2)}
    layers |= {"single_blocks.0.processor.qkv_lora": 3 * width, "single_blocks.0.processor.proj_lora": width}
    for number, (name, rows) in enumerate(layers.items()):
        columns = width + inner if name.endswith(".proj_lora") else width
        tensors[f"{prefix}{name}.down.weight"] = normal(2, columns, seed=number)
        tensors[f"{prefix}{name}.up.weight"] = normal(rows, 2, seed=number + 50)
    weights = save(tensors)
    assert (recognise(weights)[0], adapter_family(weights)[0]) == ("flux-native", "flux")
    artifact = read_adapter(weights, small)
    assert artifact.unmatched == ()
    expected = oracle(dict(tensors))
    modules = {key.rpartition(".lora_")[0] for key in expected}
    assert {target.module for target in artifact.deltas} == modules
    for module in modules:
        product = expected[f"{module}.lora_B.weight"].double() @ expected[f"{module}.lora_A.weight"].double()
        assert torch.allclose(dense(artifact, module), product), module


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_native_names_with_pefts_roles(save, dense, small, prefix):
    tensors = {f"{prefix}double_blocks.1.txt_attn.qkv.lora_A.weight": normal(2, 12, seed=1)}
    tensors |= {f"{prefix}double_blocks.1.txt_attn.qkv.lora_B.weight": normal(36, 2, seed=2)}
    tensors |= {f"{prefix}double_blocks.1.txt_attn.qkv.lora_B.bias": normal(36, seed=3)}
    weights = save(tensors)
    assert recognise(weights)[0] == "flux-native"
    artifact = read_adapter(weights, small)
    _, b, bias = tensors.values()
    (a, *_) = tensors.values()
    whole = b.double() @ a.double()
    for number, slot in enumerate("qkv"):
        module = f"transformer.transformer_blocks.1.attn.add_{slot}_proj"
        rows = slice(12 * number, 12 * number + 12)
        assert torch.allclose(dense(artifact, module), whole[rows])
        assert torch.equal(dense(artifact, module, "bias"), bias[rows].double())


def test_lokr_and_dora_of_stacked_layers(save, small, dense, tmp_path):
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    w1, w2 = normal(4, 3, seed=1), normal(9, 4, seed=2)
    lokr = {f"{flat}.lokr_w1": w1, f"{flat}.lokr_w2": w2, f"{flat}.alpha": torch.tensor(1.0)}
    artifact = read_adapter(save(lokr), small)
    whole = torch.kron(w1.double(), w2.double())
    for number, slot in enumerate("qkv"):
        found = dense(artifact, f"transformer.transformer_blocks.0.attn.to_{slot}")
        assert torch.allclose(found, whole[12 * number : 12 * number + 12])
    path = tmp_path / "again.safetensors"
    write_adapter(artifact, small, path, {}, format="kohya")
    assert set(open_weights(path).tensors) == set(lokr)
    pair = {f"{flat}.lora_down.weight": normal(2, 12, seed=1), f"{flat}.lora_up.weight": normal(36, 2, seed=2)}
    pair |= {f"{flat}.dora_scale": torch.ones(1, 12)}
    with pytest.raises(SdkitError, match="a dora of several stacked layers cannot be divided"):
        read_adapter(save(pair, name="by_input"), small)
    pair[f"{flat}.dora_scale"] = normal(36, 1, seed=3)
    divided = read_adapter(save(pair, name="by_output"), small)
    assert {delta.kind for delta in divided.deltas.values()} == {"dora"} and len(divided.deltas) == 3
    write_adapter(divided, small, tmp_path / "dora.safetensors", {}, format="kohya")
    with_dora = open_weights(tmp_path / "dora.safetensors")
    assert with_dora.tensors[f"{flat}.dora_scale"].shape == (36, 1)


def test_a_change_of_another_height_names_both(save, small):
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    pair = {f"{flat}.lora_down.weight": normal(2, 12, seed=1), f"{flat}.lora_up.weight": normal(24, 2, seed=2)}
    with pytest.raises(
        SdkitError, match=rf"{flat} changes a weight of shape \[24, 12\], but that of the model has 36 rows"
    ):
        read_adapter(save(pair), small)


def test_bundles_of_t5_find_their_encoder(save, make_weights_with_t5):
    model, hub = make_weights_with_t5
    flat = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    pair = {f"{flat}.lora_down.weight": normal(2, 12, seed=1), f"{flat}.lora_up.weight": normal(8, 2, seed=2)}
    assert set(read_adapter(save(pair), model).deltas) == {Target(hub)}
    native = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    pair = {key.replace(flat, native): tensor for key, tensor in pair.items()}
    assert set(read_adapter(save(pair, name="b"), model).deltas) == {Target(hub)}


@pytest.fixture
def make_weights_with_t5():
    from sdkit.families.t5 import T5Layout

    t5 = T5Layout(width=12, attention=8, heads=2, inner=20, layers=2, vocabulary=30, buckets=5)
    shapes = {f"text_encoders.t5xxl.transformer.{row.hub}": row.shape for row in t5.parameters()}
    for row in SMALL.parameters():
        shapes[f"model.diffusion_model.{row.ldm}"] = (row.height, *row.shape[1:]) if row.rows else row.shape
    model = identify(weights_of(shapes))
    assert model.components == ("text_encoder_2", "transformer")
    return model, "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        ({"transformer.transformer_blocks.5.attn.to_q.lora_A.weight": (4, 3072)}, "flux"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 1536)}, "sd3"),
        ({"transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": (4, 2432)}, "sd3"),
        ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 640)}, None),
        (
            {
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280),
                "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 1536),
            },
            "sd3",
        ),
        ({"diffusion_model.joint_blocks.0.x_block.mlp.fc1.lora_A.weight": (4, 1536)}, "sd3"),
    ],
)
def test_which_family_a_lora_is_for(shapes, family):
    assert adapter_family(weights_of(shapes))[0] == family


def same_as_the_oracle(artifact, dense, expected):
    modules = {key.rpartition(".lora_")[0] for key in expected}
    assert artifact.unmatched == () and {target.module for target in artifact.deltas} == modules
    for module in modules:
        a, b = (expected[f"{module}.lora_{side}.weight"].double() for side in "AB")
        assert torch.allclose(dense(artifact, module), b @ a, atol=1e-5), module


def test_kohya_flux2_is_what_diffusers_makes_of_it(save, dense):
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux2_lora_to_diffusers as oracle

    model = model_of(FLUX2)
    around = ("img_in", "txt_in", "time_in_in_layer", "time_in_out_layer", "final_layer_linear")  # that it knows
    tensors = kohya_pairs(model, only=lambda name: "_blocks_" in name or name.endswith(around))
    artifact = read_adapter(save(tensors), model)
    same_as_the_oracle(artifact, dense, oracle(dict(tensors)))
    assert len(artifact.deltas) == 2 * 12 + 2 * 2 + 5


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model."])
def test_flux2_in_its_makers_names_is_what_diffusers_makes_of_it(save, dense, prefix):
    """Every layer, as ai-toolkit and ComfyUI write them, and fal."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux2_lora_to_diffusers as oracle

    model, tensors = model_of(FLUX2), {}
    for number, row in enumerate({row.ldm: row for row in FLUX2.parameters() if len(row.shape) == 2}.values()):
        name = row.ldm.removesuffix(".weight")
        tensors[f"{name}.lora_A.weight"] = normal(2, row.shape[1], seed=number)
        tensors[f"{name}.lora_B.weight"] = normal(row.height if row.rows else row.shape[0], 2, seed=number + 100)
    artifact = read_adapter(save({f"{prefix}{name}": tensor for name, tensor in tensors.items()}), model)
    expected = oracle({f"diffusion_model.{name}": tensor for name, tensor in tensors.items()})
    last = "transformer.norm_out.linear"
    # diffusers 0.42 forgets here that its model has the halves of this layer the other way round than the file.
    expected[f"{last}.lora_B.weight"] = torch.cat(expected[f"{last}.lora_B.weight"].chunk(2)[::-1])
    same_as_the_oracle(artifact, dense, expected)


def test_flux2_in_diffusers_names_behind_comfyuis_prefix(save, dense):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux2_lora_to_diffusers as oracle

    model, tensors = model_of(FLUX2), {}
    for number, name in enumerate(("transformer_blocks.1.attn.to_q", "single_transformer_blocks.0.attn.to_out")):
        rows, columns = model.places[f"transformer.{name}.weight"].shape
        tensors[f"diffusion_model.{name}.lora_A.weight"] = normal(2, columns, seed=number)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = normal(rows, 2, seed=number + 100)
    same_as_the_oracle(read_adapter(save(tensors), model), dense, oracle(dict(tensors)))


@pytest.mark.parametrize("naming", ["single file", "diffusers"])
def test_kohya_z_image_is_what_diffusers_makes_of_it(save, dense, naming):
    """q, k and v as one layer, as in ComfyUI's file, or apart."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers as oracle

    model = model_of(Z_IMAGE)

    if naming == "diffusers":
        tensors = {}
        for number, row in enumerate(row for row in Z_IMAGE.parameters() if len(row.shape) == 2):
            if row.hub.endswith(".weight") and "2-1" not in row.hub:  # the oracle takes that dash for a dot
                flat = f"lora_unet_{row.hub.removesuffix('.weight').replace('.', '_')}"
                tensors[f"{flat}.lora_down.weight"] = normal(2, row.shape[1], seed=number)
                tensors[f"{flat}.lora_up.weight"] = normal(row.shape[0], 2, seed=number + 100)
                tensors[f"{flat}.alpha"] = torch.tensor(1.0)
    else:  # the oracle has no rules for the layers around the blocks, which are called otherwise there
        around = ("lora_unet_x_embedder", "lora_unet_final_layer")
        tensors = {name: tensor for name, tensor in kohya_pairs(model).items() if not name.startswith(around)}
    same_as_the_oracle(read_adapter(save(tensors), model), dense, oracle(dict(tensors)))


def test_z_image_of_ai_toolkit_is_what_diffusers_makes_of_it(save, dense):
    """diffusers' names behind ComfyUI's prefix."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers as oracle

    tensors = {}
    for number, row in enumerate(row for row in Z_IMAGE.parameters() if len(row.shape) == 2):
        if row.hub.endswith(".weight"):
            name = f"diffusion_model.{row.hub.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = normal(2, row.shape[1], seed=number)
            tensors[f"{name}.lora_B.weight"] = normal(row.shape[0], 2, seed=number + 100)
    same_as_the_oracle(read_adapter(save(tensors), model_of(Z_IMAGE)), dense, oracle(dict(tensors)))
