"""Renumbering: the model computes the same afterwards, and what was renumbered is found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from header_files import real_header
from models import load, save, sd1
from safetensors.torch import load_file, save_file
from tiny import SDXL_UNET, TEXT, TEXT_2, UNET, write_configs, write_sdxl_configs

from sdkit.core.errors import SdkitError
from sdkit.families import identify
from sdkit.jobs.blend import blend
from sdkit.merging.matching import match, moved
from sdkit.merging.method import load_method
from sdkit.merging.symmetries import Facts, Symmetry, by_parameter, symmetries
from sdkit.merging.where import Where
from sdkit.merging.whole import Whole
from sdkit.runtime.create import create_base
from sdkit.runtime.load import load_backbone

Tensors = dict[str, torch.Tensor]
CONFIGS = {"sd1": {"unet": UNET, "text_encoder": TEXT}}
CONFIGS["sdxl"] = {"unet": SDXL_UNET, "text_encoder": TEXT, "text_encoder_2": TEXT_2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each family, every number random: nothing is told apart by chance alone."""
    made = {}
    for family, write in (("sd1", write_configs), ("sdxl", write_sdxl_configs)):
        folder = tmp_path_factory.mktemp(family)
        create_base(write(folder / "configs"), folder / "base")
        generator = torch.Generator().manual_seed(1)
        for file in (folder / "base").glob("*/*.safetensors"):
            tensors = load_file(file)
            for value in tensors.values():
                value += torch.randn(value.shape, generator=generator) * 0.2
            save_file(tensors, file, {"format": "pt"})
        made[family] = folder / "base"
    return made


def parameters(folder: Path) -> Tensors:
    """The parameters of the U-Net and the text encoders by their hub names."""
    found = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for file in (folder / component).glob("*.safetensors"):
            for name, value in load_file(file).items():
                nested = component != "unet" and not name.startswith(("text_model.", "text_projection."))
                found[f"{component}.{'text_model.' if nested else ''}{name}"] = value
    return found


def shuffled(symmetry: Symmetry, generator: torch.Generator) -> list[torch.Tensor]:
    """A random permitted order for each part."""
    starts = [sum(symmetry.cells[:number]) for number in range(len(symmetry.cells))]
    places = list(range(len(starts)))
    if symmetry.movable:
        places = torch.randperm(len(starts), generator=generator).tolist()
    return [
        torch.cat([torch.randperm(symmetry.cells[c], generator=generator) + starts[c] for c in places])
        for _ in symmetry.parts
    ]


def renumbered(tensors: Tensors, found: list[Symmetry], seed: int = 3) -> Tensors:
    """The same model with everything in another order."""
    generator = torch.Generator().manual_seed(seed)
    orders = {symmetry.name: shuffled(symmetry, generator) for symmetry in found}
    touched = by_parameter(found)
    return {
        name: moved(value, [(axis.axis, axis.offset, orders[s.name][part]) for s, part, axis in touched.get(name, ())])
        for name, value in tensors.items()
    }


def found_in(family: str, folder: Path) -> tuple[Tensors, list[Symmetry]]:
    tensors = parameters(folder)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return tensors, symmetries(shapes, Facts(family, CONFIGS[family]))


def put(folder: Path, tensors: Tensors, target: Path) -> Path:
    """A copy of a folder with these parameters."""
    import shutil

    shutil.copytree(folder, target)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        for file in (target / component).glob("*.safetensors"):
            names = load_file(file)
            nested = component != "unet" and not any(name.startswith("text_model.") for name in names)
            middle = {name: "text_model." if nested and not name.startswith("text_proj") else "" for name in names}
            save_file({name: tensors[f"{component}.{middle[name]}{name}"].contiguous() for name in names}, file)
    return target


