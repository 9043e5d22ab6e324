"""`sdkit extract`: the difference of two checkpoints in any layout, read back and merged again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from example_model import Sizes, make_checkpoint, make_lora
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families import Model, identify
from sdkit.jobs.extract import _check_families, extract
from sdkit.weights import open_weights

SIZES = Sizes()
UNET = "model.diffusion_model"
QUERY = f"{UNET}.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
KERNEL = f"{UNET}.input_blocks.1.0.in_layers.2.weight"
KERNEL_NAME = "unet.down_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="module")
def base_tensors() -> dict[str, torch.Tensor]:
    tensors = make_checkpoint(SIZES)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(base_tensors: Mapping[str, torch.Tensor], folder: Path) -> Path:
    save_file(dict(base_tensors), folder / "base.safetensors")
    return folder / "base.safetensors"


def tuned(base_tensors: Mapping[str, torch.Tensor], path: Path, **changed: torch.Tensor) -> Path:
    tensors = {name: tensor.clone() for name, tensor in base_tensors.items()}
    for name, delta in changed.items():
        tensors[name] += delta
    save_file(tensors, path)
    return path


def low_rank(shape: torch.Size, rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    columns = shape[1:].numel()
    up, down = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return (up @ down * 0.05).reshape(shape)


def test_a_merged_lora_comes_back(base: Path, folder: Path, tmp_path: Path) -> None:
    save_file(make_lora(SIZES, rank=4), tmp_path / "lora.safetensors")
    sdkit.merge(base, tmp_path / "lora.safetensors", tmp_path / "tuned.safetensors")
    report = extract(tmp_path / "tuned.safetensors", base, tmp_path / "out.safetensors", rank=4, dtype="fp32")
    original, found = load_file(tmp_path / "lora.safetensors"), load_file(tmp_path / "out.safetensors")
    assert original.keys() == found.keys()  # the same modules by the same names, and none besides
    for name in (key.removesuffix(".alpha") for key in original if key.endswith(".alpha")):
        one, other = ({**original}, {**found})
        dense = [
            tensors[f"{name}.alpha"]
            / len(tensors[f"{name}.lora_down.weight"])
            * tensors[f"{name}.lora_up.weight"].flatten(1).float()
            @ tensors[f"{name}.lora_down.weight"].flatten(1).float()
            for tensors in (one, other)
        ]
        assert float((dense[0] - dense[1]).norm() / dense[0].norm()) < 1e-3, name
    assert report.error < 1e-3 and not report.warnings


def test_extracting_and_merging_gives_the_tuned_model(
    base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    changes = {QUERY: low_rank(base_tensors[QUERY].shape, 3), KERNEL: low_rank(base_tensors[KERNEL].shape, 5, 1)}
    model = tuned(base_tensors, tmp_path / "tuned.safetensors", **changes)
    report = extract(model, base, tmp_path / "out.safetensors", error=0.001, dtype="fp32")
    assert sorted((module.kind, module.rank) for module in report.modules) == [("locon", 5), ("lora", 3)]
    sdkit.merge(base, tmp_path / "out.safetensors", tmp_path / "again.safetensors")
    again, wanted = load_file(tmp_path / "again.safetensors"), load_file(model)
    for name, tensor in wanted.items():
        assert torch.allclose(again[name].float(), tensor.float(), atol=1e-5), name


def test_the_stated_error_is_the_true_one(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    delta = torch.randn(base_tensors[KERNEL].shape, generator=torch.Generator().manual_seed(3))
    model = tuned(base_tensors, tmp_path / "tuned.safetensors", **{KERNEL: delta})
    for tucker in (False, True):
        report = extract(model, base, tmp_path / "o.safetensors", rank=6, tucker=tucker, dtype="fp32", force=True)
        (module,) = report.modules
        assert module.kind == ("tucker" if tucker else "locon")
        sdkit.merge(base, tmp_path / "o.safetensors", tmp_path / "again.safetensors", force=True)
        left = load_file(tmp_path / "again.safetensors")[KERNEL] - load_file(model)[KERNEL]
        assert module.error == pytest.approx(float(left.norm() / delta.norm()), rel=1e-4)
        assert 0.1 < module.error < 1


def test_a_tucker_core_holds_what_has_one(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    rows, columns = base_tensors[KERNEL].shape[:2]
    torch.manual_seed(0)
    core = (
        torch.einsum("prkl,op,ri->oikl", torch.randn(2, 2, 3, 3), torch.randn(rows, 2), torch.randn(2, columns)) * 0.05
    )
    model = tuned(base_tensors, tmp_path / "tuned.safetensors", **{KERNEL: core})
    report = extract(model, base, tmp_path / "o.safetensors", rank=2, tucker=True)
    assert report.modules[0].error < 1e-3
    shapes = {
        name.partition(".")[2]: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "o.safetensors").items()
    }
    assert shapes["lora_mid.weight"] == (2, 2, 3, 3) and shapes["lora_down.weight"] == (2, columns, 1, 1)


def test_what_is_left_out_is_said(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    bias, norm = KERNEL.replace("weight", "bias"), f"{UNET}.out.0.weight"
    vae = "first_stage_model.decoder.conv_in.weight"
    changes = {name: torch.ones_like(base_tensors[name]) for name in (QUERY, KERNEL, bias, norm, vae)}
    model = tuned(base_tensors, tmp_path / "tuned.safetensors", **changes)
    report = extract(model, base, tmp_path / "o.safetensors", rank=1, conv_rank=0)
    assert len(report.modules) == 1
    assert set(report.warnings) == {
        "1 changed parameters are left out: the VAE is no part of adapters",
        "2 changed parameters are left out: biases and normalisations (--diffs adds them)",
        "1 changed parameters are left out: convolutions (--conv-rank adds them)",
    }
    report = extract(model, base, tmp_path / "p.safetensors", rank=1, diffs=True)
    found = load_file(tmp_path / "p.safetensors")
    assert torch.equal(found[f"lora_unet_{KERNEL_NAME[5:].replace('.', '_')}.diff_b"], torch.ones(32).half())
    assert "lora_unet_conv_norm_out.w_norm" in found
    assert report.error < 1e-3  # a change of ones has rank 1


def test_rounding_to_a_shorter_type_is_no_change(
    base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path
) -> None:
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in base_tensors.items()}
    save_file(tensors, tmp_path / "half.safetensors")
    with pytest.raises(SdkitError, match="nothing in it that an adapter can hold differs"):
        extract(tmp_path / "half.safetensors", base, tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_layouts_may_differ(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    """The tuned model as a diffusers folder, as its trainers save it."""
    changes = {QUERY: low_rank(base_tensors[QUERY].shape, 3), KERNEL: low_rank(base_tensors[KERNEL].shape, 5, 1)}
    single = tuned(base_tensors, tmp_path / "tuned.safetensors", **changes)
    pipeline = as_folder(single, tmp_path / "pipeline")
    one = extract(single, base, tmp_path / "one.safetensors", rank=6)
    two = extract(pipeline, base, tmp_path / "two.safetensors", rank=6)
    assert len(one.modules) == len(two.modules) == 2
    first, second = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def as_folder(path: Path, folder: Path) -> Path:
    """A checkpoint's tensors under the names of a diffusers folder."""
    with open_weights(path) as weights:
        places = identify(weights).places
    tensors = load_file(path)
    index = {"_class_name": "StableDiffusionPipeline"}
    for component, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        held = {
            name.removeprefix(f"{component}."): tensors[place.key].reshape(place.shape)
            for name, place in places.items()
            if name.startswith(f"{component}.")
        }
        (folder / component).mkdir(parents=True)
        save_file(held, folder / component / f"{stem}.safetensors")
        index[component] = ["diffusers", "Any"]  # type: ignore[assignment]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_peft_folders_come_out(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    model = tuned(base_tensors, tmp_path / "tuned.safetensors", **{QUERY: low_rank(base_tensors[QUERY].shape, 2)})
    extract(model, base, tmp_path / "out", rank=2, format="peft")
    sdkit.merge(base, tmp_path / "out", tmp_path / "again.safetensors")
    assert torch.allclose(load_file(tmp_path / "again.safetensors")[QUERY], load_file(model)[QUERY], atol=1e-3)


