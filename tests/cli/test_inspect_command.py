from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import sdkit
from sdkit.cli.main import main

Sparse = Callable[..., Path]
Header = Callable[[str], dict[str, Any]]

LORA = Path(__file__).parent.parent / "data" / "lora_disney.safetensors"
SDXL_IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
HEAVY = ("torch", "numpy", "rich", "safetensors", "diffusers", "transformers")

CHECKPOINT = """\
model.safetensors: checkpoint, Stable Diffusion XL (sdxl), base
  size      13.9 GB, safetensors, ldm names, 2,531 tensors, 3.47 B parameters: 2,528 F32, 3 I64
  parts     text_encoder    123.1 M parameters  492.2 MB  F32
            text_encoder_2  694.7 M parameters  2.8 GB    F32
            unet            2.57 B parameters   10.3 GB   F32
            vae             83.7 M parameters   334.6 MB  F32
            other           12.1 k parameters   48.6 kB   F32, I64
  predicts  v_prediction
  markers   v_pred, ztsnr, edm_vpred.sigma_max, edm_vpred.sigma_min
  lineage   merge: xl.safetensors + style.safetensors at 0.8
  problems  none found
  why       Stable Diffusion XL: a U-Net with LDM names under model.diffusion_model, 4 input channels, 3 levels \
(attention in -aa), text 2048 wide, attention wrapped in linear layers
            it predicts the velocity: it holds the marker v_pred
            not sd1: its text encoder lies at cond_stage_model.transformer, this one at \
conditioner.embedders.0.transformer
            not sd2: its text encoder lies at cond_stage_model.model (OpenCLIP), this one at \
conditioner.embedders.0.transformer
            not sdxl-refiner: its U-Net does not attend at the coarsest level, this one does
            not sd3: it needs a transformer with joint blocks and learned positions
            not flux: it needs a transformer with blocks of two streams and of one
            not flux2: it needs a transformer whose blocks share their modulations
            not z-image: it needs a transformer that refines picture and text before its blocks
  metadata  modelspec.title  Mix
            … 1 more; --json shows all
"""

ADAPTER = """\
lora_disney.safetensors: LoRA for Stable Diffusion 1 (sd1), cloneofsimo format
  size      1.6 MB, safetensors, 386 tensors, 386.9 k parameters: F32
  changes   192 weights by LoRA, rank 1, alpha 1, scale 1
  modules   text_encoder     48  48 self-attention
            unet            144  64 self-attention, 64 cross-attention, 16 feed-forward
  blocks    IN01-02, IN04-05, IN07-08, M00, OUT03-11
  tokens    <s1>: 1 vector of 768 (text_encoder)
            <s2>: 1 vector of 768 (text_encoder)
  loads in  lora-diffusion*; `sdkit convert --to kohya` writes what most programs read; * by its documentation
  triggers  <s1>, <s2>
  problems  none found
  why       unet:105:down reads text of width 768
            tokens 768 wide belong to the text encoder of Stable Diffusion 1, and the first of SDXL
            cloneofsimo: 384 tensors are named like unet:0:up
  metadata  … 196 entries; --json shows all
"""

