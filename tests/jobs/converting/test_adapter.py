"""Adapters converted from format to format: compared with formulas written out here, and read by other libraries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import models
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError

DISNEY = Path(__file__).parents[2] / "data" / "lora_disney.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return models.save(models.sd1(), tmp_path / "base.safetensors")


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return models.save(models.kohya_lora(models.sd1_modules()), tmp_path / "lora.safetensors")


def metadata_of(path: Path | str) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_the_real_file_goes_through_every_format_without_loss(tmp_path: Path) -> None:
    """Factors and words keep every bit, whatever the names; they are found by their numbers in the last file."""
    first = load_file(DISNEY)
    path: Path | str = DISNEY
    for number, to in enumerate(("kohya", "peft", "diffusers", "kohya:diffusers-names", "peft", "comfyui")):
        suffix = "" if to == "peft" else ".safetensors"
        report = sdkit.convert(path, to, tmp_path / f"{number}{suffix}")
        assert report.proof.exact == report.proof.changes == 192
        path = report.output
        files = Path(path).rglob("*") if Path(path).is_dir() else [Path(path)]
        assert report.bytes == sum(file.stat().st_size for file in files if file.is_file())
    last = load_file(path)
    factors = sorted(
        tensor.numpy().tobytes() for name, tensor in last.items() if "lora_" in name and "alpha" not in name
    )
    wanted = sorted(tensor.numpy().tobytes() for name, tensor in first.items() if ":" in name)
    assert factors[-384:] == wanted
    assert all(tensor == 1.0 for name, tensor in last.items() if name.endswith(".alpha"))
    for word in ("<s1>", "<s2>"):
        saved = load_file(tmp_path / f"1.{word.strip('<>')}.safetensors")
        assert torch.equal(saved[word].flatten(), first[word].flatten())


def test_diffusers_reads_what_was_converted(tmp_path: Path, lora: Path, base: Path) -> None:
    """diffusers' own conversion of the kohya file, and ours, give PEFT the same alphas and factors."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    path = sdkit.convert(lora, "diffusers", tmp_path / "d.safetensors", base=base).output
    ours, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(str(path), return_lora_metadata=True)
    theirs, their_alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(str(lora))
    assert alphas is None and metadata["unet.lora_alpha"] == 2.0
    theirs = convert_unet_state_dict_to_peft({name: theirs[name] for name in theirs if name.startswith("unet.")})
    assert len(theirs) > 200 and theirs.keys() == {name for name in ours if name.startswith("unet.")}
    assert all(torch.equal(tensor, ours[name]) for name, tensor in theirs.items())
    assert set(their_alphas.values()) == {2.0}


def test_peft_reads_what_was_converted(tmp_path: Path, lora: Path, base: Path) -> None:
    from peft import LoraConfig

    sdkit.convert(lora, "peft", tmp_path / "p", base=base)
    config = LoraConfig.from_pretrained(str(tmp_path / "p" / "unet"))
    tensors = load_file(tmp_path / "p" / "unet" / "adapter_model.safetensors")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
    wanted = models.delta(load_file(lora), f"lora_unet_{name.replace('.', '_')}")
    assert torch.allclose(b @ a * (config.lora_alpha / config.r), wanted, atol=0, rtol=1e-12)


def test_every_alpha_survives_the_way_through_peft(tmp_path: Path, base: Path) -> None:
    """Ranks and alphas that differ by module: what the best-known scripts lose."""
    tensors: models.Tensors = {}
    for number, (name, shape) in enumerate(models.sd1_modules().items()):
        tensors |= models.kohya_lora({name: shape}, rank=1 + number % 5, alpha=0.3 * (1 + number % 7), seed=number)
    source = models.save(tensors, tmp_path / "a.safetensors")
    sdkit.convert(source, "peft", tmp_path / "p", base=base)
    back = sdkit.convert(tmp_path / "p", "kohya", tmp_path / "b.safetensors", base=base)
    after = load_file(back.output)
    assert after.keys() == tensors.keys()
    for name in models.sd1_modules():
        assert torch.allclose(models.delta(after, name), models.delta(tensors, name), rtol=1e-7, atol=0), name


