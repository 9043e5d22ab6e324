from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import models
import pytest
from civitai_server import PNG, TOKEN, Civitai, serve_civitai
from click.testing import CliRunner
from drawn import picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from web import Answer

from sdkit.cli.main import main
from sdkit.core.errors import CredentialsError, SdkitError, UsageError
from sdkit.core.paths import data_folder
from sdkit.core.progress import NoProgress
from sdkit.hubs import civitai as hub
from sdkit.hubs import is_reference
from sdkit.hubs.http import Client
from sdkit.jobs.models.exchange import export_models
from sdkit.jobs.models.files import add_models
from sdkit.jobs.models.show import show_model
from sdkit.jobs.pull import local_path, pull, source_of
from sdkit.jobs.push import push
from sdkit.registry import open_registry


@pytest.fixture
def civitai(monkeypatch: pytest.MonkeyPatch) -> Iterator[Civitai]:
    """Civitai, and an account there."""
    monkeypatch.setattr(hub, "Client", lambda *given: Client(*given, sleep=lambda seconds: None))  # nobody waits
    with serve_civitai() as civitai:
        monkeypatch.setenv("CIVITAI_ENDPOINT", civitai.web.url)
        monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
        yield civitai


@pytest.fixture
def fox(tmp_path: Path) -> bytes:
    shapes = dict(list(models.sd1_modules().items())[:6])
    return models.save(models.kohya_lora(shapes, rank=2), tmp_path / "made.safetensors").read_bytes()


def test_every_way_to_name_a_version_leads_to_it(civitai: Civitai, fox: bytes) -> None:
    civitai.add(11, 21, b"old" * 100)
    version = civitai.add(11, 22, fox)
    address = civitai.web.url
    for reference in (
        "civitai:11",
        "civitai:11@22",
        "civitai:@22",
        "urn:air:sdxl:lora:civitai:11@22",
        f"civitai:hash:{version['files'][0]['hashes']['SHA256']}",
        f"civitai:hash:{version['files'][0]['hashes']['AutoV2']}",
    ):
        assert is_reference(reference)
        assert hub.resolve(reference).pinned == "civitai:11@22", reference
    assert hub.resolve("civitai:11@21").pinned == "civitai:11@21"
    assert is_reference("https://civitai.com/models/11/sly-fox?modelVersionId=22")
    for path in ("/models/11/sly-fox?modelVersionId=22", "/models/11", "/api/download/models/22?type=Model"):
        assert hub.resolve(f"{address}{path}").pinned == "civitai:11@22"
    offer = hub.resolve("civitai:11")
    assert (offer.name, offer.triggers, offer.base_model) == ("Sly Fox v2", ("ohwx fox", "sly"), ("SDXL 1.0",))
    assert "commercial use: Image, Rent" in offer.licence and "credit: needed" in offer.licence
    with pytest.raises(UsageError, match="one of model 11"):
        hub.resolve("civitai:12@22")


@pytest.mark.parametrize(
    "reference", ["civitai:", "civitai:fox", "civitai:1@x", "civitai:hash:xyz", "https://civitai.com/user/a"]
)
def test_bad_references_are_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="no reference"):
        hub.resolve(reference)


def test_a_model_is_pulled_and_registered(civitai: Civitai, fox: bytes) -> None:
    civitai.add(11, 22, fox)
    report = pull("civitai:11")
    assert Path(report.output).read_bytes() == fox
    assert Path(report.output).is_relative_to(data_folder() / "models" / "civitai")
    with open_registry() as registry:
        model = registry.model(registry.find("Sly Fox v2").id)
    assert set(model.entry.triggers) == {"ohwx fox", "sly"}
    assert [(one.hub, one.reference, one.revision) for one in model.sources] == [("civitai", "civitai:11", "22")]


