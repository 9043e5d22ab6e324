from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
from click.testing import CliRunner, Result

from sdkit.cli.main import main


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("quickstart")
    result = CliRunner().invoke(main, ["quickstart", "-o", str(folder), "--steps", "3", "--json"])
    assert result.exit_code == 0, result.stderr
    return result


def test_everything_it_speaks_of_is_there(made: Result) -> None:
    report = json.loads(made.stdout)
    for name in ("base", "lora", "merged", "sheet", "report"):
        assert Path(report[name]).stat().st_size > 0
    assert PIL.Image.open(report["sheet"]).width > 12 * 64
    assert 0 <= report["nearest_before"] <= 1 and 0 <= report["nearest_after"] <= 1


def test_the_merged_file_is_the_base_with_the_lora(made: Result) -> None:
    from safetensors.torch import load_file

    report = json.loads(made.stdout)
    base, merged, lora = (load_file(report[name]) for name in ("base", "merged", "lora"))
    assert report["modules"] == sum(key.endswith("lora_down.weight") for key in lora)
    module, key = "lora_unet_mid_block_attentions_0_proj_in", "model.diffusion_model.middle_block.1.proj_in.weight"
    up, down = (lora[f"{module}.lora_{half}.weight"].double().flatten(1) for half in ("up", "down"))
    scale = float(lora[f"{module}.alpha"]) / down.shape[0]
    expected = base[key].double() + scale * (up @ down).reshape(base[key].shape)
    assert (merged[key].double() - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert not merged[key].equal(base[key])
    assert all(merged[key].equal(base[key]) for key in base if key.startswith("first_stage_model"))
