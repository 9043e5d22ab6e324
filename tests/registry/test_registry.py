"""What is known of files, and what happens to it when they are moved, edited, copied, deleted."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.paths import cache_folder, data_folder
from sdkit.families.bases import resolve_base
from sdkit.jobs.models.edit import remove_models
from sdkit.jobs.models.files import add_models, scan_models
from sdkit.jobs.models.verify import verify_models
from sdkit.registry import open_registry
from sdkit.registry.names import known_names, resolve
from sdkit.registry.naming import check_name

ROLES = {"lora_down.weight": ("F16", [4, 320]), "lora_up.weight": ("F16", [320, 4]), "alpha": ("F16", [])}
LORA = {
    f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{name}.{role}": shape
    for name in "qkv"
    for role, shape in ROLES.items()
}


@pytest.fixture
def lora(sparse: Callable[..., Path]) -> Callable[..., Path]:
    """A LoRA with some numbers in it; `fill` makes its tensors differ from others'."""

    def make(name: str, fill: int = 1, metadata: dict[str, str] | None = None) -> Path:
        data = {key: bytes([fill]) * 8 * len(shape) for key, (_, shape) in LORA.items()}
        return sparse(LORA, metadata or {}, data, f"{name}.safetensors")

    return make


def rewritten(path: Path, metadata: dict[str, str]) -> None:
    """The same tensors as another library writes them, in another order and with other metadata."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    save_file(dict(reversed(tensors.items())), path, metadata)


def entries() -> dict[str, int]:
    with open_registry() as registry:
        return {entry.name: entry.id for entry in registry.entries()}


def test_facts_come_from_the_header(lora: Callable[..., Path]) -> None:
    add_models([lora("fox", metadata={"modelspec.trigger_phrase": "ohwx fox", "modelspec.license": "MIT"})])
    with open_registry() as registry:
        model = registry.model(registry.find("fox").id)
    assert (model.entry.kind, model.entry.format, model.details["rank"]) == ("lora", "kohya", 4)
    assert (model.entry.triggers, model.licences) == (("ohwx fox",), ("MIT",))
    assert model.files[0].sha256 is None and model.content_id is None
    assert [scheme for scheme, _ in model.identities] == ["quick"]


def test_a_moved_file_keeps_what_is_known_of_it(lora: Callable[..., Path], tmp_path: Path) -> None:
    path = lora("fox")
    add_models([path])
    before = entries()["fox"]
    with open_registry() as registry:
        registry.add_words("tags", before, ["best"])
    (tmp_path / "elsewhere").mkdir()
    path.rename(tmp_path / "elsewhere" / "vulpes.safetensors")
    (report,) = scan_models([tmp_path]).scans
    assert report.missing == ()
    with open_registry() as registry:
        model = registry.model(registry.find("vulpes").id)
    assert (model.entry.id, model.entry.tags) == (before, ("best",))
    assert [Path(file.path).parent.name for file in model.files] == ["elsewhere"]


def test_a_file_retagged_where_it_lies_stays_the_same_model(lora: Callable[..., Path], tmp_path: Path) -> None:
    path = lora("fox")
    add_models([path])
    before = entries()
    with open_registry() as registry:
        registry.rename(before["fox"], "reynard")
    rewritten(path, {"modelspec.trigger_phrase": "sly"})
    (report,) = scan_models([tmp_path]).scans
    assert report.changed == (str(path),)
    with open_registry() as registry:
        entry = registry.find("reynard")
    assert (entry.id, entry.triggers) == (before["fox"], ("sly",))


def test_other_tensors_at_a_known_path_are_another_model(lora: Callable[..., Path], tmp_path: Path) -> None:
    add_models([lora("fox")])
    before = entries()["fox"]
    lora("fox", fill=2)
    scan_models([tmp_path])
    assert entries()["fox"] != before


def test_a_retagged_copy_is_united_when_it_is_verified(lora: Callable[..., Path], tmp_path: Path) -> None:
    path = lora("fox")
    copy = tmp_path / "copy.safetensors"
    shutil.copy(path, copy)
    rewritten(copy, {"ss_output_name": "copy"})
    scan_models([tmp_path])
    ids = entries()
    assert set(ids) == {"fox", "copy"}
    with open_registry() as registry:
        registry.add_words("tags", ids["fox"], ["one"])
        registry.add_words("tags", ids["copy"], ["two"])
    report = verify_models()
    assert sorted(file.state for file in report.files) == ["united", "verified"]
    with open_registry() as registry:
        (entry,) = registry.entries()
        model = registry.model(entry.id)
    assert entry.tags == ("one", "two")
    assert {Path(file.path).name for file in model.files} == {"fox.safetensors", "copy.safetensors"}
    digests = {file.path: file.sha256 for file in model.files}
    for one in (path, copy):
        told = subprocess.run(
            [sys.executable, "-m", "sdkit", "hash", "-q", one], capture_output=True, text=True, check=True
        )
        assert told.stdout.split()[0] == digests[str(one)]


def test_hashes_are_read_once(lora: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lora("fox")
    add_models([path], hash=True)
    remove_models(["fox"])
    monkeypatch.setattr("sdkit.weights.content._hash_file", lambda *_: pytest.fail("read again"))
    assert path.exists()
    add_models([path])
    assert verify_models().unchanged == 1


def test_what_only_looked_like_an_edit_is_parted_when_verified(tmp_path: Path, sparse: Callable[..., Path]) -> None:
    """A change of a few bytes can lie where no sample is taken; the whole hash finds it."""
    big = {"lora_unet_x.lora_down.weight": ("F16", [4, 320000]), "lora_unet_x.lora_up.weight": ("F16", [320000, 4])}
    path = sparse(big, {}, {}, "big.safetensors")
    add_models([path], hash=True)
    before = entries()["big"]
    sparse(big, {"note": "edited"}, {"lora_unet_x.lora_down.weight": b"\1"}, "big.safetensors")
    scan_models([tmp_path])
    assert entries()["big"] == before
    (file,) = verify_models().files
    assert file.state == "parted"
    assert entries()["big"] != before


def test_a_deleted_file_is_missing_and_comes_back(lora: Callable[..., Path], tmp_path: Path) -> None:
    path = lora("fox")
    scan_models([tmp_path])
    path.unlink()
    (report,) = scan_models([]).scans
    assert report.missing == (str(path),)
    with open_registry() as registry:
        assert [entry.name for entry in registry.entries(missing=True)] == ["fox"]
    with pytest.raises(SdkitError, match="no file of it is there"):
        resolve("fox")
    lora("fox")
    scan_models()
    assert resolve("fox") == path


def test_damage_on_the_disk_is_found(lora: Callable[..., Path]) -> None:
    path = lora("fox")
    add_models([path], hash=True)
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify_models().unchanged == 1
    (file_report,) = verify_models(again=True).files
    assert file_report.state == "damaged"


def test_removing_deletes_no_file_unless_told(lora: Callable[..., Path]) -> None:
    path = lora("fox")
    add_models([path])
    assert remove_models(["fox"]).deleted == ()
    assert path.exists() and entries() == {}
    add_models([path])
    path.touch()
    with pytest.raises(SdkitError, match="written since"):
        remove_models(["fox"], delete=True)
    add_models([path])
    assert remove_models(["fox"], delete=True).deleted == (str(path),)
    assert not path.exists()


def test_the_store_keeps_a_copy_under_its_hash(lora: Callable[..., Path]) -> None:
    path = lora("fox")
    add_models([path], store=True)
    path.unlink()
    kept = resolve("fox")
    assert kept.is_relative_to(data_folder() / "store")
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == kept.stem


def test_search_finds_any_word(lora: Callable[..., Path], tmp_path: Path) -> None:
    add_models([lora("red_fox"), lora("badger", fill=2, metadata={"modelspec.trigger_phrase": "brock"})])
    ids = entries()
    with open_registry() as registry:
        registry.add_words("notes", ids["red_fox"], ["good at strength 0.7"])
        found = {
            word: [entry.name for entry in registry.entries([word])] for word in ("fox", "bro", "strength", "zebra")
        }
        assert registry.entries(['"; DROP TABLE files --']) == []
        assert registry.count(["fox"]) == 1
    assert found == {"fox": ["red_fox"], "bro": ["badger"], "strength": ["red_fox"], "zebra": []}


def test_an_ambiguous_name_lists_both(lora: Callable[..., Path], tmp_path: Path) -> None:
    path = lora("fox")
    add_models([path])
    (tmp_path / "other").mkdir()
    path.rename(tmp_path / "other" / "fox.safetensors")
    add_models([tmp_path / "other" / "fox.safetensors", lora("fox", fill=2)])
    with pytest.raises(UsageError) as caught:
        resolve("fox")
    assert str(path) in caught.value.message and "other" in caught.value.message
    assert resolve(f"@{min(entries().values())}").exists()


def test_a_path_that_exists_wins(lora: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lora("fox")
    add_models([path])
    monkeypatch.chdir(tmp_path)
    assert resolve("fox") == path
    (tmp_path / "fox").mkdir()
    assert resolve("fox") == Path("fox")
    assert resolve("no-such-model") == Path("no-such-model")
    assert known_names("f") == ["fox"]


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\\b", "-x", "@1", "../x", "a\x1b[31m", "a=1", "x" * 200])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


def test_control_characters_never_reach_a_name(lora: Callable[..., Path]) -> None:
    path = lora("fox")
    evil = path.with_name("evil\x1b]0;x\x07\n.safetensors")
    path.rename(evil)
    (model,) = add_models([evil]).models
    assert model.name.isprintable()
    assert resolve(model.name) == evil


def test_home_moves_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path / "mine"))
    monkeypatch.delenv("SDKIT_CACHE")
    assert data_folder() == tmp_path / "mine"
    assert cache_folder().is_relative_to(tmp_path / "mine")


def test_switched_off(monkeypatch: pytest.MonkeyPatch, lora: Callable[..., Path]) -> None:
    path = lora("fox")
    monkeypatch.setenv("SDKIT_REGISTRY", "off")
    with pytest.raises(SdkitError, match="switched off"):
        add_models([path])
    assert resolve("fox") == Path("fox")
    assert not data_folder().exists()


def test_scanning_skips_what_is_no_model(tmp_path: Path, lora: Callable[..., Path]) -> None:
    lora("fox")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    (tmp_path / "page.ckpt").write_bytes(b"<html>not found</html>")
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "events.jsonl").touch()
    shutil.copy(tmp_path / "fox.safetensors", tmp_path / "run" / "state" / "t.safetensors")
    os.symlink(tmp_path, tmp_path / "run" / "loop")
    (report,) = scan_models([tmp_path]).scans
    assert (report.models, len(report.new)) == (1, 1)
    assert sorted(Path(one.path).name for one in report.skipped) == ["half.safetensors", "page.ckpt"]


@pytest.mark.parametrize("each", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_eight_processes_lose_nothing(tmp_path: Path, each: int) -> None:
    program = """
