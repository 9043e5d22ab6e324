from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from sdkit.cli.main import main
from sdkit.jobs.example import Sizes, lora_modules


def test_quickstart_merges_every_module_and_can_be_repeated(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "quickstart"
    first = CliRunner().invoke(main, ["quickstart", "-o", str(folder), "--json"])
    assert first.exit_code == 0, first.stderr
    made = json.loads(first.stdout)
    assert made["modules"] == len(lora_modules(Sizes()))
    merged = Path(made["merged"]).read_bytes()
    base, result, lora = (load_file(made[name]) for name in ("base", "merged", "lora"))
    key, module = "model.diffusion_model.middle_block.1.proj_in.weight", "lora_unet_mid_block_attentions_0_proj_in"
    up, down = (lora[f"{module}.lora_{half}.weight"].double().flatten(1) for half in ("up", "down"))
    expected = base[key].double() + 0.8 * 2.0 / 4 * (up @ down).reshape(base[key].shape)
    assert (result[key].double() - expected).abs().max() < 1e-3 * expected.abs().max()
    again = CliRunner().invoke(main, ["quickstart", "-o", str(folder)])
    assert len(again.stdout.splitlines()) == 5
    assert Path(made["merged"]).read_bytes() == merged
