from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import whole_and_killed
from safetensors.torch import load_file
from tiny import write_clip_model

import sdkit
from sdkit.core.errors import SdkitError
from sdkit.families.bases import resolve_base
from sdkit.formats import read_adapter
from sdkit.generation.conditioning import encode_texts
from sdkit.generation.request import Request
from sdkit.jobs.train import TrainReport
from sdkit.runtime.image_tower import give_towers, load_tower, text_features, unit
from sdkit.runtime.layers.nearest import NearestEmbedding
from sdkit.runtime.load import load_backbone, load_tokenizer
from sdkit.runtime.steering import inverting
from sdkit.runtime.tokens import spliced
from sdkit.training.images import fit, open_picture, pixels
from sdkit.training.trainables.prompt import plain_words
from sdkit.weights import open_weights


@pytest.fixture
def clip(tiny_base: Path, tmp_path: Path) -> Path:
    return write_clip_model(tmp_path / "clip", tiny_base)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Two drawings that come with sdkit, without captions."""
    folder = tmp_path / "drawings"
    folder.mkdir()
    for name in ("cactus--noto.png", "cactus--twemoji.png"):
        shutil.copy(Path(resolve_base("tiny")).parent / "quickstart" / name, folder)
    return folder


def invert(base: Path | str, data: Path, out: Path, **options: Any) -> TrainReport:
    few = {"steps": 3, "batch": 2, "seed": 5} if options.get("as_") != "closed" else {}
    report: TrainReport = sdkit.train("clip-inversion", base, data, out, **{**few, **options})
    return report


def seen(folder: Path) -> torch.Tensor:
    """The unit vectors of a folder's drawings."""
    tower = load_tower("tiny")
    assert tower is not None
    files = sorted(folder.glob("*.png"))
    return tower.images(torch.stack([pixels(fit(open_picture(file, "white"), (64, 64))) for file in files]))


def test_a_words_text_comes_near_the_pictures(drawings: Path, tmp_path: Path) -> None:
    report = invert(
        "tiny", drawings, tmp_path / "x", steps=40, lr=2e-2, vectors=2, caption="{}", token="<w>", save_dtype="fp32"
    )
    rows = load_file(report.output)["<w>"]
    assert rows.shape == (2, 112) and sdkit.inspect(report.output).kind == "textual-inversion"
    backbone = load_backbone(resolve_base("tiny"))
    give_towers(backbone, "")
    caption = "a photo of a <w>"
    with torch.no_grad(), spliced(backbone, {"<w>": {"text_encoder": rows}}):
        found = float((unit(text_features(backbone, [caption])["text_encoder"]) @ seen(drawings).T).mean())
    plain = float((unit(text_features(backbone, ["a photo of a wolf face"])["text_encoder"]) @ seen(drawings).T).mean())
    assert found > plain + 0.3


def test_the_first_loss_is_the_cosine_written_out(tiny_base: Path, pictures: Path, clip: Path, tmp_path: Path) -> None:
    """One step without a rate: the word is as it began, and the loss that of transformers' two sides."""
    from transformers import CLIPModel

    for file in pictures.glob("[1-4].*"):
        file.unlink()
    (pictures / "0.txt").write_text("<w>")
    few = {"steps": 1, "batch": 1, "lr": 0.0, "token": "<w>", "save_dtype": "fp32", "image_encoder": str(clip)}
    report = invert(tiny_base, pictures, tmp_path / "x", **few)
    theirs, row = CLIPModel.from_pretrained(clip).eval(), load_file(report.output)["<w>"]
    tower = load_tower(clip)
    assert tower is not None and report.loss is not None
    with torch.no_grad():
        theirs.text_model.embeddings.token_embedding.weight[63] = row[0]  # a token no text has
        hidden = theirs.text_model(torch.tensor([[0, 63, *[1] * 10]])).last_hidden_state[:, 2]
        picture = pixels(fit(open_picture(pictures / "0.png", "white"), (16, 16)))[None]
        wanted = torch.cosine_similarity(theirs.text_projection(hidden), tower.image_features(picture))
    assert report.loss == pytest.approx(1 - float(wanted), abs=1e-5)


