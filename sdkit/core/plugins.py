"""Plugins: a file of a package is a plugin, its name is the plugin's name, its first docstring line the help text.

Nothing is imported to list plugins: the first docstring line is read from the syntax tree, so that ``--help`` is quick
and a broken plugin cannot break it. Third parties add theirs by an entry point whose value is a module.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from sdkit.core.errors import SdkitError, UsageError


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that has been found, not yet imported.

    Attributes:
        name: as the command line and reports write it, with hyphens.
        module: dotted name of the module.
        summary: first line of the module's docstring, without a final period; empty where there is none.
    """

    name: str
    module: str
    summary: str

    def load(self) -> ModuleType:
        """Import the module.

        Raises:
            SdkitError: the import failed (a plugin of a third party whose requirements are missing, for example).
        """
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise SdkitError(f"the plugin {self.name} ({self.module}) cannot be imported: {error}") from error


def find_plugins(package: str, group: str = "", skip: Collection[str] = ()) -> dict[str, Plugin]:
    """The plugins of `package`, then those of the entry-point group `group`, each sorted by name.

    Files whose names begin with an underscore, and those named in `skip`, are helpers.

    Raises:
        SdkitError: two plugins have one name.
    """
    plugins: dict[str, Plugin] = {}
    for module in [*_modules_in(package, skip), *_entry_points(group)]:
        name = canonical(module.rpartition(".")[2])
        if name in plugins:
            raise SdkitError(
                f"two plugins are named {name}: {plugins[name].module} and {module}",
                "uninstall one of them, or rename the module of the second",
            )
        plugins[name] = Plugin(name, module, summary(module))
    return plugins


def choose(name: str, plugins: Mapping[str, Plugin], what: str) -> Plugin:
    """The plugin called `name`, with hyphens or underscores.

    Args:
        what: what the plugins are, for the message: ``merge method``, ``format``.

    Raises:
        UsageError: there is none; the hint names the nearest.
    """
    plugin = plugins.get(canonical(name))
    if plugin is None:
        raise UsageError(f"unknown {what} {name!r}", nearest_hint(canonical(name), plugins))
    return plugin


def canonical(name: str) -> str:
    """The spelling with hyphens."""
    return name.replace("_", "-")


def nearest_hint(name: str, names: Iterable[str]) -> str:
    """“did you mean …?” with the most similar of `names`, or the list of all when none is similar."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"


def summary(module: str) -> str:
    """First docstring line of a module that need not be importable; empty where the source cannot be found."""
    path = _source(module)
    if path is None:
        return ""
    try:
        text = ast.get_docstring(ast.parse(path.read_bytes())) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    return text.partition("\n")[0].rstrip(".")


def _modules_in(package: str, skip: Collection[str]) -> list[str]:
    folder = _source_folder(package)
    if folder is None:
        return []
    names = sorted(entry.name for entry in pkgutil.iter_modules([str(folder)]) if not entry.ispkg)
    return [f"{package}.{name}" for name in names if not name.startswith("_") and name not in skip]


def _entry_points(group: str) -> list[str]:
    return sorted({point.module for point in entry_points(group=group)}) if group else []


def _source_folder(package: str) -> Path | None:
    """Folder of a package. Only its top-level package is looked up, which imports nothing."""
    top, *rest = package.split(".")
    spec = importlib.util.find_spec(top)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return next((folder for folder in (Path(root, *rest) for root in locations) if folder.is_dir()), None)


def _source(module: str) -> Path | None:
    package, _, name = module.rpartition(".")
    if not package:
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
    folder = _source_folder(package)
    candidates = [folder / f"{name}.py", folder / name / "__init__.py"] if folder else []
    return next((path for path in candidates if path.is_file()), None)
