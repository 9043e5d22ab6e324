from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import write_single_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sdkit
from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.core.errors import SdkitError
from sdkit.formats import read_adapter, write_adapter
from sdkit.runtime.backbone import Backbone
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.tensors import in_memory
from sdkit.runtime.tokens import TABLE, installed_words, marked_ids, spliced, token_ids
from sdkit.weights import open_weights

ENCODER = "text_encoder"
TEXTS = ["", "a photo of a cat", "A  Cat!!\n x", "don't 12,345", "naïve café …日本", "word " * 100, "a" * 400]


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


@pytest.fixture(scope="module")
def clip() -> Any:
    folder = Path(sdkit.__file__).parent / "assets" / "tokenizers" / "clip"
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def one(word: str, count: int, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    return {word: {ENCODER: rows(count, seed)}}


@pytest.mark.parametrize("text", TEXTS)
def test_plain_text_gives_the_tokenizer_s_own_ids(clip: Any, backbone: Backbone, text: str) -> None:
    for tokenizer, length in ((clip, 77), (backbone.tokenizers[ENCODER], 12)):
        wanted = tokenizer(text, padding="max_length", truncation=True, max_length=length).input_ids
        assert marked_ids(tokenizer, token_ids(tokenizer, {}, text), length) == wanted
    wanted = backbone.tokenizers[ENCODER](
        [text, "x"], padding="max_length", truncation=True, max_length=12, return_tensors="pt"
    )
    assert torch.equal(backbone.tokenize([text, "x"])[ENCODER], wanted.input_ids)


def test_long_texts_give_all_their_ids_and_no_warning(clip: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(token_ids(clip, {}, "word " * 100)) == 100
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a <cat-toy> b", ["a", -1, -2, "b"]),
        ("<cat-toy>", [-1, -2]),
        ("(<Cat-Toy>:1.2)", ["(", -1, -2, ":1.2)"]),
        ("<cat>, <cat-toy>'s", [-3, ",", -1, -2, "'s"]),
        ("my-token, my-token-2", [-4, ",", -5]),
        ("my-tokens amy-token", ["my-tokens amy-token"]),
        ("my token", ["my token"]),
        ("sks's SKS sksy", [-6, "'s", -6, "sksy"]),
    ],
)
def test_installed_words_become_their_rows(clip: Any, text: str, wanted: list[Any]) -> None:
    words = {"<cat-toy>": (-1, -2), "<cat>": (-3,), "my-token": (-4,), "my-token-2": (-5,), "sks": (-6,)}
    ids: list[int] = []
    for part in wanted:
        ids += [part] if isinstance(part, int) else clip(part, add_special_tokens=False).input_ids
    assert token_ids(clip, words, text) == ids


def test_a_long_text_is_cut_behind_a_word_s_rows_as_behind_any_token(backbone: Backbone) -> None:
    with spliced(backbone, one("<w>", 16)):
        assert backbone.tokenize(["<w>"])[ENCODER].tolist() == [[0, *range(-1, -11, -1), 1]]
        assert backbone.token_ids(ENCODER, "<w>") == list(range(-1, -17, -1))


def test_the_encoder_reads_what_a_larger_table_would_hold(backbone: Backbone) -> None:
    """Oracle: the same text encoder whose table really was enlarged."""
    own = rows(2)
    encoder = backbone.components[ENCODER]
    config = CLIPTextConfig.from_dict({**encoder.config.to_dict(), "vocab_size": 66})
    enlarged = CLIPTextModel(config).eval()
    state = dict(encoder.state_dict())
    key = next(name for name in state if name.endswith("token_embedding.weight"))
    state[key] = torch.cat([state[key], own])
    enlarged.load_state_dict(state)
    ids = torch.tensor([[0, 3, 64, 65, 4, *[1] * 7]])
    with torch.no_grad(), spliced(backbone, {"<w>": {ENCODER: own}}):
        found = backbone.encode_text(backbone.tokenize(["a<w>b"]), (16, 16)).context
        assert torch.equal(found, enlarged(ids).last_hidden_state)


def test_the_modules_are_their_own_again_afterwards_even_after_an_error(backbone: Backbone) -> None:
    hub = f"{ENCODER}.{TABLE}"
    original = backbone.module(hub)
    before = backbone.tokenize(["a <w> <v>"])[ENCODER]
    with spliced(backbone, one("<w>", 2)):
        outer = backbone.module(hub)
        with pytest.raises(ZeroDivisionError), spliced(backbone, one("<v>", 1, seed=1)):
            assert backbone.token_ids(ENCODER, "<v><w>") == [-3, -1, -2]
            table = backbone.module(hub)(torch.tensor([-3, -1, -2, 5]))
            assert torch.equal(table, torch.cat([rows(1, 1), rows(2), original(torch.tensor([5]))]))
            1 / 0  # noqa: B018
        assert backbone.module(hub) is outer
        assert installed_words(backbone, ENCODER) == {"<w>": (-1, -2)}
    assert backbone.module(hub) is original and installed_words(backbone, ENCODER) == {}
    assert torch.equal(backbone.tokenize(["a <w> <v>"])[ENCODER], before)


def test_gradients_reach_the_rows_that_are_read_and_nothing_else(backbone: Backbone) -> None:
    parameter = nn.Parameter(rows(2))
    with spliced(backbone, {"<w>": {ENCODER: parameter}}):
        ids = torch.tensor([[0, -2, 3, *[1] * 9]])
        backbone.encode_text({ENCODER: ids}, (16, 16)).context.square().sum().backward()
    assert parameter.grad is not None
    assert parameter.grad[0].abs().max() == 0 and parameter.grad[1].abs().max() > 0
    assert all(weight.grad is None for weight in backbone.components[ENCODER].parameters())