def test_threads_do_not_change_the_bytes(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    delta = torch.randn(base_tensors[KERNEL].shape, generator=torch.Generator().manual_seed(3))
    model = tuned(
        base_tensors, tmp_path / "t.safetensors", **{KERNEL: delta, QUERY: low_rank(base_tensors[QUERY].shape, 9)}
    )
    for threads in (1, 3):
        extract(model, base, tmp_path / f"{threads}", rank=4, threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_nonsense_is_refused_before_anything_is_read(base: Path, tmp_path: Path) -> None:
    with pytest.raises(SdkitError):
        extract(tmp_path / "missing.safetensors", base)
    with pytest.raises(UsageError, match="different rules"):
        extract(base, base, tmp_path / "o", ratio=3.0, error=0.1)
    with pytest.raises(UsageError, match="needs kohya's format"):
        extract(base, base, tmp_path / "o", format="peft", diffs=True)
    with pytest.raises(UsageError, match="cannot be stored as fp8"):
        extract(base, base, tmp_path / "o", dtype="fp8")


def test_the_command_reports_and_warns(base: Path, base_tensors: Mapping[str, torch.Tensor], tmp_path: Path) -> None:
    model = tuned(base_tensors, tmp_path / "tuned.safetensors", **{QUERY: low_rank(base_tensors[QUERY].shape, 2)})
    result = CliRunner().invoke(main, ["extract", str(model), str(base), "--rank", "1", "--dry-run", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["family"] == "sd1" and report["modules"][0]["rank"] == 1 and 0 < report["error"] < 1
    text = CliRunner().invoke(main, ["extract", str(model), str(base), "--rank", "1", "-o", str(tmp_path / "o")])
    assert "largest changes" in text.stdout and "relative error" in text.stdout
    metadata = json.dumps(open_weights(tmp_path / "o").metadata)
    assert "tuned.safetensors" in metadata and str(tmp_path) not in metadata


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (Model("sd1"), Model("sdxl"), "is sd1.*is sdxl"),
        (Model("unknown"), Model("unknown"), "is unknown"),
        (Model("sd2", prediction="epsilon"), Model("sd2", prediction="v_prediction"), "predicts epsilon.*v_prediction"),
    ],
)
def test_models_that_cannot_be_compared(base: Path, one: Model, other: Model, reason: str) -> None:
    with open_weights(base) as weights, pytest.raises(SdkitError, match=reason):
        _check_families(weights, weights, one, other)
