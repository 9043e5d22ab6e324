"""``python -m sdkit`` is ``sdkit``."""

from sdkit.cli.main import main

main()
