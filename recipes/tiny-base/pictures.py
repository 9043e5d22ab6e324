"""Make the pictures that the embedded base is trained on, out of npm's emoji packages.

    python recipes/tiny-base/pictures.py runs/emoji

downloads three packages with npm (about 150 MB; ``--packages DIR`` takes those already there) and writes, under the
folder named:

- ``autoencoder/`` and ``autoencoder-held-out/``: every drawing once, on a background that follows from its name;
- ``base/``: the concepts of concepts.txt in two styles on every background, with captions;
- ``styles/noto/``, ``styles/twemoji/``: the same, each style alone;
- ``subjects/NAME/``: the concepts of held-out.txt, which the base never sees;
- ``fluent/`` and ``fluent-held-out/``: a style the base never sees;
- ``reference/``: every concept in all styles with transparent backgrounds, for measuring what a model draws.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "twemoji": "emoji-datasource-twitter@16.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
# Far enough apart to be told from each other, and pale or dark enough to leave the drawings their own colours.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (16, 16, 16),
    "gray": (150, 150, 150),
    "blue": (110, 160, 235),
    "green": (130, 205, 130),
    "pink": (250, 175, 205),
    "yellow": (250, 230, 130),
    "purple": (150, 115, 205),
}
SIZE = 64
STYLE_PICTURES = 24  # of the unseen style, to train on


@dataclass(frozen=True, slots=True)
class Drawing:
    """One emoji of one vendor: its concept, the style, and the picture with its alpha channel."""

    concept: str
    style: str
    picture: Image.Image

    def on(self, background: str) -> Image.Image:
        """The drawing on a colour."""
        canvas = Image.new("RGBA", self.picture.size, (*BACKGROUNDS[background], 255))
        return Image.alpha_composite(canvas, self.picture).convert("RGB")

    def caption(self, background: str) -> str:
        """What the base is told about it."""
        return f"{self.concept}, {self.style} style, on a {background} background"

    @property
    def stem(self) -> str:
        """A file name without suffix."""
        return f"{self.concept.replace(' ', '-')}--{self.style}"


def concepts(file: Path) -> dict[str, str]:
    """emoji-datasource's short name → the words that captions use."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = (line.partition(":") for line in lines if line and not line.startswith("#"))
    return {name.strip(): words.strip() or name.strip().replace("_", " ") for name, _, words in pairs}


def fetch(package: str, folder: Path) -> Path:
    """The package's archive, downloaded by npm unless it is there."""
    name, _, version = package.rpartition("@")
    archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True)
    return archive


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of an archive: its name and contents."""
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def emoji(archives: dict[str, Path]) -> dict[str, dict[str, bytes]]:
    """Style → code point → the picture file, and style ``names`` → short name → code point."""
    files: dict[str, dict[str, bytes]] = {style: {} for style in archives}
    names: dict[str, bytes] = {}
    for style, archive in archives.items():
        for name, contents in members(archive):
            if name.endswith("/emoji.json") and not names:
                names = {entry["short_name"]: entry["unified"].lower().encode() for entry in json.loads(contents)}
            elif name.endswith(".webp") or "/64/" in name:
                files[style][Path(name).stem.lower()] = contents
    return {**files, "names": names}


def drawing(found: dict[str, dict[str, bytes]], name: str, concept: str, style: str) -> Drawing | None:
    """A concept in a style, brought to the size; None where the vendor has not drawn it."""
    code = found["names"][name].decode()
    contents = found[style].get(code) or found[style].get(code.removesuffix("-fe0f"))
    if contents is None:
        return None
    picture = Image.open(io.BytesIO(contents)).convert("RGBA")
    return Drawing(concept, style, picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def write(folder: Path, entries: list[tuple[str, Image.Image, str]]) -> None:
    """Pictures and their captions, as ``sdkit train`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for stem, picture, caption in entries:
        picture.save(folder / f"{stem}.png", compress_level=1)
        lines.append(json.dumps({"file_name": f"{stem}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(entries):6} pictures in {folder}")


def everywhere(drawings: list[Drawing]) -> list[tuple[str, Image.Image, str]]:
    """Each drawing on every background, and once more on white by its bare name."""
    entries = []
    for entry in drawings:
        entries += [(f"{entry.stem}--{name}", entry.on(name), entry.caption(name)) for name in BACKGROUNDS]
        entries.append((f"{entry.stem}--plain", entry.on("white"), entry.concept))
    return entries


def once(drawings: list[Drawing]) -> list[tuple[str, Image.Image, str]]:
    """Each drawing on one background that follows from its name."""
    entries = []
    for entry in drawings:
        background = list(BACKGROUNDS)[hashlib.sha256(entry.stem.encode()).digest()[0] % len(BACKGROUNDS)]
        entries.append((entry.stem, entry.on(background), entry.caption(background)))
    return entries


def transparent(drawings: list[Drawing]) -> list[tuple[str, Image.Image, str]]:
    """The drawings as they are."""
    return [(entry.stem, entry.picture, entry.concept) for entry in drawings]


def main() -> None:
    """Write all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--packages", type=Path, help="where the npm archives are, or go to [default: OUTPUT/packages]")
    arguments = parser.parse_args()
    output: Path = arguments.output
    packages = arguments.packages or output / "packages"
    found = emoji({style: fetch(package, packages) for style, package in PACKAGES.items()})

    seen, unseen = concepts(HERE / "concepts.txt"), concepts(HERE / "held-out.txt")

    def draw(names: dict[str, str], *styles: str) -> list[Drawing]:
        made = [drawing(found, name, concept, style) for name, concept in names.items() for style in styles]
        return [entry for entry in made if entry is not None]

    others = {name: name.replace("_", " ") for name in found["names"] if name not in seen and name not in unseen}
    everything = draw(
        {**seen, **{name: words for name, words in others.items() if "/" not in words}}, "noto", "twemoji"
    )
    fluent = draw(seen, "fluent")
    chosen = fluent[:: len(fluent) // STYLE_PICTURES][:STYLE_PICTURES]

    write(output / "autoencoder", once(everything))
    write(output / "autoencoder-held-out", once(draw(unseen, "noto", "twemoji")))
    write(output / "base", everywhere(draw(seen, "noto", "twemoji")))
    for style in ("noto", "twemoji"):
        write(output / "styles" / style, everywhere(draw(seen, style)))
    for name, concept in unseen.items():
        write(output / "subjects" / concept.replace(" ", "-"), everywhere(draw({name: concept}, "noto", "twemoji")))
    write(output / "fluent", once(chosen))
    write(output / "fluent-held-out", once([entry for entry in fluent if entry not in chosen]))
    write(output / "reference", transparent(draw({**seen, **unseen}, "noto", "twemoji", "fluent")))


if __name__ == "__main__":
    main()
