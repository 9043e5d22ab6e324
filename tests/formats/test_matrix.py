"""Every mark that `sdkit formats` prints, exercised: what is read, what is written, for which family and program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import a1111
import numpy as np
import pytest
import torch
from header_files import real_header, weights_of
from readers import READERS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samples import FAMILIES, LAYERS, Module, Sample, Tensors, base_weight, flat, kohya_name, normal, wanted
from tiny import UNET

from sdkit.adapters.artifact import Artifact, Target
from sdkit.adapters.deltas.delta import Delta, is_relative
from sdkit.adapters.deltas.full import Full
from sdkit.adapters.deltas.low_rank import LowRank
from sdkit.conversion.adapter import relative_change
from sdkit.families import identify, reference
from sdkit.formats import Dialect, Format, read_adapter, recognise, write_adapter
from sdkit.formats._programs import PROGRAMS
from sdkit.jobs.formats import formats
from sdkit.streaming.expression import Read
from sdkit.weights import open_weights

STATED = {format.name: format for format in formats().formats}


@dataclass(frozen=True)
class Mark:
    """One claim of the matrix: a format (in a dialect) is read or written for a family, or a program takes it."""

    format: str
    dialect: str
    family: str
    does: str  # ``read``, ``write``, or the program's name

    def __str__(self) -> str:
        return "-".join(filter(None, (self.format, self.dialect, self.family, self.does)))


def marks() -> Iterator[Mark]:
    for format in STATED.values():
        for family in format.families or FAMILIES:
            for dialect in format.dialects or (None,):
                name = dialect.name if dialect else ""
                yield Mark(format.name, name, family, "read")
                if dialect is not None:
                    yield Mark(format.name, name, family, "write")
                for program in dialect.programs if dialect else format.programs:
                    known = dialect.families.get(program) if dialect else None
                    known = known or PROGRAMS[program].families or FAMILIES
                    if family in known:
                        yield Mark(format.name, name, family, program)


MARKS = list(marks())
CHANGES = [mark for mark in MARKS if "lora" in STATED[mark.format].holds]
OTHERS = [mark for mark in MARKS if "lora" not in STATED[mark.format].holds]


# Weight changes: each format as its documentation describes it, written by hand.


def save_kohya(sample: Sample, path: Path) -> Path:
    save_file(sample.named(lambda module: kohya_name(module, sample.family)), path)
    return path


def save_kohya_in_diffusers_names(sample: Sample, path: Path) -> Path:
    save_file(sample.named(lambda module: kohya_name(module, sample.family, diffusers=True)), path)
    return path


def save_lycoris_wrapper(sample: Sample, path: Path) -> Path:
    save_file(sample.named(lambda module: f"lycoris_{flat(module.name)}"), path)
    return path


def save_comfyui_native(sample: Sample, path: Path) -> Path:
    save_file(sample.named(lambda module: f"diffusion_model.{module.native}"), path)
    return path


SIDES = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
SCALE = 0.5  # of samples' factors: alpha 1, rank 2


def save_diffusers(sample: Sample, path: Path) -> Path:
    """PEFT's names with the component in front, and PEFT's settings with it in front, too."""
    component = next(iter(sample.modules)).partition(".")[0]
    named = pefts_tensors(sample)
    tensors = {name.replace("base_model.model", component, 1): part for name, part in named.items()}
    settings = {f"{component}.{key}": value for key, value in peft_settings(sample).items()}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(settings)})
    return path


def save_peft(sample: Sample, path: Path) -> Path:
    """A folder of one component; the kinds are of one of PEFT's sorts."""
    path.mkdir()
    save_file(pefts_tensors(sample), path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(peft_settings(sample)))
    return path


def pefts_tensors(sample: Sample) -> Tensors:
    """PEFT multiplies a bias with the scale of the factors, and keeps lengths as vectors, of kernels by channel."""
    tensors: Tensors = {}
    for module, parts in sample.modules.values():
        for role, part in parts.items():
            if role == "dora_scale":
                part, role = part.flatten(), "lora_magnitude_vector"
            if role == "diff_b":
                part, role = part / SCALE, "lora_B.bias"
            if role != "alpha":
                tensors[f"base_model.model.{module.name}.{SIDES.get(role, role)}"] = part
    return tensors


def peft_settings(sample: Sample) -> dict[str, object]:
    (kind,) = {"lora" if kind in ("locon", "dora", "bias") else kind for kind in sample.changes}
    settings = {"peft_type": kind.upper(), "r": 2, "target_modules": [m.name for m, _ in sample.modules.values()]}
    if kind == "lora":
        has_bias = "bias" in sample.changes
        return {**settings, "lora_alpha": 1.0, "use_dora": "dora" in sample.changes, "lora_bias": has_bias}
    if kind == "oftv2":
        return {**settings, "peft_type": "OFT", "r": 0, "oft_block_size": 4, "use_cayley_neumann": True}
    return {**settings, "alpha": 1.0, "decompose_factor": 2}


