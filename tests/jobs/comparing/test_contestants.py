from __future__ import annotations

import pytest

from sdkit.core.errors import UsageError
from sdkit.jobs.comparing.contestants import Contestant, learns_word, read_contestants
from sdkit.training.method import load_method, methods


def read(*words: str, subject: str = "dog", **common: str) -> list[Contestant]:
    return read_contestants(words, common, subject, 500)


def test_settings_behind_a_colon_are_one_methods_own() -> None:
    own, other = read("lora:rank=4:algo=dora", "textual-inversion", batch="2", rank="8")
    assert own.options == {"steps": 500, "token": "sks", "batch": "2", "rank": "4", "algo": "dora"}
    assert other.options == {"steps": 500, "token": "sks", "init": "dog", "batch": "2"}


def test_labels_say_no_more_than_tells_them_apart() -> None:
    found = read("lora:rank=4:lr=1e-3", "lora:rank=8:lr=1e-3", "lora:lr=1e-3", "dreambooth:lr=1e-6")
    assert [one.label for one in found] == ["lora:rank=4", "lora:rank=8", "lora", "dreambooth"]
    assert len({one.folder for one in found}) == 4 and found[0].folder == "lora-rank-4-lr-1e-3"


def test_a_colon_within_a_value_stays() -> None:
    (one,) = read("dreambooth:class=dog:class_data=C:/dogs")
    assert one.options["class_data"] == "C:/dogs"


@pytest.mark.parametrize(
    ("word", "caption"),
    [
        ("lora", "a photo of sks dog"),
        ("dreambooth", "a photo of sks dog"),
        ("dreambooth:as=lora:token=zwx", "a photo of zwx dog"),
        ("custom-diffusion", "a photo of sks dog"),
        ("hypernetwork", "a photo of sks dog"),
        ("fine-tune", "a photo of sks dog"),
        ("textual-inversion", "a photo of sks"),
        ("dreamartist", "a photo of sks"),
        ("pivotal", "a photo of sks"),
    ],
)
def test_each_method_calls_the_subject_its_own_way(word: str, caption: str) -> None:
    (one,) = read(word)
    assert one.naming("a photo of {}") == caption


def test_without_a_subject_only_methods_that_learn_a_word_need_one() -> None:
    lora, word = read("lora", "textual-inversion", subject="")
    assert lora.naming("a dog on grass") == "a dog on grass" and "token" not in lora.options
    assert word.naming("a dog on grass") == "sks, a dog on grass" and "init" not in word.options
    assert word.naming("a sks on grass") == "a sks on grass"


def test_methods_that_learn_a_word_are_told_from_their_options() -> None:
    found = {name for name in methods() if learns_word(load_method(name)[1])}
    assert {"textual-inversion", "dreamartist", "pivotal", "custom-diffusion"} <= found
    assert not found & {"lora", "dreambooth", "hypernetwork", "fine-tune", "autoencoder"}


@pytest.mark.parametrize(
    ("words", "common", "message"),
    [
        ((), {}, "no method is given"),
        (("lorra",), {}, "unknown training method"),
        (("lora:rnk=4",), {}, "unknown option rnk="),
        (("lora", "dreambooth"), {"vectors": "4"}, "unknown option vectors="),
        (("lora", "lora"), {}, "lora is given twice"),
        (("lora:validation=0.1",), {}, "validation= is the same for all"),
        (("lora:rank=many",), {}, "rank=many"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_done(
    words: tuple[str, ...], common: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(*words, **common)
