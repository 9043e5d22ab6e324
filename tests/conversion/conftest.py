"""Small pipelines of each family, as folders of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import SCHEDULER, TEXT, UNET, write_configs

from sdkit.runtime.create import create_base

SD2 = {
    "unet/config.json": {
        **UNET,
        "attention_head_dim": [2, 4, 4],
        "block_out_channels": [32, 64, 64],
        "cross_attention_dim": 24,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "use_linear_projection": True,
    },
    "text_encoder/config.json": {**TEXT, "hidden_act": "gelu"},
    "scheduler/scheduler_config.json": {**SCHEDULER, "prediction_type": "v_prediction"},
}


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 2 pipeline folder with random weights, which predicts the velocity."""
    folder = tmp_path_factory.mktemp("tiny-sd2")
    configs = write_configs(folder / "configs")
    for name, fields in SD2.items():
        (configs / name).write_text(json.dumps(fields))
    create_base(configs, folder / "base")
    return folder / "base"


@pytest.fixture(params=["sd1", "sd2", "sdxl"])
def pipeline(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A family and a small pipeline folder of it."""
    fixture = {"sd1": "tiny_base", "sd2": "tiny_sd2", "sdxl": "tiny_sdxl"}[request.param]
    return request.param, request.getfixturevalue(fixture)