def test_a_prompt_is_read_back_as_the_tokens_it_was_made_of(drawings: Path, tmp_path: Path) -> None:
    report = invert("tiny", drawings, tmp_path / "x", as_="hard", steps=60, tokens=4)
    text = Path(report.output).read_text().removesuffix("\n")
    assert Path(report.output).suffix == ".txt" and len(text.split()) == 4
    backbone = load_backbone(resolve_base("tiny"))
    ids = backbone.token_ids("text_encoder", text)
    assert len(ids) == 4 and set(ids) <= set(plain_words(backbone.tokenizers["text_encoder"]))
    give_towers(backbone, "")
    start = Path(invert("tiny", drawings, tmp_path / "y", as_="hard", steps=1, tokens=4).output).read_text()
    features = text_features(backbone, [text, start])["text_encoder"]
    found, began = (unit(features) @ seen(drawings).T).mean(1).tolist()
    assert found > began
    assert not sdkit.generate("tiny", text, tmp_path / "x.png", steps=1).notes


def test_clips_own_words_survive_being_joined() -> None:
    """Whole words of CLIP's real vocabulary, thirty at random, joined and taken apart again."""

    class Nowhere:
        path = Path("nowhere")

    tokenizer = load_tokenizer(Nowhere(), "text_encoder", 49408)  # type: ignore[arg-type]
    known = plain_words(tokenizer)
    assert len(known) > 20_000
    chosen = [known[place] for place in torch.randint(len(known), (30,), generator=torch.Generator().manual_seed(2))]
    text = " ".join(tokenizer.decode([number]).strip() for number in chosen)
    assert tokenizer(text, add_special_tokens=False).input_ids == chosen


def test_the_nearest_words_stand_for_the_rows_and_pass_the_gradient_on() -> None:
    table = torch.nn.Embedding(4, 2)
    table.weight.data = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [0.0, -1.0]])
    rows = torch.nn.Parameter(torch.tensor([[0.2, 5.0], [9.0, -10.0]]))
    best, scores = (torch.nn.Parameter(torch.full(size, -2.0), False) for size in ((2, 2), (2,)))
    layer = NearestEmbedding(table, rows, {"w": (-1, -2)}, torch.tensor([0, 1, 2]), best, scores)
    out = layer(torch.tensor([[-1, 3, -2]]))
    assert torch.equal(out.detach(), torch.tensor([[[0.0, 3.0], [0.0, -1.0], [1.0, 0.0]]]))  # 3 is not allowed for rows
    out.sum().backward()
    assert torch.equal(rows.grad, torch.ones(2, 2))  # type: ignore[arg-type]
    for score in (0.5, 0.4, 0.6):  # the same prompt again keeps one place, and its best score
        layer.remember(torch.tensor(score))
    assert best.tolist()[0] == [1, 0] and scores.tolist() == pytest.approx([0.6, -2.0])


