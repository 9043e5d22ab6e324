"""Asking servers: patiently, within limits, and with tokens shown to nobody but the hosts they are for.

Redirects are followed here and not by the library, because each step decides anew who may see the token: hubs send
downloads on to storage that refuses a request with one, or must not learn it.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import sdkit
from sdkit.core.errors import CredentialsError, SdkitError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

USER_AGENT = f"sdkit-studio/{sdkit.__version__}"
TIMEOUT = (10.0, 60.0)  # seconds to connect, and between two pieces of an answer
_REDIRECTS = 10
_ATTEMPTS = 6
_LONGEST_WAIT = 300.0  # seconds; who asks for more is told to the person instead
_LARGEST_ANSWER = 64 << 20  # bytes of an answer that is no file
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTED = frozenset({301, 302, 303, 307, 308})
_RATE_LIMIT = re.compile(r"\bt=(\d+)")
_QUERY = re.compile(r"\?\S*")
_CREDENTIAL = re.compile(r"(?i)\b(bearer\s+|token=|hf_)[\w.~+/=-]+")

Explain = Callable[["Response"], SdkitError | None]


class TransientError(SdkitError):
    """The connection failed or the server was busy; the same request may do later."""


@dataclass(slots=True)
class Client:
    """Asks one hub's servers.

    Attributes:
        tokens: ``https://host`` (with its port, where it has one) → token; only there is it ever shown.
        explain: a hub's own words for an answer that is an error; None for the general ones.
        sleep: waits so many seconds.
    """

    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    explain: Explain = lambda response: None
    sleep: Callable[[float], None] = time.sleep
    _session: Session | None = field(default=None, repr=False)

    def open(self, url: str, headers: Mapping[str, str] | None = None, *, attempts: int = _ATTEMPTS) -> Response:
        """The answer to a GET, its body unread; the caller closes it.

        Raises:
            CredentialsError: 401 or 403.
            TransientError: no answer, or a busy server, after `attempts`.
            SdkitError: another error, or a redirect that must not be followed.
        """
        return self.request("GET", url, headers=headers, attempts=attempts)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        attempts: int = _ATTEMPTS,
        **body: Any,
    ) -> Response:
        """The answer to any request, see `open`."""
        for attempt in range(1, attempts + 1):
            try:
                response = self._follow(method, url, dict(headers or {}), body)
            except TransientError:
                if attempt == attempts:
                    raise
                self.sleep(back_off(attempt))
                continue
            if response.status_code not in _BUSY:
                return self._checked(response)
            wait = waiting_time(response) or back_off(attempt)
            response.close()
            if attempt == attempts or wait > _LONGEST_WAIT:
                raise _busy(url, response.status_code, wait)
            self.sleep(wait)
        raise AssertionError("unreachable")

    def json(self, url: str, **options: Any) -> Any:
        """The JSON of an answer.

        Raises:
            SdkitError: it is no JSON, or far too much; and whatever `open` raises.
        """
        method = options.pop("method", "GET")
        with self.request(method, url, **options) as response:
            data = response.raw.read(_LARGEST_ANSWER + 1, decode_content=True)
            if len(data) > _LARGEST_ANSWER:
                raise SdkitError(f"{shown(url)}: answers with more than {_LARGEST_ANSWER >> 20} MiB")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise SdkitError(f"{shown(url)}: does not answer in JSON", "the service may be down; try later") from None

    def read_range(self, url: str, start: int, stop: int, headers: Mapping[str, str] | None = None) -> bytes:
        """Bytes `start` up to `stop` of a file; fewer where it ends before."""
        wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", **(headers or {})}
        with self.open(url, wanted) as response:
            skip = 0 if response.status_code == 206 else start  # a server that knows no ranges sends it from the start
            return bytes(response.raw.read(skip + stop - start, decode_content=False)[skip:])

    def _follow(self, method: str, url: str, headers: dict[str, str], body: Mapping[str, Any]) -> Response:
        """The answer at the end of the redirects."""
        import requests

        first = url
        for _ in range(_REDIRECTS + 1):
            check_url(url)
            try:
                response = self._connection().request(
                    method,
                    url,
                    headers={**headers, **self._authorization(url)},
                    allow_redirects=False,
                    stream=True,
                    timeout=TIMEOUT,
                    **body,
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                reason = innermost_reason(error)
                raise TransientError(f"{shown(url)}: no connection: {reason}", "check the network, try again") from None
            except requests.RequestException as error:
                raise SdkitError(f"{shown(url)}: cannot be asked: {innermost_reason(error)}") from None
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTED or not target:
                return response
            response.close()
            url = redirected(url, target)
        raise SdkitError(f"{shown(first)}: is redirected without end")

    def _authorization(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        token = self.tokens.get(f"{parts.scheme}://{parts.netloc.lower()}")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _checked(self, response: Response) -> Response:
        """The answer, if it is none of an error."""
        if response.status_code < 400 or response.status_code == 416:  # 416: the range lies past the end
            return response
        with response:
            raise self.explain(response) or _general(response)

    def _connection(self) -> Session:
        if self._session is None:
            import requests

            hide_queries_in_logs()
            session = requests.Session()
            session.headers["User-Agent"] = USER_AGENT
            session.auth = _no_credentials
            self._session = session
        return self._session


def redirected(url: str, target: str) -> str:
    """The address a redirect leads to.

    Raises:
        SdkitError: it leads from the open network into this one, or from https to plain http.
    """
    new = urljoin(url, target)
    old_parts, new_parts = urlsplit(url), urlsplit(new)
    if (old_parts.scheme, new_parts.scheme) == ("https", "http"):
        raise SdkitError(f"{shown(url)}: is redirected to an address without encryption, {shown(new)}")
    if is_private(new_parts.hostname) and not is_private(old_parts.hostname):
        raise SdkitError(f"{shown(url)}: is redirected into the local network, to {shown(new)}")
    return new


def check_url(url: str) -> None:
    """Refuse what is no address of a web server.

    Raises:
        SdkitError: another scheme, no host, or a name and password in it, which would end up in recipes.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SdkitError(f"{shown(url)}: is no address of a web server", "write https://HOST/PATH")
    if parts.username or parts.password:
        raise SdkitError(f"{shown(url)}: holds a name or password", "leave them out")


