"""Whatever names and shapes a file holds, a codec answers or raises an error for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdkit.core.errors import SdkitError
from sdkit.families.family import Model, Place
from sdkit.formats import adapter_family, formats, read_adapter, recognise
from sdkit.weights import DTYPES, TensorInfo, Weights
from sdkit.weights.reader import Container

BLOCK = "unet.mid_block.attentions.0.transformer_blocks.0"
MODULES = [f"{BLOCK}.attn1.to_q", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
FLAT = {"lora_unet_mid_to_q": MODULES[0], "lora_te_q_proj": MODULES[1]}
MODEL = Model("sd1", places={f"{m}.weight": Place(m, (4, 4)) for m in MODULES}, kohya_modules=FLAT)
STARTS = ["", *FLAT, *MODULES, "lora_unet_x", "lycoris_q_proj", "unet.x", "base_model.model.x", "bundle_emb.a", "768.0"]
ENDS = [
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "diff", "diff_b", "w_norm", "dora_scale"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *(
        "lora_A.weight",
        "lora_B.weight",
        "lora_B.bias",
        "lora.up.weight",
        "lora.down.weight",
        "linear.0.weight",
        "clip_l",
    ),
]
BARE = ["unet:0:up", "unet:0:down", "unet:1:up", "text_encoder:0:up", "0", "1", "2", "clip_g", "emb_params", "", "<s1>"]
names = st.one_of(st.builds("{}.{}".format, st.sampled_from(STARTS), st.sampled_from(ENDS)), st.sampled_from(BARE))
shapes = st.lists(st.sampled_from([0, 1, 2, 4, 768]), max_size=4).map(tuple)
tensors = st.dictionaries(names, st.tuples(shapes, st.sampled_from(["F32", "F16", "I64", "F8_E4M3", "F4"])), max_size=8)
json_values = st.sampled_from(["", "{", "[]", "3", '["GEGLU"]', '{"unet.r": 0}', '{"unet.lora_alpha": "x"}', "<embed>"])
metadata = st.dictionaries(st.sampled_from(["unet", "text_encoder", "lora_adapter_metadata", "<s1>"]), json_values)
configs = st.none() | st.dictionaries(
    st.sampled_from(
        ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights", "use_rslora"]
    ),
    st.sampled_from(["LORA", 0, 2, -1, None, True, [], {}, {"x": 2}, {"(": 1}, float("nan"), "pissa"]),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tensors=tensors, metadata=metadata, config=configs, with_model=st.booleans())
def test_an_answer_or_an_error_for_people(
    tmp_path: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
    metadata: dict[str, str],
    config: dict[str, object] | None,
    with_model: bool,
) -> None:
    path = tmp_path / "strange"
    path.write_bytes(bytes(1 << 12))
    infos = {name: TensorInfo(name, DTYPES[dtype], shape, 0) for name, (shape, dtype) in tensors.items()}
    found = {} if config is None else {"adapter_config": config}
    with Weights(path, Container.PICKLE, [path], infos, metadata, configs=found) as weights:
        name, verdicts = recognise(weights)
        assert set(verdicts) == set(formats()) and all(verdict.reason for verdict in verdicts.values())
        assert adapter_family(weights)[1]
        try:
            artifact = read_adapter(weights, MODEL if with_model else None)
        except SdkitError as error:
            assert str(path) in error.message
        else:
            assert artifact.format == name
            accounted = [*artifact.deltas, *artifact.unmatched, *artifact.tokens, artifact.key_value]
            assert any(accounted) or artifact.steering or artifact.replaced or not tensors
            assert all(change.count > 0 for change in artifact.changes)