def save_flux2_native(sample: Sample, path: Path) -> Path:
    """fal's; files of FLUX.1 have every layer, and are made below."""
    named = sample.named(lambda module: f"base_model.model.{module.native}")
    save_file({name.replace(role, SIDES[role]): named[name] for name in named for role in SIDES if role in name}, path)
    return path


def save_loralib(sample: Sample, path: Path) -> Path:
    names = {"lora_down.weight": "lora_A", "lora_up.weight": "lora_B"}
    pairs = sample.modules.values()
    named = ((f"{m.name}.{names[role]}", part) for m, parts in pairs for role, part in parts.items() if role in names)
    save_file(dict(named), path)
    return path


def save_omi(sample: Sample, path: Path) -> Path:
    """The one layer whose name differs from the single file's is FLUX.1's first."""
    special = {"img_in": "img_in.proj"}
    save_file(sample.named(lambda module: f"{module.component}.{special.get(module.native, module.native)}"), path)
    return path


GOLDEN: dict[tuple[str, str], Callable[[Sample, Path], Path]] = {
    ("kohya", ""): save_kohya,
    ("kohya", "diffusers-names"): save_kohya_in_diffusers_names,
    ("kohya", "wrapper"): save_lycoris_wrapper,
    ("comfyui-native", ""): save_comfyui_native,
    ("diffusers", ""): save_diffusers,
    ("peft", ""): save_peft,
    ("flux-native", ""): save_flux2_native,
    ("loralib", ""): save_loralib,
    ("omi", ""): save_omi,
}
WITHOUT_SCALE = ("flux-native", "loralib")


def samples(mark: Mark, kinds: tuple[str, ...]) -> Iterator[Sample]:
    """Samples of all kinds; of PEFT's settings, which are of one sort in a component, one after the other."""
    for group in [(kind,) for kind in kinds] if mark.format in ("peft", "diffusers") else [kinds]:
        for sample in Sample.all_of(mark.family, group):
            for _, parts in sample.changes.values():
                if mark.format in WITHOUT_SCALE:
                    parts["alpha"] = torch.tensor(2.0)
            yield sample


def change_of(delta: Delta, weight: torch.Tensor) -> torch.Tensor:
    if is_relative(delta):
        return relative_change(delta, weight)
    out = torch.zeros_like(weight)
    delta.prepare(1.0, torch.float64).add_rows(out, 0)
    return out


def check_effects(artifact: Artifact, sample: Sample) -> None:
    assert artifact.unmatched == ()
    biases = {Target(module.hub, "bias"): parts["diff_b"] for module, parts in sample.biased}
    assert {target for target in artifact.deltas} == {*map(Target, sample.modules), *biases}
    for target, meant in biases.items():
        assert close(change_of(artifact.deltas[target], torch.zeros(len(meant), 1).double())[:, 0], meant.double())
    for kind, (module, parts) in sample.changes.items():
        change = change_of(artifact.deltas[Target(module.hub)], base_weight(module))
        assert close(change, wanted_of(kind, module, parts)), kind


def wanted_of(kind: str, module: Module, parts: Tensors) -> torch.Tensor:
    return wanted(module, kind, float(parts.get("alpha", torch.tensor(0.0))))


def close(found: torch.Tensor, meant: torch.Tensor, error: float = 1e-5) -> bool:
    return float((found - meant).norm()) <= error * float(meant.norm())


OWN_TESTS = ("cloneofsimo", "lidb")  # formats whose files are made below
USUAL = [
    mark for mark in CHANGES if mark.format not in OWN_TESTS and (mark.format, mark.family) != ("flux-native", "flux")
]


@pytest.mark.parametrize("mark", USUAL, ids=str)
def test_weight_changes(mark: Mark, tmp_path: Path) -> None:
    format = STATED[mark.format]
    assert format.changes is not None, "say which kinds it holds"
    kinds = tuple(kind for kind in format.changes if kind != "replacement")  # of control LoRAs, below
    if mark.does in PROGRAMS:
        (dialect,) = [entry for entry in format.dialects if entry.name == mark.dialect] or [Dialect(())]
        applied = PROGRAMS[mark.does].applies
        kinds = tuple(kind for kind in kinds if applied is None or kind in applied)
        kinds = tuple(kind for kind in kinds if kind not in dialect.leaves.get(mark.does, ()))
    save = GOLDEN[mark.format, mark.dialect]
    for number, sample in enumerate(samples(mark, kinds)):
        golden, written = save(sample, tmp_path / f"golden-{number}"), tmp_path / f"written-{number}"
        if mark.does == "read":
            with open_weights(golden) as weights:
                assert recognise(weights)[0] == mark.format
                check_effects(read_adapter(weights, reference(mark.family)), sample)
            continue
        if not format.writes:
            check_program(mark, golden, sample)
            continue
        write(format, mark, save_kohya(sample, tmp_path / f"source-{number}"), written)
        if mark.does == "write":
            check_same_tensors(written, golden)
        else:
            check_program(mark, written, sample)