TROUBLED = """\
old.safetensors: an OFT of whole rotations, family unknown, kohya format
  size      952 B, safetensors, 4 tensors, 232 parameters: 3 F16, 1 F32
  modules   lora_unet      2  1 feed-forward, 1 other
  problems  this version cannot apply it: lora_unet_b.oft_diag: an OFT of whole rotations is not supported, and \
leaving it out would change the result
  notes     its metadata tell of the training data, with paths and captions: ss_dataset_dirs
  why       no cross-attention, no second text encoder and no metadata tell the family
            kohya: 4 tensors are named like lora_unet_….lora_down.weight
  metadata  ss_output_name  colour me red
            … 1 more; --json shows all
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def shown(folder: Path, result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout.removeprefix(f"{folder}/")


@pytest.fixture
def checkpoint(sparse: Sparse, real_header: Header) -> Path:
    parents = [{"name": "xl.safetensors"}, {"name": "style.safetensors", "strength": 0.8}]
    metadata = {"modelspec.title": "Mix", "sdkit.recipe": json.dumps({"verb": "merge", "parents": parents})}
    return sparse(real_header("sdxl-sgm"), metadata, data={SDXL_IDS: struct.pack("<77q", *range(77))})


def test_a_checkpoint_as_people_see_it(checkpoint: Path) -> None:
    assert shown(checkpoint.parent, run(checkpoint)) == CHECKPOINT


def test_an_adapter_as_people_see_it() -> None:
    assert shown(LORA.parent, run(LORA)) == ADAPTER


def test_a_troubled_file_as_people_see_it(sparse: Sparse) -> None:
    tensors = {
        "lora_unet_a_ff_net_0.lora_down.weight": ("F16", [4, 20]),
        "lora_unet_a_ff_net_0.lora_up.weight": ("F16", [20, 4]),
        "lora_unet_a_ff_net_0.dora_scale": ("F32", [20]),
        "lora_unet_b.oft_diag": ("F16", [13, 4]),
    }
    metadata = {"ss_output_name": "colour\x1b[31m me\nred", "ss_dataset_dirs": "{}"}
    path = sparse(tensors, metadata, name="old.safetensors")
    assert shown(path.parent, run(path)) == TROUBLED


def test_an_unknown_file_says_why_it_is_nothing_known(sparse: Sparse) -> None:
    path = sparse({"what.ever": ("F32", [3])}, name="w.safetensors")
    text = shown(path.parent, run(path))
    assert text.startswith("w.safetensors: unknown\n  size      ")
    assert "problems" not in text
    assert "\n            not kohya: no tensor is named like lora_unet_" in text


def test_json_is_what_the_function_returns(checkpoint: Path) -> None:
    for path in (checkpoint, LORA):
        result = run(path, "--json")
        assert json.loads(result.stdout) == json.loads(json.dumps(sdkit.inspect(path).as_dict()))
        assert result.stderr == ""


def test_quiet_writes_kind_and_family(checkpoint: Path) -> None:
    assert (run(checkpoint, "-q").stdout, run(LORA, "-q").stdout) == ("checkpoint sdxl\n", "lora sd1\n")


def test_long_lists_are_cut_and_counted_but_whole_in_json(sparse: Sparse) -> None:
    tensors = {f"<{number}>": ("F32", [768]) for number in range(40)}
    path = sparse(tensors)
    text = run(path).stdout
    assert text.count("1 vector of 768") == 12
    assert text.count("… 28 more; --json shows all") == 2
    assert len(json.loads(run(path, "--json").stdout)["trigger_words"]) == 40


def test_several_ranks_become_a_span(sparse: Sparse) -> None:
    tensors: dict[str, tuple[str, list[int]]] = {}
    for rank in (4, 8, 16):
        tensors[f"lora_unet_m{rank}.lora_up.weight"] = ("F16", [32, rank])
        tensors[f"lora_unet_m{rank}.lora_down.weight"] = ("F16", [rank, 32])
        tensors[f"lora_unet_m{rank}.alpha"] = ("F32", [])
    tensors["lora_unet_n.diff"] = ("F16", [4, 4])
    data = {name: struct.pack("<f", 8) for name in tensors if name.endswith(".alpha")}
    lines = run(sparse(tensors, data=data)).stdout.splitlines()
    assert lines[0].endswith(": LoRA + full difference, family unknown, kohya format")
    assert "  changes   1 weight by full difference" in lines
    assert "            3 weights by LoRA, rank 4 to 16, alpha 8, scale 0.5 to 2" in lines


def test_damaged_and_missing_files_are_errors(tmp_path: Path, checkpoint: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    with checkpoint.open("rb") as file:
        broken.write_bytes(file.read(1000))
    result = run(broken)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {broken}: truncated: ") and "\n\nhint: " in result.stderr
    missing = run(tmp_path / "modle.safetensors")
    assert missing.exit_code == 1
    assert "no such file or folder" in missing.stderr and "did you mean" in missing.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
def test_nothing_heavy_is_imported_and_little_memory_used(checkpoint: Path) -> None:
    program = f"""
import re, sys
from sdkit.cli.main import main
try:
    main(["inspect", sys.argv[1], "-q"])
except SystemExit as stop:
    peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
    print([name for name in {HEAVY!r} if name in sys.modules], stop.code or 0, int(peak[1]) < 45 * 1024)
"""
    for path in (checkpoint, LORA):
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[] 0 True"