def drawn(folder: Path) -> torch.Tensor:
    """What the text encoders and the U-Net compute from some noise and a text."""
    backbone = load_backbone(folder)
    ids = torch.arange(12)[None] % 40
    with torch.no_grad():
        first = backbone.module("text_encoder")(ids, output_hidden_states=True)
        texts, added = [first.last_hidden_state], {}
        if "text_encoder_2" in {path.name for path in folder.iterdir()}:
            second = backbone.module("text_encoder_2")(ids, output_hidden_states=True)
            texts = [first.hidden_states[-2], second.hidden_states[-2]]
            added = {"text_embeds": second.text_embeds, "time_ids": torch.arange(6.0)[None]}
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        unet = backbone.module("unet")
        drawn: torch.Tensor = unet(noise, torch.tensor(500), torch.cat(texts, -1), added_cond_kwargs=added).sample
    return drawn


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_renumbered_model_computes_the_same(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensors, found = found_in(family, folders[family])
    other = renumbered(tensors, found)
    changed = sum(not torch.equal(other[name], value) for name, value in tensors.items())
    assert changed > 0.9 * len(tensors), "most parameters hang on something that may be renumbered"
    after = drawn(put(folders[family], other, tmp_path / "x"))
    torch.testing.assert_close(after, drawn(folders[family]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_what_was_renumbered_is_found_again(family: str, folders: dict[str, Path], tmp_path: Path) -> None:
    tensors, found = found_in(family, folders[family])
    other = put(folders[family], renumbered(tensors, found), tmp_path / "other")
    out = tmp_path / "out"
    blend([folders[family], other], out, method="rebasin", alpha=1.0)
    for name, value in parameters(out).items():
        assert torch.equal(value, tensors[name]), name


def test_without_renumbering_it_is_a_weighted_sum(tmp_path: Path) -> None:
    a = sd1(0)
    b = {name: value * 1.125 if value.is_floating_point() else value for name, value in a.items()}
    files = [save(a, tmp_path / "a.safetensors"), save(b, tmp_path / "b.safetensors")]
    blend(files, tmp_path / "rebasin.safetensors", method="rebasin", alpha=0.25)
    blend(files, tmp_path / "sum.safetensors", alpha=0.25)
    expected = load(tmp_path / "sum.safetensors")
    for name, value in load(tmp_path / "rebasin.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=2e-3, atol=1e-6)


def test_a_model_of_no_family_is_refused(tmp_path: Path) -> None:
    file = save({"layer.weight": torch.ones(4, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(SdkitError, match="no family|whole models"):
        blend([file, file], tmp_path / "out.safetensors", method="rebasin")


@pytest.mark.parametrize(("header", "family", "heads"), [("sd1-ldm", "sd1", 8), ("sdxl-sgm", "sdxl", 20)])
def test_real_models_have_these_symmetries(header: str, family: str, heads: int) -> None:
    model = identify(real_header(header))
    shapes = {name: place.shape for name, place in model.places.items() if not name.startswith("vae.")}
    found = {symmetry.name: symmetry for symmetry in symmetries(shapes, Facts(family))}
    touched = by_parameter(found.values())
    free = [name for name in shapes if name not in touched]
    assert free == ["unet.conv_out.bias"], "everything but the four channels of the prediction"
    attention = found["unet.mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert attention.cells == (1280 // heads,) * heads and attention.movable
    # conv_in's 320 channels meet groups of 10, of 20 (beside 320 others) and of 30 (beside 640).
    stream = found["unet.conv_in stream"]
    assert set(stream.cells) == {10} and not stream.movable
    assert found["unet.down_blocks.0.resnets.0.conv1"].cells == (10,) * 32
    assert found["text_encoder.text_model stream"].cells == (768,)


def two_layers() -> tuple[Tensors, list[Symmetry]]:
    """fc1 and fc2 of one layer of a text encoder, 4 wide."""
    generator = torch.Generator().manual_seed(0)
    root = "text_encoder.text_model.encoder.layers.0.mlp"
    shapes = {f"{root}.fc1.weight": (6, 4), f"{root}.fc1.bias": (6,), f"{root}.fc2.weight": (4, 6)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    token = "text_encoder.text_model.embeddings.token_embedding.weight"
    found = symmetries({**shapes, token: (9, 4)}, Facts())
    return tensors, [symmetry for symmetry in found if symmetry.name == f"{root}.fc1"]


def test_matching_by_hand() -> None:
    a, found = two_layers()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    b = {name: value[:, order] if "fc2" in name else value[order] for name, value in a.items()}
    moves = match(Whole.of([a, b]), found, 1)
    for name, value in b.items():
        assert torch.equal(moved(value, moves[name]), a[name])
        half = load_method("rebasin")(a[name], value, alpha=0.5, where=Where(0, name, tuple(value.shape)))
        torch.testing.assert_close(half, (a[name] + value) / 2)  # alone, a tensor says nothing of its neighbours
