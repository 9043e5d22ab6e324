"""Defects measured in other tools' conversions and adapter arithmetic, one test each, named after the defect.

What sdkit cannot have, because it has no such part, stands at the end with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import models
import pytest
import torch
from header_files import weights_of
from safetensors import safe_open
from safetensors.torch import load_file
from samples import Tensors, effect, normal

import sdkit
from sdkit.adapters.artifact import Target
from sdkit.adapters.ranks import RankRule
from sdkit.core.errors import SdkitError
from sdkit.families import identify, reference
from sdkit.families.flux_transformer import FluxLayout
from sdkit.formats import read_adapter, write_adapter
from sdkit.weights import open_weights

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
QUERY = f"{BLOCK}.attn1.to_q"
FLAT = f"lora_unet_{QUERY.replace('.', '_')}"
KERNEL = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
WIDTH = 32  # of QUERY in models.sd1()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(models.sd1(dtype=torch.float32), tmp_path_factory.mktemp("base") / "base.safetensors")


def lora(
    seed: int, rank: int = 2, alpha: float | None = 1.0, name: str = FLAT, shape: tuple[int, ...] = (WIDTH, WIDTH)
) -> Tensors:
    return models.kohya_lora({name: shape}, rank=rank, alpha=alpha, seed=seed)


def save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    return models.save(tensors, path.with_suffix(".safetensors"), metadata)


def weight_of(path: Path | str, name: str = FLAT) -> torch.Tensor:
    """A module's weight in a checkpoint in the layout of models.sd1(), [rows, columns] in float64."""
    return load_file(path)[models.sd1_places()[name].key].double().flatten(1)


def baked(base: Path, adapters: object, out: Path, name: str = FLAT) -> torch.Tensor:
    """What merging adapters does to one weight."""
    sdkit.merge(base, adapters, out, force=True)
    return weight_of(out, name) - weight_of(base, name)


def same(found: torch.Tensor, meant: torch.Tensor, error: float = 1e-4) -> bool:
    return float((found - meant).norm()) <= error * float(meant.norm())


# Conversions.


def test_flux_layers_around_the_blocks_lose_their_prefix_and_their_alpha(tmp_path: Path) -> None:
    """diffusers: img_in and its kin come out without ``transformer.``, and the last layer's alpha is not applied."""
    layout = FluxLayout(12, 4, 48, 1, 1, 8, 8, 10, 6, 256, guidance=True)
    shapes = {
        f"model.diffusion_model.{row.ldm}": (row.height, *row.shape[1:]) if row.rows else row.shape
        for row in layout.parameters()
    }
    model = identify(weights_of(shapes))
    around = (
        "img_in",
        "txt_in",
        "time_in_in_layer",
        "vector_in_in_layer",
        "guidance_in_in_layer",
        "final_layer_linear",
    )
    tensors: Tensors = {}
    for number, flat in enumerate(around):
        hub = model.kohya_modules[f"lora_unet_{flat}"]
        shape = model.places[f"{hub}.weight"].shape
        tensors |= lora(number, rank=2, alpha=0.5 + number, name=f"lora_unet_{flat}", shape=shape)
    with open_weights(save(tensors, tmp_path / "k")) as weights:
        write_adapter(read_adapter(weights, model), model, tmp_path / "d.safetensors", {}, format="diffusers")
    written = load_file(tmp_path / "d.safetensors")
    assert len(written) == 2 * len(around) and all(name.startswith("transformer.") for name in written)
    with open_weights(tmp_path / "d.safetensors") as weights:
        back = read_adapter(weights, model)
        for flat in around:
            delta = back.deltas[Target(model.kohya_modules[f"lora_unet_{flat}"])]
            out = torch.zeros(delta.shape, dtype=torch.float64)
            delta.prepare(1.0, torch.float64).add_rows(out, 0)
            assert same(out, models.delta(tensors, f"lora_unet_{flat}"), 1e-6), flat


