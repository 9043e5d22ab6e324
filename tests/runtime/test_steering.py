from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_clip_model
from transformers import CLIPModel

from sdkit.adapters.artifact import Artifact, Steering
from sdkit.core.errors import SdkitError
from sdkit.generation.conditioning import encode_texts
from sdkit.generation.request import Request
from sdkit.runtime.backbone import Backbone, Cond
from sdkit.runtime.install import install
from sdkit.runtime.load import load_backbone
from sdkit.runtime.steering import (
    Direction,
    SteeringSettings,
    blended,
    directions_of,
    drawn,
    steered_text,
    steering,
)
from sdkit.runtime.tensors import in_memory
from sdkit.streaming.expression import Read

SIZE = (16, 16)
PROMPTS = ["a red fox", "b", "an owl"]


@pytest.fixture(scope="module")
def projection(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    clip = write_clip_model(tmp_path_factory.mktemp("clip"), tiny_base)
    return load_file(clip / "model.safetensors")["text_projection.weight"]


@pytest.fixture
def backbone(tiny_base: Path) -> Backbone:
    return load_backbone(tiny_base)


def embedding(projection: torch.Tensor, *, own: bool = True, component: str = "text_encoder") -> Artifact:
    """An aesthetic embedding that points anywhere."""
    vector = torch.randn(1, projection.shape[0], generator=torch.Generator().manual_seed(4))
    held = in_memory("an embedding", {"v": 7 * vector, "p": projection})
    reads = {name: Read(held, info) for name, info in held.tensors.items()}
    part = Steering(component, reads["v"], reads["p"] if own else None)
    return Artifact(held, "aesthetic", kind="aesthetic", steering=(part,))


def test_a_prompt_is_steered_as_the_reference_steers_it(tiny_base: Path, tmp_path: Path, backbone: Backbone) -> None:
    """Against a plain loop of Adam over transformers' own CLIPModel, a copy of it for each prompt."""
    clip = CLIPModel.from_pretrained(write_clip_model(tmp_path / "clip", tiny_base)).eval()
    artifact = embedding(clip.text_projection.weight.detach())
    settings = SteeringSettings(steps=4, lr=3e-3)
    ids = backbone.tokenize(PROMPTS)
    steered = steered_text(backbone, ids, SIZE, directions_of(artifact, backbone), settings).context
    target = torch.nn.functional.normalize(artifact.steering[0].vector.load()[0], dim=0)
    for number, row in enumerate(ids["text_encoder"]):
        own = copy.deepcopy(clip.text_model)
        optimizer = torch.optim.Adam(own.parameters(), lr=3e-3)
        end = row.tolist().index(1)
        for _ in range(4):
            features = clip.text_projection(own(row[None]).last_hidden_state[:, end])
            loss = -torch.nn.functional.cosine_similarity(features, target[None])
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        with torch.no_grad():
            assert torch.allclose(steered[number], own(row[None]).last_hidden_state[0], atol=2e-4)


def test_prompts_at_once_are_prompts_alone(backbone: Backbone, projection: torch.Tensor) -> None:
    directions = directions_of(embedding(projection), backbone)
    settings = SteeringSettings(steps=3, lr=1e-3)
    together = steered_text(backbone, backbone.tokenize(PROMPTS), SIZE, directions, settings).context
    for number, prompt in enumerate(PROMPTS):
        alone = steered_text(backbone, backbone.tokenize([prompt]), SIZE, directions, settings).context
        assert torch.allclose(together[number], alone[0], atol=1e-4)


def test_the_cosine_rises_with_every_step(backbone: Backbone, projection: torch.Tensor) -> None:
    (direction,) = directions_of(embedding(projection), backbone).values()
    encoder, ids = backbone.components["text_encoder"], backbone.tokenize(PROMPTS)["text_encoder"]
    _, cosines = drawn(encoder, ids, direction, 1, SteeringSettings(steps=15, lr=1e-4))
    rises = torch.stack(cosines).diff(dim=0)
    assert rises.shape == (14, 3) and bool((rises > 0).all())


def test_without_steps_or_weight_prompts_are_the_bases_bits(backbone: Backbone, projection: torch.Tensor) -> None:
    request = Request("a fox", negative="b", width=16, height=16)
    plain = encode_texts(backbone, request)
    before = {name: (p, p.clone()) for name, p in backbone.components["text_encoder"].named_parameters()}
    artifact = embedding(projection)
    for settings in (SteeringSettings(steps=0), SteeringSettings(weight=0.0), SteeringSettings(lr=0.0)):
        with torch.no_grad(), steering(backbone, artifact, settings):
            assert torch.equal(encode_texts(backbone, request).prompt.context, plain.prompt.context)
    with torch.no_grad(), install(artifact, backbone, 1.0) as count:
        steered = encode_texts(backbone, request)
    assert count == 1
    assert not torch.equal(steered.prompt.context, plain.prompt.context)
    assert torch.equal(steered.negative.context, plain.negative.context)
    after = dict(backbone.components["text_encoder"].named_parameters())
    assert all(after[name] is one and torch.equal(one, value) for name, (one, value) in before.items())
    assert torch.equal(encode_texts(backbone, request).prompt.context, plain.prompt.context)


def test_the_blend_lies_on_the_line_or_on_the_arc() -> None:
    one, other = Cond(torch.tensor([[[2.0, 0.0]]])), Cond(torch.tensor([[[0.0, 2.0]]]))
    line = blended(one, other, SteeringSettings(weight=0.25)).context
    assert torch.allclose(line, torch.tensor([[[1.5, 0.5]]]))
    arc = blended(one, other, SteeringSettings(weight=1 / 3, slerp=True)).context
    assert torch.allclose(arc, torch.tensor([[[3**0.5, 1.0]]]))  # 30 of 90 degrees, as long as both are
    same = blended(one, one, SteeringSettings(weight=0.5, slerp=True)).context
    assert torch.equal(same, one.context)


def test_sdxl_is_steered_by_its_second_text_encoder(tiny_sdxl: Path) -> None:
    """Which brings its own projection; the pooled text is steered with it, and the first encoder's part is not."""
    backbone = load_backbone(tiny_sdxl)
    artifact = embedding(torch.zeros(20, 40), own=False, component="text_encoder_2")
    request = Request("a fox", width=16, height=16)
    plain = encode_texts(backbone, request).prompt
    with torch.no_grad(), steering(backbone, artifact, SteeringSettings()):
        steered = encode_texts(backbone, request).prompt
    assert torch.equal(steered.context[..., :24], plain.context[..., :24])
    assert not torch.equal(steered.context[..., 24:], plain.context[..., 24:])
    assert not torch.equal(steered.added["text_embeds"], plain.added["text_embeds"])
    assert torch.equal(steered.added["time_ids"], plain.added["time_ids"])


def test_what_does_not_fit_is_refused_with_its_numbers(backbone: Backbone, projection: torch.Tensor) -> None:
    def refused(message: str, artifact: Artifact) -> None:
        with pytest.raises(SdkitError, match=message):
            directions_of(artifact, backbone)

    refused(
        r"a vector of 20 needs a projection from the text_encoder's 24 numbers; there is none",
        embedding(projection, own=False),
    )
    refused(r"a text_encoder of width 30, the base's has 24", embedding(torch.zeros(20, 30)))
    refused(
        r"is made for a text_encoder_2, which this sd1 base lacks", embedding(projection, component="text_encoder_2")
    )
    held = in_memory("zeros", {"v": torch.zeros(20), "p": projection})
    nowhere = Steering("text_encoder", *(Read(held, held.tensors[name]) for name in "vp"))
    refused("its vector points nowhere", Artifact(held, "aesthetic", kind="aesthetic", steering=(nowhere,)))


def test_direction_is_of_length_one(backbone: Backbone, projection: torch.Tensor) -> None:
    (direction,) = directions_of(embedding(projection), backbone).values()
    assert isinstance(direction, Direction) and float(direction.vector.norm()) == pytest.approx(1)
