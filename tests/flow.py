"""Small pipelines of SD3 and FLUX.1 as diffusers makes and saves them, with a T5 tokenizer trained on a sentence."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_model, single_file_utils

import sdkit

FAMILIES = ("sd3", "sd3.5", "flux", "schnell", "fill", "control")
T5 = {
    "d_ff": 40,
    "d_kv": 8,
    "d_model": 48,
    "feed_forward_proj": "gated-gelu",
    "num_heads": 2,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
    "vocab_size": 64,
}
VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 1.5,
    "shift_factor": 0.1,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
SD3 = {
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "in_channels": 16,
    "joint_attention_dim": 48,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 48,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}
FLUX = {
    "attention_head_dim": 8,
    "axes_dims_rope": (2, 2, 4),
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 48,
    "num_attention_heads": 3,
    "num_layers": 2,
    "num_single_layers": 3,
    "pooled_projection_dim": 16,
}
TRANSFORMERS = {
    "sd3": SD3,
    "sd3.5": SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "flux": FLUX,
    "schnell": FLUX | {"guidance_embeds": False},
    "fill": FLUX | {"in_channels": 384, "out_channels": 64},
    "control": FLUX | {"in_channels": 128, "out_channels": 64},
}
PIPELINES = {
    "flux": diffusers.FluxPipeline,
    "schnell": diffusers.FluxPipeline,
    "fill": diffusers.FluxFillPipeline,
    "control": diffusers.FluxControlPipeline,
}
CLIP = Path(sdkit.__file__).parent / "assets" / "tokenizers" / "clip"


def make_pipeline(kind: str, folder: Path) -> Path:
    """A pipeline folder with random weights, saved by diffusers."""
    torch.manual_seed(7)
    clip = transformers.CLIPTokenizer.from_pretrained(CLIP)
    shared = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "vae": diffusers.AutoencoderKL(**VAE)}
    t5, t5_tokenizer = transformers.T5EncoderModel(transformers.T5Config(**T5)), train_t5_tokenizer(folder / "t5")
    model: Any
    if kind.startswith("sd3"):
        first = text_encoder(transformers.CLIPTextModelWithProjection, 16)
        first.text_projection.weight.data.copy_(torch.eye(16))  # diffusers' reader of single files supposes it
        model = diffusers.StableDiffusion3Pipeline(
            **shared,
            transformer=diffusers.SD3Transformer2DModel(**TRANSFORMERS[kind]),
            text_encoder=first,
            text_encoder_2=text_encoder(transformers.CLIPTextModelWithProjection, 32),
            text_encoder_3=t5,
            tokenizer=clip,
            tokenizer_2=clip,
            tokenizer_3=t5_tokenizer,
        )
    else:
        model = PIPELINES[kind](
            **shared,
            transformer=diffusers.FluxTransformer2DModel(**TRANSFORMERS[kind]),
            text_encoder=text_encoder(transformers.CLIPTextModel, 16),
            text_encoder_2=t5,
            tokenizer=clip,
            tokenizer_2=t5_tokenizer,
        )
    model.save_pretrained(folder / "base")
    return folder / "base"


def text_encoder(kind: Any, width: int) -> Any:
    """A small CLIP with CLIP's vocabulary."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width, "num_hidden_layers": 2}
    config = transformers.CLIPTextConfig(
        **sizes, num_attention_heads=2, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407
    )
    config.architectures = [kind.__name__]
    return kind(config)


def train_t5_tokenizer(folder: Path) -> Any:
    """A unigram model of few tokens, as T5's tokenizer is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(["a small cat sits on the red mat and looks at a bird"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"eos_token": "</s>", "extra_ids": 0, "pad_token": "<pad>", "unk_token": "<unk>"}
    marks |= {"model_max_length": 16, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(marks))
    return transformers.T5TokenizerFast.from_pretrained(folder)


def narrow_oracle() -> Callable[..., Any]:
    """diffusers' converter of FLUX.1 files for a small model: it has the published width in its source."""
    right = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    source = inspect.getsource(right)
    width = FLUX["attention_head_dim"] * FLUX["num_attention_heads"]  # type: ignore[operator]
    assert source.count("inner_dim = 3072") == 1
    space = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), space)  # noqa: S102
    converter: Callable[..., Any] = space[right.__name__]
    return converter


def use_narrow_oracle(monkeypatch: Any) -> None:
    """Let `from_single_file` read small models of FLUX.1."""
    entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", narrow_oracle())


def tokenizer_in(folder: Path, target: Path) -> Path:
    """T5's tokenizer of a pipeline in a folder of its own."""
    source = next(folder / name for name in ("tokenizer_3", "tokenizer_2") if (folder / name).is_dir())
    target.mkdir(parents=True)
    for file in source.iterdir():
        copyfile(file, target / file.name)
    return target
