from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import wait_for_step

import sdkit
from sdkit.core.errors import SdkitError, UsageError
from sdkit.core.events import Event, Step
from sdkit.jobs.stop import StopRequest
from sdkit.jobs.train import TrainReport
from sdkit.runtime.tensors import read_tensors
from sdkit.weights import open_weights

FEW = {"rank": 2, "steps": 4, "batch": 2, "save_every": 2}


def train(base: Path, data: Path, out: Path, **options: Any) -> TrainReport:
    report: TrainReport = sdkit.train("lora", base, data, out, **{**FEW, **options})
    return report


KEYS = {
    "lora": ["rank=2", "text_encoder=yes"],
    "textual-inversion": ["token=<b>", "vectors=2", "init=ball", "caption_dropout=0.2"],
    "hypernetwork": ["activation=relu", "layer_dropout=0.3", "lr=1e-3"],
}


def command(base: Path, data: Path, out: Path, *more: str, method: str = "lora") -> list[str]:
    words = [sys.executable, "-m", "sdkit", "train", method, "--base", str(base), "--data", str(data), "-o", str(out)]
    return [*words, *KEYS[method], "batch=2", "flip=yes", *more]


def test_a_run_leaves_what_it_says(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    out = tmp_path / "runs" / "ball"
    report = train(tiny_base, pictures, out, watch=events.append, validation=str(pictures), token="sks")
    assert report.finished and report.step == 4 and report.output == str(out / "ball.safetensors")
    assert report.page == str(out / "report.html")
    assert sorted(path.name for path in out.iterdir()) == [
        "ball.safetensors",
        "events.jsonl",
        "report.html",
        "state",
    ]
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3, 4]
    assert [line["event"] for line in lines][-2:] == ["finished", "ended"]
    assert report.validation is not None and report.validation_before is not None
    assert len([event for event in events if isinstance(event, Step)]) == 4
    with open_weights(report.output) as weights:
        metadata = weights.metadata
        assert sum(info.numel for info in weights.tensors.values() if info.shape) == report.parameters
    assert metadata["ss_network_dim"] == "2" and metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "sks" and json.loads(metadata["sdkit.trigger_words"]) == ["sks"]
    recipe = json.loads(metadata["sdkit.recipe"])
    assert recipe["method"] == "lora" and recipe["parents"][0]["name"] == "base" and recipe["options"]["rank"] == 2
    assert str(tmp_path) not in json.dumps(metadata)
    merged = sdkit.merge(tiny_base, report.output, tmp_path / "merged")
    assert merged.matched == report.plan.modules and not merged.unmatched


