"""Looking at files with helpers gives what looking alone gives, whatever becomes of the helpers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdkit.registry import looking
from sdkit.registry.looking import look_at_all

LORA = {f"lora_unet_mid_block_attentions_0_proj_in.lora_{way}.weight": ("F16", [4, 4]) for way in ("down", "up")}


@pytest.fixture
def files(sparse: Callable[..., Path], tmp_path: Path) -> list[Path]:
    """120 LoRAs, one of them broken and one gone."""
    paths = [sparse(LORA, {"ss_output_name": str(number)}, name=f"{number}.safetensors") for number in range(120)]
    paths[7].write_bytes(b"<html>not found</html>")
    paths[9].unlink()
    return paths


def test_helpers_see_what_one_sees_alone(files: list[Path]) -> None:
    alone = list(look_at_all(files, helpers=0))
    assert [one.facts is None for one in alone].count(True) == 2
    assert alone[7].reason and alone[9].reason
    assert list(look_at_all(files, helpers=2)) == alone


def test_a_helper_that_is_killed_costs_nothing(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal(looking._Helper):
        def ask(self, paths: object) -> list[looking.Looked]:
            self._process.kill()
            self._process.wait()
            return super().ask(paths)  # type: ignore[arg-type]

    monkeypatch.setattr(looking, "_Helper", Mortal)
    assert list(look_at_all(files, helpers=2)) == list(look_at_all(files, helpers=0))


def test_whoever_stops_listening_waits_for_no_helper(files: list[Path]) -> None:
    looked = look_at_all(files, helpers=2)
    assert next(looked).path == files[0]
    looked.close()  # type: ignore[attr-defined]