def loha(tmp_path: Path, base_modules: int = 3) -> tuple[Path, dict[str, torch.Tensor]]:
    """A LoHa of rank 2 and alpha 1, and the dense changes by module."""
    generator = torch.Generator().manual_seed(3)
    tensors, dense = {}, {}
    for name, shape in list(models.sd1_modules().items())[:base_modules]:
        rows, columns = shape[0], shape[1:].numel() if isinstance(shape, torch.Size) else torch.Size(shape[1:]).numel()
        halves = []
        for side in "12":
            a = tensors[f"{name}.hada_w{side}_a"] = torch.randn(rows, 2, generator=generator)
            b = tensors[f"{name}.hada_w{side}_b"] = torch.randn(2, columns, generator=generator)
            halves.append(a.double() @ b.double())
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
        dense[name] = halves[0] * halves[1] / 2
    return models.save(tensors, tmp_path / "loha.safetensors"), dense


def test_a_loha_becomes_a_lora_only_when_that_is_allowed(tmp_path: Path, base: Path) -> None:
    source, dense = loha(tmp_path)
    with pytest.raises(SdkitError, match=r"3 of 3 changes are of the kind loha, .*0\.00% off") as failure:
        sdkit.convert(source, "diffusers", tmp_path / "d.safetensors", base=base)
    assert "--allow-lossy" in failure.value.hint and not (tmp_path / "d.safetensors").exists()
    report = sdkit.convert(source, "diffusers", tmp_path / "d.safetensors", base=base, allow_lossy=True)
    assert {entry.rank for entry in report.approximations} == {4}  # a product of two ranks of 2
    assert report.proof.error < 1e-6
    cut = sdkit.convert(source, "kohya", tmp_path / "same.safetensors", base=base)
    assert cut.approximations == () and cut.proof.exact == 3
    rough = sdkit.convert(source, "diffusers", tmp_path / "r.safetensors", base=base, allow_lossy=True, rank=1)
    recipe = json.loads(metadata_of(rough.output)["sdkit.recipe"])
    (said,) = recipe["lossy"]
    assert (said["was"], said["changes"], said["rank"]) == ("loha", 3, 1) and recipe["rank"] == 1
    for name, entry in zip(dense, rough.approximations, strict=True):
        squares = torch.linalg.svdvals(dense[name]).square()
        error = (1 - squares[0] / squares.sum()).sqrt()  # Eckart and Young
        assert entry.error == pytest.approx(float(error), rel=1e-4)
    assert said["error"] == pytest.approx(rough.proof.error, rel=1e-2)


