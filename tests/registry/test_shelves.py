"""Other programs: their folders, the files they keep beside models, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from drawn import picture

from sdkit.cli.main import main
from sdkit.core.errors import SdkitError
from sdkit.core.paths import data_folder
from sdkit.jobs.models.edit import change_words
from sdkit.jobs.models.exchange import export_models, import_models
from sdkit.jobs.models.files import add_models, scan_models
from sdkit.jobs.models.place import place_model
from sdkit.jobs.models.show import show_model
from sdkit.registry import open_registry

NAMES = ("lora_down.weight", "lora_up.weight")
LORA = {f"lora_unet_mid_block_attentions_0_proj_in.{name}": ("F16", [4, 4]) for name in NAMES}
EMBEDDING = {"emb_params": ("F16", [2, 768])}

ROOTS = {
    "a1111": (["models/Stable-diffusion", "modules"], "models/Lora", "embeddings"),
    "forge": (["models/Stable-diffusion", "modules_forge"], "models/Lora", "embeddings"),
    "comfyui": (["models/checkpoints", "models/loras", "custom_nodes"], "models/loras", "models/embeddings"),
    "invokeai": (["databases/invokeai.db", "models"], "models/any/lora", "models/any/embedding"),
}


@pytest.fixture(params=sorted(ROOTS))
def program(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A program and its folder."""
    for folder in ROOTS[request.param][0]:
        (tmp_path / "root" / folder).mkdir(parents=True)
    (tmp_path / "root" / "venv").mkdir()
    return request.param, tmp_path / "root"


def test_shelves_are_found_and_nothing_else(program: tuple[str, Path], sparse: Callable[..., Path]) -> None:
    name, root = program
    (root / ROOTS[name][1]).mkdir(parents=True, exist_ok=True)
    sparse(LORA).rename(root / ROOTS[name][1] / "fox.safetensors")
    sparse(LORA).rename(root / "venv" / "not-a-model.safetensors")
    (report,) = scan_models([root]).scans
    assert report.program == name
    assert [Path(path).name for path in report.new] == ["fox.safetensors"]


def test_comfyui_names_folders_elsewhere(tmp_path: Path, sparse: Callable[..., Path]) -> None:
    root, other = tmp_path / "root", tmp_path / "webui"
    for folder in (root / "models/checkpoints", root / "models/loras", other / "Lora", other / "nodes"):
        folder.mkdir(parents=True)
    for name, folder in (("fox", other / "Lora"), ("no-model", other / "nodes"), ("hare", tmp_path / "more")):
        folder.mkdir(exist_ok=True)
        sparse(LORA, {"ss_output_name": name}, name="x.safetensors").rename(folder / f"{name}.safetensors")
    (root / "extra_model_paths.yaml").write_text(
        f"webui:\n  base_path: {other}\n  is_default: true\n  loras: |\n    Lora\n    nowhere\n  custom_nodes: nodes\n"
        "near:\n  loras: ../more\nempty:\n"
    )
    (report,) = scan_models([root]).scans
    assert sorted(Path(path).name for path in report.new) == ["fox.safetensors", "hare.safetensors"]
    (other / "Lora" / "fox.safetensors").unlink()
    (report,) = scan_models([root]).scans
    assert [Path(path).name for path in report.missing] == ["fox.safetensors"]
    (root / "extra_model_paths.yaml").write_text("a: [")
    with pytest.raises(SdkitError, match="no YAML"):
        scan_models([root])


def test_placing_puts_a_file_where_the_program_looks(program: tuple[str, Path], sparse: Callable[..., Path]) -> None:
    name, root = program
    lora, embedding = sparse(LORA, name="fox.safetensors"), sparse(EMBEDDING, name="word.safetensors")
    add_models([lora, embedding])
    placed = place_model("fox", name, root)
    assert placed.link == "hard" and os.path.samefile(placed.output, lora)
    assert Path(placed.output) == root / ROOTS[name][1] / "fox.safetensors"
    assert place_model("fox", name, root).link == ""
    assert Path(place_model("word", name, root).output).parent == root / ROOTS[name][2]
    with open_registry() as registry:
        assert len(registry.model(registry.find("fox").id).files) == 2


