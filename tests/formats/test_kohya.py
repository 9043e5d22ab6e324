from __future__ import annotations

import pytest
import torch

from sdkit.adapters.artifact import Change, Target
from sdkit.conversion.adapter import relative_change
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, recognise, write_adapter

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"
PROJ = "unet.down_blocks.0.attentions.0.proj_in"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.k_proj"
FLAT_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
FLAT_CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
FLAT_PROJ = "lora_unet_down_blocks_0_attentions_0_proj_in"
FLAT_TEXT = "lora_te_text_model_encoder_layers_0_self_attn_k_proj"
SHAPES = {Q: (8, 6), CONV: (8, 4, 3, 3), PROJ: (8, 8, 1, 1), TEXT: (5, 5)}


@pytest.fixture
def model(make_model):
    return make_model(SHAPES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(flat: str, out: int, rank: int, *columns: int, alpha: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    ones = (1,) * (len(columns) - 1)
    tensors = {
        f"{flat}.lora_up.weight": normal(out, rank, *ones, seed=out),
        f"{flat}.lora_down.weight": normal(rank, *columns, seed=rank),
    }
    return tensors | ({} if alpha is None else {f"{flat}.alpha": alpha})


def product(tensors: dict[str, torch.Tensor], flat: str) -> torch.Tensor:
    up, down = tensors[f"{flat}.lora_up.weight"].double(), tensors[f"{flat}.lora_down.weight"].double()
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def test_linear_convolution_and_text_encoder(save, model, dense):
    tensors = pair(FLAT_Q, 8, 2, 6, alpha=torch.tensor(1.0))
    tensors |= pair(FLAT_CONV, 8, 4, 4, 3, 3, alpha=torch.tensor(8.0)) | pair(FLAT_TEXT, 5, 2, 5)
    weights = save(tensors, {"ss_network_dim": "2"})
    assert recognise(weights)[0] == "kohya"
    artifact = read_adapter(weights, model)
    assert artifact.kind == "lora" and artifact.not_bakeable is None and artifact.unmatched == ()
    assert artifact.metadata["ss_network_dim"] == "2"
    assert torch.allclose(dense(artifact, Q), 0.5 * product(tensors, FLAT_Q))
    assert torch.allclose(dense(artifact, CONV, strength=-1.0), -2.0 * product(tensors, FLAT_CONV))
    assert torch.allclose(dense(artifact, TEXT), product(tensors, FLAT_TEXT))
    assert "alpha = rank is assumed" in artifact.notes[0]
    assert artifact.modules == tuple(sorted([CONV, Q, TEXT]))
    assert set(artifact.changes) == {Change("lora", 2, 1.0, 1), Change("locon", 4, 8.0, 1), Change("lora", 2, 2.0, 1)}


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(1.0),
        torch.tensor([1.0]),
        torch.tensor(1.0).half(),
        torch.tensor(1.0).bfloat16(),
        torch.tensor(1, dtype=torch.int64),
        torch.tensor(1.0, dtype=torch.float64),
    ],
)
def test_alpha_in_every_dress(save, model, dense, alpha):
    tensors = pair(FLAT_Q, 8, 4, 6, alpha=alpha)
    artifact = read_adapter(save(tensors), model)
    assert torch.allclose(dense(artifact, Q), product(tensors, FLAT_Q) / 4)


def test_linear_pair_for_a_one_by_one_convolution_and_back(save, make_model, dense):
    linear = pair(FLAT_PROJ, 8, 2, 8)
    artifact = read_adapter(save(linear), make_model({PROJ: (8, 8, 1, 1)}))
    assert dense(artifact, PROJ).shape == (8, 8)
    convolution = pair(FLAT_PROJ, 8, 2, 8, 1, 1)
    artifact = read_adapter(save(convolution, name="b"), make_model({PROJ: (8, 8)}))
    assert torch.allclose(dense(artifact, PROJ).flatten(1), product(convolution, FLAT_PROJ).flatten(1))


