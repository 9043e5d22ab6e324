"""Comparing checkpoints: the numbers against plain sums, and what is said about who came from whom."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from models import SD1_TEXT, UNET, VAE, kohya_lora, save, sd1, sd1_modules, sdxl

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.diff import Comparison, Difference, diff

Tensors = dict[str, torch.Tensor]


def moved(tensors: Tensors, seed: int, size: float, prefix: str = UNET) -> Tensors:
    """The tensors, those of one component a little further in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    here = {name: value.float() for name, value in tensors.items() if name.startswith(prefix)}
    return tensors | {
        name: (value + size * torch.randn(value.shape, generator=generator)).half() for name, value in here.items()
    }


@pytest.fixture(scope="module")
def models() -> dict[str, Tensors]:
    base = sd1(0)
    one, two = moved(base, 1, 0.02), moved(base, 2, 0.03)
    mix = {
        name: (0.25 * one[name].float() + 0.75 * two[name].float()).to(value.dtype) if name.startswith(UNET) else value
        for name, value in base.items()
    }
    return {"base": base, "one": one, "two": two, "mix": mix}


@pytest.fixture(scope="module")
def files(models: dict[str, Tensors], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save(tensors, folder / f"{name}.safetensors") for name, tensors in models.items()}


def part(comparison: Comparison, name: str) -> Difference:
    (found,) = (entry for entry in (*comparison.components, *comparison.blocks) if entry.name == name)
    return found


def test_distances_and_cosines(models: dict[str, Tensors], files: dict[str, Path]) -> None:
    (found,) = diff([files["base"], files["one"]]).comparisons
    for name, prefix in (("unet", UNET), ("OUT03", f"{UNET}output_blocks.3."), ("M00", f"{UNET}middle_block.")):
        keys = [key for key in models["base"] if key.startswith(prefix)]
        a, b = (torch.cat([models[model][key].double().flatten() for key in keys]) for model in ("base", "one"))
        seen = part(found, name)
        assert seen.distance == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-6)
        assert seen.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-6)
        assert seen.changed == seen.parameters
    for name in ("text_encoder", "vae", "VAE decoder", "TE 00"):
        assert (part(found, name).changed, part(found, name).distance, part(found, name).cosine) == (0, 0.0, 1.0)
    assert found.only_a == found.only_other == ()


def test_numbers_depend_on_neither_threads_nor_types(
    models: dict[str, Tensors], files: dict[str, Path], tmp_path: Path
) -> None:
    wide = {name: value.float() if value.is_floating_point() else value for name, value in models["one"].items()}
    other = save(wide, tmp_path / "wide.safetensors")
    first = diff([files["base"], files["one"]], threads=1).comparisons[0]
    second = diff([files["base"], other], threads=3).comparisons[0]
    assert first.blocks == second.blocks and first.whole == second.whole


def test_who_lies_between_and_who_was_the_parent(files: dict[str, Path]) -> None:
    report = diff([files[name] for name in ("base", "one", "two", "mix")])
    (line,) = (entry for entry in report.relations if "lies between" in entry)
    assert line.startswith("mix.safetensors lies between: 0.25 one.safetensors + 0.75 two.safetensors")
    report = diff([files[name] for name in ("one", "base", "two")])
    (line,) = report.relations
    assert line == "base.safetensors may be what both one.safetensors and two.safetensors were trained from"
    report = diff([files["one"], files["one"]])
    assert "equal in all that was compared" in report.relations[0]


def test_metadata_tell_of_parents(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    sdkit.blend([files["one"], files["two"]], out, alpha=0.5)
    report = sdkit.diff([out, files["two"], files["one"]])
    assert report.relations[0] == (
        "out.safetensors was made from one.safetensors and two.safetensors (blend), as its metadata say"
    )
    assert "none is here" in sdkit.diff([out, files["base"]]).relations[0]


def test_what_only_one_model_has(models: dict[str, Tensors], files: dict[str, Path], tmp_path: Path) -> None:
    wide = dict(models["base"])
    key = f"{UNET}input_blocks.0.0.weight"
    wide[key] = torch.cat([wide[key], torch.ones(32, 5, 3, 3).half()], 1)  # an inpainting model
    inpainting = save(wide, tmp_path / "inpainting.safetensors")
    (found,) = diff([inpainting, files["base"]]).comparisons
    assert found.whole.changed == 0 and found.only_a == ()
    unet = {name: value for name, value in models["base"].items() if not name.startswith((VAE, SD1_TEXT))}
    lean = save(unet, tmp_path / "lean.safetensors")
    (found,) = diff([files["base"], lean]).comparisons
    assert {entry.name for entry in found.components} == {"unet"}
    assert found.only_a and all(name.startswith(("vae.", "text_encoder.")) for name in found.only_a)
    (found,) = diff([lean, files["base"]]).comparisons
    assert found.only_other and not found.only_a


def test_a_heat_map(files: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "heat.png"
    diff([files["base"], files["one"], files["two"]], image=picture)
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert (181, 211, 196) in colours and len(colours) > 20  # what is equal, and what is not
    with pytest.raises(SdkitError, match="exists"):
        diff([files["base"], files["one"]], image=picture)


def test_a_heat_maps_title_has_only_signs_that_the_font_has(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import PIL.ImageFont
    from PIL.Image import Image

    from sdkit.report import heat

    titles: list[str] = []
    drawn = heat.heat_map

    def noted(heads: Sequence[str], rows: Sequence[heat.Row], names: Sequence[str]) -> Image:
        titles.extend(names)
        return drawn(heads, rows, names)

    monkeypatch.setattr(heat, "heat_map", noted)
    diff([files["base"], files["one"]], image=tmp_path / "heat.png")
    font = PIL.ImageFont.load_default(heat.FONT_SIZE)
    lacking = bytes(font.getmask("\U0010ffff"))
    assert bytes(font.getmask("‖")) == lacking
    assert titles == ["relative distance of one.safetensors from base.safetensors"]
    assert not [sign for sign in titles[0] if bytes(font.getmask(sign)) == lacking]


def test_what_cannot_be_compared(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two models"):
        diff([files["base"]])
    with pytest.raises(SdkitError, match="is sdxl, but A"):
        diff([files["base"], save(sdxl(), tmp_path / "xl.safetensors")])
    lora = save(kohya_lora(sd1_modules()), tmp_path / "lora.safetensors")
    with pytest.raises(SdkitError, match="is an adapter .kohya.: a difference, and no whole model"):
        diff([files["base"], lora])


def test_the_command(files: dict[str, Path], tmp_path: Path) -> None:
    run = lambda *more: CliRunner().invoke(main, ["diff", str(files["base"]), str(files["one"]), *more])  # noqa: E731
    text = run().output
    assert "one.safetensors beside base.safetensors" in text and "identical" in text and "#####" in text
    data = json.loads(run("--json").output)
    assert data["comparisons"][0]["components"][0]["name"] == "text_encoder"
    assert float(run("-q").output) == pytest.approx(data["comparisons"][0]["whole"]["distance"], rel=1e-5)
