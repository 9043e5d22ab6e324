"""Prompts as the denoiser reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdkit.runtime.backbone import Cond

if TYPE_CHECKING:
    from sdkit.generation.request import Request
    from sdkit.runtime.backbone import Backbone


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
    """Conditioning of one picture."""
    assert request.width is not None and request.height is not None, "requests are checked"
    prompt, negative = (
        backbone.encode_text(backbone.tokenize([text]), (request.width, request.height), clip_skip=request.clip_skip)
        for text in (request.prompt, request.negative)
    )
    return Texts(prompt, negative)
