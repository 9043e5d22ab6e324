from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from web import Answer, Handler, Request, file_answer, serve

from sdkit.core.errors import CredentialsError, SdkitError
from sdkit.hubs.download import download, download_all
from sdkit.hubs.http import Client, TransientError, redirected
from sdkit.hubs.hub import RemoteFile

DATA = bytes(random.Random(7).randbytes(300_000))
SHA = hashlib.sha256(DATA).hexdigest()
TOKEN = "hf_SecretSecretSecretSecret"


def patient() -> tuple[Client, list[float]]:
    """A client that does not wait, and what it would have waited."""
    waits: list[float] = []
    return Client(sleep=waits.append), waits


def whole(request: Request) -> Answer:
    return file_answer(request, DATA)


def breaking(times: int, seed: int, *, reset: bool) -> Handler:
    left, dice = [times], random.Random(seed)

    def answer(request: Request) -> Answer:
        answer = file_answer(request, DATA)
        if left[0]:
            left[0] -= 1
            return replace(answer, break_after=min(dice.randrange(12_000), len(answer.body) - 1), reset=reset)
        return answer

    return answer


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("sha256", [SHA, ""], ids=["known", "unknown"])
def test_a_download_interrupted_20_times_arrives_whole(tmp_path: Path, reset: bool, sha256: str) -> None:
    client, _ = patient()
    with serve(breaking(20, 3, reset=reset)) as web:
        found = download(RemoteFile("a.bin", f"{web.url}/a.bin", len(DATA), sha256), tmp_path / "a.bin", client)
        sent = sum(1 for request in web.requests if "range" in request.headers)
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert found == SHA
    assert sent >= 10  # it went on, and did not start over each time
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_another_run_goes_on_where_one_was_killed(tmp_path: Path) -> None:
    broken = breaking(100, 1, reset=False)
    waits: list[float] = []

    def killed(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    with serve(lambda request: (broken if len(waits) < 3 else whole)(request)) as web:
        file = RemoteFile("a.bin", f"{web.url}/a.bin?signature=1", len(DATA), SHA)
        with pytest.raises(KeyboardInterrupt):
            download(file, tmp_path / "a.bin", Client(sleep=killed))
        arrived = (tmp_path / ".a.bin.partial").read_bytes()
        assert 0 < len(arrived) < len(DATA)
        assert DATA.startswith(arrived)
        download(replace(file, url=f"{web.url}/a.bin?signature=2"), tmp_path / "a.bin", Client())
        assert web.requests[-1].headers["range"] == f"bytes={len(arrived)}-"
    assert (tmp_path / "a.bin").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_what_another_file_left_is_thrown_away(tmp_path: Path) -> None:
    with serve(whole) as web:
        (tmp_path / ".a.bin.partial").write_bytes(b"?" * 1000)
        (tmp_path / ".a.bin.partial.json").write_text(f'{{"url": "{web.url}/other", "sha256": "{SHA}"}}')
        download(RemoteFile("a.bin", f"{web.url}/a.bin", len(DATA), SHA), tmp_path / "a.bin", Client())
        assert "range" not in web.requests[0].headers
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_what_changed_meanwhile_is_taken_whole(tmp_path: Path) -> None:
    other = DATA[::-1]
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        if len(seen) == 1:
            return replace(file_answer(request, DATA), break_after=1000)
        return file_answer(request, other)

    client, _ = patient()
    with serve(answer) as web:
        download(RemoteFile("a.bin", f"{web.url}/a.bin"), tmp_path / "a.bin", client)
    assert seen[1].headers["range"] == "bytes=1000-"
    assert (tmp_path / "a.bin").read_bytes() == other


def test_a_server_without_ranges_is_asked_from_the_start(tmp_path: Path) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return Answer(200, DATA, {"ETag": '"a"'}, break_after=5000 if len(seen) < 3 else None)

    client, _ = patient()
    with serve(answer) as web:
        download(RemoteFile("a.bin", f"{web.url}/a.bin", len(DATA), SHA), tmp_path / "a.bin", client)
    assert (tmp_path / "a.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda request: Answer(200, DATA[:-1]), "promises"),
        (lambda request: Answer(200, DATA[:-1] + b"?"), "not " + SHA),
        (lambda request: Answer(200, b"<!DOCTYPE html><p>log in</p>", {"Content-Type": "text/html"}), "page"),
        (lambda request: Answer(200, b'{"error": "gone"}', {"Content-Type": "application/json"}), "page"),
        (lambda request: Answer(404), "nothing"),
        (lambda request: Answer(200, DATA, {"Content-Encoding": "gzip"}), "packed"),
    ],
    ids=["short", "damaged", "page", "json", "missing", "packed"],
)
def test_what_is_not_the_file_never_gets_its_name(tmp_path: Path, answer: Handler, message: str) -> None:
    client, _ = patient()
    size = len(DATA) if message in ("promises", "not " + SHA) else None
    with serve(answer) as web, pytest.raises(SdkitError, match=message):
        download(RemoteFile("a.bin", f"{web.url}/a.bin", size, SHA), tmp_path / "a.bin", client)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [b"{", b" {"])
def test_a_header_whose_length_reads_as_text_is_no_page(tmp_path: Path, length: bytes) -> None:
    body = length.ljust(8, b"\0") + b'{"__metadata__": {}' + b" " * 40_000
    client, _ = patient()
    with serve(lambda request: Answer(200, body)) as web:
        download(RemoteFile("a.safetensors", f"{web.url}/a.safetensors"), tmp_path / "a.safetensors", client)
    assert (tmp_path / "a.safetensors").read_bytes() == body


