"""What a conversion does not write is in its report: tensors of all that goes in, and files beside weights."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.jobs.converting.checkpoint import ConvertReport


def dropped(report: ConvertReport) -> dict[str, set[str]]:
    return {drop.reason: set(drop.names) for drop in report.dropped}


def files_of(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def convert(source: Path | str, to: str, output: Path, **options: object) -> ConvertReport:
    report = sdkit.convert(source, to, output, **options)  # type: ignore[arg-type]
    assert isinstance(report, ConvertReport)
    return report


@pytest.fixture
def base(tmp_path: Path, tiny_base: Path) -> Path:
    """A pipeline folder as people have them: with a card, a preview and a second copy of its weights."""
    folder = copytree(tiny_base, tmp_path / "base")
    (folder / "README.md").write_text("a card")
    (folder / "preview.png").write_bytes(b"a picture")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor/preprocessor_config.json").write_text("{}")
    tensors = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "vae/other.fp16.safetensors")
    return folder


def test_a_single_file_has_no_place_for_tokenizers_and_cards(tmp_path: Path, base: Path) -> None:
    report = convert(base, "single", tmp_path / "one.safetensors")
    assert dropped(report) == {
        "the tokenizer, which a single file has no place for": {f"tokenizer/{n}" for n in files_of(base / "tokenizer")},
        "the feature_extractor, which a single file has no place for": {"feature_extractor/preprocessor_config.json"},
        "other copies of the weights, which were not read": {"vae/other.fp16.safetensors"},
        "files that are no weights": {"README.md", "preview.png"},
    }
    drops = {drop.reason: drop.bytes for drop in report.dropped}
    assert drops["files that are no weights"] == len("a card") + len("a picture")


def test_a_folder_takes_what_belongs_to_it(tmp_path: Path, base: Path) -> None:
    report = convert(base, "diffusers", tmp_path / "copy")
    assert dropped(report) == {
        "other copies of the weights, which were not read": {"vae/other.fp16.safetensors"},
        "files that belong to no model": {"preview.png"},
    }
    assert files_of(tmp_path / "copy") == files_of(base) - {"vae/other.fp16.safetensors", "preview.png"}


@pytest.mark.parametrize("to", ["single", "diffusers"])
def test_a_part_taken_out_leaves_the_rest_by_name(tmp_path: Path, base: Path, to: str) -> None:
    report = convert(base, to, tmp_path / f"{to}.safetensors", only="vae")
    said = dropped(report)
    left = said.pop("not asked for")
    files = {name for name in files_of(base) if not name.endswith(".safetensors")} - {"vae/config.json"}
    assert left >= files and said == {
        "other copies of the weights, which were not read": {"vae/other.fp16.safetensors"}
    }
    tensors = {
        f"{part}/{name}"
        for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model"))
        for name in load_file(base / part / f"{file}.safetensors")
    }
    assert left == files | tensors


def test_what_lies_beside_a_part_that_is_put_in_is_named(tmp_path: Path, tiny_base: Path, base: Path) -> None:
    """Of a model all but its autoencoder; of a text encoder its position ids, and the tokenizer in its folder."""
    baked = convert(tiny_base, "single", tmp_path / "baked.safetensors", bake_vae=base)
    reason = "beside the vae in base, from which nothing else is taken"
    names = dropped(baked)[reason]
    assert {"scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "unet/conv_in.weight", "README.md"} <= names
    assert not any(name.startswith("vae/") for name in names - {"vae/other.fp16.safetensors"})

    encoder = copytree(tiny_base / "text_encoder", tmp_path / "clip")
    tensors = load_file(encoder / "model.safetensors")
    more = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    save_file({**tensors, **more}, encoder / "model.safetensors", {"format": "pt"})
    (encoder / "tokenizer.json").write_text("{}")
    put_in = convert(tiny_base, "diffusers", tmp_path / "folder", parts=[encoder])
    reason = "beside the text_encoder in clip, from which nothing else is taken"
    assert dropped(put_in)[reason] == {*more, "tokenizer.json"}
    assert (tmp_path / "folder/tokenizer/tokenizer.json").read_text() != "{}"


def test_leftovers_for_the_way_back_are_named_when_they_stay_behind(tmp_path: Path, tiny_base: Path) -> None:
    single = convert(tiny_base, "single", tmp_path / "one.safetensors").output
    tensors = load_file(single)
    save_file({**tensors, "betas": torch.rand(9)}, tmp_path / "more.safetensors")
    convert(tmp_path / "more.safetensors", "diffusers", tmp_path / "folder", configs=tiny_base)
    whole = convert(tmp_path / "folder", "single", tmp_path / "back.safetensors")
    pruned = convert(tmp_path / "folder", "single", tmp_path / "pruned.safetensors", prune=True)
    part = convert(tmp_path / "folder", "single", tmp_path / "part.safetensors", only="unet")
    reason = "laid beside the folder for a whole single file, which this is not"
    assert "betas" in load_file(whole.output) and reason not in dropped(whole)
    for report in (pruned, part):
        assert dropped(report)[reason] == {"leftovers.safetensors: betas"}


def test_the_base_that_comes_with_sdkit_is_a_name_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from sdkit.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> dict[str, object]:
        result = CliRunner().invoke(main, ["convert", *words, "--json"])
        assert result.exit_code == 0, result.output
        report: dict[str, object] = json.loads(result.stdout)
        return report

    assert run("tiny", "--to", "diffusers")["output"] == "tiny-diffusers"
    run("tiny", "--to", "single", "-o", "one.safetensors")
    save_file(load_file("one.safetensors"), "silent.safetensors")
    run("silent.safetensors", "--to", "diffusers", "--configs", "tiny", "-o", "back")
    said = Path("back/unet/config.json").read_text()
    assert json.loads(said) == json.loads(Path("tiny-diffusers/unet/config.json").read_text())
    run("one.safetensors", "--to", "single", "--bake-vae", "tiny", "-o", "baked.safetensors")
    assert load_file("baked.safetensors").keys() == load_file("one.safetensors").keys()
    assert sdkit.reproduce("back", ["."]).identical and sdkit.reproduce("baked.safetensors").identical