def write(format: Format, mark: Mark, source: Path, path: Path) -> None:
    model = reference(mark.family)
    with open_weights(source) as weights:
        artifact = read_adapter(weights, model)
        write_adapter(artifact, model, path, {}, format=mark.format, dialect=mark.dialect)


def check_same_tensors(written: Path, golden: Path) -> None:
    """The same names, shapes and bits as the file made by hand."""
    for path in sorted(golden.rglob("*.safetensors")) if golden.is_dir() else [golden]:
        ours, wanted = load_file(written / path.relative_to(golden)), load_file(path)
        assert ours.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(ours[name].reshape(tensor.shape), tensor), name


def check_program(mark: Mark, path: Path, sample: Sample) -> None:
    found = READERS[mark.does](path, mark.family)
    biases = {f"{module.hub}.bias": parts["diff_b"] for module, parts in sample.biased}
    assert set(found) == {*sample.modules, *biases}
    assert all(close(found[name], meant.double(), 1e-4) for name, meant in biases.items())
    for kind, (module, parts) in sample.changes.items():
        assert close(found[module.hub], wanted_of(kind, module, parts), 1e-4), kind


# Files addressed by position: every layer of the model is in one.


def positions(family: str) -> list[tuple[str, tuple[int, int]]]:
    """The layers of a U-Net as diffusers of late 2022 walked through them, and their shapes."""
    text = {"sd1": 768, "sd2": 1024}[family]
    stages = [(f"down_blocks.{n}", 320 * 2**n, 2) for n in range(3)]
    stages += [(f"up_blocks.{n}", 320 * 2 ** (3 - n), 3) for n in (1, 2, 3)] + [("mid_block", 1280, 1)]
    found = []
    for stage, width, count in stages:
        for number in range(count):
            block = f"unet.{stage}.attentions.{number}.transformer_blocks.0"
            one = [(f"{block}.attn1.{slot}", (width, width)) for slot in ("to_q", "to_k", "to_v", "to_out.0")]
            sizes = {"to_q": width, "to_k": text, "to_v": text, "to_out.0": width}
            two = [(f"{block}.attn2.{slot}", (width, columns)) for slot, columns in sizes.items()]
            found += [*one, (f"{block}.ff.net.0.proj", (8 * width, width)), *two]
    return found


@pytest.mark.parametrize("mark", [mark for mark in CHANGES if mark.format == "cloneofsimo"], ids=str)
def test_files_addressed_by_position(mark: Mark, tmp_path: Path) -> None:
    layers = positions(mark.family)
    tensors = {"<w>": normal(768, seed=1)}
    metadata = {"unet": '["CrossAttention", "GEGLU"]', "<w>": "<embed>"}
    for number, (_, (rows, columns)) in enumerate(layers):
        up, down = normal(rows, 1, seed=number), normal(1, columns, seed=number + 1)
        tensors |= {f"unet:{number}:up": up, f"unet:{number}:down": down}
        metadata[f"unet:{number}:rank"] = "1"
    golden, written = tmp_path / "golden.safetensors", tmp_path / "written.safetensors"
    save_file(tensors, golden, metadata)
    with open_weights(golden) as weights:
        artifact = read_adapter(weights, reference(mark.family))
        if mark.does == "read":
            assert artifact.unmatched == () and [rows.token for rows in artifact.tokens] == ["<w>"]
            assert [target.module for target in artifact.deltas] == [name for name, _ in layers]
            for number, delta in enumerate(artifact.deltas.values()):
                assert torch.equal(delta.up.load(), tensors[f"unet:{number}:up"])
            return
        assert mark.does == "write"
        write_adapter(artifact, reference(mark.family), written, {}, format="cloneofsimo")
    check_same_tensors(written, golden)
    with safe_open(written, "pt") as file:
        assert file.metadata().items() >= {"unet:0:rank": "1", "<w>": "<embed>"}.items()


# Files whose numbers lie within bases that follow from a seed.


def basis(seed: int, module: str, side: str, height: int, width: int) -> torch.Tensor:
    """As docs/formats.md says: the Q of standard normal numbers with R's diagonal positive."""
    name = "\0".join(["philox-normal-qr-v1", str(seed), module, side])
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "little")
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal((height, width))
    q, r = np.linalg.qr(normal)
    return torch.from_numpy(q * np.sign(np.diagonal(r)))


