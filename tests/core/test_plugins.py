from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from sdkit.core import plugins
from sdkit.core.errors import SdkitError, UsageError


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "someplugins" / "inner"
    folder.mkdir(parents=True)
    (tmp_path / "someplugins" / "__init__.py").write_text("raise RuntimeError('listing must not import')")
    (folder / "__init__.py").write_text("raise RuntimeError('listing must not import')")
    (folder / "weighted_sum.py").write_text(
        '"""The average of two models.\n\nMore."""\nraise RuntimeError("imported")\n'
    )
    (folder / "broken.py").write_text("def (:")
    (folder / "_helper.py").write_text('"""No plugin."""')
    (folder / "base.py").write_text('"""No plugin either."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    return "someplugins.inner"


def test_files_are_plugins_and_are_not_imported(package):
    found = plugins.find_plugins(package, skip=("base",))
    assert sorted(found) == ["broken", "weighted-sum"]
    assert found["weighted-sum"] == plugins.Plugin(
        "weighted-sum", "someplugins.inner.weighted_sum", "The average of two models"
    )
    assert found["broken"].summary == ""


def test_names_with_hyphen_or_underscore(package):
    found = plugins.find_plugins(package)
    assert plugins.choose("weighted_sum", found, "merge method") is plugins.choose(
        "weighted-sum", found, "merge method"
    )


def test_nearest_name(package):
    found = plugins.find_plugins(package)
    with pytest.raises(UsageError, match="unknown merge method 'wieghted_sum'") as error:
        plugins.choose("wieghted_sum", found, "merge method")
    assert error.value.hint == "did you mean weighted-sum?"
    with pytest.raises(UsageError) as error:
        plugins.choose("zzz", found, "merge method")
    assert error.value.hint.startswith("there are: base, broken")


def test_entry_points_add_plugins_and_may_not_hide_others(package, monkeypatch):
    points = [EntryPoint("any", "json.decoder", "sdkit.things")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "sdkit.things" else [])
    found = plugins.find_plugins(package, "sdkit.things")
    assert found["decoder"].summary == "Implementation of JSONDecoder"
    assert found["decoder"].load().JSONDecoder
    points.append(EntryPoint("any", "elsewhere.broken", "sdkit.things"))
    with pytest.raises(SdkitError, match="two plugins are named broken"):
        plugins.find_plugins(package, "sdkit.things")


def test_a_plugin_that_cannot_be_imported_is_an_error():
    with pytest.raises(SdkitError, match=r"the plugin x \(no.such\) cannot be imported"):
        plugins.Plugin("x", "no.such", "").load()


def test_formats_are_found_and_read_without_torch():
    code = (
        "import sys; from sdkit.formats import formats, recognise; found = formats();"
        "assert set(found) >= {'kohya', 'peft', 'diffusers', 'cloneofsimo'}, found;"
        "assert all(p.summary for p in found.values()) and not set(found) & {'codec', '-lycoris'};"
        "[p.load() for p in found.values()]; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
