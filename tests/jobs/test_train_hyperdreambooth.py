"""HyperDreamBooth: identities of their own, the network that predicts them, and somebody new by it."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import draw_identities
from PIL import Image
from runs import whole_and_killed
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.adapters.deltas.lightweight import Basis
from sdkit.adapters.lightweight_vector import Layout
from sdkit.core.errors import SdkitError, UsageError
from sdkit.families.bases import resolve_base
from sdkit.jobs.train import TrainReport
from sdkit.runtime.install import install
from sdkit.runtime.layers.predictor import Predictor, PredictorShape
from sdkit.runtime.load import load_backbone
from sdkit.runtime.rng import StepRNG
from sdkit.training.identities import read_identities
from sdkit.training.image_features import ClipFeatures, clip_config, clip_tokens
from sdkit.training.method import load_method
from sdkit.training.objectives.identities import distance
from sdkit.training.state import load_newest
from sdkit.training.trainables.population import Population, artifact_of, first_vector
from sdkit.weights import open_weights

SMALL: dict[str, Any] = {
    "identity_steps": 2,
    "steps": 4,
    "batch": 4,
    "basis_up": 6,
    "basis_down": 5,
    "width": 32,
    "blocks": 1,
    "iterations": 2,
    "identity_lr": 0.05,
    "lr": 0.01,
    "save_dtype": "fp32",
}


def train(base: Path | str, data: Path, out: Path, **options: Any) -> TrainReport:
    report: TrainReport = sdkit.train("hyperdreambooth", base, data, out, **options)
    return report


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_identities(tmp_path_factory.mktemp("people"), 4)


@pytest.fixture(scope="session")
def new_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_identities(tmp_path_factory.mktemp("new"), 4, first=4)


@pytest.fixture(scope="session")
def hyper(tiny_base: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hyper") / "h"
    return Path(train(tiny_base, people, out, **SMALL, identities=True).output)


def vectors(folder: Path, number: int) -> dict[str, torch.Tensor]:
    states = sorted((folder / "state").iterdir())
    parameters = load_file(states[number] / "tensors.safetensors")
    return {name: value for name, value in parameters.items() if "updater/parameters" in name}


def layout_of(modules: dict[str, tuple[int, int]], rank: int = 1) -> Layout:
    return Layout(tuple(Basis(0, name, rows, columns, 6, 5) for name, (rows, columns) in modules.items()), rank)


def test_every_sample_goes_through_its_own_change(tiny_base: Path) -> None:
    """Each sample of a batch, and its gradient, is as with its own LiDB installed alone."""
    backbone = load_backbone(tiny_base)
    method = load_method("hyperdreambooth")[1]
    options = method.options(**{**SMALL, "names": ("a", "b"), "rank": 2})
    (population,) = method.trainables(backbone, options, StepRNG(0))
    assert isinstance(population, Population)
    torch.manual_seed(0)
    theta = torch.nn.Parameter(population.common.detach() + 0.3 * torch.randn(3, population.layout.size))
    noised, times = torch.randn(3, 4, 8, 8), torch.tensor([100, 500, 900])

    def outputs(rows: slice) -> torch.Tensor:
        cond = backbone.encode_text(backbone.tokenize(["a cat", "a dog", "a cow"][rows]), (16, 16))
        return backbone.denoise(noised[rows], times[rows], cond)

    plain = outputs(slice(0, 3))
    with population.install(backbone):
        assert torch.equal(outputs(slice(0, 3)), plain)  # nothing is chosen yet
        population.chosen.set(theta)
        together = outputs(slice(0, 3))
        (gradient,) = torch.autograd.grad(together[1].square().sum(), theta)
    assert gradient[1].abs().max() > 0 and gradient[0].abs().max() == gradient[2].abs().max() == 0
    for row in range(3):
        with install(artifact_of(population.layout, theta[row], torch.float32), backbone):
            torch.testing.assert_close(outputs(slice(row, row + 1))[0], together[row], atol=2e-5, rtol=1e-4)
    assert (together - plain).abs().amax((1, 2, 3)).min() > 1e-3
    assert torch.equal(outputs(slice(0, 3)), plain)


def test_a_vector_holds_the_layers_one_after_the_other() -> None:
    layout = layout_of({"m": (8, 7), "n": (6, 5)}, rank=2)
    assert layout.lengths == (22, 22) and layout.size == 44
    found = layout.factors(torch.arange(44.0)[None])
    assert torch.equal(found["n"][0], torch.arange(22.0, 34.0).reshape(1, 6, 2))
    assert torch.equal(found["n"][1], torch.arange(34.0, 44.0).reshape(1, 2, 5))
    assert torch.equal(layout.vector([(up[0], down[0]) for up, down in found.values()]), torch.arange(44.0))


def test_a_new_predictor_follows_from_the_seed_and_predicts_the_start() -> None:
    shape = PredictorShape((22, 11), 9, 12, 32, 2, 3)
    before = torch.random.get_rng_state()
    one, two, other = (Predictor.new(shape, StepRNG(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.out.weight, other.out.weight)
    assert all(torch.isfinite(parameter).all() for parameter in one.parameters())
    pictures, start = torch.randn(2, 9, 12), torch.randn(33)
    with torch.no_grad():
        assert 0 < (one(pictures, start) - start).abs().max() < 0.1
        alone = torch.cat([one(picture[None], start) for picture in pictures])
        torch.testing.assert_close(alone, one(pictures, start), atol=1e-5, rtol=1e-4)


def test_first_the_identities_learn_and_then_the_network(tiny_base: Path, people: Path, tmp_path: Path) -> None:
    train(tiny_base, people, tmp_path / "x", **SMALL, save_every=2, keep_states=9, weight_decay=0.1)
    start, between, end = (vectors(tmp_path / "x", number) for number in range(3))
    network = [name for name in start if "predictor." in name]
    identities = [name for name in start if "identity." in name]
    assert len(identities) == 4 and network
    for name in network:
        assert torch.equal(start[name], between[name])
    assert any(not torch.equal(between[name], end[name]) for name in network)
    for name in identities:
        assert torch.equal(start[name], start[identities[0]])  # all begin alike
        assert not torch.equal(start[name], between[name])
        assert torch.equal(between[name], end[name])
    states = load_newest(tmp_path / "x" / "state")
    assert states is not None and states[1].step == 4


def test_what_is_not_shown_does_not_learn(tiny_base: Path, people: Path, tmp_path: Path) -> None:
    """An optimizer's momentum moves nobody who is not in the batch."""
    few = {**SMALL, "batch": 1, "identity_steps": 9, "steps": 10}
    train(tiny_base, people, tmp_path / "x", **few, save_every=1, keep_states=20)
    states = [vectors(tmp_path / "x", number) for number in range(10)]
    for before, after in zip(states, states[1:], strict=False):
        moved = [name for name in before if "identity." in name and not torch.equal(before[name], after[name])]
        assert len(moved) == 1


