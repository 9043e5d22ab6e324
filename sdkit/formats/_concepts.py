"""What the pickles of Custom Diffusion share: one file with attention's weights, or their changes, and the words.

            the authors' code over diffusers (.bin)        the authors' code over LDM (.ckpt)
weights     unet → ….attn2.to_k.weight                     state_dict → model.diffusion_model.….attn2.to_k.weight
words       modifier_token → <new1> → vector;              embed → [words, width], no names
            SDXL: a list of two vectors
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sdkit.adapters.artifact import Artifact, TokenRows
from sdkit.adapters.builder import ArtifactBuilder
from sdkit.core.errors import SdkitError
from sdkit.families.family import Model
from sdkit.formats.textual_inversion import encoder_of
from sdkit.streaming.expression import Read
from sdkit.weights import TensorInfo, Weights

_WEIGHT = re.compile(
    r"(?P<start>unet|model\.diffusion_model)\.(?P<module>.+\.attn[12]\.to_(?:k|v|q|out\.0))"
    r"\.(?P<parameter>weight|bias)(?:\.(?P<factor>[uv]))?"
)
_WORD = re.compile(r"modifier_token\.(?P<word>.+?)(?:\.[01])?")
TOKENS = "modifier_token"
ROWS = "embed"
LDM = "model.diffusion_model"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor of such a file belongs.

    Attributes:
        start: ``unet``, or LDM's ``model.diffusion_model``.
        module: the module behind it, as the file spells it.
        parameter: ``weight`` or ``bias``.
        factor: ``u`` or ``v`` of a change; empty for a whole weight.
    """

    start: str
    module: str
    parameter: str
    factor: str

    def hub(self, names: Mapping[str, str]) -> str:
        """The hub's module, as far as it is known; `names` translates the single file's."""
        return names.get(self.module, f"unet.{self.module}") if self.start == LDM else f"unet.{self.module}"


def stored(name: str) -> Stored | None:
    """What a tensor's name says; None for one of another kind."""
    match = _WEIGHT.fullmatch(name)
    return Stored(match["start"], match["module"], match["parameter"], match["factor"] or "") if match else None


def looks_so(weights: Weights, *, factors: bool) -> bool:
    """Whether a file holds attention's weights, or their factors, and nothing but words beside them."""
    found = False
    for name in weights.tensors:  # most files show with their first name that they are something else
        entry = stored(name)
        if entry is not None and bool(entry.factor) == factors:
            found = True
        elif entry is not None or not (name == ROWS or _WORD.fullmatch(name)):
            return False
    return found


def single_file_names(model: Model | None) -> dict[str, str]:
    """The single file's name of each module of the U-Net → the hub's."""
    native = model.native_modules.items() if model is not None else ()
    return {name: hub for hub, name in native if hub.startswith("unet.")}


def read_words(builder: ArtifactBuilder, weights: Weights) -> None:
    """Take the words. Those of LDM's file have no names, unless the file says them elsewhere."""
    for name, info in weights.tensors.items():
        match = _WORD.fullmatch(name)
        if match:
            builder.add_tokens(match["word"], encoder_of("", info), info)
        elif name == ROWS:
            count = info.shape[0] if len(info.shape) == 2 else 1
            words = _names(weights, count)
            for word, row in zip(words, _rows(info, count), strict=True):
                builder.add_tokens(word, encoder_of("", info), row)
            if weights.extra.get(TOKENS) is None:
                builder.note(f"its words have no names in it; they are called {', '.join(words)}")


def written_words(artifact: Artifact) -> dict[str, list[TokenRows]]:
    """Word → its rows, one for each text encoder.

    Raises:
        SdkitError: a word has several vectors, which these files have no place for.
    """
    words: dict[str, list[TokenRows]] = {}
    for rows in artifact.tokens:
        if rows.info.numel != rows.info.shape[-1]:
            raise SdkitError(f"{rows.token}: has {rows.info.shape[0]} vectors; these files hold one for each word")
        words.setdefault(rows.token, []).append(rows)
    return words


def vector(rows: TokenRows) -> Read:
    """A word's only vector, as a tensor of one dimension."""
    return Read(rows.weights, replace(rows.info, shape=rows.info.shape[-1:]))


def _names(weights: Weights, count: int) -> list[str]:
    said = weights.extra.get(TOKENS)
    names = said.split("+") if isinstance(said, str) else []
    return names if len(names) == count else [f"<new{number}>" for number in range(1, count + 1)]


def _rows(info: TensorInfo, count: int) -> Iterator[TensorInfo]:
    """The rows of a matrix, each a tensor of its own."""
    if info.strides is not None:
        raise SdkitError(f"{info.name}: is stored transposed", "load and save it with torch once")
    size = info.nbytes // count
    for number in range(count):
        yield replace(info, shape=info.shape[-1:], offset=info.offset + number * size)