def test_the_pooled_text_stands_where_the_text_ends(backbone: Backbone) -> None:
    """Published SD and SDXL configurations say ``eos_token_id: 2``: transformers then looks for the highest id."""
    config = backbone.components[ENCODER].config
    vocabulary = {**config.to_dict(), "eos_token_id": 2, "bos_token_id": 62, "vocab_size": 64}
    encoder = CLIPTextModel(CLIPTextConfig.from_dict(vocabulary)).eval()
    backbone.components[ENCODER] = encoder
    with torch.no_grad(), spliced(backbone, one("<w>", 1)):
        out = encoder(torch.tensor([[62, 5, -1, 6, 63, *[63] * 7]]))
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, 4])


def test_rows_take_the_type_of_the_table(backbone: Backbone) -> None:
    backbone.to(torch.device("cpu"), torch.bfloat16)
    with spliced(backbone, one("<w>", 1)):
        assert backbone.module(f"{ENCODER}.{TABLE}")(torch.tensor([[-1, 3]])).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"<w>": {ENCODER: torch.zeros(1, 768)}}, r"vectors have the shape \[1, 768\], but .* \(sd1\) reads .* 24"),
        ({"<w>": {ENCODER: torch.zeros(0, 24)}}, r"shape \[0, 24\]"),
        ({"<A>": {ENCODER: torch.zeros(1, 24)}}, "<A> is installed twice"),
        ({" ": {ENCODER: torch.zeros(1, 24)}}, "cannot be a word"),
    ],
)
def test_what_cannot_be_installed_is_refused(backbone: Backbone, words: Any, message: str) -> None:
    with spliced(backbone, one("<a>", 1)):
        with pytest.raises(SdkitError, match=message), spliced(backbone, words):
            pass
        assert list(installed_words(backbone, ENCODER)) == ["<a>"]


def test_a_word_of_another_encoder_stays_text(backbone: Backbone) -> None:
    plain = backbone.token_ids(ENCODER, "a w b")
    with spliced(backbone, {"w": {"text_encoder_2": torch.zeros(1, 1280)}}):
        assert backbone.token_ids(ENCODER, "a w b") == plain


def file_of(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_an_embedding_s_file_is_live_while_installed(backbone: Backbone, tmp_path: Path) -> None:
    plain = backbone.tokenize(["a <w> b"])
    with open_weights(file_of(tmp_path / "x.safetensors", {"<w>": rows(2)})) as weights:
        artifact = read_adapter(weights, backbone.model)
        with install(artifact, backbone) as count:
            assert count == 1
            live = backbone.encode_text(backbone.tokenize(["a <w> b"]), (16, 16)).context
        with spliced(backbone, one("<w>", 2)):
            assert torch.equal(live, backbone.encode_text(backbone.tokenize(["a <w> b"]), (16, 16)).context)
        with install(artifact, backbone, 0.0):
            assert torch.equal(backbone.tokenize(["a <w> b"])[ENCODER], plain[ENCODER])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"<w>": torch.ones(1, 768)},
            r"<w> is made of 768 numbers a token in the text_encoder, but base \(sd1\) reads 24",
        ),
        ({"<w>": torch.ones(1, 1280)}, "1280 numbers a token in the text_encoder_2"),
        (
            {"clip_l": torch.ones(1, 24), "clip_g": torch.ones(1, 1280)},
            "x is made of .* and .* token in the text_encoder, but base",
        ),
    ],
)
def test_an_embedding_of_another_family_is_refused(
    backbone: Backbone, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with open_weights(file_of(tmp_path / "x.safetensors", tensors)) as weights:
        with pytest.raises(SdkitError, match=message), install(read_adapter(weights, backbone.model), backbone):
            pass


def test_words_beside_whole_weights_are_installed_with_them(backbone: Backbone, tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{name}.weight": torch.ones(64, 24), "modifier_token.<new1>": torch.ones(24)}
    before = backbone.module(name).weight
    with open_weights(file_of(tmp_path / "x.safetensors", tensors)) as weights:
        artifact = read_adapter(weights, backbone.model)
        assert artifact.kind == "custom-diffusion"
        with install(artifact, backbone) as count:
            assert count == 2 and torch.equal(backbone.module(name).weight, torch.ones(64, 24))
            assert list(installed_words(backbone, ENCODER)) == ["<new1>"]
        with install(artifact, backbone, 0.5):
            torch.testing.assert_close(backbone.module(name).weight, (before + 1) / 2)
    assert backbone.module(name).weight is before and not installed_words(backbone, ENCODER)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_diffusers_loads_what_we_write_and_reads_the_same_text(tmp_path: Path, suffix: str) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    held = in_memory("test", {"rows": rows(3)})
    tokens = (TokenRows("<cat-toy>", ENCODER, held, held.tensors["rows"]),)
    artifact = Artifact(held, "test", kind="textual-inversion", tokens=tokens)
    path = tmp_path / f"cat-toy.{suffix}"
    write_adapter(artifact, None, path, {}, format="textual-inversion")

    single = write_single_file(tmp_path)
    backbone, theirs = load_backbone(single), load_backbone(single)
    parts = {name: theirs.components[name] for name in ("unet", "vae", ENCODER)}
    tokenizer = theirs.tokenizers[ENCODER]
    tokenizer.model_max_length = 12
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, local_files_only=True)
    text = "a photo of <cat-toy> on grass"
    with torch.no_grad(), install(artifact, backbone):
        wanted, _ = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)
        assert torch.equal(backbone.encode_text(backbone.tokenize([text]), (16, 16)).context, wanted)
