"""One small adapter of every kind for every family, and what it does, written out by hand.

Nothing here asks sdkit: the modules' names are those of the published checkpoints in both spellings (tests/headers and
diffusers), and the effects are the formulas of the papers in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Module:
    """A layer: its name in diffusers with the component in front, in the single file's denoiser, and its weight."""

    hub: str
    native: str
    shape: tuple[int, ...]

    @property
    def component(self) -> str:
        return self.hub.partition(".")[0]

    @property
    def name(self) -> str:
        """In diffusers' names, without the component."""
        return self.hub.partition(".")[2]


_TEN = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
_TEN += ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")


def _unet(stage: int, block: int, width: int, text: int, before: int) -> tuple[list[Module], list[Module]]:
    """The layers of a U-Net's first attention block, and the convolutions before it."""
    hub = f"unet.down_blocks.{stage}"
    native = f"input_blocks.{block}"
    sizes = {"attn2.to_k": (width, text), "attn2.to_v": (width, text)}
    sizes |= {"ff.net.0.proj": (8 * width, width), "ff.net.2": (width, 4 * width)}
    inner = "transformer_blocks.0"
    linear = [
        Module(f"{hub}.attentions.0.{inner}.{name}", f"{native}.1.{inner}.{name}", sizes.get(name, (width, width)))
        for name in _TEN
    ]
    kernels = (("resnets.0.conv1", "0.in_layers.2", before), ("resnets.0.conv2", "0.out_layers.3", width))
    return linear, [Module(f"{hub}.{a}", f"{native}.{b}", (width, columns, 3, 3)) for a, b, columns in kernels]


def _transformer(rows: dict[str, tuple[str, tuple[int, ...]]]) -> list[Module]:
    return [Module(f"transformer.{hub}", native, shape) for hub, (native, shape) in rows.items()]


# The first lies in a block, where every program looks; the others are as small as these models have them.
_SD3 = {
    "transformer_blocks.0.attn.to_out.0": ("joint_blocks.0.x_block.attn.proj", (1536, 1536)),
    "time_text_embed.timestep_embedder.linear_1": ("t_embedder.mlp.0", (1536, 256)),
    "time_text_embed.text_embedder.linear_1": ("y_embedder.mlp.0", (1536, 2048)),
    "proj_out": ("final_layer.linear", (64, 1536)),
}
_SD3_KERNELS = {"pos_embed.proj": ("x_embedder.proj", (1536, 16, 2, 2))}
_FLUX = {
    "transformer_blocks.0.attn.to_out.0": ("double_blocks.0.img_attn.proj", (3072, 3072)),
    "x_embedder": ("img_in", (3072, 64)),
    "time_text_embed.timestep_embedder.linear_1": ("time_in.in_layer", (3072, 256)),
    "time_text_embed.guidance_embedder.linear_1": ("guidance_in.in_layer", (3072, 256)),
    "proj_out": ("final_layer.linear", (64, 3072)),
}
_FLUX2 = {
    "transformer_blocks.0.attn.to_out.0": ("double_blocks.0.img_attn.proj", (3072, 3072)),
    "x_embedder": ("img_in", (3072, 128)),
    "time_guidance_embed.timestep_embedder.linear_1": ("time_in.in_layer", (3072, 256)),
    "proj_out": ("final_layer.linear", (128, 3072)),
}
_Z_IMAGE = {
    "layers.0.attention.to_out.0": ("layers.0.attention.out", (3840, 3840)),
    "all_x_embedder.2-1": ("x_embedder", (3840, 64)),
    "all_final_layer.2-1.adaLN_modulation.1": ("final_layer.adaLN_modulation.1", (3840, 256)),
    "t_embedder.mlp.0": ("t_embedder.mlp.0", (1024, 256)),
    "t_embedder.mlp.2": ("t_embedder.mlp.2", (256, 1024)),
    "all_final_layer.2-1.linear": ("final_layer.linear", (64, 3840)),
}
# Family → its linear layers and its convolutions.
LAYERS = {
    "sd1": _unet(0, 1, 320, 768, 320),
    "sd2": _unet(0, 1, 320, 1024, 320),
    "sdxl": _unet(1, 4, 640, 2048, 320),
    "sdxl-refiner": _unet(1, 4, 768, 1280, 384),
    "sd3": (_transformer(_SD3), _transformer(_SD3_KERNELS)),
    "flux": (_transformer(_FLUX), []),
    "flux2": (_transformer(_FLUX2), []),
    "z-image": (_transformer(_Z_IMAGE), []),
}
FAMILIES = tuple(LAYERS)
# Layers that have a bias, of families in which not all have one.
_BIASED = {family: "ff.net.2" for family in ("sd1", "sd2", "sdxl", "sdxl-refiner")} | {"z-image": "t_embedder.mlp.0"}
_LINEAR = ("lora", "loha", "lokr", "dora", "dora-in", "glora", "ia3", "oft", "boft", "full", "oftv2")
_KERNELS = ("locon", "tucker")


