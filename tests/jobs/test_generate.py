from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Drawing, Event
from sdkit.generation.pictures import draw
from sdkit.generation.request import Request
from sdkit.jobs.generate import GenerateReport
from sdkit.jobs.models.files import add_models
from sdkit.registry import open_registry
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tokens import spliced

FEW = {"steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def shelf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of adapters: ``ink`` (LoRA), ``deep/anime`` (hypernetwork) and ``zap`` (embedding of two vectors)."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "deep").mkdir()
    backbone = load_backbone(tiny_base)
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    tensors: dict[str, torch.Tensor] = {}
    for name, module in backbone.modules():
        if name.startswith(("unet", "text_encoder")) and name.endswith(("to_k", "q_proj")):
            kohya = name.replace("text_encoder.", "lora_te.").replace("unet.", "lora_unet.").replace(".", "_")
            rows, columns = module.weight.shape
            tensors |= {f"{kohya}.lora_down.weight": noise(2, columns), f"{kohya}.lora_up.weight": noise(rows, 2)}
            tensors[f"{kohya}.alpha"] = torch.tensor(2.0)
    save_file(tensors, folder / "ink.safetensors")
    save_file({"<zap>": noise(2, 24)}, folder / "zap.safetensors")
    pairs: dict[int | str, Any] = {width: (_network(width, noise), _network(width, noise)) for width in (24, 32)}
    settings = {"name": "anime", "layer_structure": [1, 2, 1], "activation_func": "relu", "is_layer_norm": False}
    torch.save({**pairs, **settings, "activate_output": False}, folder / "deep" / "anime.pt")
    return folder


