"""``sdkit models export`` and ``sdkit models import``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sdkit.cli.names import NAME
from sdkit.cli.output import Output, output_options
from sdkit.core.human import plural


@click.command("export")
@click.argument("names", nargs=-1, type=NAME)
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="JSON file [default: stdout].")
@click.option("--sidecars", is_flag=True, help="Write .civitai.info, .json and a preview beside each file instead.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@output_options
def export(output: Output, names: tuple[str, ...], target: Path | None, sidecars: bool, force: bool) -> None:
    """Write what is known of the models NAMES, or of all."""
    from sdkit.jobs.models.exchange import export_models

    report = export_models(names, target, sidecars=sidecars, force=force)
    if isinstance(report, dict):
        lines = json.dumps(report, indent=2).splitlines()
        output.result(report, lines, lines)
        return
    lines = [f"wrote {path}" for path in report.written]
    if report.kept:
        lines.append(f"kept {plural(len(report.kept), 'sidecar')} that lay there already; --force replaces them")
    output.result(report.as_dict(), lines, list(report.written))


@click.command("import", no_args_is_help=True)
@click.argument("path", type=click.Path(path_type=Path, exists=True), metavar="FILE|DIR")
@output_options
def import_(output: Output, path: Path) -> None:
    """Take over the export FILE, or the sidecars beside the registered models below DIR."""
    from sdkit.jobs.models.exchange import import_models

    report = import_models(path)
    lines = [f"told {plural(report.here, 'model')} more, of those that are here"]
    if report.elsewhere:
        lines.append(f"{report.elsewhere:,} have no file here yet; when one is scanned it will be known")
    output.result(report.as_dict(), lines, [str(report.here)])
