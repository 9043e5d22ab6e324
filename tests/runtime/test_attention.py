from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdkit.runtime.attention import Control, controlled
from sdkit.runtime.backbone import Backbone, Cond
from sdkit.runtime.load import load_backbone


@pytest.fixture(scope="module")
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def predicted(backbone: Backbone, latents: torch.Tensor, texts: list[str]) -> torch.Tensor:
    with torch.no_grad():
        cond = backbone.encode_text(backbone.tokenize(texts), (16, 16))
        out: torch.Tensor = backbone.denoise(latents, torch.full((len(texts),), 500), Cond(cond.context * 20))
    return out


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_maps_that_nobody_changes_give_what_the_layers_give(backbone: Backbone) -> None:
    latents, control = noise(2), Control()
    plain = predicted(backbone, latents, ["a cat", "dogs"])
    before = list(backbone.unet.attn_processors.values())
    with controlled(backbone, control):
        assert torch.equal(predicted(backbone, latents, ["a cat", "dogs"]), plain)
        control.over_text = lambda source, target: target
        torch.testing.assert_close(predicted(backbone, latents, ["a cat", "dogs"]), plain, rtol=1e-4, atol=1e-5)
    assert list(backbone.unet.attn_processors.values()) == before


def test_a_layers_maps_are_the_source_s_where_they_are_taken_over(backbone: Backbone) -> None:
    layer = backbone.module("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2")
    generator = torch.Generator().manual_seed(2)
    hidden, context = (torch.randn(2, places, width, generator=generator) for places, width in ((6, 32), (12, 24)))
    control = Control()
    control.over_text = lambda source, target: source
    with controlled(backbone, control), torch.no_grad():
        out = layer(hidden, encoder_hidden_states=context)
    heads, width = layer.heads, 32 // layer.heads
    query, key = layer.to_q(hidden[0]).double(), layer.to_k(context[0]).double()
    value = layer.to_v(context[1]).double()
    columns = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / width**0.5
        columns.append(scores.softmax(-1) @ value[:, part])
    wanted = layer.to_out[0](torch.cat(columns, -1).float())
    torch.testing.assert_close(out[1], wanted, rtol=1e-4, atol=1e-5)


def test_the_source_and_what_stands_before_it_are_left_alone(backbone: Backbone) -> None:
    latents = noise(1).expand(4, -1, -1, -1)
    texts = ["", "b", "a cat", "dogs"]
    plain, control = predicted(backbone, latents, texts), Control()
    control.over_text, control.over_picture = (lambda source, target: source), True
    with controlled(backbone, control):
        changed = predicted(backbone, latents, texts)
    torch.testing.assert_close(changed[:3], plain[:3], rtol=1e-4, atol=1e-5)
    assert (changed[3] - plain[3]).abs().max() > 1e-4


def test_layers_are_themselves_again_after_an_error(backbone: Backbone) -> None:
    before = list(backbone.unet.attn_processors.values())
    with pytest.raises(RuntimeError, match="stop"), controlled(backbone, Control()):
        raise RuntimeError("stop")
    assert list(backbone.unet.attn_processors.values()) == before
