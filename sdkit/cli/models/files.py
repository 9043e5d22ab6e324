"""Models and their files: ``add``, ``scan``, ``verify``, ``place``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sdkit.cli.names import MODEL, NAME
from sdkit.cli.output import Output, columns, output_options
from sdkit.core.human import plural

if TYPE_CHECKING:
    from sdkit.jobs.models.files import ScanReport
    from sdkit.registry.scan import Scanned

_LISTED = 10  # of each sort; --json has them all


@click.command("add", no_args_is_help=True)
@click.argument("paths", nargs=-1, required=True, type=MODEL)
@click.option("--store", is_flag=True, help="Keep a copy in sdkit's own store, under its content's name.")
@click.option("--hash", "hash_now", is_flag=True, help="Read the whole file now, not only when it is verified.")
@output_options
def add(output: Output, paths: tuple[Path, ...], store: bool, hash_now: bool) -> None:
    """Register files and folders of weights where they are."""
    from sdkit.jobs.models.files import add_models

    with output.progress() as progress:
        added = add_models(paths, store=store, hash=hash_now, progress=progress)
    rows = [(f"@{model.id}", model.name, model.kind, model.family, model.path) for model in added.models]
    output.result(added.as_dict(), columns(rows), [model.name for model in added.models])


@click.command("scan")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@click.option("--hash", "hash_now", is_flag=True, help="Then read whole files whose hashes are not known.")
@output_options
def scan(output: Output, folders: tuple[Path, ...], hash_now: bool) -> None:
    """Register everything below DIR, and notice what was moved, edited or deleted.

    Where DIR is the folder of A1111's web UI, Forge, ComfyUI or InvokeAI, its shelves of models are scanned. Without
    DIR, all folders that were scanned before. Only headers are read.
    """
    from sdkit.cli.progress import show_counting
    from sdkit.jobs.models.files import scan_models

    with show_counting(output, "reading headers") as watch, output.progress() as progress:
        report = scan_models(folders, hash=hash_now, watch=watch, progress=progress)
    output.result(report.as_dict(), _describe_scan(report), [path for one in report.scans for path in one.new])


def _describe_scan(report: ScanReport) -> Iterator[str]:
    for scanned in report.scans:
        where = f"{scanned.program}: " if scanned.program else ""
        yield f"{where}{', '.join(scanned.folders)}"
        yield from (f"  {line}" for line in _found(scanned))
    if report.hashed:
        yield f"verified {plural(report.hashed, 'file')}"


def _found(scanned: Scanned) -> Iterator[str]:
    yield f"{plural(scanned.models, 'model')}, {len(scanned.new):,} of them new"
    for what, paths in (("changed", scanned.changed), ("missing", scanned.missing)):
        yield from _some(f"{len(paths):,} {what}", paths)
    yield from _some(f"{len(scanned.skipped):,} skipped", [f"{one.path}: {one.reason}" for one in scanned.skipped])


def _some(title: str, lines: tuple[str, ...] | list[str]) -> Iterator[str]:
    if lines:
        yield title
        yield from (f"  {line}" for line in lines[:_LISTED])
    if len(lines) > _LISTED:
        yield f"  … {len(lines) - _LISTED:,} more; --json shows all"


@click.command("verify")
@click.argument("names", nargs=-1, type=NAME)
@click.option("--again", is_flag=True, help="Also files that were verified before and have not been written since.")
@output_options
def verify(output: Output, names: tuple[str, ...], again: bool) -> None:
    """Read files whole: learn their hashes, unite equal models, find damage and loss.

    The exit code is 1 where a file is damaged or gone.
    """
    from sdkit.jobs.models.verify import verify_models

    with output.progress() as progress:
        report = verify_models(names, again=again, progress=progress)
    rows = [(one.state, one.name, one.path, one.reason) for one in report.files]
    lines = [*(columns(rows) if rows else []), f"verified before: {plural(report.unchanged, 'file')}"]
    bad = [one for one in report.files if one.state in ("damaged", "missing")]
    output.result(report.as_dict(), lines, [f"{one.sha256 or '-'}  {one.path}" for one in report.files])
    if bad:
        raise click.exceptions.Exit(1)


@click.command("place", no_args_is_help=True)
@click.argument("name", type=MODEL, metavar="NAME")
@click.option("--for", "program", required=True, type=click.Choice(["a1111", "forge", "comfyui", "invokeai"]))
@click.option("--root", required=True, type=click.Path(path_type=Path, file_okay=False), help="The program's folder.")
@click.option("--subfolder", default="", help="Of the program's folder for such models.")
@click.option(
    "--link",
    type=click.Choice(["auto", "hard", "symbolic", "copy"]),
    default="auto",
    show_default=True,
    help="auto is the first that works.",
)
@click.option("--force", is_flag=True, help="Replace a file of that name.")
@output_options
def place(output: Output, name: Path, program: str, root: Path, subfolder: str, link: str, force: bool) -> None:
    """Put the model NAME where a program looks for it, without a second copy where that is possible."""
    from sdkit.jobs.models.place import place_model

    report = place_model(name, program, root, link=link, subfolder=subfolder, force=force)  # type: ignore[arg-type]
    what = {"": "is there already", "copy": "is a copy"}.get(report.link, f"is a {report.link} link")
    lines = [f"{report.output} {what}", *([f"note: {report.note}"] if report.note else [])]
    output.result(report.as_dict(), lines, [report.output])