def test_a_dora_is_worked_out_on_its_base(tmp_path: Path, base: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    tensors = models.kohya_lora({name: models.sd1_modules()[name]})
    weight = load_file(base)[models.sd1_places()[name].key].double()
    rows = weight.norm(dim=1, keepdim=True) * 1.5
    usual = models.save({**tensors, f"{name}.dora_scale": rows.float()}, tmp_path / "usual.safetensors")
    for to in ("peft", "diffusers"):
        assert sdkit.convert(usual, to, tmp_path / f"{to}.safetensors", base=base).approximations == ()
    lengths = weight.norm(dim=0, keepdim=True) * 1.5  # of the input features, which neither can hold
    source = models.save({**tensors, f"{name}.dora_scale": lengths.float()}, tmp_path / "dora.safetensors")
    report = sdkit.convert(source, "diffusers", tmp_path / "d.safetensors", base=base, allow_lossy=True, rank=99)
    written = load_file(report.output)
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    moved = weight + models.delta(tensors, name)
    wanted = moved * lengths / moved.norm(dim=0, keepdim=True) - weight
    alpha = json.loads(metadata_of(report.output)["lora_adapter_metadata"])
    scale = alpha["unet.lora_alpha"] / alpha["unet.r"]
    change = written[f"{stem}.lora_B.weight"].double() @ written[f"{stem}.lora_A.weight"].double() * scale
    assert torch.allclose(change, wanted, atol=1e-6)
    with pytest.raises(SdkitError, match="depends on the base"):
        sdkit.convert(DORA_OF_SD1(tmp_path), "diffusers", tmp_path / "e.safetensors", allow_lossy=True)


def DORA_OF_SD1(folder: Path) -> Path:
    """A DoRA of one layer of the published SD1, whose lengths are the input features'."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = models.kohya_lora({name: (320, 768)})
    return models.save({**tensors, f"{name}.dora_scale": torch.ones(1, 768)}, folder / "dora-sd1.safetensors")


def test_what_trained_it_stays_private(tmp_path: Path, base: Path) -> None:
    metadata = {
        "ss_tag_frequency": '{"me": {"holiday": 3}}',
        "ss_sd_model_name": "/home/me/models/base.ckpt",
        "ss_training_comment": "see C:\\Users\\me\\notes.txt",
        "ss_steps": "100",
        "modelspec.title": "mine",
        "sshs_model_hash": "0" * 64,
        "lora_adapter_metadata": "{}",
    }
    tensors = models.kohya_lora(models.sd1_modules())
    source = models.save(tensors, tmp_path / "lora.safetensors", metadata)
    report = sdkit.convert(source, "kohya", tmp_path / "k.safetensors", base=base)
    assert set(report.left_out) == {"ss_tag_frequency", "ss_sd_model_name", "ss_training_comment"}
    after = metadata_of(report.output)
    assert after["ss_steps"] == "100" and after["modelspec.title"] == "mine"
    assert after["sshs_model_hash"] == sdkit.hash(report.output).sshs_model_hash
    assert not {"ss_tag_frequency", "lora_adapter_metadata"} & after.keys() and "/home/me" not in str(after)
    kept = sdkit.convert(source, "kohya", tmp_path / "k2.safetensors", base=base, keep_training_metadata=True)
    assert metadata_of(kept.output)["ss_tag_frequency"] == metadata["ss_tag_frequency"] and kept.left_out == ()


def test_nothing_is_lost_silently(tmp_path: Path, base: Path) -> None:
    tensors = models.kohya_lora(models.sd1_modules())
    source = models.save({**tensors, "lora_unet_nowhere.diff": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(SdkitError, match=r"1 tensors or modules have no place \(lora_unet_nowhere\)"):
        sdkit.convert(source, "peft", tmp_path / "p", base=base)
    report = sdkit.convert(source, "peft", tmp_path / "p", base=base, prune=True)
    assert [drop.names for drop in report.dropped] == [("lora_unet_nowhere",)]
    bias = models.save({**tensors, "lora_unet_conv_in.diff_b": torch.ones(32)}, tmp_path / "b.safetensors")
    with pytest.raises(SdkitError, match="100.00% off"):
        sdkit.convert(bias, "peft", tmp_path / "q", base=base)
    lossy = sdkit.convert(bias, "peft", tmp_path / "q", base=base, allow_lossy=True)
    assert [drop.names for drop in lossy.dropped] == [("unet.conv_in.bias",)]


def test_a_scaled_bias_of_pefts_keeps_its_size(tmp_path: Path, base: Path) -> None:
    """PEFT scales a bias as it scales the factors; kohya's files have no place for that scale."""
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    rows, columns = models.sd1_modules()[f"lora_unet_{name.replace('.', '_')}"]
    parts = {"lora_A.weight": (2, columns), "lora_B.weight": (rows, 2), "lora_B.bias": (rows,)}
    tensors = {f"base_model.model.{name}.{part}": torch.randn(*shape).half() for part, shape in parts.items()}
    (tmp_path / "p").mkdir()
    models.save(tensors, tmp_path / "p" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 0.6, "lora_bias": True}
    (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(config))
    written = load_file(sdkit.convert(tmp_path / "p", "kohya", tmp_path / "k.safetensors", base=base).output)
    bias = tensors[f"base_model.model.{name}.lora_B.bias"].double()
    assert torch.allclose(written[f"lora_unet_{name.replace('.', '_')}.diff_b"].double(), bias * 0.3, rtol=1e-6)


def test_without_names_for_its_modules_the_way_on_is_said(tmp_path: Path, lora: Path) -> None:
    with pytest.raises(SdkitError, match="peft needs names for its modules") as failure:
        sdkit.convert(lora, "peft", tmp_path / "p")
    assert "--base" in failure.value.hint
    same = sdkit.convert(lora, "kohya", tmp_path / "k.safetensors")
    assert load_file(same.output).keys() == load_file(lora).keys()


def test_an_alpha_the_file_does_not_state(tmp_path: Path, base: Path) -> None:
    silent = models.save(models.kohya_lora(models.sd1_modules(), alpha=None), tmp_path / "a.safetensors")
    report = sdkit.convert(silent, "kohya", tmp_path / "k.safetensors", base=base, network_alpha=1)
    alphas = [tensor for name, tensor in load_file(report.output).items() if name.endswith("alpha")]
    assert len(alphas) == len(models.sd1_modules()) and all(alpha == 1.0 for alpha in alphas)
    with pytest.raises(UsageError, match="states its alphas"):
        sdkit.convert(report.output, "peft", tmp_path / "p", base=base, network_alpha=1)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_another_element_type(tmp_path: Path, base: Path, kind: str) -> None:
    """Every factor is rounded once, alphas are not, and the proof says how much the changes moved."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    tensors = models.kohya_lora({name: models.sd1_modules()[name]}, alpha=0.3)
    if kind == "dora":
        tensors[f"{name}.dora_scale"] = torch.rand(len(tensors[f"{name}.lora_up.weight"]), 1) + 1
    tensors["bundle_emb.<w>.string_to_param.*"] = torch.rand(2, 32)
    source = models.save(tensors, tmp_path / "a.safetensors")
    report = sdkit.convert(source, "kohya", tmp_path / "h.safetensors", base=base, dtype="bf16")
    written = load_file(report.output)
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        meant = tensor if key.endswith(".alpha") else tensor.bfloat16()
        assert written[key].dtype == meant.dtype and torch.equal(written[key], meant), key
    assert 1e-4 < report.proof.error < 1e-2 and report.proof.exact == 0
    if kind == "lora":
        moved = models.delta({key: tensor.float() for key, tensor in written.items()}, name) - models.delta(
            tensors, name
        )
        assert report.proof.error == pytest.approx(float(moved.norm() / models.delta(tensors, name).norm()), rel=1e-3)
    assert json.loads(metadata_of(report.output)["sdkit.recipe"])["dtype"] == "BF16"
    peft = sdkit.convert(report.output, "peft", tmp_path / "p", base=base, dtype="fp32")
    assert peft.proof.exact == 1
    assert load_file(tmp_path / "p.w.safetensors")["<w>"].dtype == torch.float32


def test_an_element_type_that_is_too_small(tmp_path: Path, base: Path) -> None:
    tensors = models.kohya_lora(models.sd1_modules(), size=1e6)
    source = models.save(tensors, tmp_path / "a.safetensors")
    with pytest.raises(SdkitError, match="do not fit F16"):
        sdkit.convert(source, "kohya", tmp_path / "h.safetensors", base=base, dtype="fp16")
    assert not (tmp_path / "h.safetensors").exists()


def test_options_that_would_do_nothing_are_refused(tmp_path: Path, base: Path, lora: Path) -> None:
    with pytest.raises(UsageError, match="bake-vae concerns a checkpoint"):
        sdkit.convert(lora, "peft", tmp_path / "p", base=base, bake_vae=base)
    with pytest.raises(UsageError, match="network-alpha concerns an adapter"):
        sdkit.convert(base, "single", tmp_path / "s.safetensors", network_alpha=1)


def test_embeddings_take_every_form(tmp_path: Path) -> None:
    rows = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    source = models.save(rows, tmp_path / "cat.safetensors")
    pickled = sdkit.convert(source, "a1111", tmp_path / "cat.pt")
    assert pickled.to == "textual-inversion:a1111" and pickled.proof.words == 1
    loaded = torch.load(tmp_path / "cat.pt", weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in rows.items())
    back = sdkit.convert(tmp_path / "cat.pt", "comfyui", tmp_path / "back.safetensors")
    assert all(torch.equal(load_file(back.output)[name], tensor) for name, tensor in rows.items())
    one = models.save({"emp_params": rows["clip_l"]}, tmp_path / "dog.safetensors")  # OneTrainer's spelling
    assert load_file(sdkit.convert(one, "kohya", tmp_path / "k.safetensors").output).keys() == {"emb_params"}
    assert load_file(sdkit.convert(one, "diffusers", tmp_path / "d.safetensors").output).keys() == {"dog"}


def test_from_the_command_line(tmp_path: Path, base: Path, lora: Path) -> None:
    def run(*words: object) -> str:
        result = CliRunner().invoke(main, ["convert", *map(str, words)])
        assert result.exit_code == 0, result.output
        return result.stdout

    dry = run(lora, "--to", "peft", "--base", base, "-o", tmp_path / "p", "--dry-run")
    assert "nothing was written" in dry and not (tmp_path / "p").exists()
    text = run(lora, "--to", "peft", "--base", base, "-o", tmp_path / "p")
    assert "unmatched: 0" in text and re.search(r"(\d+) of \1 changed weights the same number by number", text)
    said = json.loads(
        run(tmp_path / "p", "--to", "invokeai", "--base", base, "-o", tmp_path / "d.safetensors", "--json")
    )
    assert said["to"] == "kohya" and said["proof"]["changes"] == len(models.sd1_modules())
    assert run(lora, "--to", "kohya", "-o", tmp_path / "k.safetensors", "-q").split() == [
        str(tmp_path / "k.safetensors")
    ]