import sys
from pathlib import Path
from sdkit.registry import open_registry
from sdkit.registry.facts import Facts
who = int(sys.argv[1])
for number in range(int(sys.argv[2])):
    with open_registry() as registry:
        path, name = Path(f"/m/{who}-{number}.safetensors"), f"{who}-{number}"
        registry.observe(Facts(path, name, 1, name, "s", "lora", "sd1", "kohya", (), "", None, {}))
"""
    workers = [subprocess.Popen([sys.executable, "-c", program, str(who), str(each)]) for who in range(8)]
    assert [worker.wait() for worker in workers] == [0] * 8
    with open_registry() as registry:
        assert registry.count() == 8 * each
    with sqlite3.connect(data_folder() / "registry.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_list_needs_no_torch(lora: Callable[..., Path]) -> None:
    add_models([lora("fox")])
    program = """
import sys
from sdkit.cli.main import main
try:
    main(["models", "--json"])
except SystemExit:
    print([name for name in ("torch", "numpy", "rich", "safetensors") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert [model["name"] for model in json.loads(done.stdout)["models"]] == ["fox"]


def test_tiny_is_the_embedded_base_whatever_else_is_called_so(
    lora: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_models([lora("tiny")])
    monkeypatch.chdir(tmp_path / "..")
    assert resolve("tiny") == resolve_base("tiny")
    assert resolve("@1") == tmp_path / "tiny.safetensors"