def _network(width: int, noise: Any) -> dict[str, torch.Tensor]:
    return {
        "linear.0.weight": noise(2 * width, width),
        "linear.0.bias": noise(2 * width),
        "linear.2.weight": noise(width, 2 * width),
        "linear.2.bias": noise(width),
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def floats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """The pixels of every picture drawn, before they are rounded."""
    seen: list[torch.Tensor] = []
    decode = Backbone.decode
    monkeypatch.setattr(Backbone, "decode", lambda self, latents: seen.append(decode(self, latents)) or seen[-1])
    yield seen


def generate(base: Path, prompt: str, name: str = "picture.png", **options: Any) -> GenerateReport:
    report: GenerateReport = sdkit.generate(base, prompt, name, **{**FEW, **options})
    return report


def pixels(name: str = "picture.png") -> bytes:
    with Image.open(name) as picture:
        return picture.tobytes()


def stated(name: str = "picture.png") -> tuple[str, str, dict[str, str]]:
    """What a picture says: prompt, negative prompt and settings, read as the format is documented."""
    with Image.open(name) as picture:
        text = picture.text["parameters"]
    *lines, last = text.split("\n")
    prompt, _, negative = "\n".join(lines).partition("\nNegative prompt: ")
    settings = {}
    while last:
        key, _, rest = last.partition(": ")
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            last = rest[end:].removeprefix(", ")
        else:
            value, _, last = rest.partition(", ")
        settings[key] = value
    return prompt, negative, settings


def test_a_prompt_may_name_a_registered_adapter(tiny_base: Path, shelf: Path) -> None:
    generate(tiny_base, "a cat<lora:ink:0.5>", "by-file.png", folder=shelf)
    add_models([shelf / "ink.safetensors"])
    with open_registry() as registry:
        registry.rename(registry.find("ink").id, "pen and ink")
    generate(tiny_base, "a cat<lora:pen and ink:0.5>", "by-name.png")
    assert pixels("by-name.png") == pixels("by-file.png")


@pytest.mark.parametrize("prompt", ["a cat<lora:ink:0>", "a cat<hypernet:anime:0>"])
def test_strength_zero_is_the_base_bit_for_bit(tiny_base: Path, shelf: Path, prompt: str) -> None:
    generate(tiny_base, "a cat", "base.png")
    generate(tiny_base, prompt, "zero.png", folder=shelf)
    assert pixels("zero.png") == pixels("base.png")
    generate(tiny_base, prompt.replace(":0>", ":1>"), "one.png", folder=shelf)
    assert pixels("one.png") != pixels("base.png")


@pytest.mark.parametrize(
    ("tag", "text_encoder", "unet"),
    [("<lora:ink:0.7>", 0.7, 0.7), ("<lora:ink:0.2:1>", 0.2, 1), ("<lora:ink:te=0:unet=0.5>", 0, 0.5)],
)
def test_live_draws_what_the_merged_model_draws(
    tiny_base: Path, shelf: Path, floats: list[torch.Tensor], tag: str, text_encoder: float, unet: float
) -> None:
    generate(tiny_base, f"a cat {tag}", "live.png", folder=shelf)
    sdkit.merge(tiny_base, {shelf / "ink.safetensors": 1.0}, "merged", te_alpha=text_encoder, unet_alpha=unet)
    generate(Path("merged"), "a cat ", "merged.png")
    live, merged = floats
    assert float((live - merged).abs().max()) <= 1e-4


def test_adapters_beside_the_prompt_are_written_into_it(tiny_base: Path, shelf: Path) -> None:
    report = generate(tiny_base, "a cat", adapters={shelf / "ink.safetensors": 0.7, shelf / "deep/anime.pt": 0.5})
    generate(tiny_base, "a cat<lora:ink:0.7><hypernet:anime:0.5>", "tags.png", folder=shelf)
    assert pixels() == pixels("tags.png")
    assert stated()[0] == "a cat <lora:ink:0.7> <hypernet:anime:0.5>"
    assert stated("tags.png")[0] == "a cat<lora:ink:0.7><hypernet:anime:0.5>"
    assert [(used.name, used.kind, used.unet) for used in report.adapters] == [
        ("ink", "lora", 0.7),
        ("anime", "hypernetwork", 0.5),
    ]


@pytest.mark.parametrize("word", ["zap", "Zap", "<zap>", "embedding:zap"])
def test_an_embedding_is_called_by_its_files_name_or_its_own(tiny_base: Path, shelf: Path, word: str) -> None:
    report = generate(tiny_base, f"a {word}, b", negative="zapped", folder=shelf)
    assert [used.kind for used in report.adapters] == ["textual-inversion"]
    backbone = load_backbone(tiny_base)
    from safetensors.torch import load_file

    with spliced(backbone, {"zap": {"text_encoder": load_file(shelf / "zap.safetensors")["<zap>"]}}):
        expected = draw(backbone, [Request("a zap, b", negative="zapped", **FEW)])[0]
    assert pixels() == expected.tobytes()
    assert stated()[0] == f"a {word}, b"


def test_an_embedding_in_the_negative_prompt_alone(tiny_base: Path, shelf: Path) -> None:
    report = generate(tiny_base, "a", negative="zap", folder=shelf)
    assert [used.name for used in report.adapters] == ["zap"]
    assert generate(tiny_base, "zapper, ink", "none.png", folder=shelf).adapters == ()


def test_the_picture_says_what_it_was_drawn_with(tiny_base: Path, shelf: Path) -> None:
    path = shelf / "ink.safetensors"
    generate(tiny_base, f"a (cat:1.2),\nb <lora:{path}:0.5>", negative='dog: "bad"', clip_skip=2, sampler="euler_a")
    prompt, negative, settings = stated()
    assert (prompt, negative) == ("a (cat:1.2),\nb <lora:ink:0.5>", 'dog: "bad"')  # no folder of anybody's disk
    hashed = sdkit.hash(path).autov3
    assert settings == {
        "Steps": "3",
        "Sampler": "Euler a",
        "CFG scale": "7",
        "Seed": "7",
        "Size": "16x16",
        "Model": "base",
        "Clip skip": "2",
        "RNG": "CPU",
        "Lora hashes": f"ink: {hashed}",
        "Version": f"sdkit {sdkit.__version__}",
    }


def test_a_single_files_hash_is_what_hubs_know(tmp_path: Path) -> None:
    from tiny import write_single_file

    path = write_single_file(tmp_path)
    generate(path, "a cat", steps=1)
    settings = stated()[2]
    assert (settings["Model"], settings["Model hash"]) == ("single", sdkit.hash(path).sha256[:10])


def test_another_like_it(tiny_base: Path, shelf: Path) -> None:
    generate(tiny_base, "a cat <lora:ink:0.5>", "one.png", negative="x", sampler="DDIM", width=24, folder=shelf)
    report = sdkit.generate(tiny_base, None, "two.png", like="one.png", folder=shelf)
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    sdkit.generate(tiny_base, "a dog", "three.png", like="one.png", seed=8)
    prompt, negative, settings = stated("three.png")
    assert (prompt, negative, settings["Seed"], settings["Size"]) == ("a dog", "x", "8", "24x16")
    assert report.pictures[0].seed == 7


def test_several_pictures_are_numbered_and_each_has_its_own_seed(tiny_base: Path) -> None:
    seen: list[Event] = []
    report = sdkit.generate(tiny_base, ["a", "b"], "p.png", count=2, watch=seen.append, **FEW)
    assert report.outputs == ("p-1.png", "p-2.png", "p-3.png", "p-4.png")
    assert [(picture.prompt, picture.seed) for picture in report.pictures] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    assert seen == [Drawing(step, 12) for step in range(1, 13)]
    generate(tiny_base, "b", "alone.png", seed=8)
    assert Path("alone.png").read_bytes() == Path("p-4.png").read_bytes()
    together = sdkit.generate(tiny_base, ["a", "b"], "q.png", count=3, batch=2, watch=seen.append, **FEW)
    assert seen[-1] == Drawing(18, 18) and len(together.outputs) == 6


def test_a_grid_is_one_picture(tiny_base: Path) -> None:
    report = sdkit.generate(tiny_base, ["a", "b"], "grid.png", count=2, grid=True, **FEW)
    assert report.outputs == ("grid.png",) and len(report.pictures) == 4
    with Image.open("grid.png") as grid:
        assert grid.width > 2 * 16 and grid.height > 2 * 16
    assert stated("grid.png")[0] == "a"
    assert [path.name for path in Path().iterdir()] == ["grid.png"]


def test_a_dry_run_checks_and_writes_nothing(tiny_base: Path, shelf: Path, tmp_path: Path) -> None:
    report = generate(tiny_base, "a <lora:ink:1>", count=2, folder=shelf, dry_run=True)
    assert report.dry_run and report.outputs == ("picture-1.png", "picture-2.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SdkitError, match="no adapter is called"):
        generate(tiny_base, "a <lora:inc:1>", folder=shelf, dry_run=True)


@pytest.mark.parametrize(
    ("prompt", "options", "message", "hint"),
    [
        ("<lora:inc:1>", {}, "no adapter is called 'inc' in .* or here", "did you mean ink?"),
        ("<lora:quux:1>", {}, "no adapter is called 'quux'", "name its folder with --adapters"),
        ("embedding:zapp x", {}, "no adapter is called 'zapp'", "did you mean zap?"),
        ("a", {"negative": "<lora:ink:1>"}, "the negative prompt names an adapter", ""),
        ("a", {"name": "picture.jpg"}, "pictures are written as PNG files", "use -o picture.png"),
        ("a", {"name": "no/picture.png"}, "the folder no does not exist", "mkdir -p no"),
        ("a", {"count": 0}, "count must be at least 1", ""),
        ("", {}, "no prompt was given", ""),
        ("a", {"sampler": "eular"}, "unknown sampler 'eular'", "did you mean Euler?"),
        ("a", {"adapters": [("ink.safetensors", float("inf"))]}, "is no finite number", ""),
        ("a", {"folder": "nowhere"}, "nowhere: no such folder", ""),
        ("a", {"like": "nothing.png"}, "is no picture that can be read", ""),
    ],
)
def test_what_is_wrong_is_said_before_the_base_is_loaded(
    tiny_base: Path,
    shelf: Path,
    monkeypatch: pytest.MonkeyPatch,
    prompt: str,
    options: dict[str, Any],
    message: str,
    hint: str,
) -> None:
    monkeypatch.setattr("sdkit.jobs.generate.load_backbone", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(SdkitError, match=message) as caught:
        generate(tiny_base, prompt, **{"folder": shelf, **options})
    assert hint in caught.value.hint


def test_pictures_are_not_replaced_unasked(tiny_base: Path) -> None:
    generate(tiny_base, "a")
    before = Path("picture.png").read_bytes()
    with pytest.raises(SdkitError, match="already exists"):
        generate(tiny_base, "b")
    assert Path("picture.png").read_bytes() == before
    generate(tiny_base, "b", force=True)
    assert Path("picture.png").read_bytes() != before


def test_an_embedding_of_another_family_is_a_note_and_a_named_one_an_error(tiny_base: Path) -> None:
    save_file({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, "xl.safetensors")
    report = generate(tiny_base, "an xl picture")
    assert report.adapters == () and "xl.safetensors" in report.notes[0] and "was made for sdxl" in report.notes[0]
    with pytest.raises(SdkitError, match="was made for sdxl"):
        generate(tiny_base, "an embedding:xl picture", "other.png")


def test_what_is_no_adapter_is_refused(tiny_base: Path) -> None:
    save_file({"x": torch.zeros(3, 3)}, "noise.safetensors")
    with pytest.raises(SdkitError, match="not an adapter"):
        generate(tiny_base, "a <lora:noise:1>")


def test_a_broken_file_called_like_a_word_is_a_note(tiny_base: Path) -> None:
    Path("cat.pt").write_bytes(b"no weights at all")
    report = generate(tiny_base, "a cat")
    assert len(report.notes) == 1 and re.match("cat.pt is called as a word of the prompt", report.notes[0])


def test_names_are_found_without_case_and_only_when_clear(tiny_base: Path, shelf: Path) -> None:
    generate(tiny_base, "a <lora:INK.safetensors:0.5>", folder=shelf)
    Path("ink.pt").write_bytes(b"another")
    with pytest.raises(SdkitError, match="several adapters are called 'ink'"):
        generate(tiny_base, "a <lora:ink:0.5>", "other.png", folder=shelf)


def test_the_python_name_and_its_usage_errors(tiny_base: Path) -> None:
    with pytest.raises(UsageError):
        sdkit.generate(tiny_base)


def test_pictures_are_a_step_of_a_recipe(tiny_base: Path, shelf: Path) -> None:
    step = {"generate": str(tiny_base), "prompt": "a <lora:ink:0.5>", "folder": str(shelf), "output": "p.png", **FEW}
    assert [done.state for done in sdkit.run({"steps": {"fox": step}}).steps] == ["done"]
    generate(tiny_base, "a <lora:ink:0.5>", "q.png", folder=shelf)
    assert Path("p.png").read_bytes() == Path("q.png").read_bytes()
    assert [done.state for done in sdkit.run({"steps": {"fox": step}}).steps] == ["up to date"]
