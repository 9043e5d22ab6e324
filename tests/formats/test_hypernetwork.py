from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import a1111
import pytest
import torch
from safetensors.torch import save_file

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.key_value import ACTIVATIONS, Structure
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model, Place
from sdkit.formats import read_adapter, recognise, write_adapter
from sdkit.runtime.layers.key_value import KeyValueLayer, KeyValueNetwork
from sdkit.runtime.rng import StepRNG
from sdkit.training.trainables.key_value import KeyValue, new_networks
from sdkit.weights import open_weights

STRUCTURES = {
    "plain": Structure(),
    "relu": Structure((1, 2, 1), "relu"),
    "deep": Structure((1, 1.5, 2, 1), "swish", layer_norm=True, activate_output=True, dropout=(0, 0.3, 0.1, 0)),
    "dropout": Structure((1, 2, 2, 1), "leakyrelu", dropout=(0, 0.3, 0, 0)),
    "prelu": Structure((1, 2, 1), "prelu", activate_output=True),
    "shallow": Structure((1, 1), "mish", layer_norm=True),
}
EVERY_KEY = {
    *("step", "name", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "use_dropout"),
    *("dropout_structure", "last_layer_dropout", "activate_output", "sd_checkpoint", "sd_checkpoint_name"),
    "optional_info",
}


def trained(structure: Structure, **facts: Any) -> Artifact:
    """A hypernetwork with numbers large enough to be seen."""
    networks = KeyValue(new_networks(structure, (8, 24), "KaimingNormal", StepRNG(0)), structure, lr=0)
    for number, parameter in enumerate(networks.parameters.values()):
        parameter.data += StepRNG(number).normal(tuple(parameter.shape), "more")
    return networks.artifact(torch.float32, **{"name": "x", **facts})


def outputs(artifact: Artifact, x: torch.Tensor, side: int, strength: float) -> torch.Tensor:
    """The input of a layer, as ours transforms it."""
    assert artifact.key_value is not None
    tensors = {name: read.load() for name, read in artifact.key_value.networks[x.shape[-1]][side].items()}
    network = KeyValueNetwork(x.shape[-1], artifact.key_value.structure, tensors).eval()
    transformed: torch.Tensor = KeyValueLayer(torch.nn.Identity(), network, strength)(x)
    return transformed.detach()


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_web_ui_builds_the_same_networks_from_what_we_write(name: str, tmp_path: Path) -> None:
    artifact = trained(STRUCTURES[name])
    path = tmp_path / "x.pt"
    write_adapter(artifact, None, path, {"sdkit.version": "1"}, format="hypernetwork")
    theirs = a1111.load(path)
    assert list(theirs) == [8, 24]
    for width, pair in theirs.items():
        x = StepRNG(1).normal((2, 5, width), "x")
        for side, network in enumerate(pair):
            with torch.no_grad():
                wanted = network(x, 0.7)
            assert (outputs(artifact, x, side, 0.7) - wanted).abs().max() == 0
            assert not torch.equal(wanted, x)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("keep", ["all settings", "what was there first"])
def test_we_build_the_same_networks_as_a_web_ui_from_what_it_writes(name: str, keep: str, tmp_path: Path) -> None:
    structure = STRUCTURES[name]
    torch.manual_seed(0)
    settings = {
        "layer_structure": list(structure.layer_structure),
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "dropout_structure": list(structure.dropout) or None,
    }
    if keep == "all settings":
        settings |= {"activate_output": structure.activate_output, "use_dropout": bool(structure.dropout)}
    elif not structure.activate_output and structure.activation != "linear":
        settings["activate_output"] = False  # left out it means True
    shapes = structure.shapes(8)
    pair = tuple({key: torch.randn(shape) for key, shape in shapes.items()} for _ in range(2))
    path = tmp_path / "theirs.pt"
    torch.save({8: pair, "step": 3, "name": "theirs", **settings}, path)
    x = torch.randn(1, 4, 8)
    with open_weights(path) as weights:
        assert recognise(weights)[0] == "hypernetwork"
        ours = read_adapter(weights)
        for side in range(2):
            with torch.no_grad():
                wanted = a1111.load(path)[8][side](x)
            assert torch.equal(outputs(ours, x, side, 1.0), wanted)
        assert ours.key_value is not None and (ours.key_value.step, ours.key_value.name) == (3, "theirs")