def module_of(family: str, kind: str) -> Module | None:
    """The layer that this kind changes in samples; None where a family has no convolutions, or no biases.

    Where a family has fewer layers here than there are kinds, several kinds have the same one.
    """
    linear, kernels = LAYERS[family]
    if kind in _KERNELS:
        return kernels[_KERNELS.index(kind) % len(kernels)] if kernels else None
    if kind == "bias":
        biased = [layer for layer in linear if layer.hub.endswith(_BIASED.get(family, ""))]
        return biased[0] if family != "flux2" else None
    number = _LINEAR.index(kind)
    return linear[number] if number == 0 else linear[1 + (number - 1) % (len(linear) - 1)]


def normal(*shape: int, seed: int, scale: float = 0.1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def parts_of(kind: str, shape: tuple[int, ...]) -> Tensors:
    """Role → tensor of a change, as LyCORIS and kohya's scripts store it; alpha is half the rank."""
    rows, columns, kernel = shape[0], shape[1], shape[2:]
    make = partial(normal, seed=len(kind) + rows)
    low: Tensors = {
        "lora_up.weight": make(rows, 2, *(1 for _ in kernel)),
        "lora_down.weight": make(2, columns, *kernel),
        "alpha": torch.tensor(1.0),
    }
    if kind in ("lora", "locon"):
        return low
    if kind == "bias":  # beside a LoRA, as PEFT has it
        return {**low, "diff_b": make(rows)}
    if kind == "tucker":
        core = {"lora_mid.weight": make(2, 2, *kernel), "lora_down.weight": make(2, columns, 1, 1)}
        return {**low, **core}
    if kind == "dora":
        return {**low, "dora_scale": make(rows, 1).abs() + 1}
    if kind == "dora-in":
        return {**low, "dora_scale": make(1, columns).abs() + 1}
    if kind == "loha":
        sides = {f"hada_w{n}_a": make(rows, 2) for n in (1, 2)} | {f"hada_w{n}_b": make(2, columns) for n in (1, 2)}
        return {**sides, "alpha": torch.tensor(1.0)}
    if kind == "lokr":
        factors = {"lokr_w2_a": make(rows // 2, 2), "lokr_w2_b": make(2, columns // 2)}
        return {"lokr_w1": make(2, 2), **factors, "alpha": torch.tensor(1.0)}
    if kind == "glora":
        inner = {"a1.weight": make(columns, 2), "a2.weight": make(2, columns)}
        return {**inner, "b1.weight": make(rows, 2), "b2.weight": make(2, columns), "alpha": torch.tensor(1.0)}
    if kind == "ia3":
        return {"weight": make(rows), "on_input": torch.tensor(0.0)}
    if kind == "oft":
        return {"oft_blocks": make(rows // 4, 4, 4), "alpha": torch.tensor(0.0)}
    if kind == "boft":
        # LyCORIS' rule: blocks of even size, a power of two of them, and stages until all features have met.
        number = rows & -rows
        number = number // 4 if number == rows else number // 2
        return {
            "oft_blocks": make(number.bit_length(), number, rows // number, rows // number),
            "alpha": torch.tensor(0.0),
        }
    if kind == "oftv2":
        return {"oft_R.weight": make(columns // 4, 6)}
    assert kind == "full", kind
    return {"diff": make(*shape)}


def effect(parts: Tensors, weight: torch.Tensor) -> torch.Tensor:
    """What a change does to `weight`, [rows, columns] in float64; every formula from its paper, at strength 1."""
    part = {role: tensor.double() for role, tensor in parts.items()}
    if "diff" in part:
        return part["diff"].flatten(1)
    if "weight" in part:
        return weight * part["weight"].reshape((1, -1) if part["on_input"] else (-1, 1))
    if "oft_blocks" in part:
        return _rotated(part["oft_blocks"], weight) - weight
    if "oft_R.weight" in part:
        return weight @ torch.block_diag(*_series(part["oft_R.weight"])).T - weight
    if "hada_w1_a" in part:
        first, second = (part[f"hada_w{n}_a"] @ part[f"hada_w{n}_b"] for n in (1, 2))
        return first * second * (part["alpha"] / len(part["hada_w1_b"]))
    if "lokr_w1" in part:
        inner = part["lokr_w2_a"] @ part["lokr_w2_b"] * (part["alpha"] / len(part["lokr_w2_b"]))
        return torch.kron(part["lokr_w1"], inner)
    if "a1.weight" in part:
        one = weight @ part["a1.weight"] @ part["a2.weight"]
        return (part["b1.weight"] @ part["b2.weight"] + one) * (part["alpha"] / 2)
    change = _low_rank(part)
    if "dora_scale" not in part:
        return change
    moved, lengths = weight + change, part["dora_scale"]
    return moved * lengths / moved.norm(dim=0 if lengths.shape[0] == 1 else 1, keepdim=True) - weight


def _low_rank(part: Tensors) -> torch.Tensor:
    up, down = part["lora_up.weight"].flatten(1), part["lora_down.weight"]
    scale = part["alpha"] / len(down)
    if "lora_mid.weight" in part:
        whole = torch.einsum("or,rshw,si->oihw", up, part["lora_mid.weight"], down.flatten(1))
        return whole.flatten(1) * scale
    return up @ down.flatten(1) * scale


def _rotated(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    skew = blocks - blocks.mT
    identity = torch.eye(skew.shape[-1], dtype=torch.float64)
    turns = (identity + skew) @ torch.linalg.inv(identity - skew)
    if turns.ndim == 3:
        return _in_blocks(turns.mT, weight)
    for stage, turn in enumerate(turns):  # features a distance of 2^stage half blocks apart come into one block
        rows = torch.arange(len(weight)).reshape(-1, 2, 2**stage * turn.shape[-1] // 2).mT.flatten()
        weight = torch.empty_like(weight).index_copy_(0, rows, _in_blocks(turn, weight[rows]))
    return weight


def _series(triangles: torch.Tensor) -> torch.Tensor:
    """PEFT's Cayley-Neumann series of five terms, of blocks of 4."""
    skew = torch.zeros(len(triangles), 4, 4, dtype=torch.float64)
    skew[:, *torch.triu_indices(4, 4, 1)] = triangles
    skew = skew - skew.mT
    two = skew @ skew
    return torch.eye(4, dtype=torch.float64) + 2 * skew + 2 * two + 2 * two @ skew + two @ two


def _in_blocks(turns: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (turns @ weight.reshape(len(turns), turns.shape[-1], -1)).flatten(0, 1)


@dataclass(frozen=True)
class Sample:
    """Changes of one family's layers, a layer for each kind.

    Attributes:
        family: whose layers.
        changes: kind → the layer and its parts.
    """

    family: str
    changes: dict[str, tuple[Module, Tensors]]

    @classmethod
    def all_of(cls, family: str, kinds: tuple[str, ...]) -> list[Sample]:
        """As few as hold all these kinds, as far as the family's layers can be changed by them."""
        made: list[Sample] = []
        for kind in kinds:
            module = module_of(family, kind)
            if module is not None:
                sample = next((one for one in made if module.hub not in one.modules), None)
                if sample is None:
                    made.append(sample := cls(family, {}))
                sample.changes[kind] = (module, parts_of(kind, module.shape))
        return made

    @property
    def modules(self) -> dict[str, tuple[Module, Tensors]]:
        """Hub module → the layer and its parts."""
        return {module.hub: (module, parts) for module, parts in self.changes.values()}

    @property
    def biased(self) -> list[tuple[Module, Tensors]]:
        """The layers whose bias is changed, too."""
        return [(module, parts) for module, parts in self.changes.values() if "diff_b" in parts]

    def named(self, name: Callable[[Module], str]) -> Tensors:
        """A file's tensors: each module under the name that `name` gives it, a dot, and the role."""
        pairs = self.changes.values()
        return {f"{name(module)}.{role}": part for module, parts in pairs for role, part in parts.items()}


def flat(name: str) -> str:
    return name.replace(".", "_")


def kohya_name(module: Module, family: str, *, diffusers: bool = False) -> str:
    """kohya's rule: SDXL's and the transformers' layers as in the single file; OneTrainer's as in diffusers."""
    if module.component == "transformer":
        return f"lora_transformer_{flat(module.name)}" if diffusers else f"lora_unet_{flat(module.native)}"
    native = family.startswith("sdxl") and not diffusers
    return f"lora_unet_{flat(module.native if native else module.name)}"


@cache
def wanted(module: Module, kind: str, alpha: float) -> torch.Tensor:
    """What the change of this kind does to this layer's weight."""
    parts = parts_of(kind, module.shape)
    return effect(parts | ({"alpha": torch.tensor(alpha)} if "alpha" in parts else {}), base_weight(module))


@cache
def base_weight(module: Module) -> torch.Tensor:
    """A weight that stands for the base's, [rows, columns] in float64."""
    return normal(*module.shape, seed=5, scale=0.05).double().flatten(1)