def test_closed_form_ends_prompts_in_the_pictures(drawings: Path, tmp_path: Path) -> None:
    report = invert("tiny", drawings, tmp_path / "x", as_="closed", save_dtype="fp32")
    tensors = load_file(report.output)
    vector, projection = tensors["text_encoder.aesthetic"][0], tensors["text_encoder.text_projection"]
    backbone = load_backbone(resolve_base("tiny"))
    request = Request("wolf", width=64, height=64)
    with torch.no_grad(), open_weights(report.output) as weights:
        plain = encode_texts(backbone, request).prompt.context[0]
        artifact = read_adapter(weights, backbone.model)
        with inverting(backbone, artifact, 1.0):
            whole = encode_texts(backbone, request)
        with inverting(backbone, artifact, 0.5):
            half = encode_texts(backbone, request).prompt.context[0]
        with inverting(backbone, artifact, 0.0):
            assert torch.equal(encode_texts(backbone, request).prompt.context[0], plain)
    words = 1 + len(backbone.token_ids("text_encoder", "wolf"))
    ended = whole.prompt.context[0]
    assert torch.equal(ended[:words], plain[:words])
    cosines = torch.cosine_similarity(ended[words:] @ projection.T, vector[None].expand(32 - words, -1))
    assert torch.allclose(cosines, torch.ones_like(cosines), atol=1e-4)
    assert float((ended[words] @ projection.T).norm()) == pytest.approx(
        float((plain[words] @ projection.T).norm()), rel=1e-3
    )
    assert torch.allclose(half[words:], (plain + ended)[words:] / 2, atol=1e-5)
    few = {"steps": 4, "cfg": 3.0}
    drawn = [
        Image.open(sdkit.generate("tiny", f"wolf{tag}", tmp_path / f"{place}.png", **few).output).tobytes()
        for place, tag in enumerate(("", f"<image:{report.output}:0>", f"<image:{report.output}>"))
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_wrong_is_named_before_anything_is_computed(
    tiny_base: Path, tiny_sdxl: Path, pictures: Path, clip: Path, tmp_path: Path
) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SdkitError, match=message):
            invert(tiny_base, pictures, tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()

    refused("base: this base has no image encoder")
    refused("has 2 layers of 112, base has 2 layers of 24", image_encoder="tiny")
    refused("vectors=11: the text encoder of base reads 10 at once", vectors=11, image_encoder=str(clip))
    refused("tokens=11: the text encoder of base reads 10 at once", as_="hard", tokens=11, image_encoder=str(clip))
    refused("tokens= does not go with as=soft", as_="soft", tokens=3)
    refused("as=x: unknown", as_="x")
    with pytest.raises(SdkitError, match="the tokenizer knows no whole words"):  # its tokens are letters
        plain_words(load_backbone(tiny_base).tokenizers["text_encoder"])
    look = invert(tiny_base, pictures, tmp_path / "look", as_="closed", image_encoder=str(clip))
    with pytest.raises(SdkitError, match=r"a text_encoder of width 24, the base's has 112"):
        sdkit.generate("tiny", f"x <image:{look.output}>", tmp_path / "x.png", steps=1)
    with pytest.raises(SdkitError, match="pictures are put behind the last layer only"):
        sdkit.generate(tiny_base, f"x <image:{look.output}>", tmp_path / "x.png", steps=1, clip_skip=2)
    with pytest.raises(SdkitError, match="as=closed: the denoiser of sdxl does not read what CLIP projects"):
        invert(tiny_sdxl, pictures, tmp_path / "x", as_="closed", image_encoder=str(clip))


@pytest.mark.parametrize("form", [{"as_": "soft", "token": "<w>"}, {"as_": "hard", "tokens": 3}], ids=["soft", "hard"])
def test_stopped_and_resumed_is_the_same_run(drawings: Path, tmp_path: Path, form: dict[str, Any]) -> None:
    whole = invert("tiny", drawings, tmp_path / "1" / "x", **{**form, "steps": 6})
    asked = iter([False, False, True])
    part = invert("tiny", drawings, tmp_path / "2" / "x", **{**form, "steps": 6}, should_stop=lambda: next(asked))
    assert (part.finished, part.step) == (False, 3)
    again = sdkit.train("clip-inversion", "tiny", drawings, tmp_path / "2" / "x", resume=True)
    assert Path(again.output).read_bytes() == Path(whole.output).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "file"), [("soft", "x.safetensors"), ("hard", "x.txt")])
def test_killed_and_resumed_is_the_same_run_bit_for_bit(drawings: Path, tmp_path: Path, form: str, file: str) -> None:
    settings = [f"as={form}", "steps=60", "save_every=5", "batch=1"]
    whole, killed = whole_and_killed("clip-inversion", "tiny", drawings, settings, tmp_path)  # type: ignore[arg-type]
    assert (whole / file).read_bytes() == (killed / file).read_bytes()
    last = "state/step-00000060"
    states = [sorted((run / last).rglob("*.safetensors")) for run in (whole, killed)]
    assert states[0] and [one.read_bytes() for one in states[0]] == [one.read_bytes() for one in states[1]]
