"""`sdkit merge` of adapters, `subtract`, `scale` and `resize`, from files to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sdkit
from sdkit.adapters.ranks import RankRule
from sdkit.cli.main import main
from sdkit.core.errors import SdkitError, UsageError
from sdkit.jobs.combine import combine, resize, scale, subtract

Tensors = Mapping[str, torch.Tensor]
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
FF = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"


def module(
    name: str, rows: int, columns: int, rank: int, alpha: float, *kernel: int, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ones = [1] * len(kernel)
    return {
        f"{name}.lora_up.weight": torch.randn(rows, rank, *ones, generator=generator) * 0.1,
        f"{name}.lora_down.weight": torch.randn(rank, columns, *kernel, generator=generator) * 0.1,
        f"{name}.alpha": torch.tensor(alpha),
    }


A = {**module(Q, 320, 768, 4, 2.0), **module(CONV, 320, 320, 3, 3.0, 3, 3, seed=1)}
B = {**module(Q, 320, 768, 2, 1.0, seed=2), **module(FF, 1280, 5120, 2, 1.0, seed=3)}


def save(tensors: Tensors, path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return save(
        A, tmp_path / "a.safetensors", {"ss_steps": "7", "ss_base_model_version": "sd_v1", "sshs_model_hash": "x"}
    )


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return save(B, tmp_path / "b.safetensors")


def change(tensors: Tensors, name: str) -> torch.Tensor | float:
    """ΔW of a module by kohya's formula; 0 where the file does not have it."""
    if f"{name}.lora_up.weight" not in tensors:
        return 0.0
    up, down = (tensors[f"{name}.lora_{side}.weight"].double().flatten(1) for side in ("up", "down"))
    return tensors[f"{name}.alpha"].double() / len(down) * up @ down


