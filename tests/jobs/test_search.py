"""Searching several hubs, of which some do not answer."""

from __future__ import annotations

import pytest

from sdkit.core.errors import SdkitError
from sdkit.hubs.searching import Found
from sdkit.jobs import search as job

ONE = Found("b", "b:1", "fox", "lora", "", "somebody", 5, 1)


class Silent:
    def __init__(self, why: str, hint: str) -> None:
        self._error = SdkitError(why, hint)

    def search(self, query: str, **options: object) -> list[Found]:
        raise self._error


class Answering:
    def search(self, query: str, **options: object) -> list[Found]:
        return [ONE]


def test_every_hub_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hubs = {"a": Silent("no route", "check the network"), "b": Silent("is down", "check the network")}
    monkeypatch.setattr(job, "searchable", lambda only: hubs)
    with pytest.raises(SdkitError) as error:
        job.search("fox")
    assert error.value.message == "no hub answers:\na: no route\nb: is down"
    assert error.value.hint == "check the network"  # once


def test_what_others_know_is_told_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "searchable", lambda only: {"a": Silent("no route", ""), "b": Answering()})
    found = job.search("fox")
    assert found.models == (ONE,) and found.notes == ("a: no route",)


def test_one_hub_fails_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "searchable", lambda only: {"a": Silent("no route", "try again")})
    with pytest.raises(SdkitError, match="^a: no route$"):
        job.search("fox", only=["a"])