def test_tucker(save, model, dense):
    up, mid, down = normal(8, 2, 1, 1), normal(2, 2, 3, 3, seed=1), normal(2, 4, 1, 1, seed=2)
    names = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    artifact = read_adapter(save({f"{FLAT_CONV}.{role}": tensor for role, tensor in names.items()}), model)
    expected = torch.einsum("ijhw,oi,jn->onhw", mid.double(), up.flatten(1).double(), down.flatten(1).double()) / 2
    assert torch.allclose(dense(artifact, CONV), expected)


def test_full_differences(save, model, dense):
    tensors = {f"{FLAT_Q}.diff": normal(8, 6), f"{FLAT_Q}.diff_b": normal(8), f"{FLAT_CONV}.diff_b": normal(8, seed=1)}
    artifact = read_adapter(save(tensors | pair(FLAT_CONV, 8, 2, 4, 3, 3)), model)
    assert torch.equal(dense(artifact, Q), normal(8, 6).double())
    assert torch.equal(dense(artifact, Q, "bias"), normal(8).double())
    assert set(artifact.deltas) == {Target(Q), Target(Q, "bias"), Target(CONV), Target(CONV, "bias")}


def test_lycoris_wrapper_names(save, model, dense):
    flat = FLAT_Q.replace("lora_unet_", "lycoris_")
    tensors = pair(flat, 8, 2, 6)
    assert torch.allclose(dense(read_adapter(save(tensors), model), Q), product(tensors, flat))


@pytest.mark.parametrize(("alpha", "norm"), [(1e-2, 0.08), (100.0, None), (0.0, 0.0)])
def test_the_oft_of_kohyas_scripts(save, model, alpha, norm):
    """Their limit is alpha · out, and holds at 0 too; W' = Rᵀ W as in LyCORIS."""
    flat = FLAT_Q.replace("lora_unet_", "oft_unet_")
    blocks, weight = normal(2, 4, 4).double(), normal(8, 6, seed=1).double()
    weights = save({f"{flat}.oft_blocks": blocks.float(), f"{flat}.alpha": torch.tensor(alpha)})
    assert recognise(weights)[0] == "kohya" and read_adapter(weights).modules == (
        Q.replace(".", "_").replace("_", ".", 1),
    )
    (delta,) = read_adapter(weights, model).deltas.values()
    skew = blocks - blocks.mT
    skew = skew if norm is None else skew * (norm / skew.norm())
    turn = torch.linalg.solve(torch.eye(4) - skew, torch.eye(4) + skew, left=False)
    assert torch.allclose(relative_change(delta, weight), torch.block_diag(*turn).T @ weight - weight, atol=1e-6)


@pytest.mark.parametrize("damped", [False, True])
def test_onetrainers_oft(save, model, damped):
    """Its numbers may be divided by the root of how many a block has; the series has five terms."""
    triangles, weight = normal(2, 3), normal(8, 6, seed=1).double()
    mark = {f"{FLAT_Q}.oft_R.scaled_oft": torch.tensor(1)} if damped else {}
    artifact = read_adapter(save({f"{FLAT_Q}.oft_R.weight": triangles, **mark}), model)
    (delta,) = artifact.deltas.values()
    assert delta.kind == "oftv2" and "5 terms" in artifact.notes[0]
    turns = []
    for a, b, c in (triangles.double() / (3**0.5 if damped else 1)).tolist():
        q = torch.tensor([[0, a, b], [-a, 0, c], [-b, -c, 0]], dtype=torch.float64)
        turns.append(torch.eye(3) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q)
    meant = weight @ torch.block_diag(*turns).T - weight
    assert torch.allclose(relative_change(delta, weight), meant, atol=1e-6)
    assert torch.allclose(relative_change(delta, weight[3:5]), meant[3:5], atol=1e-6)


