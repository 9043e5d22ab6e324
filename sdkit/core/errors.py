"""The errors sdkit raises on purpose.

    SdkitError              something is wrong; exit code 1
    ├── UsageError          the request itself is wrong: option, recipe, method name; exit code 2
    └── CredentialsError    a hub wants to know who asks, or has not let this person in; exit code 4

Every error names the thing and the reason in `message`, and the next thing to try in `hint`.
"""

from __future__ import annotations


class SdkitError(Exception):
    """A failure a person can act on. The command line prints ``error: message`` and ``hint: hint``.

    Args:
        message: the thing and the reason, in one sentence, without a final period.
        hint: what to do next, preferably a command; empty when there is nothing to suggest.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SdkitError):
    """The request is wrong, whatever the files hold: an unknown option, method or number of weights."""

    exit_code = 2


class CredentialsError(SdkitError):
    """A hub wants a token, does not accept the one it got, or wants its terms accepted. The hint names the page."""

    exit_code = 4