def test_every_key_is_written_and_comes_back(tmp_path: Path) -> None:
    facts = {"name": "dogs", "step": 7, "weight_init": "XavierUniform", "checkpoint_name": "sd15", "info": "a dog"}
    artifact = trained(STRUCTURES["deep"], **facts)
    write_adapter(artifact, None, tmp_path / "x.pt", {"sdkit.recipe": "{}"}, format="hypernetwork")
    contents = torch.load(tmp_path / "x.pt", weights_only=True)
    assert {key for key in contents if isinstance(key, str)} == EVERY_KEY | {"sdkit.recipe"}
    assert (contents["step"], contents["name"], contents["weight_initialization"]) == (7, "dogs", "XavierUniform")
    assert contents["dropout_structure"] == [0, 0.3, 0.1, 0] and contents["last_layer_dropout"] is True
    with open_weights(tmp_path / "x.pt") as weights:
        again = read_adapter(weights)
        assert weights.metadata["sdkit.recipe"] == "{}"
        assert replace(again.key_value, networks={}) == replace(artifact.key_value, networks={})


def test_the_same_networks_are_the_same_bytes(tmp_path: Path) -> None:
    artifact = trained(Structure())
    for name in ("one.pt", "another.pt"):
        write_adapter(artifact, None, tmp_path / name, {}, format="hypernetwork")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()
    with pytest.raises(SdkitError, match="already exists"):
        write_adapter(artifact, None, tmp_path / "one.pt", {}, format="hypernetwork")


def test_a_number_that_is_none_is_not_written_unseen(tmp_path: Path) -> None:
    networks = KeyValue(new_networks(Structure(), (8,), "Normal", StepRNG(0)), Structure(), lr=0)
    next(iter(networks.parameters.values())).data.fill_(torch.nan)
    with pytest.raises(SdkitError, match="does not read back"):
        write_adapter(networks.artifact(torch.float32), None, tmp_path / "x.pt", {}, format="hypernetwork")


def test_a_lora_is_not_written_as_a_hypernetwork(tmp_path: Path) -> None:
    artifact = replace(trained(Structure()), kind="lora", key_value=None)
    with pytest.raises(SdkitError, match="a lora is no hypernetwork"):
        write_adapter(artifact, None, tmp_path / "x.pt", {}, format="hypernetwork")


