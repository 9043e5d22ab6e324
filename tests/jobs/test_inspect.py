from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.families import reference
from sdkit.families.assemble import MARKERS
from sdkit.formats._lycoris import REFUSED
from sdkit.jobs.inspect import UNDO_KEY
from sdkit.jobs.inspection import Inspection
from sdkit.merging import undo
from sdkit.weights import DTYPES, Weights
from sdkit.weights.header import build_header

Sparse = Callable[..., Path]
Header = Callable[[str], dict[str, Any]]
Tensors = dict[str, tuple[str, list[int]]]

POSITIONS = struct.pack("<77q", *range(77))
SD1_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
SDXL_IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def parameters(found: Inspection) -> dict[str, int]:
    return {share.name: share.parameters for share in found.components}


def lora(modules: Mapping[str, list[int]], rank: int = 8, alpha: bool = True) -> Tensors:
    """A kohya LoRA on these modules (name → shape of the weight)."""
    tensors: Tensors = {}
    for module, (rows, columns, *kernel) in modules.items():
        tensors[f"{module}.lora_up.weight"] = ("F16", [rows, rank] + [1] * len(kernel))
        tensors[f"{module}.lora_down.weight"] = ("F16", [rank, columns, *kernel])
        if alpha:
            tensors[f"{module}.alpha"] = ("F32", [])
    return tensors


def alphas(tensors: Tensors, value: float = 4.0) -> dict[str, bytes]:
    return {name: struct.pack("<f", value) for name in tensors if name.endswith(".alpha")}


# Checkpoints


def test_a_whole_sd1_checkpoint(sparse: Sparse, real_header: Header) -> None:
    found = sdkit.inspect(sparse(real_header("sd1-ldm"), data={SD1_IDS: POSITIONS}))
    assert (found.kind, found.family, found.variant, found.naming) == ("checkpoint", "sd1", "base", "ldm")
    # The sizes of the published components.
    published = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    counted = parameters(found)
    assert published.items() <= counted.items()
    assert found.parameters == sum(counted.values()) - counted["ema"]
    assert found.ema == 688 and [share.name for share in found.components][-2:] == ["ema", "other"]
    assert found.size == Path(found.path).stat().st_size > 7e9
    assert found.problems == found.notes == ()
    assert any(reason.startswith("not sdxl: ") for reason in found.reasons)
    assert found.formats == {} and found.adapter is None


def test_a_whole_sdxl_checkpoint_with_markers(sparse: Sparse, real_header: Header) -> None:
    found = sdkit.inspect(sparse(real_header("sdxl-sgm"), data={SDXL_IDS: POSITIONS}))
    assert (found.kind, found.family, found.prediction) == ("checkpoint", "sdxl", "v_prediction")
    published = {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }
    assert published.items() <= parameters(found).items()
    assert {"v_pred", "ztsnr"} <= set(found.markers) <= set(MARKERS)
    assert found.problems == ()


# Parameters as the published models have them: T5 and CLIP are the same in both.
T5_XXL, CLIP_L, CLIP_G = 4_762_310_656, 123_060_480, 694_659_840
SD3 = {"transformer": 2_084_951_104, "text_encoder": CLIP_L + 768 * 768, "text_encoder_2": CLIP_G}
SD3 |= {"text_encoder_3": T5_XXL, "vae": 83_819_683}
FLUX = {"transformer": 11_901_408_320, "text_encoder": CLIP_L, "text_encoder_2": T5_XXL, "vae": 83_819_683}


@pytest.mark.parametrize(
    ("name", "family", "variant", "published"),
    [("sd3-comfyui", "sd3", "medium", SD3), ("flux-bfl", "flux", "dev", FLUX)],
)
def test_whole_transformer_checkpoints(
    sparse: Sparse, real_header: Header, name: str, family: str, variant: str, published: dict[str, int]
) -> None:
    found = sdkit.inspect(sparse(real_header(name)))
    assert (found.kind, found.family, found.variant, found.problems) == ("checkpoint", family, variant, ())
    assert published.items() <= parameters(found).items()


def test_a_family_without_rules_is_named_and_not_claimed(sparse: Sparse) -> None:
    keys = ("model.diffusion_model.t_block.1.weight", "model.diffusion_model.blocks.0.mlp.fc1.weight")
    found = sdkit.inspect(sparse({key: ("F16", [8, 8]) for key in keys}))
    assert (found.family, found.variant) == ("pixart", "")
    assert "which this version does not read yet" in found.problems[0]