def test_alpha_becomes_the_rank_on_the_way_to_kohya(tmp_path: Path, base: Path) -> None:
    """diffusers' script for the web UIs writes alpha = rank whatever lora_alpha says, as a whole number."""
    tensors = {
        f"unet.{QUERY}.lora_A.weight": normal(4, WIDTH, seed=1),
        f"unet.{QUERY}.lora_B.weight": normal(WIDTH, 4, seed=2),
    }
    source = save(tensors, tmp_path / "d", {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 2.5}'})
    written = load_file(sdkit.convert(source, "kohya", tmp_path / "k.safetensors", base=base).output)
    assert written[f"{FLAT}.alpha"] == 2.5 and written[f"{FLAT}.alpha"].is_floating_point()


def test_dora_magnitudes_get_a_name_nobody_knows(tmp_path: Path, base: Path) -> None:
    """The same script writes ``…_proj_in.lora_magnitude_vector`` with a dot of its own; kohya's word is dora_scale."""
    pair = {"lora_A.weight": normal(2, WIDTH, seed=1), "lora_B.weight": normal(WIDTH, 2, seed=2)}
    parts = {**pair, "lora_magnitude_vector": normal(WIDTH, seed=3)}
    source = peft({f"{QUERY}.{role}": part for role, part in parts.items()}, tmp_path / "p", use_dora=True)
    written = load_file(sdkit.convert(source, "kohya", tmp_path / "k.safetensors", base=base).output)
    assert written.keys() == {
        f"{FLAT}.{role}" for role in ("lora_up.weight", "lora_down.weight", "alpha", "dora_scale")
    }
    assert torch.equal(written[f"{FLAT}.dora_scale"], parts["lora_magnitude_vector"][:, None])


def test_a_transformer_prefix_goes_through_unconverted(tmp_path: Path) -> None:
    """The same script leaves ``transformer.`` as it is; and every text encoder becomes te1, SD1's too."""
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    tensors = {f"{name}.lora_A.weight": normal(1, 3072, seed=1), f"{name}.lora_B.weight": normal(3072, 1, seed=2)}
    written = load_file(sdkit.convert(save(tensors, tmp_path / "f"), "kohya", tmp_path / "k.safetensors").output)
    assert {key.partition(".")[0] for key in written} == {"lora_unet_single_blocks_0_linear1"}
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    tensors = {f"{text}.lora_A.weight": normal(1, 768, seed=1), f"{text}.lora_B.weight": normal(768, 1, seed=2)}
    written = load_file(
        sdkit.convert(save(tensors, tmp_path / "t"), "kohya", tmp_path / "l.safetensors", family="sd1").output
    )
    assert {key.partition(".")[0] for key in written} == {TEXT}


def peft(tensors: Mapping[str, torch.Tensor], folder: Path, **config: object) -> Path:
    folder.mkdir()
    models.save(
        {f"base_model.model.{name}": part for name, part in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"alpha_pattern": {"to_q": 5}}, 5 / 2),
        ({"r": 7, "rank_pattern": {r"attn1\.to_q": 2}}, 3 / 2),
        ({"use_rslora": True}, 3 / math.sqrt(2)),
    ],
    ids=["alpha-pattern", "rank-pattern", "rslora"],
)
def test_pefts_patterns_and_rank_stabilised_scale_are_ignored(
    tmp_path: Path, base: Path, config: dict[str, object], scale: float
) -> None:
    """PEFT's own script to kohya's format takes one alpha and one rank for all."""
    a, b = normal(2, WIDTH, seed=1), normal(WIDTH, 2, seed=2)
    source = peft({f"{QUERY}.lora_A.weight": a, f"{QUERY}.lora_B.weight": b}, tmp_path / "p", **config)
    written = load_file(sdkit.convert(source, "kohya", tmp_path / "k.safetensors", base=base).output)
    assert same(models.delta(written, FLAT), b.double() @ a.double() * scale, 1e-6)


def test_positional_files_are_assigned_in_todays_order(tmp_path: Path) -> None:
    """The numbers of the first implementation walked attn1, feed-forward, attn2: number 4 is no attention."""
    model = reference("sd1")
    with open_weights(Path(__file__).parents[1] / "data" / "lora_disney.safetensors") as weights:
        artifact = read_adapter(weights, model)
        targets = [target for target in artifact.deltas if target.component == "unet"]
        assert targets[4].module == f"unet.{BLOCK}.ff.net.0.proj" and artifact.deltas[targets[4]].shape == (2560, 320)


