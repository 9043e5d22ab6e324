from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import models
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import sdkit
from sdkit.cli.main import main
from sdkit.core.errors import UsageError

CROSS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
LORA = models.kohya_lora({CROSS: (320, 768)})


def one(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (file,) = sdkit.verify([path]).files
    return file.problems, file.warnings


def problem(path: Path) -> str:
    (text,) = one(path)[0]
    return text


def test_a_sound_file_is_ok(tmp_path: Path) -> None:
    path = models.save(LORA, tmp_path / "a.safetensors")
    report = sdkit.verify([path])
    (file,) = report.files
    assert (report.bad, file.problems, file.warnings) == (0, (), ())
    assert file.what == "kohya sd1" and file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_pefts_files_are_known_by_the_configuration_beside_them(tmp_path: Path) -> None:
    path = models.save({**LORA, f"{CROSS}.alpha": torch.tensor(2.0)}, tmp_path / "a.safetensors")
    sdkit.convert(path, "peft", tmp_path / "p")
    (file,) = sdkit.verify([tmp_path / "p"]).files
    assert (file.what, file.problems, file.warnings) == ("peft sd1", (), ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><title>Log in</title>", "web page"),
        (b'{"error":"Unauthorized"}', "error message of a server"),
        (b"", "empty"),
        (b"\x10\0\0\0\0\0\0\0{}", "truncated"),
    ],
)
def test_what_came_in_place_of_a_file(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert reason in problem(path)


def test_a_download_that_broke_off(tmp_path: Path) -> None:
    path = models.save(LORA, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    report = sdkit.verify([path])
    assert report.bad == 1 and report.files[0].what == "unreadable"


def test_nan_and_infinity(tmp_path: Path) -> None:
    down = LORA[f"{CROSS}.lora_down.weight"].clone()
    down[1, 2] = float("nan")
    up = LORA[f"{CROSS}.lora_up.weight"].half()
    up[0, 0] = float("-inf")
    path = models.save({f"{CROSS}.lora_down.weight": down, f"{CROSS}.lora_up.weight": up}, tmp_path / "a.safetensors")
    assert problem(path).startswith("holds NaN or infinity in 2 tensors (")


@pytest.mark.parametrize("block", [1, 7, 64])
def test_numbers_are_seen_whatever_piece_they_come_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """The file is read in blocks that end in the middle of numbers; the tensors before and behind are finite."""
    for module in ("sdkit.core.hashing", "sdkit.weights.content"):
        monkeypatch.setattr(f"{module}.BLOCK_BYTES", block)
    for place in range(5):
        tensors = {name: torch.ones(5) for name in "abc"}
        tensors["b"][place] = float("nan")
        path = models.save(tensors, tmp_path / f"{place}.safetensors")
        assert problem(path) == "holds NaN or infinity in 1 tensor (b)"
        torch.save(tensors, tmp_path / f"{place}.pt")
        assert problem(tmp_path / f"{place}.pt") == "holds NaN or infinity in 1 tensor (b)"


def bytes_read() -> int:
    """By this process so far, as Linux counts them."""
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found is not None
    return int(found[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_a_file_is_read_once(tmp_path: Path) -> None:
    """Even where its header states hashes that are to be checked."""
    path = models.save({"w": torch.zeros(1 << 21)}, tmp_path / "a.safetensors")
    path = models.save(load_file(path), path, {"sshs_model_hash": str(sdkit.hash(path).sshs_model_hash)})
    assert one(path)[0] == ()  # whatever is imported for it is imported now
    size, before = path.stat().st_size, bytes_read()
    assert one(path)[0] == ()
    assert size <= bytes_read() - before < 1.2 * size


def test_hashes_in_the_header_are_checked(tmp_path: Path) -> None:
    """The web UIs believe them unseen, so a stale one names another file."""
    path = models.save(LORA, tmp_path / "a.safetensors")
    true = sdkit.hash(path).sshs_model_hash
    good = {"sshs_model_hash": true, "modelspec.hash_sha256": f"0x{true}"}
    assert one(models.save(LORA, tmp_path / "b.safetensors", good))[0] == ()
    stale = models.save(LORA, tmp_path / "c.safetensors", {"sshs_model_hash": "ab" * 32})
    assert problem(stale) == f"its metadata say sshs_model_hash = {'ab' * 32}, which is another file's"


def test_hashes_beside_the_file_are_checked(tmp_path: Path) -> None:
    path = models.save(LORA, tmp_path / "a.safetensors")
    true = hashlib.sha256(path.read_bytes()).hexdigest()
    info = {
        "files": [
            {"name": "other", "hashes": {"SHA256": "CD" * 32}},
            {"name": path.name, "hashes": {"SHA256": true.upper()}},
        ]
    }
    (tmp_path / "a.civitai.info").write_text(json.dumps(info))
    (tmp_path / "a.safetensors.sha256").write_text(f"{true}  a.safetensors\n")
    assert one(path) == ((), ())
    (tmp_path / "a.safetensors.sha256").write_text("ef" * 32)
    assert problem(path) == f"a.safetensors.sha256 says its sha256 is {'ef' * 32}, but it is {true}"


def test_mislabelled_files(tmp_path: Path) -> None:
    lying = models.save(LORA, tmp_path / "a.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    assert problem(lying) == "is mislabelled: its metadata say sdxl, its tensors are sd1's"
    torch.save({"state_dict": models.sd1()}, tmp_path / "b.safetensors")
    (text,), (warning,) = one(tmp_path / "b.safetensors")
    assert "a pickle called .safetensors" in text and "pickle" in warning


class Opener:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, ("/nowhere",))


def test_code_in_a_pickle_is_a_problem_and_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Opener()}, tmp_path / "a.ckpt")
    assert "unsafe pickle" in problem(tmp_path / "a.ckpt")


def test_duplicates_under_other_names_and_metadata(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    first = models.save(LORA, tmp_path / "a.safetensors")
    second = models.save(load_file(first), tmp_path / "more" / "b.safetensors", {"modelspec.title": "mine"})
    models.save({**LORA, f"{CROSS}.alpha": torch.tensor(9.0)}, tmp_path / "c.safetensors")
    report = sdkit.verify([tmp_path])
    assert report.duplicates == ((str(first), str(second)),) and report.bad == 0
    assert report.files[0].warnings == (f"its tensors are those of {second}",)


def test_from_the_command_line(tmp_path: Path) -> None:
    models.save(LORA, tmp_path / "good.safetensors")
    result = CliRunner().invoke(main, ["verify", str(tmp_path)])
    assert result.exit_code == 0 and "1 file, 0 with problems" in result.stdout
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    result = CliRunner().invoke(main, ["verify", str(tmp_path)])
    assert result.exit_code == 1 and "bad.safetensors: BAD" in result.stdout
    quiet = CliRunner().invoke(main, ["verify", str(tmp_path), "-q"])
    assert quiet.exit_code == 1 and quiet.stdout.split() == [str(tmp_path / "bad.safetensors")]
    said = json.loads(CliRunner().invoke(main, ["verify", str(tmp_path), "--json"]).stdout)
    assert [bool(file["problems"]) for file in said["files"]] == [True, False]


def test_the_state_of_a_training_run_is_known_as_one(tmp_path: Path) -> None:
    (tmp_path / "step-00000002").mkdir()
    path = models.save({"trainables.0": torch.ones(2)}, tmp_path / "step-00000002" / "tensors.safetensors")
    assert sdkit.verify([path]).files[0].what == "unknown"
    for name in ("COMPLETE", "state.json"):
        (path.parent / name).write_text("{}")
    (file,) = sdkit.verify([tmp_path]).files
    assert (file.what, file.problems, file.warnings) == ("state of a training run", (), ())


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight file"):
        sdkit.verify([tmp_path])
