"""What every report has in common."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any


class Report:
    """A dataclass that says what a job did. Its fields are what ``--json`` prints."""

    __slots__ = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]  # every subclass is a dataclass
