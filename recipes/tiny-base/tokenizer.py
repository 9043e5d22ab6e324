"""Learn the embedded base's vocabulary: a byte-pair encoding of CLIP's kind, from captions.

    python recipes/tiny-base/tokenizer.py runs/emoji

writes ``vocab.json`` and ``merges.txt`` into configs/tokenizer. They are committed: the base's weights belong to them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = Path(__file__).parent
SIZE = 1536
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = (
    "a an the of in on at with and photo picture drawing painting style image small big red orange brown white "
    "close-up cropped rendering bright dark good nice cool clean dirty weird one my toy subject thing animal food face"
)


def captions(data: Path) -> list[str]:
    """Every caption of every folder of pictures."""
    lines = [line for file in sorted(data.rglob("metadata.jsonl")) for line in file.read_text("utf-8").splitlines()]
    return [json.loads(line)["text"] for line in lines]


def main() -> None:
    """Train and write."""
    # The end's id must be the highest: CLIP's text model takes its pooled output where the highest id stands.
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - 2 - len(letters), initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([*captions(Path(sys.argv[1])), *[WORDS] * 20], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    # CLIP's order: the 256 letters, the same as word ends, the merges, the two marks.
    singles = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learnt["merges"]]
    merged = [word for word in dict.fromkeys("".join(pair) for pair in merges) if word not in set(singles)]
    vocabulary = {word: index for index, word in enumerate([*singles, *merged, START, END])}
    folder = HERE / "configs" / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(vocabulary)} tokens, {len(merges)} merges")


if __name__ == "__main__":
    main()