@pytest.mark.parametrize(
    "reference",
    [
        "civitai:11@22",
        "urn:air:sdxl:lora:civitai:11@22",
        "https://civitai.com/models/11/sly-fox?modelVersionId=22",
        "civitai:@22",
        "civitai:11/fox.safetensors@22",
    ],
)
def test_a_pinned_version_that_is_here_is_not_asked_for_again(civitai: Civitai, fox: bytes, reference: str) -> None:
    civitai.add(11, 22, fox)
    first = pull(reference)
    civitai.web.requests.clear()
    civitai.storage.requests.clear()
    again = pull(reference, name="reynard")
    assert (first.state, again.state, again.name) == ("pulled", "here", "reynard")
    for key in ("output", "pinned", "hub", "kind", "sha256", "licence", "triggers", "page", "preview", "bytes"):
        assert getattr(again, key) == getattr(first, key), key
    assert local_path(reference) == Path(first.output)
    assert source_of(Path(first.output)) == {"source": "civitai:11@22", "sha256": first.sha256}
    assert not civitai.web.requests and not civitai.storage.requests
    assert show_model(reference if reference.startswith("civitai") else "civitai:11").model.entry.name == "reynard"


def test_another_file_of_a_version_that_is_here_is_asked_for(civitai: Civitai, fox: bytes, tmp_path: Path) -> None:
    other = models.save(models.kohya_lora({"unet.x": (4, 4)}, rank=1), tmp_path / "b.safetensors").read_bytes()
    version = civitai.add(11, 22, fox)
    version["files"].append(civitai.file(22, other, name="small.safetensors"))
    assert Path(pull("civitai:11/small.safetensors@22").output).read_bytes() == other
    assert Path(pull("civitai:11@22").output).read_bytes() == fox
    assert Path(pull("civitai:11/small.safetensors@22").output).read_bytes() == other


def test_a_hash_names_its_own_file_of_a_version(civitai: Civitai, fox: bytes, tmp_path: Path) -> None:
    other = models.save(models.kohya_lora({"unet.x": (4, 4)}, rank=1), tmp_path / "b.safetensors").read_bytes()
    version = civitai.add(11, 22, fox)
    version["files"].append(civitai.file(22, other, name="small @1.safetensors"))
    digest = hashlib.sha256(other).hexdigest()
    pinned = "civitai:11/small%20%401.safetensors@22"
    assert hub.resolve(f"civitai:hash:{digest.upper()}").pinned == hub.reference_of(version, digest) == pinned
    assert Path(pull(pinned).output).read_bytes() == other


def test_what_a_sidecar_claims_is_not_taken_for_a_version(civitai: Civitai, fox: bytes, tmp_path: Path) -> None:
    other = models.save(models.kohya_lora({"unet.x": (4, 4)}, rank=1), tmp_path / "b.safetensors")
    (tmp_path / "b.civitai.info").write_text('{"id": 22, "modelId": 11}')
    add_models([other])
    civitai.add(11, 22, fox)
    assert show_model("civitai:11@22").model.entry.name == "b"
    assert Path(pull("civitai:11@22").output).read_bytes() == fox


def test_what_was_written_since_is_pulled_again(civitai: Civitai, fox: bytes) -> None:
    civitai.add(11, 22, fox)
    path = Path(pull("civitai:11@22").output)
    path.unlink()
    assert pull("civitai:11@22").state == "pulled" and path.read_bytes() == fox


def test_without_a_net_the_version_pulled_last_stands_for_the_newest(civitai: Civitai, fox: bytes) -> None:
    civitai.add(11, 22, fox)
    path = local_path("civitai:11")
    civitai.busy = [Answer(503)] * 100
    told: list[str] = []
    assert local_path("civitai:11", tell=told.append) == path
    assert told[0].endswith("using what was pulled before, civitai:11@22")