def test_a_stale_hash_is_copied_into_the_new_file(tmp_path: Path, base: Path) -> None:
    """Web UIs believe ``sshs_model_hash`` unseen, so a copied one mislabels the file."""
    source = save(lora(1), tmp_path / "a", {"sshs_model_hash": "0" * 64, "modelspec.hash_sha256": "0x" + "0" * 64})
    report = sdkit.convert(source, "kohya", tmp_path / "k.safetensors", base=base)
    with safe_open(report.output, "pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == sdkit.hash(report.output).sshs_model_hash != "0" * 64
    assert "0" * 64 not in metadata.get("modelspec.hash_sha256", "")


def test_a_kind_the_target_lacks_is_dropped_in_silence(tmp_path: Path, base: Path) -> None:
    """diffusers drops LoHa, differences and biases with a line in its log; here it is an error that says how much."""
    shape = (WIDTH, 2)
    halves = {
        f"{FLAT}.hada_w{n}_{side}": normal(*(shape if side == "a" else shape[::-1]), seed=n)
        for n in (1, 2)
        for side in "ab"
    }
    source = save(halves, tmp_path / "loha")
    with pytest.raises(SdkitError, match="1 of 1 changes are of the kind loha"):
        sdkit.convert(source, "diffusers", tmp_path / "d.safetensors", base=base)
    report = sdkit.convert(source, "diffusers", tmp_path / "d.safetensors", base=base, allow_lossy=True)
    assert report.approximations and report.proof.error < 1e-3


def test_sdxls_words_cannot_be_split_or_joined(tmp_path: Path) -> None:
    rows = {"clip_l": normal(1, 768, seed=1), "clip_g": normal(1, 1280, seed=2)}
    pickled = sdkit.convert(save(rows, tmp_path / "w"), "a1111", tmp_path / "w.pt").output
    back = load_file(sdkit.convert(pickled, "diffusers", tmp_path / "b.safetensors").output)
    assert back.keys() == rows.keys() and all(torch.equal(back[key], rows[key]) for key in rows)


# What adapters do.


def test_the_tucker_core_is_ignored(tmp_path: Path, base: Path) -> None:
    """sd-scripts' merge leaves lora_mid out."""
    shape = models.sd1_modules()[KERNEL]
    parts = {
        "lora_up.weight": normal(shape[0], 2, 1, 1, seed=1),
        "lora_mid.weight": normal(2, 2, 3, 3, seed=2),
        "lora_down.weight": normal(2, shape[1], 1, 1, seed=3),
        "alpha": torch.tensor(1.0),
    }
    found = baked(
        base,
        save({f"{KERNEL}.{role}": part for role, part in parts.items()}, tmp_path / "t"),
        tmp_path / "o.safetensors",
        KERNEL,
    )
    assert same(found, effect(parts, found))


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_the_scale_of_loha_and_lokr_counts_twice(tmp_path: Path, base: Path, kind: str) -> None:
    """LyCORIS' get_diff_weight multiplies by alpha / rank twice, so its merge tool is wrong unless that is 1."""
    if kind == "loha":
        parts = {f"hada_w{n}_a": normal(WIDTH, 4, seed=n) for n in (1, 2)} | {
            f"hada_w{n}_b": normal(4, WIDTH, seed=n + 2) for n in (1, 2)
        }
    else:
        parts = {
            "lokr_w1": normal(2, 2, seed=1),
            "lokr_w2_a": normal(WIDTH // 2, 4, seed=2),
            "lokr_w2_b": normal(4, WIDTH // 2, seed=3),
        }
    parts["alpha"] = torch.tensor(1.0)  # the scale is 1/4
    found = baked(
        base,
        save({f"{FLAT}.{role}": part for role, part in parts.items()}, tmp_path / kind),
        tmp_path / "o.safetensors",
    )
    assert same(found, effect(parts, found))


def test_the_alpha_of_a_whole_lokr_is_taken_for_a_scale(tmp_path: Path, base: Path) -> None:
    """Both sides whole: alpha is a mere mark (1e5, 1e10) and the scale is 1."""
    parts = {
        "lokr_w1": normal(2, 2, seed=1),
        "lokr_w2": normal(WIDTH // 2, WIDTH // 2, seed=2),
        "alpha": torch.tensor(1e10),
    }
    found = baked(
        base, save({f"{FLAT}.{role}": part for role, part in parts.items()}, tmp_path / "k"), tmp_path / "o.safetensors"
    )
    assert same(found, torch.kron(parts["lokr_w1"], parts["lokr_w2"]).double())


@pytest.mark.parametrize("lengths", [(WIDTH, 1), (1, WIDTH)], ids=["output", "input"])
def test_dora_is_dropped_or_its_axis_is_guessed(tmp_path: Path, base: Path, lengths: tuple[int, int]) -> None:
    """kohya and others drop it, supermerger broadcasts along the wrong axis, web UIs divide by ‖W‖, not ‖W + ΔW‖."""
    tensors = {**lora(3, alpha=2.0), f"{FLAT}.dora_scale": normal(*lengths, seed=4).abs() + 0.5}
    parts = {name.removeprefix(f"{FLAT}."): tensor for name, tensor in tensors.items()}
    found = baked(base, save(tensors, tmp_path / "d"), tmp_path / "o.safetensors")
    assert same(found, effect(parts, weight_of(base)))


def test_dora_at_strength_zero_changes_the_base(tmp_path: Path, base: Path) -> None:
    """LyCORIS' modules give W + ΔW there; blending the result gives W."""
    source = save({**lora(3, alpha=2.0), f"{FLAT}.dora_scale": torch.full((WIDTH, 1), 2.0)}, tmp_path / "d")
    whole = baked(base, source, tmp_path / "o.safetensors")
    assert same(baked(base, [(source, 0.25)], tmp_path / "q.safetensors"), whole * 0.25)
    assert not baked(base, [(source, 1e-30)], tmp_path / "z.safetensors").any()


@pytest.mark.parametrize("old", [False, True], ids=["today", "first"])
def test_gloras_first_order_of_factors_is_taken_for_todays(tmp_path: Path, base: Path, old: bool) -> None:
    parts = {"a1.weight": normal(WIDTH, 2, seed=1), "a2.weight": normal(2, WIDTH, seed=2)}
    parts |= {"b1.weight": normal(WIDTH, 2, seed=3), "b2.weight": normal(2, WIDTH, seed=4), "alpha": torch.tensor(1.0)}
    other = {"a1.weight": "a2.weight", "a2.weight": "a1.weight", "b1.weight": "b2.weight", "b2.weight": "b1.weight"}
    stored = {other.get(role, role) if old else role: part for role, part in parts.items()}
    found = baked(
        base,
        save({f"{FLAT}.{role}": part for role, part in stored.items()}, tmp_path / "g"),
        tmp_path / "o.safetensors",
    )
    assert same(found, effect(parts, weight_of(base)))


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_ofts_alpha_is_taken_for_a_scale_or_its_zero_for_a_limit(tmp_path: Path, base: Path, limit: float) -> None:
    """LyCORIS: ‖Q‖ stays below alpha · out, and 0 is no limit; elsewhere 0 turns the adapter off."""
    blocks = normal(WIDTH // 4, 4, 4, seed=1)
    source = save({f"{FLAT}.oft_blocks": blocks, f"{FLAT}.alpha": torch.tensor(limit)}, tmp_path / "o")
    found = baked(base, source, tmp_path / "out.safetensors")
    norm = float((blocks - blocks.mT).double().norm())
    held = blocks * min(1.0, limit * WIDTH / norm) if limit else blocks
    assert same(found, effect({"oft_blocks": held}, weight_of(base)), 1e-3)


def test_the_second_text_encoders_fused_attention_is_not_changed(tmp_path: Path) -> None:
    """supermerger looks its q, k and v up under names that are not there, and goes on without a word."""
    base = models.save(models.sdxl(dtype=torch.float32), tmp_path / "xl.safetensors")
    name = "lora_te2_text_model_encoder_layers_0_self_attn_k_proj"
    tensors = lora(1, name=name, shape=models.sdxl_modules()[name])
    report = sdkit.merge(base, save(tensors, tmp_path / "l"), tmp_path / "o.safetensors")
    assert report.changed == 1
    place = models.sdxl_places()[name]
    change = (load_file(tmp_path / "o.safetensors")[place.key] - load_file(base)[place.key]).double()
    assert same(change[slice(*place.rows)], models.delta(tensors, name))
    change[slice(*place.rows)] = 0
    assert not change.any()


def test_a_lora_of_four_channels_does_not_fit_an_inpainting_model(tmp_path: Path) -> None:
    """supermerger pads the wrong thing; the first four channels are the ones it was made for."""
    from dataclasses import replace

    wide = models.sd1(dtype=torch.float32, unet=replace(models.SD1_UNET, in_channels=9))
    base = models.save(wide, tmp_path / "in.safetensors")
    name = "lora_unet_conv_in"
    tensors = lora(1, name=name, shape=models.sd1_modules()[name])
    sdkit.merge(base, save(tensors, tmp_path / "l"), tmp_path / "o.safetensors")
    key = models.sd1_places()[name].key
    change = (load_file(tmp_path / "o.safetensors")[key] - wide[key]).double()
    assert same(change[:, :4].flatten(1), models.delta(tensors, name)) and not change[:, 4:].any()


# Adapters with adapters.


def test_a_ratio_multiplies_both_factors(tmp_path: Path, base: Path) -> None:
    """sd-scripts: a lone LoRA at 0.5 acts as one at 0.25."""
    one = lora(1, rank=4, alpha=2.0)
    source = save(one, tmp_path / "a")
    half = load_file(sdkit.scale(source, 0.5, tmp_path / "h.safetensors").output)
    assert same(models.delta(half, FLAT), models.delta(one, FLAT) * 0.5, 1e-6)
    assert same(baked(base, [(source, 0.5)], tmp_path / "o.safetensors"), models.delta(one, FLAT) * 0.5)


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.5, 0.5), (0.7, -0.3)], ids=str)
def test_a_sum_of_loras_has_cross_terms_or_keeps_the_wrong_alpha(
    tmp_path: Path, strengths: tuple[float, float]
) -> None:
    """sd-scripts adds up to up and down to down; its --concat keeps alpha while the rank grows; others add alphas."""
    one, two = lora(1, rank=2, alpha=1.0), lora(2, rank=4, alpha=3.0)
    paths = [save(one, tmp_path / "a"), save(two, tmp_path / "b")]
    report = sdkit.combine(list(zip(paths, strengths, strict=True)), tmp_path / "s.safetensors")
    meant = models.delta(one, FLAT) * strengths[0] + models.delta(two, FLAT) * strengths[1]
    written = load_file(report.output)
    assert same(models.delta(written, FLAT), meant, 1e-6) and len(written[f"{FLAT}.lora_down.weight"]) == 6


def test_a_sum_by_singular_values_is_clamped(tmp_path: Path) -> None:
    """sd-scripts and supermerger cut the factors at a quantile, so even full rank loses something."""
    one, two = lora(1, rank=2), lora(2, rank=2)
    paths = [save(one, tmp_path / "a"), save(two, tmp_path / "b")]
    report = sdkit.combine(paths, tmp_path / "s.safetensors", rank=4)
    meant = models.delta(one, FLAT) + models.delta(two, FLAT)
    assert same(models.delta(load_file(report.output), FLAT), meant, 1e-6)


def test_resizing_keeps_one_rank_more_than_asked(tmp_path: Path) -> None:
    source = save(lora(1, rank=8), tmp_path / "a")
    for rank in (1, 3):
        written = load_file(sdkit.resize(source, tmp_path / f"{rank}.safetensors", rank=rank).output)
        assert len(written[f"{FLAT}.lora_down.weight"]) == rank
    change = models.delta(load_file(source), FLAT)
    squares = torch.linalg.svdvals(change).square()
    ratio = float((squares[:3].sum() / squares.sum()).sqrt()) - 1e-6
    written = load_file(
        sdkit.resize(source, tmp_path / "r.safetensors", rank=RankRule(error=math.sqrt(1 - ratio**2))).output
    )
    assert len(written[f"{FLAT}.lora_down.weight"]) == 3


def test_only_plain_loras_can_be_resized(tmp_path: Path) -> None:
    """sd-scripts' tool leaves LoHa and LoKr as they are, or fails."""
    parts = {f"hada_w{n}_a": normal(WIDTH, 2, seed=n) for n in (1, 2)} | {
        f"hada_w{n}_b": normal(2, WIDTH, seed=n + 2) for n in (1, 2)
    }
    source = save({f"{FLAT}.{role}": part for role, part in parts.items()}, tmp_path / "h")
    written = load_file(sdkit.resize(source, tmp_path / "o.safetensors", rank=2).output)
    meant = effect({**parts, "alpha": torch.tensor(2.0)}, torch.empty(0))
    left = torch.linalg.svdvals(meant)[2:].square().sum().sqrt()  # Eckart and Young
    assert (models.delta(written, FLAT) - meant).norm() == pytest.approx(float(left), rel=1e-4)


def test_a_small_change_of_the_text_encoder_is_not_extracted(tmp_path: Path, base: Path) -> None:
    """sd-scripts leaves the text encoder out where nothing in it moved by 0.01, and kernels and biases always."""
    tensors = load_file(base)
    places = models.sd1_places()
    changed = {name: tensors[places[name].key] for name in (TEXT, KERNEL)}
    for number, weight in enumerate(changed.values()):
        flat = weight.flatten(1)
        flat += normal(len(flat), 1, seed=number, scale=0.01) @ normal(1, flat.shape[1], seed=9, scale=0.1)
    tuned = models.save(tensors, tmp_path / "t.safetensors")
    assert (weight_of(tuned, TEXT) - weight_of(base, TEXT)).abs().max() < 0.01
    report = sdkit.extract(tuned, base, tmp_path / "e.safetensors", rank=4, dtype="fp32")
    written = load_file(report.output)
    for name in changed:
        assert same(models.delta(written, name), weight_of(tuned, name) - weight_of(base, name), 1e-3)


def test_subtracting_scales_only_one_factor(tmp_path: Path) -> None:
    """ai-toolkit's rescaling touches ``down`` even where it was to touch alpha alone."""
    one, two = lora(1), lora(2)
    paths = [save(one, tmp_path / "a"), save(two, tmp_path / "b")]
    written = load_file(sdkit.subtract(paths[0], (paths[1], 0.5), tmp_path / "s.safetensors").output)
    assert same(models.delta(written, FLAT), models.delta(one, FLAT) - models.delta(two, FLAT) * 0.5, 1e-6)


def test_the_weight_of_a_block_counts_twice_in_a_sum(tmp_path: Path, base: Path) -> None:
    """sd-scripts multiplies a block's weight into both factors of a LoRA; here blocks weigh what is merged."""
    one = lora(1)
    source = save(one, tmp_path / "a")
    report = sdkit.merge(base, source, tmp_path / "o.safetensors", blocks="IN01=0.5")
    assert report.changed == 1
    found = weight_of(tmp_path / "o.safetensors") - weight_of(base)
    assert same(found, models.delta(one, FLAT) * 0.5)


# Defect → why sdkit cannot have it.
ELSEWHERE = {
    "sparse residuals of LyCORIS' extraction are computed from the tuned weight": "extract writes no sparse residuals",
    "sd-mecha's extract_lokr crashes": "extract writes LoRA, LoCon and Tucker factors, no LoKr",
    "musubi's conversion of Qwen-Image LoRAs weakens them": "Qwen-Image is recognised, and not converted",
}


def test_what_cannot_apply_is_still_so() -> None:
    """The options that would bring such a part in."""
    import inspect

    options = set(inspect.signature(sdkit.extract).parameters)
    assert not options & {"sparse", "algo", "algorithm"} and len(ELSEWHERE) == 3
    with pytest.raises(SdkitError, match="no model family 'qwen-image'"):
        reference("qwen-image")
