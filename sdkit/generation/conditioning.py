"""Prompts as the denoiser reads them: encoded chunk by chunk, and weighed.

A weight multiplies the encoded vector of its token; afterwards all vectors of the chunk are scaled so that their mean
is what it was (A1111's emphasis “Original”). Without the second part, high weights make pictures glaring.

CLIP's vectors have such a mean, a tenth of their spread. Where there is none to speak of (text encoders trained from
nothing), the quotient of two such means would be chance, and the vectors stay as the weights made them.

Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.core.errors import UsageError
from sdkit.generation.chunks import Chunk, chunk_length, split_prompt
from sdkit.generation.prompt import parse_prompt
from sdkit.runtime.backbone import Cond
from sdkit.runtime.guidance import unconditional
from sdkit.runtime.tokens import marked_ids

if TYPE_CHECKING:
    import torch

    from sdkit.generation.request import Request
    from sdkit.runtime.backbone import Backbone
    from sdkit.runtime.steering import Steer

_LEAST_MEAN = 0.01  # of the vectors' standard deviation

Chunks = Mapping[str, Sequence[Chunk]]  # by text encoder's component


@dataclass(frozen=True, slots=True)
class Texts:
    """The prompt and the negative prompt of pictures, of one length."""

    prompt: Cond
    negative: Cond

    @staticmethod
    def join(parts: Sequence[Texts]) -> Texts:
        """Several batches as one."""
        return Texts(Cond.join([part.prompt for part in parts]), Cond.join([part.negative for part in parts]))

    def pipeline_arguments(self) -> dict[str, Any]:
        """As diffusers' pipelines take them."""
        arguments = {"prompt_embeds": self.prompt.context, "negative_prompt_embeds": self.negative.context}
        if "text_embeds" in self.prompt.added:
            arguments["pooled_prompt_embeds"] = self.prompt.added["text_embeds"]
            arguments["negative_pooled_prompt_embeds"] = self.negative.added["text_embeds"]
        return arguments


def encode_texts(backbone: Backbone, request: Request) -> Texts:
    """Conditioning of one picture. The shorter of its two prompts is filled up with empty chunks.

    Raises:
        UsageError: a prompt cannot be read, or asks for adapters, which a prompt alone cannot find.
    """
    assert request.width is not None and request.height is not None, "requests are checked"
    size = (request.width, request.height)
    prompts = [_split(backbone, text) for text in (request.prompt, request.negative)]
    count = max(len(chunks) for prompt in prompts for chunks in prompt.values())
    prompt = _encode(backbone, prompts[0], count, size, request.clip_skip, steers=backbone.steers)
    negative = _encode(backbone, prompts[1], count, size, request.clip_skip)
    return Texts(prompt, negative if request.negative else unconditional(negative))


def _split(backbone: Backbone, text: str) -> Chunks:
    prompt = parse_prompt(text)
    if prompt.tags:
        raise UsageError(f"{prompt.tags[0]}: adapters are not looked up here", "leave it out, or use `sdkit generate`")
    return {component: split_prompt(backbone, component, prompt) for component in backbone.text_encoders}


def _encode(
    backbone: Backbone,
    chunks: Chunks,
    count: int,
    size: tuple[int, int],
    clip_skip: int,
    steers: Sequence[Steer] = (),
) -> Cond:
    """`count` chunks one behind the other. What a family adds (SDXL's pooled text) comes from the first."""
    import torch

    parts = []
    for number in range(count):
        at = {name: own[number] if number < len(own) else Chunk() for name, own in chunks.items()}
        ids = {name: torch.tensor([_marked(backbone, name, chunk)]) for name, chunk in at.items()}
        cond = backbone.encode_text(ids, size, clip_skip=clip_skip)
        for steer in steers:
            cond = steer(backbone, ids, size, clip_skip, cond)
        parts.append(Cond(_weighed(backbone, cond.context, at), cond.added))
    return Cond(torch.cat([part.context for part in parts], dim=1), parts[0].added)


def _marked(backbone: Backbone, component: str, chunk: Chunk) -> list[int]:
    return marked_ids(backbone.tokenizers[component], chunk.ids, chunk_length(backbone, component) + 2)


def _weighed(backbone: Backbone, context: torch.Tensor, chunks: Mapping[str, Chunk]) -> torch.Tensor:
    """The context [1, length, width] of a chunk weighed; where text encoders share the width, the part of each."""
    import torch

    if all(weight == 1 for chunk in chunks.values() for weight in chunk.weights):
        return context
    parts = torch.split(context, _widths(backbone, context), dim=-1)
    return torch.cat([weigh(part, chunk.weights) for part, chunk in zip(parts, chunks.values(), strict=True)], dim=-1)


def _widths(backbone: Backbone, context: torch.Tensor) -> list[int]:
    encoders: list[Any] = [backbone.components[name] for name in backbone.text_encoders]
    return [int(encoder.config.hidden_size) for encoder in encoders] if len(encoders) > 1 else [context.shape[-1]]


def weigh(vectors: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Multiply the vectors [1, length, width] of a chunk with its tokens' weights, and restore their mean, if any.

    Args:
        vectors: those of the marks and the padding included.
        weights: of the tokens behind the mark of the start; the rest weighs 1.

    Raises:
        UsageError: nothing is left that could be scaled.
    """
    import torch

    factors = torch.ones(vectors.shape[1])
    factors[1 : 1 + len(weights)] = torch.tensor(weights)
    plain = vectors.float()
    weighed = plain * factors.to(vectors.device)[None, :, None]
    if float(plain.mean().abs()) >= _LEAST_MEAN * float(plain.std()):
        weighed = weighed * (plain.mean() / weighed.mean())
    if not bool(weighed.isfinite().all()):
        raise UsageError("the weights of the prompt leave no finite numbers", "use weights nearer to 1")
    return weighed.to(vectors.dtype)