def test_what_all_have_in_common_learns_from_every_picture(tiny_base: Path, people: Path, tmp_path: Path) -> None:
    """In each of the first steps, whoever is shown; the network then predicts how somebody differs from it."""
    few = {**SMALL, "batch": 1, "identity_steps": 8, "steps": 9}
    run = train(tiny_base, people, tmp_path / "x", **few, save_every=1, keep_states=20)
    common = [
        next(value for name, value in vectors(tmp_path / "x", number).items() if name.endswith("common"))
        for number in range(10)
    ]
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(common)]
    assert moved == [True] * 8 + [False]
    assert torch.equal(load_file(run.output)["start"], common[-1])


def test_the_distance_is_one_for_a_network_that_tells_nobody_apart() -> None:
    own = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert distance(torch.zeros(2, 2), own) == 1 and distance(own, own) == 0
    predicted = torch.tensor([[0.0, 4.0], [0.0, 2.0]])
    assert distance(predicted, own) == pytest.approx(9 / 25 / 2)


def test_a_run_leaves_a_network_and_the_identities(tiny_base: Path, hyper: Path, tmp_path: Path) -> None:
    found = sdkit.inspect(hyper)
    assert found.kind == found.format == "hyperdreambooth"
    with pytest.raises(SdkitError, match="predicts adapters from pictures"):
        sdkit.merge(tiny_base, hyper, tmp_path / "m")
    own = sorted((hyper.parent / "identities").iterdir())
    assert [path.stem for path in own] == [f"person-{number:03d}" for number in range(4)]
    state = {name.rpartition("/")[2]: value for name, value in vectors(hyper.parent, -1).items()}
    described = json.loads(open_weights(hyper).metadata["hyperdreambooth"])
    assert described["prompt"] == "a sks face" and described["side"] == 16
    first = state["0.common"] + state["0.identity.person-000"]
    module, rows, columns, a, b = described["layers"][0]
    assert torch.equal(load_file(own[0])[f"{module}.lidb_up"].flatten(), first[:a])
    assert torch.equal(load_file(own[0])[f"{module}.lidb_down"].flatten(), first[a : a + b])
    assert sdkit.merge(tiny_base, own[0], tmp_path / "own").matched == len(described["layers"])


