from __future__ import annotations

import pytest

from sdkit.core.errors import UsageError
from sdkit.families import reference
from sdkit.merging.blocks import attention_blocks, block_order, block_strengths

SD1, SDXL = reference("sd1"), reference("sdxl")


def test_blocks_are_those_of_the_web_uis() -> None:
    inputs = [f"IN{i:02d}" for i in range(12)]
    outputs = [f"OUT{i:02d}" for i in range(12)]
    assert block_order(SD1) == ["BASE", *inputs, "M00", *outputs]
    assert block_order(SDXL) == ["BASE", *inputs[:9], "M00", *outputs[:9]]
    assert attention_blocks(SDXL) == "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05".split()


@pytest.mark.parametrize(("model", "full", "lora"), [(SD1, 26, 17), (SDXL, 20, 12)])
def test_lists_have_the_lengths_the_web_uis_use(model, full, lora) -> None:
    assert list(block_strengths(list(range(full)), model).values()) == list(range(full))
    short = block_strengths(list(range(lora)), model)
    assert [short[name] for name in attention_blocks(model)] == list(range(lora))
    assert all(value == 1.0 for name, value in short.items() if name not in attention_blocks(model))


def test_kohyas_seventeen_numbers_mean_these_blocks() -> None:
    names = "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split()
    strengths = block_strengths(",".join(str(i / 100) for i in range(17)), SD1)
    assert {name: strengths[name] for name in names} == {name: i / 100 for i, name in enumerate(names)}
    assert strengths["IN00"] == strengths["OUT00"] == 1.0


def test_later_rules_win_and_case_does_not_matter() -> None:
    strengths = block_strengths("out*=0.2, OUT03=1.5, in04=0.5, mid=0", SD1)
    assert strengths["OUT00"] == 0.2 and strengths["OUT03"] == 1.5
    assert strengths["IN04"] == 0.5 and strengths["M00"] == 0.0
    assert strengths["BASE"] == strengths["IN00"] == 1.0


def test_json_says_the_same() -> None:
    assert block_strengths('{"IN04": 0.5, "OUT*": 0.2}', SD1) == block_strengths("IN04=0.5,OUT*=0.2", SD1)
    assert block_strengths("[" + ",".join(["0.5"] * 12) + "]", SDXL) == block_strengths([0.5] * 12, SDXL)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("IN4=0.5", "no block is called 'IN4'"),
        ("OUT09=1", "no block is called 'OUT09'"),
        ("0.5,0.5", "has 2 numbers; a sdxl model takes 12 (blocks with attention) or 20"),
        ("IN04=half", "'half' is not a number"),
        ("IN04=nan", "not a finite number"),
        ("", "is empty"),
        ("{", "no valid JSON"),
        ('{"IN04": "x"}', "not a number"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec, reason) -> None:
    with pytest.raises(UsageError) as caught:
        block_strengths(spec, SDXL)
    assert reason in caught.value.message