@pytest.mark.parametrize("mark", [mark for mark in CHANGES if mark.format == "lidb"], ids=str)
def test_files_within_bases(mark: Mark, tmp_path: Path) -> None:
    module = LAYERS[mark.family][0][0]
    rows, columns = module.shape
    up, down = normal(10, 2, seed=1), normal(2, 6, seed=2)
    left, right = basis(5, module.hub, "left", rows, 10), basis(5, module.hub, "right", columns, 6).T
    steps = [(side * 256).round().to(torch.int16).contiguous().numpy().astype("<i2") for side in (left, right)]
    digest = hashlib.sha256(b"".join(side.tobytes() for side in steps)).hexdigest()
    fields = {"basis": "philox-normal-qr-v1", "seed": 5, "sizes": {module.hub: [rows, columns]}, "sha256": digest}
    tensors = {f"{module.hub}.lidb_up": up, f"{module.hub}.lidb_down": down, f"{module.hub}.alpha": torch.tensor(1.0)}
    golden, written = tmp_path / "golden.safetensors", tmp_path / "written.safetensors"
    save_file(tensors, golden, {"lidb": json.dumps(fields)})
    with open_weights(golden) as weights:
        artifact = read_adapter(weights, reference(mark.family))
        if mark.does == "read":
            assert recognise(weights)[0] == "lidb" and artifact.unmatched == ()
            change = change_of(artifact.deltas[Target(module.hub)], base_weight(module))
            assert close(change, 0.5 * (left @ up.double()) @ (down.double() @ right), 1e-12)
            return
        assert mark.does == "write"
        write_adapter(artifact, reference(mark.family), written, {}, format="lidb")
    check_same_tensors(written, golden)
    with safe_open(written, "pt") as file:
        assert json.loads(file.metadata()["lidb"]).items() >= fields.items()


# Control LoRAs: every layer of FLUX.1, its whole norms, and a first layer twice as wide.

CONTROL = [mark for mark in CHANGES if mark.family == "flux" and "replacement" in (STATED[mark.format].changes or ())]


def control_lora() -> Tensors:
    """As Black Forest Labs name it, of rank 2; the layers are those of the real FLUX.1 dev."""
    tensors: Tensors = {}
    for number, (name, shape) in enumerate(flux_layers().items()):
        module, _, parameter = name.rpartition(".")
        if parameter == "scale":
            tensors[name] = 1 + normal(*shape, seed=number)
        elif parameter == "weight":
            columns = 128 if module == "img_in" else shape[1]
            tensors[f"{module}.lora_A.weight"] = normal(2, columns, seed=number)
            tensors[f"{module}.lora_B.weight"] = normal(shape[0], 2, seed=number + 1)
            tensors[f"{module}.lora_B.bias"] = normal(shape[0], seed=number + 2)
    return {name: tensor.half() for name, tensor in tensors.items()}


def flux_layers() -> dict[str, tuple[int, ...]]:
    prefix = "model.diffusion_model."
    found = real_header("flux-bfl").tensors.items()
    return {name.removeprefix(prefix): info.shape for name, info in found if name.startswith(prefix)}


@pytest.fixture(scope="module")
def control() -> tuple[Tensors, Tensors, Tensors]:
    """The makers' tensors, and what diffusers makes of them: as it should be, and as it is.

    diffusers 0.42 also swaps the two halves of the last modulation's lora_A, whose rows are ranks.
    """
    from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers as oracle

    tensors = control_lora()
    loaded = {name: tensor.contiguous() for name, tensor in oracle(dict(tensors)).items()}
    last = {"transformer.norm_out.linear.lora_A.weight": tensors["final_layer.adaLN_modulation.1.lora_A.weight"]}
    return tensors, loaded | last, loaded


@pytest.mark.parametrize("mark", CONTROL, ids=str)
def test_control_loras(mark: Mark, control: tuple[Tensors, Tensors, Tensors], tmp_path: Path) -> None:
    native, diffusers, loaded = control
    source, golden, written = (tmp_path / f"{name}.safetensors" for name in ("source", "golden", "written"))
    save_file(native if mark.format == "flux-native" else diffusers, golden)
    save_file(native, source)
    model = reference("flux")
    if mark.does == "read":
        with open_weights(golden) as weights:
            assert recognise(weights)[0] == mark.format
            check_parts(read_adapter(weights, model), diffusers)
        return
    with open_weights(source) as weights:
        write_adapter(read_adapter(weights, model), model, written, {}, format=mark.format, dialect=mark.dialect)
    if mark.does == "write":
        check_same_tensors(written, golden)
    elif mark.does == "diffusers":
        from diffusers.loaders import FluxLoraLoaderMixin

        found = FluxLoraLoaderMixin.lora_state_dict(str(written))
        meant = loaded if mark.format == "flux-native" else diffusers
        assert found.keys() == meant.keys() and all(torch.equal(found[name], meant[name]) for name in meant)
    else:
        assert mark.does == "comfyui"
        check_comfyui_takes_control(load_file(written))