@pytest.mark.parametrize(("format", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_a_picture_comes_with_the_model(civitai: Civitai, fox: bytes, tmp_path: Path, format: str, suffix: str) -> None:
    """The first that anybody may see; beside the model it is a PNG, as A1111's web UI wants it."""
    civitai.add(11, 22, fox)
    civitai.pictures["/images/1.png"] = picture(format)
    report = pull("civitai:11", tmp_path / "fox.safetensors")
    kept = data_folder() / "previews" / f"{report.sha256}{suffix}"
    assert kept.read_bytes() == picture(format) and report.preview == str(kept)
    assert [request.path for request in civitai.storage.requests if "images" in request.path] == ["/images/1.png"]
    assert show_model(report.name).previews == (str(kept),)
    export_models([report.name], sidecars=True)
    with Image.open(tmp_path / "fox.preview.png") as beside:
        assert (beside.format, beside.size) == ("PNG", (8, 8))


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (b"<html>", "it is no sound picture"),
        (PNG[:50], "it is no sound picture"),
        (b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 32, "it is no sound picture"),
        (PNG[:16] + (60000).to_bytes(4, "big") * 2 + PNG[24:], "no sound picture|too many"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * (20 << 20), "more than 20 MiB"),
    ],
    ids=["page", "cut off", "sound", "bomb", "large"],
)
def test_what_is_no_picture_is_not_kept(civitai: Civitai, fox: bytes, data: bytes, remark: str) -> None:
    civitai.add(11, 22, fox)
    civitai.pictures["/images/1.png"] = data
    report = pull("civitai:11")
    assert report.state == "pulled" and report.preview == ""
    assert re.search(remark, report.notes[-1])
    assert not list((data_folder() / "previews").glob("*"))


def test_pictures_that_not_everybody_may_see_are_mentioned_only(civitai: Civitai, fox: bytes) -> None:
    version = civitai.add(11, 22, fox)
    version["images"] = [version["images"][0], {"url": f"{civitai.storage.url}/images/2.png"}, "x"]
    report = pull("civitai:11")
    assert "nsfwLevel 8 and up" in report.notes[-1] and not report.preview
    assert not any("images" in request.path for request in civitai.storage.requests)