def test_next_to_nothing_is_read(sparse: Sparse, real_header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Weights.read_into

    def counting(self: Weights, info: Any, buffer: memoryview, start: int = 0) -> None:
        read.append(len(buffer))
        original(self, info, buffer, start)

    monkeypatch.setattr(Weights, "read_into", counting)
    sdkit.inspect(sparse(real_header("sdxl-sgm")))
    assert read == [77 * 8]


def test_a_single_component(sparse: Sparse, real_header: Header) -> None:
    prefix = "first_stage_model."
    table = {name: entry for name, entry in real_header("sd1-ldm").items() if name.startswith(prefix)}
    found = sdkit.inspect(sparse(table))
    assert (found.kind, found.family, list(parameters(found))) == ("component", "unknown", ["vae"])
    assert found.problems == ()


def test_the_layer_of_sd2s_text_encoder_that_nothing_runs_is_no_problem(sparse: Sparse) -> None:
    tensors: Tensors = {}
    for place in reference("sd2", naming="ldm").places.values():
        rows, *rest = place.shape
        tensors[place.key] = ("F16", [3 * rows if place.rows else rows, *rest])
    text = "cond_stage_model.model."
    last = [name for name in tensors if name.startswith(f"{text}transformer.resblocks.22.")]
    tensors |= {name.replace(".22.", ".23."): tensors[name] for name in last}
    tensors |= {f"{text}text_projection": ("F16", [1024, 1024]), f"{text}logit_scale": ("F16", [])}
    found = sdkit.inspect(sparse(tensors))
    assert (found.family, found.problems) == ("sd2", ())
    assert len(found.unclaimed) == len(last) + 2


def test_tiny_pipeline_folder(test_data: Path) -> None:
    found = sdkit.inspect(test_data / "data" / "tiny")
    assert (found.kind, found.family, found.naming, found.container) == ("checkpoint", "sd1", "diffusers", "folder")
    assert found.prediction == "epsilon"
    assert len(found.files) == 3 and "unet/diffusion_pytorch_model.safetensors" in found.files
    assert found.problems == ()


# Problems


@pytest.fixture
def sd1(real_header: Header) -> dict[str, Any]:
    """SD1 without its EMA copy and without position_ids."""
    table = real_header("sd1-ldm")
    return {name: entry for name, entry in table.items() if not name.startswith("model_ema.") and name != SD1_IDS}


def one_problem(path: Path) -> str:
    (problem,) = sdkit.inspect(path).problems
    return problem


def test_a_sound_checkpoint_has_no_problem(sparse: Sparse, sd1: dict[str, Any]) -> None:
    assert sdkit.inspect(sparse(sd1)).problems == ()


def test_missing_tensors(sparse: Sparse, sd1: dict[str, Any]) -> None:
    del sd1["model.diffusion_model.middle_block.0.in_layers.2.bias"]
    problem = one_problem(sparse(sd1))
    assert problem.startswith("missing of this layout: 1 tensor,") and "middle_block.0.in_layers.2.bias" in problem


def test_unclaimed_keys_are_counted_and_the_first_named(sparse: Sparse, sd1: dict[str, Any]) -> None:
    strange: Tensors = {f"strange.{number}": ("F32", [2]) for number in range(5)}
    path = sparse(sd1 | strange)
    problem = one_problem(path)
    assert problem.startswith("no rule explains 5 tensors (strange.0, strange.1, strange.2, … 2 more)")
    assert set(strange) <= set(sdkit.inspect(path).unclaimed)


def test_mixed_types_within_a_component(sparse: Sparse, sd1: dict[str, Any]) -> None:
    sd1["model.diffusion_model.out.2.weight"] = ["F16", [4, 320, 3, 3]]
    problem = one_problem(sparse(sd1))
    assert problem.startswith("the unet mixes element types: ") and "685 F32, 1 F16" in problem


def test_components_of_different_types_are_fine(sparse: Sparse, sd1: dict[str, Any]) -> None:
    table = {name: ["F32" if "first_stage" in name else "F16", shape] for name, (_, shape) in sd1.items()}
    assert sdkit.inspect(sparse(table)).problems == ()


@pytest.mark.parametrize(
    ("dtype", "content", "words"),
    [
        ("F16", b"", "is stored as F16"),
        ("I64", struct.pack("<77q", *[*range(76), 75]), "does not count the positions"),
        ("I64", b"", "does not count the positions"),
    ],
)
def test_position_ids(sparse: Sparse, sd1: dict[str, Any], dtype: str, content: bytes, words: str) -> None:
    problem = one_problem(sparse(sd1 | {SD1_IDS: (dtype, [1, 77])}, data={SD1_IDS: content}))
    assert problem.startswith(SD1_IDS) and words in problem


def test_position_ids_of_the_wrong_length_are_not_read(sparse: Sparse, sd1: dict[str, Any]) -> None:
    assert "does not count" in one_problem(sparse(sd1 | {SD1_IDS: ("I64", [1, 10**9])}))


def test_empty_tensors_that_are_no_markers(sparse: Sparse, sd1: dict[str, Any]) -> None:
    found = sdkit.inspect(sparse(sd1 | {"v_pred": ("F32", [0]), "w_pred": ("F32", [0])}))
    assert found.markers == ("v_pred",)
    assert any("1 tensor (w_pred) hold nothing" in problem for problem in found.problems)


def test_two_namings(sparse: Sparse, sd1: dict[str, Any]) -> None:
    problems = sdkit.inspect(sparse(sd1 | {"down_blocks.0.resnets.0.conv1.weight": ("F32", [320, 320, 3, 3])})).problems
    assert any("several namings: model.diffusion_model (LDM) and unet (diffusers)" in problem for problem in problems)


def test_scale_factors_of_quantised_weights(sparse: Sparse, sd1: dict[str, Any]) -> None:
    problems = sdkit.inspect(sparse(sd1 | {"model.diffusion_model.out.2.scale_weight": ("F32", [])})).problems
    assert any(problem.startswith("it is quantised, with 1 scale factor (") for problem in problems)


def test_private_metadata_are_noted(sparse: Sparse) -> None:
    metadata = {"ss_tag_frequency": "{}", "ss_dataset_dirs": "{}", "ss_network_dim": "8"}
    (note,) = sdkit.inspect(sparse(lora({CROSS: [320, 768]}), metadata, data={f"{CROSS}.alpha": b"\0\0\x80?"})).notes
    assert note.endswith(": ss_dataset_dirs, ss_tag_frequency")


@pytest.mark.parametrize("content", [b"", b"junk", b"{" * 100, struct.pack("<Q", 2**60) + b"{}"])
def test_damaged_files_are_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(SdkitError, match=r"broken\.safetensors: "):
        sdkit.inspect(path)


# Adapters


def test_a_whole_kohya_lora(sparse: Sparse, real_header: Header) -> None:
    tensors = lora(real_header("sd1-kohya-lora-modules"))
    found = sdkit.inspect(sparse(tensors, data=alphas(tensors)))
    assert (found.kind, found.format, found.family, found.problems) == ("lora", "kohya", "sd1", ())
    facts = found.adapter
    assert facts is not None and facts.layout == "sd1" and facts.unmatched == ()
    assert [(c.kind, c.rank, c.alpha, c.count) for c in facts.changes] == [("lora", 8, 4.0, 264)]
    counts = {(layers.component, layers.sort): layers.modules for layers in facts.layers}
    assert counts == {
        ("text_encoder", "self-attention"): 48,
        ("text_encoder", "feed-forward"): 24,
        ("unet", "self-attention"): 64,
        ("unet", "cross-attention"): 64,
        ("unet", "feed-forward"): 32,
        ("unet", "projections"): 32,
    }
    assert sum(facts.blocks.values()) == 192 and set(facts.blocks.values()) == {12}
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in facts.modules
    assert f"{CROSS}.lora_down.weight reads text of width 768" in found.reasons


def test_sgm_names_become_blocks(sparse: Sparse, real_header: Header) -> None:
    tensors = lora(real_header("sdxl-kohya-lora-modules"))
    found = sdkit.inspect(sparse(tensors, data=alphas(tensors)))
    assert found.family == "sdxl" and found.problems == ()
    assert found.adapter is not None
    assert set(found.adapter.blocks) >= {"IN04", "IN08", "M00", "OUT00", "OUT05"}


def test_a_partial_match_is_a_problem(sparse: Sparse, real_header: Header) -> None:
    modules = real_header("sd1-kohya-lora-modules") | {"lora_unet_down_blocks_9_strange": [4, 4]}
    tensors = lora(modules)
    found = sdkit.inspect(sparse(tensors, data=alphas(tensors)))
    assert found.problems == ("the published sd1 has no place for 1 module (lora_unet_down_blocks_9_strange)",)


def test_an_adapter_for_a_model_of_another_size(sparse: Sparse) -> None:
    tensors = lora({CROSS: [64, 768]})
    found = sdkit.inspect(sparse(tensors, data=alphas(tensors)))
    assert found.adapter is not None and found.adapter.layout == "" and found.adapter.blocks == {}
    assert len(found.adapter.modules) == 1 and found.problems == ()
    assert any("does not fit the published sd1" in note and "[320, 768]" in note for note in found.notes)


def test_missing_and_zero_alpha(sparse: Sparse) -> None:
    missing = sdkit.inspect(sparse(lora({CROSS: [320, 768]}, alpha=False)))
    assert any("has no alpha" in note for note in missing.notes)
    zero = sdkit.inspect(sparse(lora({CROSS: [320, 768]})))
    assert zero.problems == ("alpha is 0 at 1 weight, so nothing changes there",)


@pytest.mark.parametrize("role", sorted(REFUSED))
def test_kinds_that_cannot_be_applied_are_named(sparse: Sparse, role: str) -> None:
    tensors = lora({CROSS: [320, 768]}, alpha=False) | {f"{CROSS}.{role}": ("F16", [320])}
    found = sdkit.inspect(sparse(tensors))
    assert (found.kind, found.format, found.family) == ("lora", "kohya", "sd1")
    assert found.adapter is not None and found.adapter.refused == (REFUSED[role],)
    assert found.adapter.modules == (CROSS,)
    assert found.problems[0].startswith("this version cannot apply it: ")
    assert str(found.path) not in found.problems[0]


def test_a_half_pair_is_a_problem(sparse: Sparse) -> None:
    tensors = lora({CROSS: [320, 768]}, alpha=False)
    del tensors[f"{CROSS}.lora_up.weight"]
    assert "incomplete" in one_problem(sparse(tensors))


def test_two_namings_of_one_adapter(sparse: Sparse) -> None:
    tensors = lora({CROSS: [320, 768], "lora_unet_input_blocks_1_1_proj_in": [320, 320]})
    problems = sdkit.inspect(sparse(tensors, data=alphas(tensors))).problems
    assert any("several namings: lora_unet_input_blocks (sgm)" in problem for problem in problems)


def test_an_adapter_of_flux(sparse: Sparse) -> None:
    module = "transformer.single_transformer_blocks.0.attn.to_q"
    tensors = {f"{module}.lora_A.weight": ("BF16", [4, 3072]), f"{module}.lora_B.weight": ("BF16", [3072, 4])}
    found = sdkit.inspect(sparse(tensors))
    assert (found.kind, found.format, found.family, found.problems) == ("lora", "diffusers", "flux", ())
    assert found.adapter is not None and found.adapter.layout == "flux" and found.adapter.blocks == {"S00": 1}


def test_an_adapter_of_a_family_without_rules(sparse: Sparse) -> None:
    module = "lora_prior_unet_down_blocks_0_to_q"
    tensors = {f"{module}.lora_down.weight": ("BF16", [4, 64]), f"{module}.lora_up.weight": ("BF16", [64, 4])}
    found = sdkit.inspect(sparse(tensors))
    assert (found.kind, found.format, found.family) == ("lora", "kohya", "cascade")
    assert "does not read models of this family yet" in found.problems[0]


def test_a_real_lora() -> None:
    found = sdkit.inspect(Path(__file__).parent.parent / "data" / "lora_disney.safetensors")
    assert (found.kind, found.format, found.family, found.problems) == ("lora", "cloneofsimo", "sd1", ())
    assert found.trigger_words == ("<s1>", "<s2>")
    assert found.adapter is not None and found.adapter.layout == "sd1"
    assert [(change.rank, change.count) for change in found.adapter.changes] == [(1, 192)]
    assert {token.width for token in found.adapter.tokens} == {768}


def test_real_aesthetic_embeddings(test_data: Path) -> None:
    for path in (test_data / "data" / "adapters" / "aesthetic-embedding").glob("*.pt"):
        found = sdkit.inspect(path)
        assert (found.kind, found.container, found.parameters) == ("aesthetic", "pickle", 768)
        assert "no program reads this kind from anything else" in found.problems[-1]


def test_textual_inversion(sparse: Sparse) -> None:
    found = sdkit.inspect(sparse({"emb_params": ("F32", [4, 768])}, name="mycat.safetensors"))
    assert (found.kind, found.family, found.trigger_words) == ("textual-inversion", "unknown", ("mycat",))
    assert found.adapter is not None
    (token,) = found.adapter.tokens
    assert (token.vectors, token.width, token.component) == (4, 768, "text_encoder")
    assert any("768 wide" in reason for reason in found.reasons)


def test_textual_inversion_of_a1111(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save({"string_to_param": {"*": torch.ones(2, 1024)}, "name": "cat", "step": 7}, path)
    found = sdkit.inspect(path)
    assert (found.kind, found.trigger_words, found.metadata["step"]) == ("textual-inversion", ("cat",), "7")


def network(width: int) -> dict[str, torch.Tensor]:
    return {
        "linear.0.weight": torch.ones(2 * width, width),
        "linear.0.bias": torch.ones(2 * width),
        "linear.2.weight": torch.ones(width, 2 * width),
        "linear.2.bias": torch.ones(width),
    }


def test_hypernetwork(tmp_path: Path) -> None:
    path = tmp_path / "hyper.pt"
    pairs = {width: (network(width), network(width)) for width in (320, 768)}
    torch.save({**pairs, "step": 5, "activation_func": "relu", "activate_output": False}, path)
    found = sdkit.inspect(path)
    assert (found.kind, found.family) == ("hypernetwork", "sd1") and found.adapter is not None
    assert str(found.adapter.structure) == "1, 2, 1, relu" and found.adapter.layout == "sd1"
    assert {layers.sort: layers.modules for layers in found.adapter.layers} == {
        "networks of width 320": 2,
        "networks of width 768": 2,
    }
    assert any("no networks of width 640" in note for note in found.notes)
    json.dumps(found.as_dict())


def test_a_hypernetwork_with_a_setting_that_is_not_its_own(tmp_path: Path) -> None:
    path = tmp_path / "hyper.pt"
    torch.save({768: (network(768), network(768)), "activation_func": "relu", "is_layer_norm": True}, path)
    found = sdkit.inspect(path)
    assert found.kind == "hypernetwork" and any("calls for [1536]" in problem for problem in found.problems)


def test_custom_diffusion(sparse: Sparse) -> None:
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    found = sdkit.inspect(sparse({key: ("F32", [320, 768]), "modifier_token.<new1>": ("F32", [768])}))
    assert (found.kind, found.family, found.trigger_words) == ("custom-diffusion", "sd1", ("<new1>",))
    assert found.adapter is not None and found.adapter.modules == (key.removesuffix(".weight"),)


def test_pickled_component(tmp_path: Path, real_header: Header) -> None:
    prefix, thin = "first_stage_model.", {512: 32, 256: 16, 128: 8}
    tensors = {
        name: torch.zeros([thin.get(size, size) for size in shape], dtype=torch.float16)
        for name, (_, shape) in real_header("sd1-ldm").items()
        if name.startswith(prefix)
    }
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    found = sdkit.inspect(path)
    assert (found.kind, found.container, list(parameters(found))) == ("component", "pickle", ["vae"])
    assert found.metadata["epoch"] == "3"
    assert len(found.problems) == 1 and "convert it to safetensors" in found.problems[0]


def peft_folder(folder: Path, sparse: Sparse, config: dict[str, Any], suffixes: Mapping[str, list[int]]) -> Path:
    module = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    path = sparse(
        {f"{module}.{name}": ("F32", shape) for name, shape in suffixes.items()}, name="adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return path.parent


def test_peft_folder(tmp_path: Path, sparse: Sparse) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2}
    factors = {"lora_A.weight": [4, 768], "lora_B.weight": [320, 4]}
    found = sdkit.inspect(peft_folder(tmp_path, sparse, config, factors))
    assert (found.kind, found.format, found.family, found.problems) == ("lora", "peft", "sd1", ())
    assert found.adapter is not None and found.adapter.blocks == {"IN01": 1}
    assert [(change.rank, change.alpha) for change in found.adapter.changes] == [(4, 2.0)]


def test_kinds_of_peft_that_are_not_read(tmp_path: Path, sparse: Sparse) -> None:
    found = sdkit.inspect(peft_folder(tmp_path, sparse, {"peft_type": "BOFT"}, {"boft_R": [4, 4]}))
    assert (found.kind, found.format) == ("lora", "peft")
    assert "BOFT" in found.problems[0]


def test_a_mixture_of_formats(sparse: Sparse) -> None:
    tensors = lora({CROSS: [320, 768]}) | {"unet:0:up": ("F32", [320, 1]), "unet:0:down": ("F32", [1, 320])}
    found = sdkit.inspect(sparse(tensors))
    assert found.kind == "unknown"
    assert "it mixes the formats cloneofsimo and kohya" in found.problems[0]


def test_undo_files(sparse: Sparse) -> None:
    assert UNDO_KEY == undo.VERSION_KEY
    tensors = {
        undo.HEADER_NAME: ("U8", [9]),
        f"{undo.TENSOR_PREFIX}a": ("U8", [5]),
        f"{undo.TENSOR_PREFIX}b": ("U8", [7]),
    }
    found = sdkit.inspect(sparse(tensors, {UNDO_KEY: undo.VERSION}, name="m.undo"))
    assert (found.kind, found.problems) == ("undo", ())
    assert found.notes == ("it restores 2 tensors: sdkit unmerge MERGED --undo m.undo",)


def test_unknown_files_say_why(sparse: Sparse) -> None:
    found = sdkit.inspect(sparse({"what.ever": ("F32", [3])}))
    assert (found.kind, found.family) == ("unknown", "unknown")
    assert {"kohya", "peft", "textual-inversion"} <= set(found.formats)
    assert found.reasons


# Metadata


def recipe(parents: list[Any], **more: Any) -> dict[str, Any]:
    return {"verb": "merge", "parents": parents, **more}


def lineage(sparse: Sparse, value: str) -> tuple[str, ...]:
    return sdkit.inspect(sparse({"a": ("F32", [1])}, {"sdkit.recipe": value})).lineage


def test_lineage_goes_back_through_the_bases(sparse: Sparse) -> None:
    first = recipe([{"name": "base"}, {"name": "a.safetensors", "strength": 0.5}])
    second = recipe([{"name": "mix"}, {"name": "b.safetensors", "strength": -1.0}], base_recipe=first)
    assert lineage(sparse, json.dumps(second)) == (
        "merge: mix + b.safetensors at -1",
        "merge: base + a.safetensors at 0.5",
    )


@pytest.mark.parametrize(
    "value",
    ["", "null", "[]", "{", '{"parents": 3}', '{"parents": [1, null, {}, {"strength": NaN}]}', "[" * 5000],
)
def test_hostile_recipes(sparse: Sparse, value: str) -> None:
    assert len(lineage(sparse, value)) <= 1


def test_an_endless_lineage_ends(sparse: Sparse) -> None:
    endless: dict[str, Any] = recipe([])
    for _ in range(100):
        endless = recipe([], base_recipe=endless)
    assert len(lineage(sparse, json.dumps(endless))) == 20


def test_trigger_phrase(sparse: Sparse) -> None:
    tensors = lora({CROSS: [320, 768]})
    found = sdkit.inspect(sparse(tensors, {"modelspec.trigger_phrase": "sks dog, , red"}))
    assert found.trigger_words == ("sks dog", "red")


# Whatever a file holds

WORDS = (
    *("lora_unet_a", "lora_te_b", "lycoris_c", "unet", "text_encoder", "unet:0", "unet:1", "768", "0", "1", "linear"),
    *("lora_up", "lora_down", "lora_A", "lora_B", "weight", "alpha", "hada_w1_a", "lokr_w1", "diff", "dora_scale"),
    *("model", "diffusion_model", "input_blocks", "first_stage_model", "embeddings", "position_ids", "up", "down"),
    *("<s1>", "clip_l", "emb_params", "modifier_token", "attn2", "to_k", "token_embedding", "tensor", "double_blocks"),
)
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join) | st.text(min_size=1, max_size=5).filter(
    str.isprintable
)
ENTRIES = st.tuples(st.sampled_from(["F16", "F32", "I64", "U8", "F8_E4M3"]), st.lists(st.integers(0, 4), max_size=4))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(NAMES, ENTRIES, max_size=8), st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3)
)
def test_any_sound_file_gets_an_answer(tmp_path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    rows = [(name, DTYPES[dtype], tuple(shape)) for name, (dtype, shape) in tensors.items()]
    header = build_header(rows, metadata)
    path = tmp_path / "any.safetensors"
    path.write_bytes(header + bytes(sum(dtype.nbytes(torch.Size(shape).numel()) for _, dtype, shape in rows)))
    found = sdkit.inspect(path)
    assert found.tensors == len(tensors)
    json.dumps(found.as_dict(), allow_nan=False)