@pytest.mark.parametrize(
    ("link", "is_link", "is_same"), [("hard", False, True), ("symbolic", True, True), ("copy", False, False)]
)
def test_kinds_of_links(tmp_path: Path, sparse: Callable[..., Path], link: str, is_link: bool, is_same: bool) -> None:
    lora = sparse(LORA, name="fox.safetensors")
    (tmp_path / "root").mkdir()
    output = Path(place_model(str(lora), "comfyui", tmp_path / "root", link=link).output)  # type: ignore[arg-type]
    assert (output.is_symlink(), os.path.samefile(output, lora)) == (is_link, is_same)
    assert output.read_bytes() == lora.read_bytes()


def test_placing_replaces_and_escapes_nothing(tmp_path: Path, sparse: Callable[..., Path]) -> None:
    lora = sparse(LORA, name="fox.safetensors")
    root = tmp_path / "root"
    (root / "models/loras").mkdir(parents=True)
    (root / "models/loras/fox.safetensors").write_text("mine")
    with pytest.raises(SdkitError, match="is another file"):
        place_model(str(lora), "comfyui", root)
    with pytest.raises(SdkitError, match="outside"):
        place_model(str(lora), "comfyui", root, subfolder="../../..")
    assert (root / "models/loras/fox.safetensors").read_text() == "mine"
    undo = sparse({"tensor/x": ("U8", [4])}, {"sdkit.undo": "{}"}, name="back.safetensors")
    with pytest.raises(SdkitError, match="loads no undo files"):
        place_model(str(undo), "comfyui", root)


CIVITAI = {
    "id": 22,
    "modelId": 11,
    "name": "v2",
    "trainedWords": ["ohwx fox", 3],
    "description": "<p>A <b>fox</b> &amp; more</p>",
    "model": {"name": "Fox", "type": "LORA"},
    "files": [{"hashes": {"SHA256": "00" * 32}}],
}


def test_sidecars_are_read(tmp_path: Path, sparse: Callable[..., Path]) -> None:
    sparse(LORA, name="fox.safetensors")
    (tmp_path / "fox.civitai.info").write_text(json.dumps(CIVITAI))
    (tmp_path / "fox.json").write_text(json.dumps({"activation text": "sly, red", "notes": "at 0.7"}))
    (tmp_path / "fox.preview.png").write_bytes(b"png")
    scan_models([tmp_path])
    shown = show_model("fox")
    assert set(shown.model.entry.triggers) == {"ohwx fox", "sly", "red"}
    assert [(one.hub, one.reference, one.revision) for one in shown.model.sources] == [("civitai", "civitai:11", "22")]
    assert [" ".join(note.split()) for note in shown.model.notes] == ["A fox & more", "at 0.7"]
    assert [Path(picture).name for picture in shown.previews] == ["fox.preview.png"]
    assert "sha256" not in dict(shown.model.identities)  # what a sidecar claims is no hash of ours


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, '{"trainedWords": {"a": 1}, "modelId": "x"}', '{"a": 1}'])
def test_broken_sidecars_are_none(tmp_path: Path, sparse: Callable[..., Path], text: str) -> None:
    sparse(LORA, name="fox.safetensors")
    for suffix in (".civitai.info", ".json"):
        (tmp_path / f"fox{suffix}").write_text(text)
    scan_models([tmp_path])
    assert show_model("fox").model.sources == ()