def test_somebody_new_from_one_picture(tiny_base: Path, hyper: Path, new_people: Path, tmp_path: Path) -> None:
    """The prediction itself, and the LoRA that goes on from where it is."""
    photo, others = new_people / "person-004" / "0.png", new_people / "person-004"
    given = {"as": "identity", "init": str(hyper), "validation": str(others), "save_dtype": "fp32"}
    light = train(tiny_base, photo, tmp_path / "light", **given, steps=0)
    assert sdkit.inspect(light.output).format == "lidb" and light.plan.pictures == 1
    assert "predicted from 0.png" in light.plan.notes
    other = train(tiny_base, new_people / "person-005" / "0.png", tmp_path / "other", **given, steps=0)
    one, two = load_file(light.output), load_file(other.output)
    assert any(not torch.equal(one[name], two[name]) for name in one)  # it looks at the picture
    relaxed = train(tiny_base, photo, tmp_path / "relaxed", **given, steps=2, lr=1e-2)
    assert relaxed.validation_before == pytest.approx(light.validation, rel=1e-5)
    assert relaxed.validation != relaxed.validation_before
    found = sdkit.inspect(relaxed.output)
    assert found.format == "kohya" and next(iter(open_weights(relaxed.output).metadata["ss_network_dim"])) == "4"
    assert sdkit.merge(tiny_base, relaxed.output, tmp_path / "m").matched == relaxed.plan.modules


def test_held_out_identities_are_whole_and_seen_by_another_picture(
    tiny_base: Path, people: Path, new_people: Path, tmp_path: Path
) -> None:
    report = train(tiny_base, people, tmp_path / "x", **{**SMALL, "validation": str(new_people), "lr": 0.05})
    assert report.validation is not None and report.validation != report.validation_before
    many = draw_identities(tmp_path / "many", 5)
    share = train(tiny_base, many, tmp_path / "y", **SMALL, validation=0.2, dry_run=True)
    assert "2 of 10 pictures are held out" in share.plan.notes and share.plan.pictures == 8


def test_too_little_is_said_with_numbers(tiny_base: Path, people: Path, tmp_path: Path) -> None:
    def refused(data: Path, **options: Any) -> SdkitError:
        with pytest.raises(SdkitError) as caught:
            train(tiny_base, data, tmp_path / "x", **{**SMALL, **options})
        assert not (tmp_path / "x").exists()
        return caught.value

    three = draw_identities(tmp_path / "three", 3)
    Image.new("RGB", (16, 16)).save(three / "loose.png")
    assert "3 identities (folders) and 1 loose pictures, and at least 4" in refused(three).message
    (three / "person-003").mkdir()
    assert "person-003: no pictures" in refused(three).message
    assert "steps=2: all of them are for the identities (identity_steps=2)" in refused(people, steps=2).message
    few = refused(people, batch=1, identity_steps=3)
    assert "shows 3 of 8 pictures" in few.message and few.hint.startswith("identity_steps=8")
    assert "width=40" in refused(people, width=40).message
    assert refused(people, encoder="vit").hint
    assert "encoder=clip needs clip=" in refused(people, encoder="clip").message


