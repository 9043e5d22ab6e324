"""HyperDreamBooth's hypernetworks: they predict a LiDB from one picture, and are no adapter themselves.

``sdkit train hyperdreambooth`` writes them, for itself. The network's tensors lie behind ``predictor.``, ``start`` is
the vector every prediction begins as, and the metadata ``hyperdreambooth`` are JSON: what the network was built from,
and the bases of the LiDBs it predicts. arXiv:2307.06949.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from sdkit.adapters.artifact import Artifact
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.adapters.deltas.lightweight import SCHEME, Basis, bases_digest
from sdkit.adapters.lightweight_vector import Layout
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats.codec import Verdict
from sdkit.formats.lidb import LARGEST, LARGEST_BASES
from sdkit.weights import Weights

HOLDS = ("hyperdreambooth",)
FAMILIES = ("sd1", "sd2", "sdxl")  # those that can be trained
KEY = "hyperdreambooth"
OWN_METADATA = re.compile(re.escape(KEY))
START = "start"
NETWORK = "predictor."


@dataclass(frozen=True, slots=True)
class Description:
    """What such a file says of itself.

    Attributes:
        base_id: quick id of the base it was trained on.
        base_name: its name.
        prompt: that every picture was captioned with.
        encoder: what looks at pictures: ``vae`` or ``clip``.
        encoder_id: names the weights of a CLIP; empty for the base's own autoencoder.
        side: width and height of the pictures it looks at.
        width: of the transformer.
        blocks: of its decoder.
        iterations: how often it refines a prediction.
        rank: of the LiDBs.
        layers: module, rows, columns, a and b of each of a LiDB's layers.
        seed: that the bases follow from.
    """

    base_id: str
    base_name: str
    prompt: str
    encoder: str
    encoder_id: str
    side: int
    width: int
    blocks: int
    iterations: int
    rank: int
    layers: tuple[tuple[str, int, int, int, int], ...]
    seed: int

    @property
    def layout(self) -> Layout:
        """Of the vectors it predicts."""
        return Layout(tuple(Basis(self.seed, *layer) for layer in self.layers), self.rank)

    def metadata(self) -> dict[str, str]:
        """As the file's header holds it, with the digest of the bases."""
        fields = asdict(self) | {"basis": SCHEME, "sha256": bases_digest(self.layout.bases)}
        return {KEY: json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)}


def detect(weights: Weights) -> Verdict:
    """Recognised by its metadata and the tensor ``start``."""
    if KEY in weights.metadata and START in weights.tensors:
        return Verdict(True, f"its metadata have {KEY!r}, and it holds the tensor {START!r}")
    return Verdict(False, f"its metadata have no {KEY!r}")


def read(weights: Weights, model: Model | None) -> Artifact:
    """See `Codec.read`."""
    found = describe(weights, check=False)
    builder = ArtifactBuilder(weights, model, "hyperdreambooth")
    builder.note(
        f"it predicts LiDBs of {found.layout.size} numbers for the base {found.base_name}, for {found.prompt!r}"
    )
    return replace(builder.build(), kind="hyperdreambooth")


def describe(weights: Weights, *, check: bool = True) -> Description:
    """What a file says of itself.

    Args:
        check: whether the bases are made, and compared with those it was trained with.

    Raises:
        SdkitError: it is none of these files, is damaged, or its bases are not those made here.
    """
    try:
        fields: dict[str, Any] = json.loads(weights.metadata[KEY])
        scheme, digest = str(fields.pop("basis")), str(fields.pop("sha256"))
        found = Description(**{**fields, "layers": tuple(_layer(*layer) for layer in fields["layers"])})
        _check_numbers(found)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise SdkitError(
            f"{weights.path}: is no hypernetwork of HyperDreamBooth, or a damaged one",
            "`sdkit train hyperdreambooth --data FOLDER_OF_IDENTITIES` makes one",
        ) from None
    made = bases_digest(found.layout.bases) if check and scheme == SCHEME else digest
    if scheme != SCHEME or made != digest:
        raise SdkitError(
            f"{weights.path}: its frozen bases ({scheme[:40]}, sha256 {digest[:12]}) are not those made here "
            f"({SCHEME}, {made[:12]})",
            "its predictions would mean something else: use the sdkit that trained it",
        )
    return found


def _layer(module: str, rows: int, columns: int, a: int, b: int) -> tuple[str, int, int, int, int]:
    if not (isinstance(module, str) and 0 < a <= rows <= LARGEST and 0 < b <= columns <= LARGEST):
        raise ValueError
    return module, rows, columns, a, b


def _check_numbers(found: Description) -> None:
    """Raise ValueError unless every number is one that a network can be built from."""
    numbers = (found.side, found.width, found.blocks, found.iterations, found.rank)
    sizes = sum(basis.rows * basis.a + basis.columns * basis.b for basis in found.layout.bases)
    texts = (found.prompt, found.encoder, found.base_id, found.base_name, found.encoder_id)
    sound = all(type(number) is int and 0 < number <= LARGEST for number in numbers) and type(found.seed) is int
    if not sound or not 0 < sizes <= LARGEST_BASES or not all(isinstance(text, str) for text in texts):
        raise ValueError
