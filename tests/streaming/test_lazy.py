"""Models that nobody has written read like files, and what is computed from them is computed once, unrounded."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from models import SD1_TEXT, Tensors, load, save, sd1, sdxl, sdxl_modules
from models import kohya_lora as make_lora

from sdkit.jobs.blend import blend
from sdkit.jobs.inputs import Unwritten
from sdkit.jobs.merge import merge
from sdkit.streaming.expression import Read
from sdkit.streaming.lazy import LazyWeights, leaves, stored
from sdkit.weights import open_weights

POSITIONS = f"{SD1_TEXT}text_model.embeddings.position_ids"
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def computed(stack: ExitStack, *paths: Path, **options: float) -> LazyWeights:
    target = Unwritten("mix", stack)
    blend(list(paths), target, **options)  # type: ignore[arg-type]
    assert target.model is not None
    return target.model


def write(folder: Path, *models: Tensors) -> list[Path]:
    return [save(model, folder / f"{number}.safetensors") for number, model in enumerate(models)]


def test_a_computed_model_reads_like_the_file_it_would_be(tmp_path: Path) -> None:
    paths = write(tmp_path, sd1(0), sd1(1))
    blend(paths, tmp_path / "out.safetensors", alpha=0.3)
    with ExitStack() as stack:
        mix = computed(stack, *paths, alpha=0.3)
        written = stack.enter_context(open_weights(tmp_path / "out.safetensors"))
        assert list(mix.tensors) == list(written.tensors)
        for name in (POSITIONS, CONV_IN, "first_stage_model.quant_conv.weight"):
            info, other = mix.tensors[name], written.tensors[name]
            assert (info.dtype, info.shape) == (other.dtype, other.shape)
            assert mix.read(info) == written.read(other)
            part = memoryview(bytearray(6))
            mix.read_into(info, part, 4)
            assert bytes(part) == written.read(other)[4:10]
        assert isinstance(stored(mix, mix.tensors[POSITIONS]), Read)
        assert [weights.path for weights in leaves([mix, written, mix])] == [*paths, tmp_path / "out.safetensors"]


def test_damaged_positions_are_counted_anew_once_for_all_steps(tmp_path: Path) -> None:
    drifted = {**sd1(0), POSITIONS: 0.583 * torch.arange(77)[None].half()}
    paths = write(tmp_path, drifted, sd1(1), sd1(2))
    with ExitStack() as stack:
        report = blend([computed(stack, *paths[:2]), paths[2]], tmp_path / "out.safetensors")
    assert torch.equal(load(tmp_path / "out.safetensors")[POSITIONS], torch.arange(77)[None])
    assert any("position counter" in warning for warning in report.warnings)


@pytest.mark.parametrize("wide", [False, True])
def test_steps_that_fuse_give_what_float32_files_between_them_give(tmp_path: Path, wide: bool) -> None:
    """SDXL: fused rows, transposed projections; with an inpainting model among them."""
    models = [sdxl(seed) for seed in range(3)]
    if wide:
        channels = torch.randn(32, 9, 3, 3, generator=torch.Generator().manual_seed(1)).half()
        models[1] = {**models[1], CONV_IN: channels}
    paths = write(tmp_path, *models)
    lora = save(make_lora(sdxl_modules(), rank=2), tmp_path / "lora.safetensors")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    blend(paths[:2], one, method="slerp", alpha=0.4, dtype="fp32")
    merge(one, {lora: 0.7}, two)
    blend([two, paths[2]], tmp_path / "steps.safetensors", alpha=0.25, dtype="fp16")
    with ExitStack() as stack:
        middle = Unwritten("middle", stack)
        first = Unwritten("first", stack)
        blend(paths[:2], first, method="slerp", alpha=0.4)
        assert first.model is not None
        merge(first.model, {lora: 0.7}, middle)
        assert middle.model is not None
        blend([middle.model, paths[2]], tmp_path / "fused.safetensors", alpha=0.25)
    fused, steps = load(tmp_path / "fused.safetensors"), load(tmp_path / "steps.safetensors")
    assert list(fused) == list(steps)
    for key, value in fused.items():
        assert value.dtype == models[0][key].dtype
        torch.testing.assert_close(value.float(), steps[key].float(), rtol=2**-10, atol=1e-6, msg=key)
