"""Writing a planned adapter and reading it back; what fails the proof loses its name again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from sdkit.conversion.adapter_proof import AdapterProof, prove_adapter
from sdkit.formats import without_idle, write_adapter, writing_codec
from sdkit.jobs.converting.adapter_plan import AdapterPlan
from sdkit.jobs.converting.options import Controls
from sdkit.weights import open_weights


def write_and_prove(
    plan: AdapterPlan, metadata: dict[str, str], controls: Controls, *, recast: bool
) -> tuple[AdapterProof | None, int]:
    """The proof, and how many of the tensors written have new names.

    Args:
        plan: what is written.
        metadata: what the file says of itself.
        controls: whether it is read back, and who is told.
        recast: whether numbers were rounded to another type.
    """
    shown = _write_main(plan, metadata, controls, recast=recast)
    for path, rows in plan.words:  # behind what may fail its proof, so that none is left of that
        word = replace(plan.source, deltas={}, tokens=rows, kind="textual-inversion")
        write_adapter(word, None, path, {}, format="textual-inversion", overwrite=controls.force)
    return shown


def _write_main(
    plan: AdapterPlan, metadata: dict[str, str], controls: Controls, *, recast: bool
) -> tuple[AdapterProof | None, int]:
    adapter, dialect = plan.fitted.artifact, plan.dialect.name
    controls.progress.start("writing and reading back", len(adapter.deltas))
    chosen = {"dialect": dialect} if dialect else {}
    codec = writing_codec(plan.format.name)
    codec.write(adapter, plan.model, plan.path, metadata, overwrite=controls.force, **chosen)
    try:
        with open_weights(plan.path) as written:
            renamed = sum(name not in plan.source.source.tensors for name in written.tensors)
            if not controls.verify:
                return None, renamed
            errors = {entry.name: entry.error for entry in plan.fitted.approximations}
            read = without_idle(adapter, codec.read(written, plan.model))
            return prove_adapter(plan.source, adapter, read, plan.path, errors, recast=recast), renamed
    except BaseException:
        _remove(plan.path)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
