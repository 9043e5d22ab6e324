"""Writing adapters: what is read back, what the header says, and which bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.computed import Computed, computed_artifact
from sdkit.core.errors import SdkitError
from sdkit.families import reference
from sdkit.families.family import Model
from sdkit.formats import read_adapter, write_adapter
from sdkit.weights import DTYPES, open_weights
from sdkit.weights.hashes import hash_file

LINEAR = Target("unet.mid_block.attentions.0.proj_in")
CONV = Target("unet.conv_in")
TEXT = Target("text_encoder.text_model.encoder.layers.0.mlp.fc1")
SHAPES = {LINEAR.module: (6, 5), CONV.module: (4, 3, 3, 3), TEXT.module: (7, 5), "unet.norm": (4,)}


def artifact(dtype: str = "F32") -> Artifact:
    torch.manual_seed(1)
    changes = {
        LINEAR: Computed.of({"up": torch.randn(6, 2), "down": torch.randn(2, 5)}, 0.5),
        CONV: Computed.of({"up": torch.randn(4, 3, 1, 1), "down": torch.randn(3, 3, 3, 3)}, 0.25),
        TEXT: Computed.of({"up": torch.randn(7, 2), "down": torch.randn(2, 5)}, 0.5),
    }
    return computed_artifact("made", changes, DTYPES[dtype])


def test_kohya_reads_back(tmp_path: Path, make_model: Callable[..., Model], dense: Callable[..., torch.Tensor]) -> None:
    model, meant, path = make_model(SHAPES), artifact(), tmp_path / "a.safetensors"
    write_adapter(meant, model, path, {"ss_steps": "3"})
    tensors = load_file(path)
    assert tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] == 1.0
    assert tensors["lora_unet_conv_in.alpha"].item() == 0.75
    read = read_adapter(open_weights(path), model)
    for target in meant.deltas:
        assert torch.equal(dense(read, target.module), dense(meant, target.module))


def test_header_states_ranks_and_true_hashes(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    path = tmp_path / "a.safetensors"
    stale = {"sshs_model_hash": "00", "sshs_legacy_hash": "11", "modelspec.title": "a"}
    write_adapter(artifact(), make_model(SHAPES), path, stale)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "1")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "0.75"}
    assert metadata["ss_network_module"] == "networks.lora"
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest() == hash_file(path).sshs_model_hash
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
    assert metadata["sshs_legacy_hash"] == hash_file(path).sshs_legacy_hash


@pytest.mark.parametrize("rows", [100, 140_000, 300_000])
def test_legacy_hash_is_the_scripts(tmp_path: Path, make_model: Callable[..., Model], rows: int) -> None:
    """kohya: write again with only ss_ metadata by the library, then hash 64 KiB at 1 MiB."""
    torch.manual_seed(0)
    made = computed_artifact(
        "made", {LINEAR: Computed.of({"up": torch.randn(rows, 2), "down": torch.randn(2, 5)})}, DTYPES["F16"]
    )
    path = tmp_path / "a.safetensors"
    write_adapter(made, make_model({LINEAR.module: (rows, 5)}), path, {"other": "x" * 999})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    library = save(load(path.read_bytes()), training)
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(library[0x100000:0x110000]).hexdigest()[:8]


def test_a_scale_no_float32_holds(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    made = computed_artifact(
        "made", {LINEAR: Computed.of({"up": torch.randn(6, 3), "down": torch.randn(3, 5)}, 0.1)}, DTYPES["F32"]
    )
    for format in ("kohya", "diffusers"):
        write_adapter(made, make_model(SHAPES), tmp_path / format, {}, format=format)


def test_what_reads_back_differently_is_an_error(
    tmp_path: Path, make_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdkit.formats._lycoris_write.alpha", lambda delta: 1.5)
    with pytest.raises(SdkitError, match="does not read back as it was written"):
        write_adapter(artifact(), make_model(SHAPES), tmp_path / "a", {})


def test_same_artifact_same_bytes(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    for name in ("a", "b"):
        write_adapter(artifact("BF16"), make_model(SHAPES), tmp_path / name, {"b": "2", "a": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_peft_folders(tmp_path: Path, make_model: Callable[..., Model], dense: Callable[..., torch.Tensor]) -> None:
    model, meant = make_model(SHAPES), artifact()
    write_adapter(meant, model, tmp_path / "p", {}, format="peft")
    config = json.loads((tmp_path / "p/unet/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and len(config["rank_pattern"]) == 1
    for component in ("unet", "text_encoder"):
        read = read_adapter(open_weights(tmp_path / "p" / component), model)
        assert {target.component for target in read.deltas} == {component}
        for target in read.deltas:
            assert torch.allclose(dense(read, target.module), dense(meant, target.module))


def test_diffusers_file(tmp_path: Path, make_model: Callable[..., Model], dense: Callable[..., torch.Tensor]) -> None:
    model, meant, path = make_model(SHAPES), artifact(), tmp_path / "d.safetensors"
    write_adapter(meant, model, path, {}, format="diffusers")
    read = read_adapter(open_weights(path), model)
    assert read.format == "diffusers" and set(read.deltas) == set(meant.deltas)
    for target in read.deltas:
        assert torch.allclose(dense(read, target.module), dense(meant, target.module))


def test_differences_are_written_by_their_roles(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    changes = {
        Target(CONV.module, "bias"): Computed.of({"diff": torch.ones(4)}),
        Target("unet.norm"): Computed.of({"diff": torch.ones(4)}),
        Target("unet.norm", "bias"): Computed.of({"diff": torch.ones(4)}),
    }
    made = computed_artifact("made", changes, DTYPES["F32"])
    write_adapter(made, make_model(SHAPES), tmp_path / "a", {})
    assert set(load_file(tmp_path / "a")) == {
        "lora_unet_conv_in.diff_b",
        "lora_unet_norm.w_norm",
        "lora_unet_norm.b_norm",
    }
    with pytest.raises(SdkitError, match="full cannot be written in PEFT"):
        write_adapter(made, make_model(SHAPES), tmp_path / "b", {}, format="peft")


def test_sdxl_has_the_names_of_kohyas_scripts(tmp_path: Path) -> None:
    model = reference("sdxl")
    target = Target("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    made = computed_artifact(
        "made", {target: Computed.of({"up": torch.zeros(640, 1), "down": torch.zeros(1, 640)})}, DTYPES["F16"]
    )
    write_adapter(made, model, tmp_path / "a", {})
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight" in load_file(tmp_path / "a")


def test_an_adapter_without_a_model_keeps_its_names(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    write_adapter(artifact(), make_model(SHAPES), tmp_path / "a", {})
    read = read_adapter(open_weights(tmp_path / "a"))
    write_adapter(read, None, tmp_path / "b", {})
    assert load_file(tmp_path / "a").keys() == load_file(tmp_path / "b").keys()


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, make_model: Callable[..., Model]) -> None:
    made = computed_artifact(
        "made", {LINEAR: Computed.of({"up": torch.full((6, 1), 1e6), "down": torch.ones(1, 5)})}, DTYPES["F16"]
    )
    with pytest.raises(SdkitError, match="do not fit F16"):
        write_adapter(made, make_model(SHAPES), tmp_path / "a", {})
    assert not (tmp_path / "a").exists()