def check_parts(artifact: Artifact, wanted: Tensors) -> None:
    """Every factor, bias and norm is the one diffusers finds."""
    found: Tensors = {}
    for target, delta in artifact.deltas.items():
        if isinstance(delta, LowRank):
            sides = {"A": delta.down, "B": delta.up}
            found |= {f"{target.module}.lora_{side}.weight": read.load() for side, read in sides.items()}
        elif isinstance(delta, Full):
            found[f"{target.module}.lora_B.bias"] = delta.diff.load()
        else:
            found[target.name] = delta.weight.load()  # type: ignore[attr-defined]
    assert artifact.unmatched == () and found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def check_comfyui_takes_control(tensors: Tensors) -> None:
    """Its rules: known by two names, each tensor has one of four roles, the weight grows to the pair's shape."""
    assert "img_in.lora_A.weight" in tensors and "single_blocks.0.norm.key_norm.scale" in tensors
    known = flux_layers()
    for name in tensors:
        module, role = next((name.removesuffix(end), end) for end in COMFYUI_CONTROL if name.endswith(end))
        assert f"{module}{COMFYUI_CONTROL[role]}" in known, name
    up, down = tensors["img_in.lora_B.weight"], tensors["img_in.lora_A.weight"]
    assert (up @ down).shape == (3072, 128)


COMFYUI_CONTROL = {
    ".lora_A.weight": ".weight",
    ".lora_B.weight": ".weight",
    ".lora_B.bias": ".bias",
    ".scale": ".scale",
}


# What is no change of weights.

WIDTHS = {
    "sd1": {"clip_l": 768},
    "sd2": {"clip_l": 1024},
    "sdxl": {"clip_l": 768, "clip_g": 1280},
    "sdxl-refiner": {"clip_g": 1280},
    "sd3": {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096},
    "flux": {"clip_l": 768, "t5xxl": 4096},
}
NAMES = {"diffusers": "<cat>", "kohya": "emb_params", "a1111": "*"}


def word(family: str) -> Tensors:
    return {key: normal(2, width, seed=width) for key, width in WIDTHS[family].items()}


def save_word(rows: Tensors, dialect: str, path: Path) -> None:
    """A file that names the word in the header alone, where its tensors do not."""
    named = {NAMES[dialect]: next(iter(rows.values()))} if len(rows) == 1 else rows
    if dialect != "a1111":
        save_file(named, path, {"name": "<cat>"})
    elif len(rows) == 1:
        torch.save({"string_to_token": {"*": 265}, "string_to_param": named, "name": "<cat>"}, path)
    else:
        torch.save({**rows, "name": "<cat>"}, path)


def load_word(path: Path) -> dict[str, object]:
    return torch.load(path, weights_only=True) if path.suffix == ".pt" else dict(load_file(path))


def webui_word(data: dict[str, object]) -> Tensors:
    """A1111's and Forge's rules: one parameter, SDXL's two by name, else a file with one tensor."""
    if "string_to_param" in data:
        (rows,) = data["string_to_param"].values()
        return {"": rows}
    if "clip_g" in data and "clip_l" in data:
        return {key: data[key] for key in ("clip_l", "clip_g")}
    ((_, rows),) = data.items()
    return {"": rows}


def comfyui_word(data: dict[str, object]) -> Tensors:
    """ComfyUI's rules: each text encoder asks for its rows by name, else takes the first there are."""
    rows = data.get("string_to_param", data)
    return {key: rows[key] for key in ("clip_l", "clip_g", "t5xxl") if key in rows} or {"": next(iter(rows.values()))}


def sd_scripts_word(data: dict[str, object]) -> Tensors:
    """sd-scripts' rules: what it writes itself, ``emb_params``, or SDXL's two."""
    return {"": data["emb_params"]} if "emb_params" in data else {key: data[key] for key in ("clip_l", "clip_g")}


def diffusers_word(path: Path) -> Tensors:
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin, load_textual_inversion_state_dicts

    class Empty:
        def get_vocab(self) -> dict[str, int]:
            return {}

    states = load_textual_inversion_state_dicts([str(path)])
    (token,), (rows,) = TextualInversionLoaderMixin._retrieve_tokens_and_embeddings([None], states, Empty())
    assert token == "<cat>"
    return {"": rows}


WORDS = {"a1111": webui_word, "forge": webui_word, "comfyui": comfyui_word, "sd-scripts": sd_scripts_word}