def test_captions_and_loose_pictures_are_not_used_in_silence(people: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(people, tmp_path / "copy")
    (folder / "person-000" / "0.txt").write_text("Anna")
    shutil.copy(folder / "person-000" / "0.png", folder / "person-001" / "same.png")
    Image.new("RGB", (16, 16)).save(folder / "loose.png")
    found = read_identities(folder, "a sks face", background="white", strict=False)
    assert {sample.caption for sample in found.samples} == {"a sks face"}
    assert len({sample.id for sample in found.samples}) == len(found.samples) == 9
    assert [sum(sample.subject == f"person-{number:03d}" for sample in found.samples) for number in range(4)] == [
        2,
        3,
        2,
        2,
    ]
    assert found.notes == (
        "1 pictures beside the identities' folders are not used",
        "the captions of 1 pictures are not used: all share 'a sks face'",
    )


def test_a_hypernetwork_that_does_not_fit_is_refused(
    tiny_base: Path, tiny_sdxl: Path, hyper: Path, new_people: Path, tmp_path: Path
) -> None:
    photo = new_people / "person-004"

    def refused(base: Path = tiny_base, **options: Any) -> str:
        with pytest.raises(SdkitError) as caught:
            train(base, photo, tmp_path / "x", **{"as": "identity", "init": str(hyper), **options})
        return f"{caught.value.message} {caught.value.hint}"

    def changed(**changes: Any) -> str:
        fields = json.loads(open_weights(hyper).metadata["hyperdreambooth"]) | changes
        save_file(load_file(hyper), tmp_path / "changed.safetensors", {"hyperdreambooth": json.dumps(fields)})
        return str(tmp_path / "changed.safetensors")

    assert "as=identity needs init=" in refused(init="")
    assert "person-004" in refused(init=str(new_people / "person-004" / "0.png"))
    assert "are not those made here" in refused(init=changed(seed=1))
    assert "damaged" in refused(init=changed(width="x"))
    assert "do not fit what it says of itself" in refused(init=changed(blocks=2))
    assert "in this base" in refused(tiny_sdxl)
    assert "format=lycoris: no LoRA is written in it" in refused(format="lycoris")
    with pytest.raises(UsageError, match="does not go with as=identity"):
        train(tiny_base, photo, tmp_path / "x", **{"as": "identity", "init": str(hyper), "beta": 1})


def test_a_clip_may_look_at_the_pictures(tiny_base: Path, people: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
            )
            CLIPVisionModel(config).save_pretrained(tmp_path / f"clip{seed}")
    report = train(tiny_base, people, tmp_path / "x", **SMALL, encoder="clip", clip=str(tmp_path / "clip0"))
    given = {"as": "identity", "init": report.output, "steps": 0}
    photo = people / "person-000" / "0.png"
    train(tiny_base, photo, tmp_path / "y", **given, clip=str(tmp_path / "clip0"))
    with pytest.raises(SdkitError, match="was trained with another CLIP"):
        train(tiny_base, photo, tmp_path / "z", **given, clip=str(tmp_path / "clip1"))
    with pytest.raises(SdkitError, match="needs clip="):
        train(tiny_base, photo, tmp_path / "z", **given)


def test_a_base_may_lend_its_image_encoder() -> None:
    """The tokens are those of transformers' own class, whatever type the file has, of colours as CLIP takes them."""
    from transformers import CLIPVisionModelWithProjection

    theirs = CLIPVisionModelWithProjection.from_pretrained(resolve_base("tiny") / "image_encoder").float().eval()
    pixels = StepRNG(0).uniform((2, 3, 64, 64), "pictures") * 2 - 1
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    seen = ((pixels.movedim(1, -1) + 1) / 2 - mean) / std
    with torch.no_grad():
        wanted = theirs(seen.movedim(-1, 1)).last_hidden_state
    found = ClipFeatures("tiny")(pixels)
    assert tuple(found.shape[1:]) == clip_tokens(clip_config("tiny"))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step", [3])
def test_a_killed_run_resumes_bit_for_bit(tiny_base: Path, people: Path, tmp_path: Path, step: int) -> None:
    """Killed within the second stage, with the first behind it."""
    settings = [f"{key}={value}" for key, value in {**SMALL, "steps": 12, "save_every": 1}.items()]
    whole, killed = whole_and_killed("hyperdreambooth", tiny_base, people, settings, tmp_path, step=step)
    assert (whole / "x.safetensors").read_bytes() == (killed / "x.safetensors").read_bytes()


def test_the_start_changes_nothing_and_can_learn() -> None:
    layout = layout_of({"m": (8, 7), "n": (6, 5)})
    found = layout.factors(first_vector(layout, StepRNG(0))[None])
    for up, down in found.values():
        assert up.abs().max() == 0 and down.abs().min() > 0
    assert not torch.equal(found["m"][1], found["n"][1])


@pytest.mark.slow
def test_on_a_base_that_draws_new_identities_are_predicted_better_than_nothing(tmp_path: Path) -> None:
    """The embedded base, drawn faces: of whom the network has never seen the loss falls, by more than chance."""
    known = draw_identities(tmp_path / "known", 12, side=64)
    new = draw_identities(tmp_path / "new", 4, first=12, side=64)
    settings = {"identity_steps": 50, "steps": 100, "batch": 8, "width": 64, "blocks": 1, "resolution": 32}
    rates = {"identity_lr": 5e-3, "lr": 1e-3, "caption": "sks"}
    report = train("tiny", known, tmp_path / "x", **settings, **rates, validation=str(new))
    assert report.validation_fall is not None and report.validation_fall[0] > 0
