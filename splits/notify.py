"""Tell the completion endpoint: one POST under a total deadline, behind a breaker."""

import base64
import http.client
import logging
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from django.conf import settings

from ledger.outbox import canonical, quantity_text
from recovery.clock import db_now
from recovery.errors import with_retries
from recovery.fields import KEY_MAX_LENGTH
from splits.drills.names import is_drill
from splits.errors import EndpointDownError, EndpointFailedError, EndpointRefusedError
from splits.models import Breaker, SplitOrder
from splits.steps import child_code

logger = logging.getLogger(__name__)

READ_AT_MOST = 65_536
ENDPOINTS_FAULT = frozenset({408, 429})
DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Message:
    """What is sent for an order: the same bytes at every try."""

    event_key: str
    body: bytes


def message(order: SplitOrder) -> Message:
    """Return the message for ``order``: canonical JSON of number, event key and outputs."""
    source = order.source_lot
    outputs = [
        {
            "code": child_code(source.code, line.line),
            "sku": line.sku,
            "quantity": quantity_text(line.quantity),
            "unit": source.unit,
            "kind": line.kind,
        }
        for line in order.lines.order_by("line")
    ]
    content = {"order_number": order.number, "event_key": order.event_key, "outputs": outputs}
    return Message(order.event_key, canonical(content).encode())


def is_wanted(number: str) -> bool:
    """Tell whether the endpoint is to be told of order ``number``.

    The outside never hears of a drill's order: only the drill's own endpoint does, whose address
    ends with the number.
    """
    address = settings.SPLIT_COMPLETION_WEBHOOK
    return bool(address) and (not is_drill(number) or address.endswith(f"/{number}"))


def tell(order: SplitOrder) -> None:
    """Tell the endpoint that ``order`` is finalized; outside any transaction, at least once.

    Raises EndpointDownError: the breaker is open; EndpointFailedError: no answer in time, a
    5xx, 408 or 429; EndpointRefusedError: any other answer that is not 2xx.
    """
    parts = urlsplit(settings.SPLIT_COMPLETION_WEBHOOK)
    endpoint = origin(parts)
    on_trial = with_retries(lambda: _pass_breaker(endpoint))
    try:
        post(parts, message(order), timeout_s=settings.SPLIT_COMPLETION_TIMEOUT_SEC)
    except EndpointFailedError as error:
        with_retries(partial(_count_failure, endpoint, error))
        if on_trial:
            # One round behind those that wait: the next try is another order's.
            raise EndpointDownError(str(error), retry_in_s=2 * _open_s()) from error
        raise
    except EndpointRefusedError:
        with_retries(lambda: _close_breaker(endpoint))
        raise
    with_retries(lambda: _close_breaker(endpoint))


def origin(parts: SplitResult) -> str:
    """Return ``scheme://host:port``, the endpoint that shares one breaker."""
    return f"{parts.scheme}://{parts.hostname}:{_port(parts)}"[:KEY_MAX_LENGTH]


def _port(parts: SplitResult) -> int:
    return parts.port or DEFAULT_PORTS[parts.scheme]


def _open_s() -> float:
    """Return how long the breaker stays open: never shorter than one try."""
    return max(settings.SPLIT_COMPLETION_BREAKER_OPEN_SEC, settings.SPLIT_COMPLETION_TIMEOUT_SEC)


def _pass_breaker(endpoint: str) -> bool:
    """Return False where the breaker is closed, True for the one try it allows while open.

    Raises EndpointDownError.
    """
    breaker = Breaker.objects.filter(endpoint=endpoint).first()
    if breaker is None or breaker.opened_at is None:
        return False
    if Breaker.objects.filter(endpoint=endpoint).take_try(open_s=_open_s()):
        return True
    wait_s = 0.0
    if breaker.next_try_at:
        wait_s = max(0.0, (breaker.next_try_at - db_now()).total_seconds())
    raise EndpointDownError(endpoint, retry_in_s=wait_s or _open_s())


def _count_failure(endpoint: str, error: Exception) -> None:
    Breaker.objects.get_or_create(endpoint=endpoint)
    breaker = Breaker.objects.filter(endpoint=endpoint)
    breaker.count_failure()
    open_s = _open_s()
    if breaker.open_after(settings.SPLIT_COMPLETION_BREAKER_FAILURES, open_s=open_s):
        facts = {"code": EndpointFailedError.code, "endpoint": endpoint, "open_s": open_s}
        logger.error("completion_endpoint_down", exc_info=error, extra=facts)
    else:
        breaker.stay_open(open_s=open_s)


def _close_breaker(endpoint: str) -> None:
    # Read first: most of the time there is nothing to forget.
    known = Breaker.objects.filter(endpoint=endpoint).first()
    if known is None or not (known.failures or known.opened_at):
        return
    Breaker.objects.filter(endpoint=endpoint).close()
    if known.opened_at:
        logger.info("completion_endpoint_back", extra={"endpoint": endpoint})


def _basic(parts: SplitResult) -> str:
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


class _Exchange:
    """One POST in a thread of its own, so that a deadline holds for all of it.

    A socket's time-out starts anew with each byte, and name look-ups have none.
    """

    def __init__(self, parts: SplitResult, sent: Message, *, timeout_s: float) -> None:
        connect = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self.link = connect(parts.hostname or "", _port(parts), timeout=timeout_s)
        self.target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        self.headers = {"Content-Type": "application/json", "Idempotency-Key": sent.event_key}
        if parts.username:
            self.headers["Authorization"] = _basic(parts)
        self.body = sent.body
        self.given_up = threading.Event()
        self.status = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.link.connect()
            if self.given_up.is_set():
                return
            self.link.request("POST", self.target, body=self.body, headers=self.headers)
            response = self.link.getresponse()
            response.read(READ_AT_MOST)
            self.status = response.status
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            self.error = error
        finally:
            self.link.close()

    def give_up(self) -> None:
        self.given_up.set()
        sock: Any = self.link.sock
        with suppress(OSError, AttributeError):
            sock.shutdown(socket.SHUT_RDWR)


def post(parts: SplitResult, sent: Message, *, timeout_s: float) -> None:
    """POST once; no redirects are followed.

    Raises EndpointFailedError, EndpointRefusedError.
    """
    exchange = _Exchange(parts, sent, timeout_s=timeout_s)
    thread = threading.Thread(target=exchange.run, name="split-completion", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        exchange.give_up()
        raise EndpointFailedError(f"no answer within {timeout_s:g} s")
    if exchange.error is not None:
        raise EndpointFailedError(
            f"{type(exchange.error).__name__}: {exchange.error}"
        ) from exchange.error
    _judge(exchange.status)


def _judge(status: int) -> None:
    if status in ENDPOINTS_FAULT or status // 100 == 5:
        raise EndpointFailedError(f"HTTP {status}")
    if status // 100 != 2:
        raise EndpointRefusedError(f"HTTP {status}")