def textual_inversion(mark: Mark, tmp_path: Path) -> None:
    rows = word(mark.family)
    suffix = ".pt" if mark.dialect == "a1111" else ".safetensors"
    golden, written = tmp_path / f"cat{suffix}", tmp_path / f"written{suffix}"
    save_word(rows, mark.dialect, golden)
    encoders = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
    with open_weights(golden) as weights:
        artifact = read_adapter(weights)
        if mark.does == "read":
            assert recognise(weights)[0] == "textual-inversion"
            found = {part.component: (part.token, Read(part.weights, part.info).load()) for part in artifact.tokens}
            assert found.keys() == {encoders[key] for key in rows}
            for key, tensor in rows.items():
                token, read = found[encoders[key]]
                assert token == "<cat>" and torch.equal(read, tensor)
            return
        write_adapter(artifact, None, written, {}, format=mark.format, dialect=mark.dialect)
    if mark.does == "write":
        ours, wanted = load_word(written), load_word(golden)
        assert ours.keys() >= wanted.keys()
        ours, wanted = ours.get("string_to_param", ours), wanted.get("string_to_param", wanted)
        tensors = {name: tensor for name, tensor in wanted.items() if isinstance(tensor, torch.Tensor)}
        assert tensors and all(torch.equal(ours[name], tensor) for name, tensor in tensors.items())
        return
    found = diffusers_word(written) if mark.does == "diffusers" else WORDS[mark.does](load_word(written))
    wanted = rows if len(found) > 1 else {"": next(iter(rows.values()))}
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def hypernetwork(mark: Mark, tmp_path: Path) -> None:
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[mark.family]
    sides = []
    for side in range(2):
        parts = {"linear.0.weight": (2 * width, width), "linear.0.bias": (2 * width,)}
        parts |= {"linear.2.weight": (width, 2 * width), "linear.2.bias": (width,)}
        sides.append({name: normal(*shape, seed=side + len(shape)) for name, shape in parts.items()})
    settings = {"layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False, "name": "h"}
    golden, written = tmp_path / "golden.pt", tmp_path / "written.pt"
    torch.save({width: tuple(sides), **settings}, golden)
    with open_weights(golden) as weights:
        artifact = read_adapter(weights)
        if mark.does == "read":
            assert artifact.key_value is not None
            for found, side in zip(artifact.key_value.networks[width], sides, strict=True):
                assert all(torch.equal(found[name].load(), tensor) for name, tensor in side.items())
            return
        write_adapter(artifact, None, written, {}, format="hypernetwork")
    if mark.does == "write":
        loaded = torch.load(written, weights_only=True)
        assert all(loaded[name] == value for name, value in settings.items())
        assert all(
            torch.equal(loaded[width][n][name], part) for n, side in enumerate(sides) for name, part in side.items()
        )
        return
    assert mark.does == "a1111"
    x = normal(3, width, seed=9)
    for network, side in zip(a1111.load(written)[width], sides, strict=True):
        inner = torch.relu(x @ side["linear.0.weight"].T + side["linear.0.bias"])
        meant = x + inner @ side["linear.2.weight"].T + side["linear.2.bias"]
        assert torch.allclose(network(x), meant, rtol=1e-4, atol=1e-4)


def aesthetic(mark: Mark, tmp_path: Path) -> None:
    widths = {"text_encoder": 768} | ({"text_encoder_2": 1280} if mark.family == "sdxl" else {})
    vectors = {name: normal(1, width, seed=1) for name, width in widths.items()}
    golden = tmp_path / ("a.pt" if mark.dialect == "a1111" else "a.safetensors")
    if mark.dialect == "a1111":
        vectors = {"text_encoder": vectors["text_encoder"]}
        torch.save(vectors["text_encoder"], golden)
    else:
        projections = {f"{name}.text_projection": normal(widths[name], 4, seed=2) for name in vectors}
        save_file({f"{name}.aesthetic": vector for name, vector in vectors.items()} | projections, golden)
    with open_weights(golden) as weights:
        artifact = read_adapter(weights)
        if mark.does == "read":
            assert {part.component: part.width for part in artifact.steering} == {
                name: vector.numel() for name, vector in vectors.items()
            }
            assert all(torch.equal(part.vector.load(), vectors[part.component]) for part in artifact.steering)
            return
        assert mark.does == "write"
        written = golden.with_stem("written")
        write_adapter(artifact, None, written, {}, format="aesthetic", dialect=mark.dialect)
    if mark.dialect == "a1111":
        assert torch.equal(torch.load(written, weights_only=True), vectors["text_encoder"])
    else:
        check_same_tensors(written, golden)


def custom_diffusion(mark: Mark, tmp_path: Path) -> None:
    golden, written = tmp_path / "golden.safetensors", tmp_path / "written.safetensors"
    if mark.does == "diffusers":
        diffusers_takes_a_custom_diffusion(golden, written)
        return
    modules = [
        module for module in LAYERS[mark.family][0] if ".attn2.to_k" in module.hub or ".attn2.to_v" in module.hub
    ]
    tensors = {custom_name(module.name): normal(*module.shape, seed=2) for module in modules}
    save_file(tensors, golden)
    model = reference(mark.family)
    with open_weights(golden) as weights:
        artifact = read_adapter(weights, model)
        assert artifact.kind == "custom-diffusion" and len(artifact.deltas) == 2 and not artifact.unmatched
        for module in modules:
            change = change_of(artifact.deltas[Target(module.hub)], base_weight(module))
            assert close(base_weight(module) + change, tensors[custom_name(module.name)].double())
        if mark.does == "write":
            write_adapter(artifact, model, written, {}, format="custom-diffusion")
            ours = {name: tensor for name, tensor in load_file(written).items() if tensor.numel()}
            assert ours.keys() == tensors.keys() and all(torch.equal(ours[name], tensors[name]) for name in ours)
            return
    assert mark.does == "read"


def custom_name(module: str) -> str:
    attention, _, slot = module.rpartition(".")
    return f"{attention}.processor.{slot}_custom_diffusion.weight"


def diffusers_takes_a_custom_diffusion(golden: Path, written: Path) -> None:
    """diffusers' own loader, on a small U-Net: the processors it makes hold our weights, all others none."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**UNET)
    shapes = {f"unet/{name}": tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    model = identify(weights_of(shapes))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    tensors = {
        custom_name(f"{name}.{slot}"): normal(*shapes[f"unet/{name}.{slot}.weight"], seed=3)
        for slot in ("to_k", "to_v")
    }
    save_file(tensors, golden)
    with open_weights(golden) as weights:
        write_adapter(read_adapter(weights, model), model, written, {}, format="custom-diffusion")
    pipeline = SimpleNamespace(components={}, hf_device_map=None)  # without one the loader reads and changes nothing
    unet.load_attn_procs(written.parent, weight_name=written.name, _pipeline=pipeline)
    processors = unet.attn_processors
    mine = processors[f"{name}.processor"]
    for slot in ("to_k", "to_v"):
        assert torch.equal(
            getattr(mine, f"{slot}_custom_diffusion").weight.data, tensors[custom_name(f"{name}.{slot}")]
        )
    assert sum(bool(list(processor.parameters())) for processor in processors.values()) == 1


WORD_WIDTHS = {"sd1": (768,), "sd2": (1024,), "sdxl": (768, 1280)}


def custom_diffusion_pickle(mark: Mark, tmp_path: Path) -> None:
    """The authors' files, over diffusers and over LDM, whole and compressed; LDM's knows one text encoder alone."""
    suffix = ".ckpt" if mark.dialect == "ldm" else ".bin"
    golden, written = tmp_path / f"golden{suffix}", tmp_path / f"written{suffix}"
    modules = [
        module for module in LAYERS[mark.family][0] if ".attn2.to_k" in module.hub or ".attn2.to_v" in module.hub
    ]
    factors = {
        module.hub: (normal(module.shape[0], 2, seed=2), normal(2, module.shape[1], seed=3)) for module in modules
    }
    vectors = [normal(width, seed=4) for width in WORD_WIDTHS[mark.family]]
    word = {"<new1>": vectors if len(vectors) > 1 else vectors[0]}
    if mark.format == "custom-diffusion-compressed":
        pairs = {f"{module.name}.weight": factors[module.hub] for module in modules}
        contents = {"unet": {name: {"u": u, "v": v} for name, (u, v) in pairs.items()}, "modifier_token": word}
    elif mark.dialect == "ldm":
        names = {module.hub: f"model.diffusion_model.{module.native}.weight" for module in modules}
        state = {names[hub]: u @ v for hub, (u, v) in factors.items()}
        contents = {"state_dict": {**state, **({"embed": vectors[0][None]} if len(vectors) == 1 else {})}}
    else:
        whole = {f"{module.name}.weight": torch.matmul(*factors[module.hub]) for module in modules}
        contents = {"unet": whole, "modifier_token": word}
    torch.save(contents, golden)
    model = reference(mark.family)
    with open_weights(golden) as weights:
        artifact = read_adapter(weights, model)
        assert artifact.kind == "custom-diffusion" and len(artifact.deltas) == 2 and not artifact.unmatched
        has_words = mark.dialect != "ldm" or len(vectors) == 1
        assert [part.info.shape[-1] for part in artifact.tokens] == (
            list(WORD_WIDTHS[mark.family]) if has_words else []
        )
        for module in modules:
            change = change_of(artifact.deltas[Target(module.hub)], base_weight(module))
            whole = torch.zeros_like(change) if mark.format.endswith("compressed") else base_weight(module)
            assert close(whole + change, torch.matmul(*factors[module.hub]).double())
        if mark.does == "write":
            write_adapter(artifact, model, written, {}, format=mark.format, dialect=mark.dialect)
            ours, theirs = nested(torch.load(written, weights_only=True)), nested(contents)
            assert theirs.keys() <= ours.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
            return
    assert mark.does == "read"


def nested(contents: object, name: str = "") -> Tensors:
    """The tensors of nested tables and lists."""
    if isinstance(contents, torch.Tensor):
        return {name: contents}
    items = (
        contents.items() if isinstance(contents, dict) else enumerate(contents) if isinstance(contents, list) else ()
    )
    return {key: tensor for own, value in items for key, tensor in nested(value, f"{name}/{own}").items()}


def custom_diffusion_folder(mark: Mark, tmp_path: Path) -> None:
    golden, written = tmp_path / "golden", tmp_path / "written"
    golden.mkdir()
    modules = [
        module for module in LAYERS[mark.family][0] if ".attn2.to_k" in module.hub or ".attn2.to_v" in module.hub
    ]
    tensors = {custom_name(module.name): normal(*module.shape, seed=2) for module in modules}
    save_file(tensors, golden / "pytorch_custom_diffusion_weights.safetensors")
    if mark.family != "sdxl":  # diffusers' script is for models of one text encoder
        save_file({"<new1>": normal(*WORD_WIDTHS[mark.family], seed=4)}, golden / "<new1>.safetensors")
    model = reference(mark.family)
    with open_weights(golden) as weights:
        artifact = read_adapter(weights, model)
        assert artifact.kind == "custom-diffusion" and len(artifact.deltas) == 2 and not artifact.unmatched
        if mark.does == "write":
            write_adapter(artifact, model, written, {}, format="custom-diffusion-folder")
            for file in golden.iterdir():
                ours = {name: tensor for name, tensor in load_file(written / file.name).items() if tensor.numel()}
                theirs = load_file(file)
                assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
            return
    assert mark.does == "read"


def hyperdreambooth(mark: Mark, tmp_path: Path) -> None:
    assert mark.does == "read"
    layer = LAYERS[mark.family][0][0]
    fields = {
        "base_id": "b",
        "base_name": "base",
        "prompt": "a sks face",
        "encoder": "vae",
        "encoder_id": "",
        "side": 64,
    }
    fields |= {"width": 32, "blocks": 1, "iterations": 1, "rank": 1, "seed": 0, "basis": "philox-normal-qr-v1"}
    fields |= {"layers": [[layer.hub, *layer.shape, 10, 6]], "sha256": "0" * 64}
    save_file({"start": normal(16, seed=1)}, tmp_path / "h.safetensors", {"hyperdreambooth": json.dumps(fields)})
    with open_weights(tmp_path / "h.safetensors") as weights:
        assert recognise(weights)[0] == "hyperdreambooth"
        artifact = read_adapter(weights, reference(mark.family))
        assert artifact.kind == "hyperdreambooth" and "16 numbers for the base base" in artifact.notes[0]


def inversion(mark: Mark, tmp_path: Path) -> None:
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[mark.family]
    tensors = {"latents": normal(1, 4, 64, 64, seed=1), "uncond": normal(2, 1, 77, width, seed=2)}
    if mark.family == "sdxl":
        tensors["pooled"] = normal(2, 1, 1280, seed=3)
    told = {"base": "quick1-1-0", "base_name": "sd", "prompt": "an owl", "picture": "0", "steps": 2, "guidance": 7.5}
    told |= {"prediction": "epsilon", "mode": "null-text", "psnr": 25.5, "psnr_limit": 26.5}
    golden, written = tmp_path / "golden.safetensors", tmp_path / "written.safetensors"
    save_file(tensors, golden, {"sdkit.inversion": json.dumps(told)})
    with open_weights(golden) as weights:
        artifact = read_adapter(weights)
        assert artifact.trajectory is not None and artifact.trajectory.about is not None
        for name, tensor in tensors.items():
            assert torch.equal(getattr(artifact.trajectory, name).load(), tensor)
        assert all(getattr(artifact.trajectory.about, name) == value for name, value in told.items())
        if mark.does == "write":
            write_adapter(artifact, None, written, {}, format="inversion")
            ours = load_file(written)
            assert ours.keys() == tensors.keys() and all(torch.equal(ours[name], tensors[name]) for name in ours)
            with safe_open(written, "pt") as file:
                assert json.loads(file.metadata()["sdkit.inversion"]) == told
            return
    assert mark.does == "read"


EXERCISES: dict[str, Callable[[Mark, Path], None]] = {
    "textual-inversion": textual_inversion,
    "hypernetwork": hypernetwork,
    "aesthetic": aesthetic,
    "custom-diffusion": custom_diffusion,
    "custom-diffusion-compressed": custom_diffusion_pickle,
    "custom-diffusion-delta": custom_diffusion_pickle,
    "custom-diffusion-folder": custom_diffusion_folder,
    "hyperdreambooth": hyperdreambooth,
    "inversion": inversion,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("mark", OTHERS, ids=str)
def test_what_is_no_change_of_weights(mark: Mark, tmp_path: Path) -> None:
    EXERCISES[mark.format](mark, tmp_path)


def test_words_lie_beside_weight_changes(tmp_path: Path) -> None:
    """Of every format that says it holds both; the positional one is exercised above."""
    formats = [format.name for format in STATED.values() if format.words and "lora" in format.holds]
    assert formats == ["cloneofsimo", "kohya"]
    rows = normal(2, 768, seed=4)
    (sample,) = Sample.all_of("sd1", ("lora",))
    tensors = sample.named(lambda module: kohya_name(module, "sd1")) | {"bundle_emb.<cat>.string_to_param.*": rows}
    save_file(tensors, tmp_path / "a.safetensors")
    with open_weights(tmp_path / "a.safetensors") as weights:
        artifact = read_adapter(weights, reference("sd1"))
        assert [part.token for part in artifact.tokens] == ["<cat>"]
        write_adapter(artifact, reference("sd1"), tmp_path / "b.safetensors", {})
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)