def test_a_wrappers_file_holds_one_component(save, model, tmp_path):
    both = pair(FLAT_Q, 8, 2, 6) | pair(FLAT_TEXT, 5, 2, 5)
    with pytest.raises(SdkitError, match="holds one component, not text_encoder and unet"):
        write_adapter(read_adapter(save(both), model), model, tmp_path / "w", {}, dialect="wrapper")
    assert not (tmp_path / "w").exists()


def test_wrapper_name_that_fits_both_text_encoders_matches_neither(save, make_model):
    second = TEXT.replace("text_encoder", "text_encoder_2")
    model = make_model({TEXT: (5, 5), second: (5, 5)}, {FLAT_TEXT.replace("lora_te_", "lora_te1_"): TEXT})
    flat = FLAT_TEXT.replace("lora_te_", "lycoris_")
    assert read_adapter(save(pair(flat, 5, 2, 5)), model).unmatched == (flat,)


def test_te1_of_a_single_encoder(save, model):
    flat = FLAT_TEXT.replace("lora_te_", "lora_te1_")
    assert set(read_adapter(save(pair(flat, 5, 2, 5)), model).deltas) == {Target(TEXT)}
    both = pair(flat, 5, 2, 5) | pair(flat.replace("te1", "te2"), 5, 2, 5)
    assert read_adapter(save(both, name="b"), model).deltas == {}


def test_unmatched_modules_are_kept_by_name(save, model):
    tensors = pair(FLAT_Q, 8, 2, 6) | pair("lora_unet_nowhere", 8, 2, 6) | {"stray": torch.ones(1)}
    artifact = read_adapter(save(tensors), model)
    assert set(artifact.unmatched) == {"lora_unet_nowhere", "stray"}


def test_without_a_model_the_file_is_listed(save):
    artifact = read_adapter(save(pair(FLAT_Q, 8, 2, 6) | pair(FLAT_TEXT, 5, 2, 5)))
    assert artifact.unmatched == ()
    assert {target.component for target in artifact.deltas} == {"unet", "text_encoder"}


def test_one_module_under_two_names(save, make_model):
    other = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    model = make_model({Q: (8, 6)}, {other: Q})
    artifact = read_adapter(save(pair(FLAT_Q, 8, 2, 6) | pair(other, 8, 2, 6)), model)
    assert set(artifact.deltas) == {Target(Q)}
    assert any("applied once" in note for note in artifact.notes)
    different = pair(FLAT_Q, 8, 2, 6) | pair(other, 8, 2, 6, alpha=torch.tensor(0.5))
    with pytest.raises(SdkitError, match=f"{FLAT_Q} and {other}|{other} and {FLAT_Q}"):
        read_adapter(save(different, name="b"), model)


def test_wrong_shape_names_module_and_shapes(save, model):
    with pytest.raises(SdkitError, match=rf"{FLAT_Q} changes a weight of shape \[16, 6\], but {Q}.weight .* \[8, 6\]"):
        read_adapter(save(pair(FLAT_Q, 16, 2, 6)), model)


@pytest.mark.parametrize("missing", ["lora_up.weight", "lora_down.weight"])
def test_half_pair(save, model, missing):
    tensors = pair(FLAT_Q, 8, 2, 6, alpha=torch.tensor(1.0))
    del tensors[f"{FLAT_Q}.{missing}"]
    with pytest.raises(SdkitError, match=f"{FLAT_Q} is incomplete: {missing} missing"):
        read_adapter(save(tensors), model)


def test_alpha_alone(save, model):
    with pytest.raises(SdkitError, match="nothing that it scales"):
        read_adapter(save({f"{FLAT_Q}.alpha": torch.tensor(1.0)}), model)


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.ones(2)])
def test_bad_alpha(save, model, alpha):
    with pytest.raises(SdkitError, match="alpha"):
        read_adapter(save(pair(FLAT_Q, 8, 2, 6, alpha=alpha)), model)


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("oft_diag", "an OFT of whole rotations"),
        ("scalar", "a LyCORIS scalar"),
        ("bias_indices", "a sparse bias"),
    ],
)
def test_unsupported_kinds_are_refused_by_name(save, model, role, kind):
    with pytest.raises(SdkitError, match=f"{FLAT_Q}.{role}: {kind} is not supported") as error:
        read_adapter(save(pair(FLAT_Q, 8, 2, 6) | {f"{FLAT_Q}.{role}": torch.ones(8, 1)}), model)
    assert error.value.hint


