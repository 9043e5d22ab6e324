"""Writing a changed checkpoint in the container it came in: a file as a file, a folder as a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sdkit.core.errors import SdkitError
from sdkit.streaming.engine import Advance, Stream
from sdkit.streaming.plan import Output, OutputFile
from sdkit.weights import Weights
from sdkit.weights.atomic import check_target
from sdkit.weights.atomic_folder import AtomicFolder, check_folder_target
from sdkit.weights.folder import read_json
from sdkit.weights.reader import Container

# What a model folder holds beside weights: configurations, vocabularies, licences, model cards.
SIDE_FILES = {".json", ".txt", ".md", ".model", ".yaml", ".yml", ".jinja", ""}


def is_folder(base: Weights) -> bool:
    """Whether the base is a folder (a shard index counts as the folder it lies in)."""
    return base.container is Container.FOLDER


def check_output(base: Weights, path: Path, *, overwrite: bool) -> None:
    """Refuse an output path before any work is done."""
    if is_folder(base):
        check_folder_target(path, overwrite=overwrite)
        if path.exists() and _root(base).resolve().is_relative_to(path.resolve()):
            raise SdkitError(f"{path}: is the input itself, or holds it", "choose another name with -o")
    else:
        check_target(path, overwrite=overwrite)


@contextmanager
def checkpoint_stream(
    base: Weights,
    outputs: Sequence[Output],
    path: Path,
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    threads: int | None = None,
    advance: Advance | None = None,
    side_files: Mapping[str, bytes] | None = None,
) -> Iterator[Stream]:
    """The stream that writes `outputs`, tensors of `base`, to `path`. The caller runs it; leaving it normally commits.

    Args:
        base: where the tensors come from; its container decides the output's.
        outputs: what to write, in file order, named as in `base`.
        path: the file or folder to write.
        metadata: added to the metadata of every file written.
        overwrite: whether something already at `path` may be replaced.
        threads: as in `Stream`.
        advance: as in `Stream`.
        side_files: files of an output folder, by their paths in it, that are not copied from the base.
    """
    if not is_folder(base):
        file = OutputFile(path, tuple(outputs), metadata)
        with Stream([file], overwrite=overwrite, threads=threads, advance=advance) as stream:
            yield stream
            stream.commit()
        return
    with AtomicFolder(path, overwrite=overwrite) as folder:
        _copy_side_files(base, outputs, folder.work)
        for name, data in (side_files or {}).items():
            (folder.work / name).write_bytes(data)
        files = list(_files(base, outputs, folder.work, metadata))
        with Stream(files, threads=threads, advance=advance) as stream:
            yield stream
            stream.commit()
        folder.commit()


def _root(base: Weights) -> Path:
    return base.path if base.path.is_dir() else base.path.parent


def _files(base: Weights, outputs: Sequence[Output], work: Path, metadata: Mapping[str, str]) -> Iterator[OutputFile]:
    """One output file for each file of the base, in the same subfolder; a pickle becomes safetensors."""
    for index, source in enumerate(base.files):
        target = work / source.relative_to(_root(base)).with_name(_saved_name(source.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = [output for output in outputs if base.tensors[output.name].file == index]
        renamed = tuple(replace(output, name=base.stored_name(base.tensors[output.name])) for output in tensors)
        # transformers loads no file that does not say `format`.
        yield OutputFile(target, renamed, {"format": "pt", **base.file_metadata[index], **metadata})


def _saved_name(name: str) -> str:
    """The safetensors name of a file or shard index: transformers looks for ``pytorch_model.bin`` under another one."""
    if ".bin" not in name:
        return name
    return name.replace(".bin", ".safetensors").removeprefix("pytorch_")


def _copy_side_files(base: Weights, outputs: Sequence[Output], work: Path) -> None:
    """Copy what is not weights; a shard index gets the new total size."""
    root = _root(base)
    for source in sorted(root.rglob("*")):
        relative = source.relative_to(root)
        if not source.is_file() or source.suffix not in SIDE_FILES or _is_hidden(relative):
            continue
        target = work / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.name.endswith(".index.json"):
            _copy_index(base, source, target.with_name(_saved_name(source.name)), outputs)
        else:
            shutil.copyfile(source, target)


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _copy_index(base: Weights, source: Path, target: Path, outputs: Sequence[Output]) -> None:
    """Write the index of the shards that are written; the index of another variant stays behind, as its shards do."""
    fields = read_json(source)
    named = fields.get("weight_map")
    shards = {source.parent / str(name) for name in named.values()} if isinstance(named, dict) else set()
    if not shards or not shards.issubset(base.files):
        return
    here = [output for output in outputs if base.files[base.tensors[output.name].file] in shards]
    infos = [base.tensors[output.name] for output in here]
    facts = fields.get("metadata")
    size = sum(output.nbytes for output in here)
    fields["metadata"] = {**(facts if isinstance(facts, dict) else {}), "total_size": size}
    fields["weight_map"] = {base.stored_name(info): _saved_name(base.files[info.file].name) for info in infos}
    target.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