def shown(url: str) -> str:
    """An address as messages show it: without its query and credentials, which may open doors."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else url[:100]


def redact(text: str) -> str:
    """A text without tokens and the queries of addresses."""
    return _CREDENTIAL.sub("<hidden>", _QUERY.sub("?<hidden>", text))


def back_off(attempt: int) -> float:
    """Seconds to wait after the attempt of this number: 1, 2, 4, … up to 30."""
    return float(min(2 ** (attempt - 1), 30))


def waiting_time(response: Response) -> float | None:
    """Seconds that a busy server asks for (Retry-After; the Hub's RateLimit); None where it does not say."""
    after = response.headers.get("Retry-After", "").strip()
    if after.isdecimal():
        return float(after)
    if after:
        try:
            return max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
        except ValueError:
            return None
    limit = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None


class _HiddenQueries(logging.Filter):
    """Takes out of log records what a signed address or a token in one would give away."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_HIDDEN = _HiddenQueries()
# By their full names: a logger's filter is not asked for what those below it log.
_LOGGERS = (
    "urllib3.connectionpool",
    "huggingface_hub.utils._http",
    *(f"{name}{version}" for name in ("httpx", "httpcore") for version in ("", "2")),
    *(f"httpcore{version}.{part}" for version in ("", "2") for part in ("connection", "http11", "http2", "proxy")),
)


def hide_queries_in_logs() -> None:
    """Make the libraries that log addresses log them without queries; doing it again changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_HIDDEN)


def _no_credentials(request: PreparedRequest) -> PreparedRequest:
    """Keeps the library from taking passwords out of ~/.netrc."""
    return request


def is_private(host: str | None) -> bool:
    """Whether a host is this machine or in the local network, as far as its name tells."""
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def innermost_reason(error: Exception) -> str:
    """The innermost reason of a failed connection, which is what a person understands."""
    inner: BaseException = error
    while (cause := inner.__cause__ or inner.__context__) is not None:
        inner = cause
    return redact(getattr(inner, "strerror", None) or str(inner) or type(inner).__name__)


def _busy(url: str, status: int, wait: float) -> TransientError:
    if status == 429:
        return TransientError(f"{shown(url)}: too many requests", f"wait {wait:.0f} seconds and try again")
    return TransientError(f"{shown(url)}: the server fails with {status}", "it may be down; try again later")


def _general(response: Response) -> SdkitError:
    status, url = response.status_code, shown(response.url)
    if status in (401, 403):
        return CredentialsError(f"{url}: the server wants to know who asks ({status})", "it may need an account")
    if status in (404, 410):
        return SdkitError(f"{url}: there is nothing ({status})", "check the spelling; it may have been removed")
    return SdkitError(f"{url}: the server answers with the error {status}")