def network(width: int, **names: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(width)
    first, second = names.get("first", "linear.0"), names.get("second", "linear.1")
    return {
        f"{first}.weight": torch.randn(2 * width, width),
        f"{first}.bias": torch.randn(2 * width),
        f"{second}.weight": torch.randn(width, 2 * width),
        f"{second}.bias": torch.randn(width),
    }


def test_the_oldest_names(tmp_path: Path) -> None:
    old = network(8, first="linear1", second="linear2")
    torch.save({8: (old, old)}, tmp_path / "old.pt")
    x = torch.randn(1, 3, 8)
    with open_weights(tmp_path / "old.pt") as weights, torch.no_grad():
        wanted = a1111.load(tmp_path / "old.pt")[8][0](x)
        assert torch.equal(outputs(read_adapter(weights), x, 0, 1.0), wanted)


def test_a_safetensors_file_of_the_same(tmp_path: Path) -> None:
    pair = network(8, second="linear.2")
    tensors = {f"8.{side}.{name}": tensor.clone() for side in "kv" for name, tensor in pair.items()}
    settings = {"activation_func": "relu", "activate_output": False, "layer_structure": [1, 2, 1], "step": 4}
    save_file(tensors, tmp_path / "x.safetensors", {key: json.dumps(value) for key, value in settings.items()})
    with open_weights(tmp_path / "x.safetensors") as weights:
        found = read_adapter(weights).key_value
    assert found is not None and found.step == 4 and found.structure == Structure((1, 2, 1), "relu")


def test_widths_are_matched_with_the_base_and_named(tmp_path: Path) -> None:
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    places = {f"{block}.attn{n}.to_{p}.weight": (32, 32 if n == 1 else 24) for n in (1, 2) for p in "kv"}
    model = Model("sd1", places={name: Place(name, shape) for name, shape in places.items()})
    torch.save({8: (network(8), network(8)), 24: (network(24), network(24))}, tmp_path / "x.pt")
    with open_weights(tmp_path / "x.pt") as weights:
        artifact = read_adapter(weights, model)
    assert artifact.unmatched == ("the networks of width 8",)
    assert artifact.key_value is not None and list(artifact.key_value.networks) == [24]
    assert artifact.notes == ("it has no networks of width 32; 2 keys and values stay the base's own",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({8: (network(8),)}, "the network for the values of width 8 is missing"),
        ({8: ({}, network(8))}, "the network for the keys of width 8 is missing"),
        (
            {8: (network(8), {**network(8), "linear.1.bias": torch.ones(9)})},
            r"linear.1.bias is F32 \[9\].*calls for \[",
        ),
        ({8: (network(8), {"linear.0.bias": torch.ones(16)})}, "lacks linear.0.weight"),
        ({8: (network(8), {**network(8), "linear.5.bias": torch.ones(1)})}, "has linear.5.bias, for which"),
        ({8: (network(8), {**network(8), "linear1.bias": torch.ones(16)})}, "is in the file twice"),
        ({8: (network(8), {key: value.int() for key, value in network(8).items()})}, "is I32"),
        ({"layer_structure": [1, 2, 3]}, "does not begin and end with 1"),
        ({"layer_structure": [1]}, "does not begin and end with 1"),
        ({"layer_structure": [1, -2, 1]}, "a width that is not in"),
        ({"layer_structure": [1, float("nan"), 1]}, "a width that is not in"),
        ({"layer_structure": [1, 1e30, 1]}, "a width that is not in"),
        ({"layer_structure": [1, *[2] * 50, 1]}, "does not begin and end with 1"),
        ({"layer_structure": "1,2,1"}, "is no list of numbers"),
        ({"layer_structure": [1, "2", 1]}, "is no list of numbers"),
        ({"layer_structure": [1, 4, 1]}, "calls for"),
        ({"activation_func": "relo"}, "activation relo is unknown .did you mean relu"),
        ({"activation_func": "__class__"}, "is unknown"),
        ({"activation_func": "relu"}, "lacks linear.2.weight"),
        ({"is_layer_norm": True}, "calls for"),
        ({"dropout_structure": [0, 1.0, 0]}, "a chance that is not in"),
        ({"dropout_structure": [0.1, 0.1]}, "has not the 3 entries"),
        ({"dropout_structure": {"a": 1}}, "is no list of numbers"),
    ],
)
def test_half_and_strange_files_are_refused_by_name(change: dict[Any, Any], message: str, tmp_path: Path) -> None:
    torch.save({8: (network(8), network(8)), **change}, tmp_path / "x.pt")
    with open_weights(tmp_path / "x.pt") as weights, pytest.raises(SdkitError, match=message) as error:
        read_adapter(weights)
    assert str(tmp_path / "x.pt") in error.value.message


def test_a_pickle_that_calls_something_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "hit",))

    torch.save({8: (network(8), network(8)), "optional_info": Evil()}, tmp_path / "x.pt")
    with pytest.raises(SdkitError, match="unsafe pickle"):
        open_weights(tmp_path / "x.pt")
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_a_module_of_torch_that_keeps_the_width(activation: str) -> None:
    structure = Structure((1, 2, 1), activation, activate_output=True)
    tensors = {name: torch.ones(shape) for name, shape in structure.shapes(4).items()}
    assert KeyValueNetwork(4, structure, tensors).eval()(torch.ones(2, 3, 4)).shape == (2, 3, 4)
