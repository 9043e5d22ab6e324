from __future__ import annotations

import pytest

from sdkit.adapters.key_value import Structure, attention_inputs
from sdkit.families import reference


def test_names_count_activations_norms_and_dropouts() -> None:
    structure = Structure((1, 2, 1.5, 1), "relu", layer_norm=True, activate_output=True, dropout=(0, 0.3, 0, 0))
    # 0 linear, 1 relu, 2 norm, 3 dropout, 4 linear, 5 relu, 6 norm, 7 linear, 8 relu, 9 norm
    assert structure.shapes(10) == {
        "linear.0.weight": (20, 10),
        "linear.0.bias": (20,),
        "linear.2.weight": (20,),
        "linear.2.bias": (20,),
        "linear.4.weight": (15, 20),
        "linear.4.bias": (15,),
        "linear.6.weight": (15,),
        "linear.6.bias": (15,),
        "linear.7.weight": (10, 15),
        "linear.7.bias": (10,),
        "linear.9.weight": (10,),
        "linear.9.bias": (10,),
    }
    assert str(structure) == "1, 2, 1.5, 1, relu, activated output, layer norm, dropout 0, 0.3, 0, 0"


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("sd1", {320: 10, 640: 10, 1280: 12, 768: 32}),
        ("sd2", {320: 10, 640: 10, 1280: 12, 1024: 32}),
        ("sdxl", {640: 20, 1280: 120, 2048: 140}),
    ],
)
def test_the_widths_of_the_published_models(family: str, counts: dict[int, int]) -> None:
    model = reference(family)
    assert model is not None
    assert {width: len(modules) for width, modules in attention_inputs(model).items()} == counts


def test_the_usual_hypernetwork_has_the_size_people_know() -> None:
    parameters = sum(Structure().parameters(width) for width in (768, 320, 640, 1280))
    assert parameters * 4 / 2**20 == pytest.approx(83.7, abs=0.1)