def test_the_log_alone_tells_what_the_run_was(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "ball"
    report = train(tiny_base, pictures, out, validation=0.4, validate_every=2, save_every=0)
    records = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    begun, ended = records[0], records[-1]
    assert (begun["event"], begun["plan"]["pictures"], begun["data"]) == ("begun", 3, "pictures")
    assert begun["changed"] == {**FEW, "validation": "0.4", "validate_every": 2, "save_every": 0}
    assert ended["event"] == "ended" and ended["output_bytes"] == Path(report.output).stat().st_size
    assert 0 < ended["seconds"] <= report.seconds and ended["memory_mib"] <= (report.peak_memory_mib or 0)
    assert "2 of 5 pictures are held out" in (out / "report.html").read_text()
    validations = [record for record in records if record["event"] == "validation"]
    assert [record["step"] for record in validations] == [0, 2, 4] and validations[0]["fall"] is None
    assert report.validation_fall == tuple(validations[-1]["fall"])
    low, high = validations[-1]["fall"]
    assert low <= validations[-1]["base"] - validations[-1]["loss"] <= high
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    words = [sys.executable, "-m", "sdkit", "report", str(out), "-q"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(out / "report.html") and (out / "report.html").read_bytes() == page


def test_a_resumed_run_knows_what_the_loss_was_before(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    whole = train(tiny_base, pictures, tmp_path / "1" / "x", validation=0.4)
    stop = StopRequest()
    stop.ask()
    first = train(tiny_base, pictures, tmp_path / "2" / "x", validation=0.4, should_stop=stop)
    assert "interrupted after 1 of 4 steps" in (tmp_path / "2" / "x" / "report.html").read_text()
    rest = sdkit.train("lora", tiny_base, pictures, tmp_path / "2" / "x", resume=True)
    assert (first.step, rest.step) == (1, 4)
    assert (rest.validation, rest.validation_before) == (whole.validation, whole.validation_before)
    assert rest.validation_fall == whole.validation_fall
    for share in ("1.5", "0"):
        with pytest.raises(UsageError, match="a share lies between 0 and 1"):
            train(tiny_base, pictures, tmp_path / "3", validation=share)


def test_a_run_that_fails_leaves_its_page_and_a_page_that_fails_no_failed_run(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1" / "report.html").mkdir(parents=True)  # in the way
    report = train(tiny_base, pictures, tmp_path / "1", steps=1)
    assert report.finished and any(note.startswith("no report: ") for note in report.notes)
    from sdkit.training.trainer import Trainer

    def fail(self: Trainer) -> None:
        raise SdkitError("the loss is no number any more")

    monkeypatch.setattr(Trainer, "_one_step", fail)
    with pytest.raises(SdkitError, match="no number any more"):
        train(tiny_base, pictures, tmp_path / "2", steps=1)
    assert "stopped: the loss is no number any more" in (tmp_path / "2" / "report.html").read_text()


def test_the_same_run_gives_the_same_file(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    one = train(tiny_base, pictures, tmp_path / "1" / "x", steps=2)
    two = train(tiny_base, pictures, tmp_path / "2" / "x", steps=2, save_every=1)
    other = train(tiny_base, pictures, tmp_path / "3" / "x", steps=2, seed=1)
    contents = [Path(report.output).read_bytes() for report in (one, two, other)]
    assert contents[0] == contents[1] != contents[2]


def test_a_file_that_is_named_is_the_result(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "ball.safetensors", steps=1, text_encoder=True, save_dtype="fp32")
    assert report.output == str(tmp_path / "ball.safetensors")
    assert (tmp_path / "state").is_dir() and (tmp_path / "events.jsonl").is_file()
    assert any(name.startswith("lora_te_") for name in read_tensors(Path(report.output)))


@pytest.mark.parametrize(
    ("method", "result"),
    [("lora", "x.safetensors"), ("hypernetwork", "x.pt"), ("textual-inversion", "x.safetensors")],
)
def test_killed_and_resumed_is_the_same_run_bit_for_bit(
    tiny_base: Path, pictures: Path, tmp_path: Path, method: str, result: str
) -> None:
    def words(out: Path, *more: str) -> list[str]:
        return command(tiny_base, pictures, out, *more, method=method)

    whole, killed = tmp_path / "1" / "x", tmp_path / "2" / "x"
    subprocess.run(words(whole, "steps=8", "save_every=2"), check=True, capture_output=True)
    with subprocess.Popen(words(killed, "steps=8", "save_every=2"), stderr=subprocess.DEVNULL) as process:
        wait_for_step(killed, 5, process)
        process.kill()
    assert not (killed / result).exists()
    done = subprocess.run(words(killed, "--resume", "--json"), check=True, capture_output=True)
    assert json.loads(done.stdout)["step"] == 8
    assert (whole / result).read_bytes() == (killed / result).read_bytes()
    steps = [json.loads(line) for line in (killed / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["event"] == "step"] == list(range(1, 9))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "x"
    words = command(tiny_base, pictures, out, "steps=5000", "save_every=0")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for_step(out, 2, process)
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = stdout.decode().splitlines()
    assert "interrupted at step" in lines[-2]
    assert lines[-1].strip().startswith("sdkit train lora --base ") and lines[-1].endswith("--resume")
    last, ended = (json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()[-2:])
    assert (last["event"], ended["event"]) == ("interrupted", "ended")
    report = sdkit.train("lora", tiny_base, pictures, out, resume=True, steps=last["step"] + 1)
    assert report.finished and report.step == last["step"] + 1


def test_the_second_ctrl_c_insists() -> None:
    stop = StopRequest()
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_what_is_not_begun_begins_and_what_is_finished_does_nothing(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    first = train(tiny_base, pictures, tmp_path / "x", resume=True, steps=2)
    assert "nothing is saved yet: starting at step 0" in first.notes
    before = Path(first.output).stat().st_mtime_ns
    again = sdkit.train("lora", tiny_base, pictures, tmp_path / "x", resume=True)
    assert again.finished and "finished already" in again.notes[0]
    assert Path(first.output).stat().st_mtime_ns == before
    longer = sdkit.train("lora", tiny_base, pictures, tmp_path / "x", resume=True, steps=3)
    assert longer.step == 3 and "steps=3 in place of steps=2" in longer.notes
    with pytest.raises(UsageError, match="rank=3: the saved run has rank=2"):
        sdkit.train("lora", tiny_base, pictures, tmp_path / "x", resume=True, rank=3)
    (pictures / "0.txt").write_text("other words")
    with pytest.raises(SdkitError, match="pictures or captions have changed"):
        sdkit.train("lora", tiny_base, pictures, tmp_path / "x", resume=True, steps=9)
    with pytest.raises(SdkitError, match="a run is saved here"):
        train(tiny_base, pictures, tmp_path / "x")
    assert train(tiny_base, pictures, tmp_path / "x", force=True, steps=1).step == 1


def test_the_command_resumes_only_what_is_saved_and_says_it_once(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    words = command(tiny_base, pictures, tmp_path / "x", "steps=3")
    failed = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and not (tmp_path / "x").exists()
    assert f"error: {tmp_path / 'x'}: no run is saved here" in failed.stderr
    assert f"hint: begin one: {shlex.join(['sdkit', *words[3:]])}" in failed.stderr
    train(tiny_base, pictures, tmp_path / "x", steps=2, flip=True, text_encoder=True)
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=True)
    assert done.stderr.count("steps=3 in place of steps=2") == done.stderr.count("resumed at step 2") == 1
    assert "note:" not in done.stdout and "wrote" in done.stdout


def test_a_resume_may_decide_that_the_run_anneals(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    train(tiny_base, pictures, tmp_path / "x", steps=2, lr=1e-3)
    rest = train(
        tiny_base, pictures, tmp_path / "x", resume=True, steps=4, lr=1e-3, schedule="linear", watch=events.append
    )
    assert "schedule=linear in place of schedule=constant_with_warmup" in rest.notes
    rates = [event.lr for event in events if isinstance(event, Step)]
    assert rates == pytest.approx([1e-3 * 2 / 4, 1e-3 * 1 / 4])


def test_a_state_of_before_with_keys_of_other_methods_is_read(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    """States held every key that any method had."""
    train(tiny_base, pictures, tmp_path / "x", steps=2)
    for path in (tmp_path / "x" / "state").glob("*/state.json"):
        fields = json.loads(path.read_text())
        fields["settings"]["options"] |= {"kl_weight": 1e-6, "vectors": None, "widths": "", "property": "object"}
        path.write_text(json.dumps(fields))
    rest = sdkit.train("lora", tiny_base, pictures, tmp_path / "x", resume=True, steps=3)
    assert rest.step == 3
    left_out = "options of the saved run that lora does not have are left out: kl_weight, vectors, widths and 1 more"
    assert left_out in rest.notes


def test_training_goes_on_from_an_existing_file(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    first = train(tiny_base, pictures, tmp_path / "a", save_dtype="fp32", network_alpha=1, steps=2)
    options = {"init": first.output, "save_dtype": "fp32", "lr": 0.0, "steps": 1, "weight_decay": 0}
    second = train(tiny_base, pictures, tmp_path / "b", **options)
    one, two = read_tensors(Path(first.output)), read_tensors(Path(second.output))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    with open_weights(second.output) as weights:
        parents = json.loads(weights.metadata["sdkit.recipe"])["parents"]
        assert (weights.metadata["ss_network_dim"], weights.metadata["ss_network_alpha"]) == ("2", "1")
    assert [entry["role"] for entry in parents] == ["base", "init"]
    assert second.parameters == first.parameters
    with pytest.raises(SdkitError, match="no such file"):
        train(tiny_base, pictures, tmp_path / "c", init=str(tmp_path / "nothing.safetensors"))


def test_a_locon_has_a_rank_and_an_alpha_of_its_own(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", steps=1, conv_rank=3, conv_alpha=1, network_alpha=4)
    tensors = read_tensors(Path(report.output))
    kernels = {name for name, value in tensors.items() if "lora_down" in name and value.shape[2:] == (3, 3)}
    assert any("downsamplers" in name for name in kernels) and any("resnets" in name for name in kernels)
    for name, value in tensors.items():
        if "lora_down" in name:
            alpha = float(tensors[name.replace("lora_down.weight", "alpha")])
            assert (value.shape[0], alpha) == ((3, 1) if name in kernels else (2, 4))
    with open_weights(report.output) as weights:
        assert json.loads(weights.metadata["ss_network_args"]) == {"conv_dim": "3", "conv_alpha": "1"}
    assert sdkit.merge(tiny_base, report.output, tmp_path / "merged").matched == report.plan.modules


def test_peft_s_format_is_a_folder(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    report = train(tiny_base, pictures, tmp_path / "x", steps=1, format="peft")
    assert report.output == str(tmp_path / "x" / "x")
    assert sorted(file.name for file in Path(report.output).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert sdkit.merge(tiny_base, report.output, tmp_path / "merged").matched == report.plan.modules


def test_a_resumed_run_writes_what_it_was_begun_to_write(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    stop.ask()
    train(tiny_base, pictures, tmp_path / "x", format="peft", should_stop=stop)
    rest = sdkit.train("lora", tiny_base, pictures, tmp_path / "x", resume=True)
    assert rest.output == str(tmp_path / "x" / "x") and (tmp_path / "x" / "x" / "adapter_config.json").is_file()


def test_a_plan_costs_nothing_and_writes_nothing(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    report = train(tiny_base, pictures, tmp_path / "x", dry_run=True, epochs=10, steps=1)
    plan = report.plan
    assert report.dry_run and not (tmp_path / "x").exists()
    assert (plan.pictures, plan.steps, plan.epochs) == (5, 30, 10)
    assert sum(plan.buckets.values()) == 5 and plan.buckets["16x16"] == 3
    assert plan.quarantined.keys() == {"broken.png"} and "broken.png is left out" in plan.notes[0]
    assert plan.examples["0.png"] == "a ball, 0"
    assert plan.memory_bytes > 4 * plan.parameters and plan.seconds > 0
    real = train(tiny_base, pictures, tmp_path / "x", steps=1)
    with open_weights(real.output) as weights:
        assert sum(info.numel for info in weights.tensors.values() if info.shape) == plan.parameters
    assert 0.5 < real.output_bytes / plan.output_bytes < 1.5


def test_what_is_wrong_is_named_before_anything_is_computed(
    tiny_base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdkit.weights import atomic

    def refused(message: str, **options: Any) -> SdkitError:
        with pytest.raises(SdkitError, match=message) as error:
            train(options.pop("base", tiny_base), options.pop("data", pictures), tmp_path / "x", **options)
        assert not (tmp_path / "x").exists()
        return error.value

    assert "did you mean rank" in refused("unknown option rnak=", rnak=3).hint
    refused("4 steps are fewer than warmup=9", warmup=9)
    refused("unknown optimizer", optimizer="adamv")
    refused("format=cloneofsimo: no LoRA is written in it", format="cloneofsimo")
    refused("unknown number format 'fp61'", save_dtype="fp61")
    refused("matches no layer", targets="nonsense")
    refused("no such folder", data=tmp_path / "nowhere")
    refused("no such file or folder", base=tmp_path / "nothing.safetensors")
    refused("precision=fp16 is not for CPUs", precision="fp16")
    monkeypatch.setattr(atomic, "free_bytes", lambda folder: 1000)
    refused("B, the disk has 1.0 kB free")
    with pytest.raises(UsageError, match="unknown training method 'lroa'") as unknown:
        sdkit.train("lroa", tiny_base, pictures)
    assert unknown.value.hint == "did you mean lora?"


def test_a_recipe_is_a_file_and_the_command_line_overrides_it(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"method: lora\nbase: {tiny_base}\ndata: pictures\noutput: out\nlr: 1e-3\nsteps: 1\nrank: 2\nflip: true\n"
    )
    words = [sys.executable, "-m", "sdkit", "train", str(recipe), "rank=3", "--json"]
    done = subprocess.run(words, check=True, capture_output=True)
    report = json.loads(done.stdout)
    assert report["output"] == str(tmp_path / "out" / "out.safetensors")
    with open_weights(report["output"]) as weights:
        made = json.loads(weights.metadata["sdkit.recipe"])["options"]
    assert (made["lr"], made["rank"], made["flip"]) == (1e-3, 3, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1", "names no method"),
        ("- a", "not a table"),
        ("method: lora\nlr: [1]", "lr should be one value"),
        ("method: lora\n  x: : 1", ":2: no YAML"),
    ],
)
def test_a_wrong_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    from sdkit.jobs.train_recipe import read_recipe

    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--help"],
        ["train", "--list", "--json"],
        ["train"],
        ["train", "lora", "--help"],
        ["train", "nonsense"],
        ["report", "nowhere"],
    ],
)
def test_help_needs_no_torch(words: list[str]) -> None:
    program = f"""
import sys
from sdkit.cli.main import main
try:
    main({words!r})
except SystemExit:
    print("IMPORTED", [name for name in ("torch", "numpy", "diffusers", "PIL", "yaml") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []"
    if words[1:2] == ["lora"]:
        assert "network_alpha=" in done.stdout and "--dry-run" in done.stdout


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]
    results = []
    for count in ("1", "2"):
        out = tmp_path / count / "x"
        words = command(tiny_base, pictures, out, "steps=3", "optimizer=sgd", "lr=0.1", "save_dtype=fp32")
        done = subprocess.run([*launch, count, *words[1:], "--json"], check=True, capture_output=True)
        assert json.loads(done.stdout)["step"] == 3  # one report, whoever else took part
        tensors = read_tensors(out / "x.safetensors")
        results.append({name: value for name, value in tensors.items() if name.endswith("lora_up.weight")})
    one, two = results
    moved = max(float(value.abs().max()) for value in one.values())
    assert moved > 0
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-3 * moved


@pytest.mark.slow
def test_what_one_of_several_processes_is_asked_all_do(tiny_base: Path, pictures: Path, tmp_path: Path) -> None:
    program = f"""
import os
import shlex
import sdkit
from sdkit.jobs.stop import StopRequest
stop = StopRequest()
if os.environ["RANK"] == "1":
    stop.ask()
report = sdkit.train("lora", {str(tiny_base)!r}, {str(pictures)!r}, {str(tmp_path / "x")!r}, rank=2, batch=2, steps=99,
                     should_stop=stop)
assert not report.finished
print("STOPPED", report.step, flush=True)
"""
    (tmp_path / "program.py").write_text(program)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "program.py")]
    done = subprocess.run(launch, check=True, capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.split()) == ["10", "10", "STOPPED", "STOPPED"]


def test_the_layers_of_a_preset_are_kohya_s() -> None:
    from sdkit.families.reference import reference
    from sdkit.training.targets import lora_targets

    for family, modules in (("sd1", 192), ("sdxl", 722)):
        assert len(lora_targets(reference(family), "transformer", text=False, conv_rank=0)) == modules
    assert len(lora_targets(reference("sd1"), "transformer", text=True, conv_rank=0)) == 192 + 72