def test_a_persons_words_outlive_scans_and_sidecars(tmp_path: Path, sparse: Callable[..., Path]) -> None:
    path = sparse(LORA, {"modelspec.trigger_phrase": "old"}, name="fox.safetensors")
    add_models([path])
    change_words("triggers", "fox", ["mine", "old"])
    sparse(LORA, {"modelspec.trigger_phrase": "new"}, name="fox.safetensors")
    scan_models([tmp_path])
    assert set(show_model("fox").model.entry.triggers) == {"mine", "old", "new"}


def test_sidecars_are_written_and_kept(tmp_path: Path, sparse: Callable[..., Path]) -> None:
    path = sparse(LORA, {"modelspec.trigger_phrase": "ohwx"}, name="fox.safetensors")
    add_models([path], hash=True)
    (tmp_path / "fox.json").write_text('{"notes": "mine"}')
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "00000010.png").write_bytes(picture("PNG"))
    report = export_models(["fox"], sidecars=True)
    assert not isinstance(report, dict)
    assert [Path(one).name for one in report.kept] == ["fox.json"]
    assert (tmp_path / "fox.json").read_text() == '{"notes": "mine"}'
    info = json.loads((tmp_path / "fox.civitai.info").read_text())
    assert info["trainedWords"] == ["ohwx"] and info["model"]["type"] == "LORA"
    assert len(info["files"][0]["hashes"]["SHA256"]) == 64
    assert (tmp_path / "fox.preview.png").read_bytes() == picture("PNG")


def test_json_goes_out_and_in(tmp_path: Path, sparse: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = sparse(LORA, name="fox.safetensors")
    add_models([path])
    change_words("tags", "fox", ["best"])
    with open_registry() as registry:
        registry.rename(registry.find("fox").id, "reynard")
    export_models(output=tmp_path / "all.json")
    monkeypatch.setenv("SDKIT_HOME", str(tmp_path / "another"))
    assert import_models(tmp_path / "all.json") == type(import_models(tmp_path / "all.json"))(0, 1)
    add_models([path])
    entry = show_model("reynard").model.entry
    assert (entry.tags, entry.path) == (("best",), str(path))
    (tmp_path / "other.json").write_text('{"schema": "another"}')
    with pytest.raises(SdkitError, match="no export"):
        import_models(tmp_path / "other.json")


def test_the_command_line(tmp_path: Path, sparse: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sparse(LORA, name="fox.safetensors")

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["models", *words])
        assert result.exit_code == code, result.output
        return result.output

    assert "nothing is registered yet" in run()
    run("scan", ".")
    assert run("-q") == "fox\n"
    assert run("fo", "-q") == "fox\n" and run("--kind", "checkpoint", "-q") == ""
    run("tag", "fox", "best", "red")
    run("note", "fox", "good", "at", "0.7")
    assert run("--tag", "BEST", "-q") == "fox\n"
    assert "good at 0.7" in run("show", "fox")
    run("rename", "fox", "reynard")
    assert "did you mean reynard?" in run("show", "reynart", code=1)
    assert json.loads(run("show", "reynard", "--json"))["model"]["entry"]["tags"] == ["best", "red"]
    assert "verified" in run("verify")
    run("remove", "reynard")
    assert run("-q") == "" and (tmp_path / "fox.safetensors").exists()


def test_completion_knows_names(sparse: Callable[..., Path]) -> None:
    add_models([sparse(LORA, name="fox.safetensors")])
    for line, beginning in (("sdkit models show fo", "fo"), ("sdkit inspect fo", "fo"), ("sdkit merge base fo", "fo")):
        environment = {"_SDKIT_COMPLETE": "fish_complete", "COMP_WORDS": line, "COMP_CWORD": beginning}
        assert CliRunner().invoke(main, [], env=environment).stdout.startswith("plain,fox"), line


def test_completion_makes_no_registry() -> None:
    environment = {"_SDKIT_COMPLETE": "fish_complete", "COMP_WORDS": "sdkit inspect fo", "COMP_CWORD": "fo"}
    assert CliRunner().invoke(main, [], env=environment).stdout.startswith("file,")
    assert not data_folder().exists()