def double(values: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def assert_sum(path: Path, wanted: Callable[[str], torch.Tensor | float], atol: float = 1e-7) -> None:
    tensors = load_file(path)
    for name in (Q, CONV, FF):
        assert torch.allclose(double(change(tensors, name)), double(wanted(name)), atol=atol), name


def test_a_sum_is_both_at_their_strengths(a: Path, b: Path, tmp_path: Path) -> None:
    report = combine([a, (b, 0.5)], tmp_path / "both.safetensors")
    assert_sum(tmp_path / "both.safetensors", lambda name: change(A, name) + 0.5 * change(B, name))
    assert report.error == 0.0 and report.format == "kohya" and report.family == "sd1"
    assert {module.name: module.rank for module in report.modules} == {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": 6,
        "unet.down_blocks.0.resnets.0.conv1.weight": 3,
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight": 2,
    }


def test_half_strength_acts_as_half(a: Path, b: Path, tmp_path: Path) -> None:
    """sd-scripts multiplies the strength into up and down, so that 0.5 acts as 0.25."""
    combine({a: 0.5, b: 0.0}, tmp_path / "half.safetensors")
    assert_sum(tmp_path / "half.safetensors", lambda name: 0.5 * torch.as_tensor(change(A, name)))


def test_alpha_grows_with_the_rank(a: Path, tmp_path: Path) -> None:
    """sd-scripts' --concat keeps alpha, so that twice the half of an adapter acts as an eighth of it."""
    combine([(a, 0.5), (a, 0.5)], tmp_path / "twice.safetensors")
    assert load_file(tmp_path / "twice.safetensors")[f"{Q}.alpha"] == 0.5 * 2.0 / 4 * 8
    assert_sum(tmp_path / "twice.safetensors", lambda name: change(A, name))


def test_agrees_with_pefts_cat(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = torch.nn.Linear(8, 6, bias=False)

    torch.manual_seed(0)
    for name, rank in (("one", 2), ("two", 3)):
        model = get_peft_model(Net(), LoraConfig(r=rank, lora_alpha=5, target_modules=["q"], init_lora_weights=False))
        model.save_pretrained(str(tmp_path / name))
    combine({tmp_path / "one": 0.7, tmp_path / "two": 0.4}, tmp_path / "both")
    net = Net()
    oracle = PeftModel.from_pretrained(net, str(tmp_path / "one"), adapter_name="one")
    oracle.load_adapter(str(tmp_path / "two"), adapter_name="two")
    oracle.add_weighted_adapter(["one", "two"], [0.7, 0.4], "cat", combination_type="cat")
    oracle.load_adapter(str(tmp_path / "both"), adapter_name="ours")
    layer = oracle.base_model.model.q
    assert torch.allclose(layer.get_delta_weight("ours"), layer.get_delta_weight("cat"), atol=1e-6)


def test_a_rank_cut_states_its_error(a: Path, b: Path, tmp_path: Path) -> None:
    report = combine([a, b], tmp_path / "cut.safetensors", rank=2)
    tensors = load_file(tmp_path / "cut.safetensors")
    wanted = {name: torch.as_tensor(change(A, name) + change(B, name)) for name in (Q, CONV, FF)}
    lost = {name: float((wanted[name] - change(tensors, name)).norm() / wanted[name].norm()) for name in wanted}
    stated = sorted(module.error for module in report.modules)
    assert stated == pytest.approx(sorted(lost.values()), abs=1e-6)
    assert lost[FF] < 1e-6 < lost[Q]
    total = sum(float((wanted[name] - change(tensors, name)).norm()) ** 2 for name in wanted)
    assert report.error == pytest.approx((total / sum(float(w.norm()) ** 2 for w in wanted.values())) ** 0.5, rel=1e-5)


def test_subtracting_undoes_adding(a: Path, b: Path, tmp_path: Path) -> None:
    combine([a, (b, 0.5)], tmp_path / "both.safetensors")
    subtract(tmp_path / "both.safetensors", (b, 0.5), tmp_path / "back.safetensors", rank=RankRule(sv_ratio=1e5))
    assert_sum(tmp_path / "back.safetensors", lambda name: change(A, name))
    assert len(load_file(tmp_path / "back.safetensors")[f"{Q}.lora_down.weight"]) == 4  # and finds the rank again


def test_scaling_changes_alpha_alone(a: Path, tmp_path: Path) -> None:
    report = scale(a, -0.25, tmp_path / "less.safetensors")
    assert report.bytes == (tmp_path / "less.safetensors").stat().st_size
    tensors = load_file(tmp_path / "less.safetensors")
    for name, tensor in A.items():
        assert torch.equal(tensors[name], tensor * -0.25 if name.endswith("alpha") else tensor), name
    with safe_open(tmp_path / "less.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_steps"] == "7"  # it is still that adapter
    assert metadata["sshs_model_hash"] == sdkit.hash(tmp_path / "less.safetensors").sshs_model_hash
    assert json.loads(metadata["sdkit.recipe"])["verb"] == "scale"


def test_what_is_true_of_one_adapter_is_not_claimed_of_a_sum(a: Path, b: Path, tmp_path: Path) -> None:
    combine([a, (b, 0.5)], tmp_path / "both.safetensors")
    with safe_open(tmp_path / "both.safetensors", "pt") as file:
        metadata = file.metadata()
    assert "ss_steps" not in metadata and metadata["ss_base_model_version"] == "sd_v1"
    parents = json.loads(metadata["sdkit.recipe"])["parents"]
    assert [(parent["name"], parent["strength"]) for parent in parents] == [
        ("a.safetensors", 1.0),
        ("b.safetensors", 0.5),
    ]
    assert str(tmp_path) not in json.dumps(metadata)


def test_resizing_to_the_same_rank_changes_nothing(a: Path, tmp_path: Path) -> None:
    report = resize(a, tmp_path / "same.safetensors", rank=4)
    tensors = load_file(tmp_path / "same.safetensors")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in A.items())
    assert report.error == 0.0


def test_resizing_by_a_rule_at_full_share_is_exact(a: Path, tmp_path: Path) -> None:
    resize(a, tmp_path / "r.safetensors", rank=RankRule(sv_fro=1 - 1e-15))
    assert_sum(tmp_path / "r.safetensors", lambda name: change(A, name))


def test_resizing_keeps_the_best(a: Path, tmp_path: Path) -> None:
    report = resize(a, tmp_path / "r.safetensors", rank=1)
    values = torch.linalg.svdvals(torch.as_tensor(change(A, Q)))
    kept = torch.as_tensor(change(load_file(tmp_path / "r.safetensors"), Q))
    assert float(kept.norm()) == pytest.approx(float(values[0]), rel=1e-5)
    (error,) = (module.error for module in report.modules if module.name.startswith("unet.down_blocks_0_attentions"))
    assert error == pytest.approx(float(values[1:].norm() / values.norm()), rel=1e-5)


def test_threads_do_not_change_the_bytes(a: Path, b: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        combine([a, b], tmp_path / f"{threads}", rank=3, threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_formats_may_differ_and_the_first_decides(a: Path, b: Path, tmp_path: Path) -> None:
    combine([a, b], tmp_path / "d.safetensors", format="diffusers")
    report = combine([tmp_path / "d.safetensors", (a, -1.0)], tmp_path / "e.safetensors", rank=RankRule(sv_ratio=1e5))
    assert report.format == "diffusers"
    combine([(a, 0.0), tmp_path / "e.safetensors"], tmp_path / "f.safetensors")
    assert_sum(tmp_path / "f.safetensors", lambda name: change(B, name))


def test_diffusers_reads_the_sum(a: Path, b: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    combine([a, (b, 0.5)], tmp_path / "d.safetensors", format="diffusers")
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    unet = unet.to_empty(device="cpu")
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    layer.weight.data.zero_()
    unet.load_lora_adapter(str(tmp_path), weight_name="d.safetensors", prefix="unet", local_files_only=True)
    loaded = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k
    delta = loaded.get_delta_weight("default_0").double()
    assert torch.allclose(delta, torch.as_tensor(change(A, Q) + 0.5 * change(B, Q)), atol=1e-6)


def test_unusual_models_keep_their_own_names(tmp_path: Path) -> None:
    one = save(module(Q, 32, 64, 2, 1.0), tmp_path / "one.safetensors")
    two = save(module(Q, 32, 64, 3, 1.0, seed=5), tmp_path / "two.safetensors")
    report = combine([one, two], tmp_path / "both.safetensors")
    both = load_file(tmp_path / "both.safetensors")
    assert report.modules[0].rank == 5
    wanted = change(load_file(one), Q) + change(load_file(two), Q)
    assert torch.allclose(torch.as_tensor(change(both, Q)), torch.as_tensor(wanted), atol=1e-7)


def test_other_families_are_refused(a: Path, tmp_path: Path) -> None:
    name = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    other = save(module(name, 640, 2048, 2, 1.0), tmp_path / "xl.safetensors")
    with pytest.raises(SdkitError, match="for sd1.*for sdxl"):
        combine([a, other], tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()


def test_peft_cannot_hold_a_difference(a: Path, tmp_path: Path) -> None:
    two = save({f"{Q}.diff": torch.ones(320, 768)}, tmp_path / "full.safetensors")
    with pytest.raises(SdkitError, match="kind full cannot be written in PEFT"):
        combine([a, two], tmp_path / "both", format="peft")
    report = combine([a, two], tmp_path / "cut", rank=4, format="peft")
    assert 0 < report.error < 1


def test_nonsense_is_refused(a: Path, b: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only one adapter"):
        combine([a])
    with pytest.raises(UsageError, match="no finite number"):
        combine({a: float("inf"), b: 1.0})
    with pytest.raises(UsageError, match="factor of 0"):
        scale(a, 0.0)
    with pytest.raises(SdkitError, match="is an input"):
        combine([a, b], a)
    with pytest.raises(SdkitError, match="every strength is 0"):
        combine({a: 0.0, b: 0.0}, tmp_path / "c")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_merge_with_an_adapter_first_adds_adapters(a: Path, b: Path, tmp_path: Path) -> None:
    result = run("merge", f"{a}=0.5", b, "-o", tmp_path / "both.safetensors", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["verb"] == "combine" and len(report["modules"]) == 3
    assert_sum(tmp_path / "both.safetensors", lambda name: 0.5 * torch.as_tensor(change(A, name)) + change(B, name))
    refused = run("merge", a, b, "--undo", tmp_path / "u")
    assert refused.exit_code == 2 and "--undo is for merging into a checkpoint" in refused.stderr


def test_resize_shows_the_largest_changes(a: Path, tmp_path: Path) -> None:
    result = run("resize", a, "--rank", "2", "-o", tmp_path / "r.safetensors", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "largest changes" in result.stdout and "4→2" in result.stdout and "nothing was written" in result.stdout
    assert not (tmp_path / "r.safetensors").exists()
    assert run("resize", a).exit_code == 2
    assert (
        run("resize", a, "--sv-fro", "0.9", "-q", "-o", tmp_path / "r.safetensors").stdout
        == f"{tmp_path}/r.safetensors\n"
    )


def test_scale_and_subtract_commands(a: Path, b: Path, tmp_path: Path) -> None:
    assert run("scale", a, "-0.5", "-o", tmp_path / "s.safetensors").exit_code == 0
    assert_sum(tmp_path / "s.safetensors", lambda name: -0.5 * torch.as_tensor(change(A, name)))
    assert run("subtract", a, f"{b}=2", "-o", tmp_path / "d.safetensors").exit_code == 0
    assert_sum(tmp_path / "d.safetensors", lambda name: change(A, name) - 2 * torch.as_tensor(change(B, name)))


def test_loha_and_lokr_become_lora_where_they_must(a: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loha = {"hada_w1_a": (320, 2), "hada_w1_b": (2, 768), "hada_w2_a": (320, 2), "hada_w2_b": (2, 768)}
    tensors = {f"{Q}.{role}": torch.randn(*shape) * 0.1 for role, shape in loha.items()}
    tensors |= {
        f"{Q}.alpha": torch.tensor(1.0),
        f"{FF}.lokr_w1": torch.randn(8, 8),
        f"{FF}.lokr_w2": torch.randn(160, 640),
    }
    other = save(tensors, tmp_path / "lycoris.safetensors")
    report = combine([a, (other, 0.5)], tmp_path / "both.safetensors")
    assert {module.kind for module in report.modules} == {"lora", "locon", "lokr"}  # alone in its module it stays
    wanted = change(A, Q) + 0.5 * 0.5 * (
        (tensors[f"{Q}.hada_w1_a"].double() @ tensors[f"{Q}.hada_w1_b"].double())
        * (tensors[f"{Q}.hada_w2_a"].double() @ tensors[f"{Q}.hada_w2_b"].double())
    )
    both = load_file(tmp_path / "both.safetensors")
    assert torch.allclose(double(change(both, Q)), wanted, atol=1e-7)
    assert torch.allclose(both[f"{FF}.lokr_w1"], tensors[f"{FF}.lokr_w1"] * 0.5)
    small = resize(other, tmp_path / "small.safetensors", rank=8)
    assert {module.kind for module in small.modules} == {"lora", "loha"}  # a LoHa of rank 2·2 is small enough already
    values = torch.outer(*(torch.linalg.svdvals(tensors[f"{FF}.lokr_w{side}"].double()) for side in (1, 2))).flatten()
    values = values.sort(descending=True).values
    (error,) = (module.error for module in small.modules if module.error)
    assert error == pytest.approx(float(values[8:].norm() / values.norm()), rel=1e-5)


def test_tokens_travel_along(a: Path, tmp_path: Path) -> None:
    bundle = save({**B, "bundle_emb.cat.string_to_param.*": torch.randn(2, 768)}, tmp_path / "bundle.safetensors")
    combine([a, bundle], tmp_path / "both.safetensors")
    key = "bundle_emb.cat.string_to_param.*"
    assert torch.equal(load_file(tmp_path / "both.safetensors")[key], load_file(bundle)[key])
    with pytest.raises(SdkitError, match="cannot hold the token cat"):
        combine([a, bundle], tmp_path / "d.safetensors", format="diffusers")


def test_stray_tensors_are_not_dropped_silently(a: Path, tmp_path: Path) -> None:
    stray = save({**B, "what.is.this": torch.ones(3)}, tmp_path / "stray.safetensors")
    with pytest.raises(SdkitError, match="what.is.this"):
        scale(stray, 2.0, tmp_path / "out.safetensors")
    scale(stray, 2.0, tmp_path / "out.safetensors", allow_unmatched=True)
    assert "what.is.this" not in load_file(tmp_path / "out.safetensors")


def test_a_checkpoint_takes_no_rank(a: Path, tmp_path: Path) -> None:
    from example_model import Sizes, make_checkpoint

    base = save(make_checkpoint(Sizes()), tmp_path / "base.safetensors")
    refused = run("merge", base, a, "--rank", "4")
    assert refused.exit_code == 2 and "BASE is a checkpoint" in refused.stderr
    misplaced = run("merge", a, base)
    assert misplaced.exit_code == 1 and "not an adapter" in misplaced.stderr


def test_an_old_format_is_converted(tmp_path: Path) -> None:
    """cloneofsimo's files have no alpha: in their own format the factors change, in kohya's alpha."""
    disney = Path(__file__).parents[1] / "data" / "lora_disney.safetensors"
    scale(disney, 0.5, tmp_path / "own.safetensors")
    before, after = load_file(disney), load_file(tmp_path / "own.safetensors")
    assert torch.equal(after["unet:7:up"], before["unet:7:up"] / 2)
    assert torch.equal(after["unet:7:down"], before["unet:7:down"])
    report = scale(disney, 0.5, tmp_path / "out.safetensors", format="kohya")
    tensors = load_file(tmp_path / "out.safetensors")
    assert report.family == "sd1" and tensors[f"{Q}.alpha"] == 0.5
    assert "bundle_emb.<s1>.string_to_param.*" in tensors


def test_a_scaled_bias_of_pefts_becomes_a_difference(tmp_path: Path) -> None:
    attention = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    torch.manual_seed(0)
    shapes = {"to_k.lora_A.weight": (2, 768), "to_k.lora_B.weight": (320, 2)}  # tells the family
    shapes |= {"to_out.0.lora_A.weight": (2, 320), "to_out.0.lora_B.weight": (320, 2), "to_out.0.lora_B.bias": (320,)}
    tensors = {f"{attention}.{part}": torch.randn(*shape) for part, shape in shapes.items()}
    (tmp_path / "peft").mkdir()
    save(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "lora_bias": True}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    scale(tmp_path / "peft", 0.5, tmp_path / "out.safetensors", format="kohya")
    found = load_file(tmp_path / "out.safetensors")
    bias = found[f"{Q.removesuffix('to_k')}to_out_0.diff_b"]
    assert torch.allclose(bias, tensors[f"{attention}.to_out.0.lora_B.bias"] * 1.5)