def test_the_token_goes_to_civitai_alone_and_into_no_log(
    civitai: Civitai, fox: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    civitai.add(11, 22, fox)
    pull("civitai:11", tmp_path / "fox.safetensors")
    assert all("authorization" not in request.headers for request in civitai.storage.requests)
    assert all("token" not in request.query for request in civitai.web.requests)
    monkeypatch.setenv("CIVITAI_TOKEN", "wrong-secret")
    with pytest.raises(CredentialsError) as caught:
        hub.fetch(hub.resolve("civitai:11"), tmp_path / "other.safetensors", NoProgress())
    kept = b"".join(path.read_bytes() for path in data_folder().rglob("*") if path.is_file())
    for secret in (TOKEN, "wrong-secret", "s3cr3t"):
        assert secret not in f"{caplog.text} {caught.value} {caught.value.hint}" and secret.encode() not in kept


def test_the_token_may_lie_in_a_file(civitai: Civitai, fox: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    civitai.add(11, 22, fox)
    monkeypatch.delenv("CIVITAI_TOKEN")
    data_folder().mkdir(parents=True, exist_ok=True)
    (data_folder() / "civitai-token").write_text(f"{TOKEN}\n")
    assert pull("civitai:11").state == "pulled"


def test_who_is_not_logged_in_is_sent_to_the_page(
    civitai: Civitai, fox: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    civitai.add(11, 22, fox)
    monkeypatch.delenv("CIVITAI_TOKEN")
    result = CliRunner().invoke(main, ["pull", "civitai:11"])
    assert result.exit_code == 4 and "wants to know who asks" in result.stderr
    assert "CIVITAI_TOKEN" in result.stderr and "https://civitai.com/user/account" in result.stderr


def test_early_access_is_explained_and_not_refused_by_its_date_alone(
    civitai: Civitai, fox: bytes, tmp_path: Path
) -> None:
    ends = (datetime.now(UTC) + timedelta(days=3)).isoformat().replace("+00:00", "Z")
    civitai.add(11, 22, fox, availability="EarlyAccess", earlyAccessEndsAt=ends)
    civitai.early.add(22)
    with pytest.raises(CredentialsError, match="early access until"):
        pull("civitai:11", tmp_path / "fox.safetensors")
    civitai.bought.add(22)
    assert pull("civitai:11", tmp_path / "fox.safetensors").state == "pulled"


def test_what_is_gone_or_never_to_be_downloaded_is_explained(civitai: Civitai, fox: bytes) -> None:
    with pytest.raises(SdkitError, match="does not have it") as caught:
        hub.resolve("civitai:404")
    assert "civarchive" in caught.value.hint
    civitai.add(11, 22, fox, usageControl="InternalGeneration")
    with pytest.raises(SdkitError, match="on Civitai's site alone"):
        hub.resolve("civitai:11")
    civitai.add(12, 23, fox)
    civitai.models[12]["mode"] = "TakenDown"
    with pytest.raises(SdkitError, match="taken down"):
        hub.resolve("civitai:12")
    civitai.models[13] = {"id": 13, "modelVersions": []}
    with pytest.raises(SdkitError, match="no version"):
        hub.resolve("civitai:13")


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_an_error_page_is_never_saved_as_a_model(civitai: Civitai, fox: bytes, tmp_path: Path, kind: str) -> None:
    page = b"<!DOCTYPE html><html>Something went wrong</html>"
    version = civitai.add(11, 22, fox)
    version["files"][0] |= {"sizeKB": None, "hashes": {}}  # nothing else could tell
    civitai.storage_answers += [lambda answer: Answer(200, page, {"Content-Type": kind})] * 3
    with pytest.raises(SdkitError, match="a page"):
        hub.fetch(hub.resolve("civitai:11"), tmp_path / "fox.safetensors", NoProgress())
    assert [path.name for path in tmp_path.iterdir() if "fox" in path.name] == []


def test_other_bytes_than_promised_are_refused(civitai: Civitai, fox: bytes, tmp_path: Path) -> None:
    civitai.add(11, 22, fox)
    civitai.storage_answers.append(lambda answer: replace(answer, body=answer.body[:-1] + b"!"))
    with pytest.raises(SdkitError, match="sha256"):
        hub.fetch(hub.resolve("civitai:11"), tmp_path / "fox.safetensors", NoProgress())
    assert not (tmp_path / "fox.safetensors").exists()


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_interrupted_20_times_arrives_whole(civitai: Civitai, tmp_path: Path, reset: bool) -> None:
    """Each time the signed address is asked for anew, for the old one may have run out."""
    dice = random.Random(5)
    data = dice.randbytes(300_000)
    civitai.add(11, 22, data)
    civitai.storage_answers += [
        lambda answer: replace(answer, break_after=dice.randrange(1, 12_000), reset=reset) for _ in range(20)
    ]
    hub.fetch(hub.resolve("civitai:11"), tmp_path / "fox.safetensors", NoProgress())
    assert (tmp_path / "fox.safetensors").read_bytes() == data
    downloads = [one for one in civitai.web.requests if one.path.startswith("/api/download")]
    assert len(downloads) == len(civitai.storage.requests) > 20


def test_rate_limits_are_obeyed(civitai: Civitai, fox: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub, "Client", lambda *given: Client(*given, sleep=waits.append))
    civitai.add(11, 22, fox)
    civitai.busy += [Answer(429, b"", {"Retry-After": "7"}), Answer(503)]
    assert hub.resolve("civitai:11").revision == "22"
    assert waits == [7.0, 2.0]


@pytest.mark.parametrize(
    "name", ["../../evil.safetensors", "/etc/passwd", "a\x1b[31m.safetensors", "C:\\x.safetensors", "nul", ""]
)
def test_names_from_the_server_lead_nowhere(civitai: Civitai, fox: bytes, name: str) -> None:
    civitai.add(11, 22, fox, name=name)
    path = hub.fetch(hub.resolve("civitai:11"), None, NoProgress())
    assert path.parent == data_folder() / "models" / "civitai" / "11@22"
    assert path.name.isprintable() and path.read_bytes() == fox


def test_the_right_file_is_chosen_and_the_others_named(civitai: Civitai, fox: bytes) -> None:
    version = civitai.add(11, 22, b"pickle", name="fox.ckpt")
    version["files"][0]["metadata"]["format"] = "PickleTensor"
    version["files"] += [
        civitai.file(22, b"zip", name="data.zip", type="Training Data"),
        civitai.file(22, fox, name="fox 2.safetensors"),
    ]
    offer = hub.resolve("civitai:11")
    assert (offer.files[0].name, offer.pinned) == ("fox 2.safetensors", "civitai:11/fox%202.safetensors@22")
    assert "SafeTensor of 2 files" in offer.why
    assert hub.resolve(offer.pinned).files == offer.files
    assert [hub.resolve(other).files[0].name for other in offer.others] == ["fox.ckpt"]
    with pytest.raises(UsageError, match="no file 'x'") as caught:
        hub.resolve("civitai:11/x")
    assert "fox.ckpt" in caught.value.hint


def test_a_file_elsewhere_is_not_asked_for(civitai: Civitai, fox: bytes) -> None:
    version = civitai.add(11, 22, fox)
    version["files"][0]["downloadUrl"] = "https://evil.example/api/download/models/22"
    with pytest.raises(SdkitError, match="no address of its own"):
        hub.resolve("civitai:11")


def test_answers_that_are_no_description_break_nothing(civitai: Civitai, fox: bytes) -> None:
    version = civitai.add(11, 22, fox)
    version |= {"trainedWords": "x", "images": {"a": 1}, "earlyAccessEndsAt": "soon", "name": 3}
    civitai.models[11] |= {"tags": 5, "creator": None, "stats": []}
    assert hub.resolve("civitai:11@22").revision == "22"
    assert hub.picture_of(version) is None
    (found,) = hub.search("fox")
    assert found.reference == "civitai:11@22"


def test_no_picture_is_taken_from_the_local_network(civitai: Civitai, monkeypatch: pytest.MonkeyPatch) -> None:
    version = civitai.add(11, 22, b"x")
    picture = hub.picture_of(version)
    assert picture is not None and picture.url == f"{civitai.storage.url}/images/1.png"
    monkeypatch.setenv("CIVITAI_ENDPOINT", "https://civitai.com")
    assert hub.picture_of(version) is None


def test_searching_follows_cursors(civitai: Civitai) -> None:
    for number in range(250):
        civitai.add(number, 1000 + number, b"x", baseModel="SDXL 1.0" if number % 2 else "SD 1.5")
    civitai.models[3]["type"] = "Checkpoint"
    assert [one.reference for one in hub.search("fox", limit=240)] == [f"civitai:{n}@{1000 + n}" for n in range(240)]
    found = hub.search("fox", kind="lora", family="sdxl", limit=200)
    assert len(found) == 124 and {one.base for one in found} == {"SDXL 1.0"}
    assert (found[0].kind, found[0].author, found[0].likes, found[0].dislikes) == ("lora", "vixen", 90, 10)


def test_pushing_prepares_what_a_person_publishes(
    civitai: Civitai, fox: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sly.safetensors"
    tensors = models.load(tmp_path / "made.safetensors")
    words = {"modelspec.trigger_phrase": "ohwx <b>", "modelspec.architecture": "stable-diffusion-v1/lora"}
    models.save(tensors, path, {**words, "ss_output_name": "/home/me/sly"})
    Image.new("RGB", (8, 8)).save(
        tmp_path / "sly.png",
        pnginfo=_said("a fox\nNegative prompt: blur\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1"),
    )
    result = CliRunner().invoke(main, ["push", "sly.safetensors", "civitai:", "--dry-run"])
    assert result.exit_code == 0 and not (tmp_path / "sly-civitai").exists(), result.output
    report = push("sly.safetensors", "civitai:")
    folder = Path(report.output)
    assert sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()) == [
        "description.html",
        "details.json",
        "images/1.png",
        "sly.safetensors",
    ]
    data = (folder / "sly.safetensors").read_bytes()
    details = json.loads((folder / "details.json").read_text())
    assert details["files"][0]["hashes"]["SHA256"] == hashlib.sha256(data).hexdigest().upper()
    assert (details["type"], details["baseModel"], details["trainedWords"]) == ("LORA", "SD 1.5", ["ohwx <b>"])
    assert details["samples"] == [{"name": "images/1.png", "prompt": "a fox", "negativePrompt": "blur"}]
    assert "ohwx &lt;b&gt;" in (folder / "description.html").read_text()
    assert b"/home/me" not in data
    assert "civitai.com/models/create" in " ".join(report.notes)
    assert not civitai.web.requests
    with pytest.raises(SdkitError, match="exists"):
        push("sly.safetensors", "civitai:")


def _said(text: str) -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", text)
    return info