def test_a_dead_server_is_given_up_and_what_arrived_stays(tmp_path: Path) -> None:
    client, waits = patient()
    dead = [False]

    def answer(request: Request) -> Answer:
        found = file_answer(request, DATA)
        if dead[0]:
            return replace(found, break_after=0)
        dead[0] = True
        return replace(found, break_after=4000)

    with serve(answer) as web, pytest.raises(TransientError, match="296,000 of 300,000"):
        download(RemoteFile("a.bin", f"{web.url}/a.bin", len(DATA), SHA), tmp_path / "a.bin", client)
    assert (tmp_path / ".a.bin.partial").stat().st_size == 4000
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_a_full_disk_is_reported_before_the_first_byte(tmp_path: Path) -> None:
    client, _ = patient()
    with serve(lambda request: Answer(500)) as web, pytest.raises(SdkitError, match="GB free"):
        download(RemoteFile("a.bin", f"{web.url}/a.bin", 10**18), tmp_path / "a.bin", client)
    assert web.requests == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(SdkitError, match="already exists"):
        download(RemoteFile("a.bin", "http://127.0.0.1:1/a.bin"), tmp_path / "a.bin", Client())
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    client, _ = patient()
    broken = [True]

    def answer(request: Request) -> Answer:
        if request.path == "/b" and broken[0]:
            return Answer(404)
        return file_answer(request, DATA)

    with serve(answer) as web:
        files = (RemoteFile("a.bin", f"{web.url}/a"), RemoteFile("unet/b.bin", f"{web.url}/b"))
        with pytest.raises(SdkitError):
            download_all(files, tmp_path / "model", client)
        assert not (tmp_path / "model").exists()
        broken[0] = False
        download_all(files, tmp_path / "model", client)
        assert [request.path for request in web.requests] == ["/a", "/b", "/b"]
    assert (tmp_path / "model" / "unet" / "b.bin").read_bytes() == DATA


@pytest.mark.parametrize(
    "name", ["../b", "/etc/b", "a/../../b", "C:\\b", "a\\b", "b\0", "con", "a/", "b.", "\x1b[2J", "x" * 300]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SdkitError, match="no safe name"):
        download_all((RemoteFile(name, "http://127.0.0.1:1/"),), tmp_path / "model", Client())
    assert not (tmp_path.parent / "b").exists()


# Tokens


def test_a_token_is_shown_to_its_host_and_never_across_a_redirect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(whole) as storage:
        location = {"Location": f"{storage.url}/a?X-Amz-Signature=topsecret"}
        with serve(lambda request: Answer(302, b"", location)) as hub:
            client = Client({hub.url: TOKEN})
            download(RemoteFile("a.bin", f"{hub.url}/a", None, SHA), tmp_path / "a.bin", client)
            assert hub.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert "authorization" not in storage.requests[0].headers
    assert storage.requests[0].query == {"X-Amz-Signature": ["topsecret"]}
    assert caplog.records
    assert TOKEN not in caplog.text and "topsecret" not in caplog.text
    assert TOKEN not in repr(client)


def test_passwords_in_netrc_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serve(whole) as web:
        download(RemoteFile("a.bin", f"{web.url}/a"), tmp_path / "a.bin", Client())
    assert "authorization" not in web.requests[0].headers


def test_errors_show_no_query(tmp_path: Path) -> None:
    with serve(lambda request: Answer(403)) as web, pytest.raises(CredentialsError) as error:
        download(RemoteFile("a.bin", f"{web.url}/a?token={TOKEN}"), tmp_path / "a.bin", Client())
    assert error.value.exit_code == 4
    assert TOKEN not in error.value.message + error.value.hint


# Patience


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    answers = [
        Answer(429, b"", {"Retry-After": "7"}),
        Answer(429, b"", {"RateLimit": '"api";r=0;t=55'}),
        Answer(503),
    ]
    client, waits = patient()
    with serve(lambda request: answers.pop(0) if answers else file_answer(request, DATA)) as web:
        download(RemoteFile("a.bin", f"{web.url}/a"), tmp_path / "a.bin", client)
    assert waits == [7.0, 55.0, 4.0]


def test_a_server_that_wants_an_hour_is_not_waited_for(tmp_path: Path) -> None:
    client, waits = patient()
    busy = Answer(429, b"", {"Retry-After": "3600"})
    with serve(lambda request: busy) as web, pytest.raises(TransientError) as error:
        download(RemoteFile("a.bin", f"{web.url}/a"), tmp_path / "a.bin", client)
    assert "3600 seconds" in error.value.hint
    assert waits == []


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://hub.example/a", "http://hub.example/a"),
        ("https://hub.example/a", "https://127.0.0.1/a"),
        ("https://hub.example/a", "https://10.0.0.1/a"),
        ("https://hub.example/a", "https://localhost/a"),
    ],
)
def test_redirects_lead_neither_inwards_nor_into_the_open(url: str, target: str) -> None:
    with pytest.raises(SdkitError, match="redirected"):
        redirected(url, target)


def test_redirects_end(tmp_path: Path) -> None:
    with (
        serve(lambda request: Answer(302, b"", {"Location": request.path})) as web,
        pytest.raises(SdkitError, match="without end"),
    ):
        download(RemoteFile("a.bin", f"{web.url}/a"), tmp_path / "a.bin", Client())
    assert len(web.requests) == 11


def test_a_range_is_read_from_servers_of_both_kinds() -> None:
    kinds: list[Callable[[Request], Answer]] = [
        lambda request: file_answer(request, DATA),
        lambda request: Answer(200, DATA),
    ]
    for kind in kinds:
        with serve(kind) as web:
            assert Client().read_range(f"{web.url}/a", 1000, 2000) == DATA[1000:2000]