def test_mixed_kinds(save, model):
    with pytest.raises(SdkitError, match="several kinds"):
        read_adapter(save(pair(FLAT_Q, 8, 2, 6) | {f"{FLAT_Q}.lokr_w1": torch.ones(2, 2)}), model)


def test_lokr_alpha_counts_only_beside_a_low_rank_side(save, model, dense):
    w1, w2 = normal(2, 2), normal(4, 3, seed=1)
    whole = {f"{FLAT_Q}.lokr_w1": w1, f"{FLAT_Q}.lokr_w2": w2, f"{FLAT_Q}.alpha": torch.tensor(float("inf"))}
    expected = torch.kron(w1.double(), w2.double())
    assert torch.allclose(dense(read_adapter(save(whole), model), Q), expected)
    a, b = normal(4, 2, seed=2), normal(2, 3, seed=3)
    low = {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(1.0)}
    artifact = read_adapter(save({f"{FLAT_Q}.{role}": value for role, value in low.items()}, name="b"), model)
    assert torch.allclose(dense(artifact, Q), torch.kron(w1.double(), a.double() @ b.double()) / 2)


def test_bundled_embeddings(save, model):
    tensors = pair(FLAT_Q, 8, 2, 6)
    tensors |= {"bundle_emb.cat.string_to_param.*": normal(2, 768), "bundle_emb.dog.clip_g": normal(1, 1280)}
    artifact = read_adapter(save(tensors), model)
    assert [(row.token, row.component, row.info.shape) for row in artifact.tokens] == [
        ("cat", "text_encoder", (2, 768)),
        ("dog", "text_encoder_2", (1, 1280)),
    ]


ROLE_OF = {
    "locon": "lora_up.weight",
    "locon-tucker": "lora_mid.weight",
    "loha": "hada_w1_a",
    "loha-tucker": "hada_t1",
    "lokr": "lokr_w2_a",
    "lokr-tucker": "lokr_t2",
    "lokr-both": "lokr_w2_a",
}


@pytest.mark.parametrize("algorithm", ROLE_OF)
@pytest.mark.parametrize("convolution", [False, True])
def test_equals_lycoris(save, model, dense, algorithm, convolution):
    pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed")
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    name, _, option = algorithm.partition("-")
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(4, 8, 3) if convolution else torch.nn.Linear(6, 8)
    layer.double()
    rank = 1 if name == "lokr" else 2  # LyCORIS stores LoKr's sides whole when they are this small
    options = {"use_tucker": option == "tucker"} | ({"decompose_both": option == "both"} if name == "lokr" else {})
    kind = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule}[name]
    module = kind("x", layer, 1.0, lora_dim=rank, alpha=0.25, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    flat, hub = (FLAT_CONV, CONV) if convolution else (FLAT_Q, Q)
    state = {key: value.detach() for key, value in module.state_dict().items() if not key.startswith("org_module")}
    artifact = read_adapter(save({f"{flat}.{key}": value for key, value in state.items()}), model)
    assert (f"{flat}.{ROLE_OF[algorithm]}" in artifact.source.tensors) or (option == "tucker" and not convolution)
    # LyCORIS' get_diff_weight applies the scale of LoHa and LoKr twice; its forward pass, used here, does not.
    probe = torch.randn(2, 4, 5, 5).double() if convolution else torch.randn(2, 6).double()
    expected = module(probe)
    assert (expected - layer(probe)).abs().max() > 0.01
    change = dense(artifact, hub).reshape(layer.weight.shape)
    apply = torch.conv2d if convolution else torch.nn.functional.linear
    assert torch.allclose(layer(probe) + apply(probe, change), expected, atol=1e-10)
