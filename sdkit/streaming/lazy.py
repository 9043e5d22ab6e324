"""Models that are computed and have not been written: opened weights whose tensors are expressions.

Whatever reads a model's header can read this one's, so steps of a recipe follow each other without a file between them:
their expressions become one, which is rounded once, where it is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdkit.streaming.expression import Context, Expression, Read, torch_dtype
from sdkit.streaming.plan import Output
from sdkit.streaming.scratch import Scratch
from sdkit.weights import TensorInfo, Weights
from sdkit.weights.reader import Container


class LazyWeights(Weights):
    """The result of a step that nobody has written.

    Args:
        name: of the step.
        like: the opened model the result is laid out as.
        outputs: its tensors, named as in `like`.
        metadata: what it would say about itself, without its recipe.
        recipe: how it is made.
        sources: the opened files it is computed from.
        notes: what a person should see once the result is written.

    Attributes:
        outputs: by name.
    """

    def __init__(
        self,
        name: str,
        like: Weights,
        outputs: Sequence[Output],
        metadata: Mapping[str, str],
        recipe: Mapping[str, object],
        sources: Sequence[Weights],
        notes: Sequence[str] = (),
    ) -> None:
        infos = {output.name: _info(output, like) for output in outputs}
        container = Container.FOLDER if like.container is Container.FOLDER else Container.SAFETENSORS
        super().__init__(
            like.path,
            container,
            like.files,
            infos,
            metadata,
            prefixes=like.prefixes,
            file_metadata=like.file_metadata,
            configs=like.configs,
        )
        self.name = name
        self.outputs = {output.name: output for output in outputs}
        self.recipe = dict(recipe)
        self.sources = tuple(sources)
        self.notes = tuple(notes)

    def read_into(self, info: TensorInfo, buffer: memoryview, start: int = 0) -> None:
        """Fill `buffer` with the bytes the tensor would be stored as, beginning at its byte `start`.

        The whole tensor is computed for it: this is for small things (flags, counters, scales).
        """
        output = self.outputs[info.name]
        if output.copied is not None:
            output.copied.weights.read_into(output.copied.info, buffer, start)
            return
        import torch

        stored = torch_dtype(output.dtype)
        with torch.inference_mode():
            arithmetic = torch.float64 if output.dtype.name == "F64" else torch.float32  # as the engine computes
            tile = output.expression.bind(Context(Scratch(), arithmetic, output.dtype))
            values = tile(0, info.numel).to(stored).contiguous()
        buffer[:] = values.flatten().view(torch.uint8).numpy().tobytes()[start : start + len(buffer)]


def _info(output: Output, like: Weights) -> TensorInfo:
    """Where the tensor would lie: in the file of `like` that holds the one of its name."""
    known = like.tensors.get(output.name)
    return TensorInfo(output.name, output.dtype, output.shape, 0, known.file if known else 0)


def stored(weights: Weights, info: TensorInfo) -> Expression:
    """A tensor of opened weights: read from its file, or computed by the step that makes it."""
    if isinstance(weights, LazyWeights):
        return weights.outputs[info.name].expression
    return Read(weights, info)


def leaves(opened: Sequence[Weights]) -> list[Weights]:
    """The files that opened weights are or are computed from, each once, in order."""
    found: dict[Weights, None] = {}
    for weights in opened:
        found.update(dict.fromkeys(weights.sources if isinstance(weights, LazyWeights) else (weights,)))
    return list(found)
