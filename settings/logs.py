"""Structured logs for every process: JSON in production, readable on a terminal."""

import fcntl
import logging
import logging.config
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import util
from types import TracebackType
from typing import IO, Any, TextIO
from urllib.parse import unquote, urlsplit

import structlog

from settings.tidy import Event, Tidy, to_eyes, to_json

logger = logging.getLogger(__name__)

SECRET_MIN_CHARS = 6
"""A shorter password would also be found in the middle of innocent words."""
TURN_PATIENCE_S = 5.0
TURN_LOOK_S = 0.001


def logging_config(*, style: str, level: str, secrets: Iterable[str] = ()) -> dict[str, Any]:
    """Return Django's LOGGING; ``style`` is ``json``, ``text`` or ``auto`` (text on a terminal).

    What is in ``secrets`` is hidden wherever it turns up in a record.
    """
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    # Others narrate what they do at DEBUG; of django-q2 even INFO is a line a task.
    others = "INFO" if level == "DEBUG" else level
    queue = "WARNING" if level in ("DEBUG", "INFO") else level
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "as_json": not as_text,
        "formatters": {
            "structured": {"()": Formatter, "as_text": as_text, "secrets": tuple(secrets)}
        },
        "handlers": {"stderr": {"class": "settings.logs.LineHandler", "formatter": "structured"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "django": {"handlers": ["stderr"], "level": others, "propagate": False},
            "django-q": {"handlers": ["stderr"], "level": queue, "propagate": False},
            "axes": {"level": "ERROR"},  # recovery.logins tells of each log-in, in fields
            # recovery.requests tells of each request, once, with the stack where it failed.
            "django.request": {"level": "CRITICAL"},
        },
    }


def secrets_of(*texts: str, urls: Iterable[str] = ()) -> list[str]:
    """Return ``texts`` and the passwords of ``urls``, as written and decoded."""
    passwords = [urlsplit(url).password or "" for url in urls]
    found = {*texts, *passwords, *map(unquote, passwords)}
    return sorted(text for text in found if len(text) >= SECRET_MIN_CHARS)


def configure(config: dict[str, Any]) -> None:
    """Set up logging for this process and for those forked from it; Django's LOGGING_CONFIG.

    Python's warnings are logged too and, where logs are JSON, exceptions that nobody caught.
    """
    logging.config.dictConfig(config)
    logging.captureWarnings(True)
    structlog.configure(  # for those who log by structlog itself: the same records as all others
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    if config["as_json"]:
        _log_uncaught()


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes whole lines: those of the processes forked from one another must not mix.

    A pipe takes a long line in pieces, between which others could write. So they take turns.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to ``stream``, by default standard error."""
        super().__init__(stream)
        self._turns: IO[bytes] | None = None
        with suppress(OSError):  # nowhere to write a file: lines may mix
            self._turns = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the handler lives

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; never raises."""
        try:
            line = self.format(record) + self.terminator
            self.flush()
            with _turn(self._turns):
                _write(self.stream, line)
        except Exception:  # noqa: BLE001 - a log that cannot be written stops nobody
            self.handleError(record)

    def close(self) -> None:
        """Write on without turns, where anybody still does."""
        turns, self._turns = self._turns, None
        if turns is not None:
            turns.close()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base's name
        """Give up: there is no better place to say it."""


@contextmanager
def _turn(turns: IO[bytes] | None) -> Iterator[None]:
    """Hold the file's lock, which belongs to this process alone; after a while go on without.

    Whoever has it may be stopped, and nobody's work may wait for that.
    """
    deadline = time.monotonic() + TURN_PATIENCE_S
    while turns is not None:
        try:
            fcntl.lockf(turns, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() >= deadline:
                turns = None
            time.sleep(TURN_LOOK_S)
    try:
        yield
    finally:
        if turns is not None:
            fcntl.lockf(turns, fcntl.LOCK_UN)


def _write(stream: TextIO, line: str) -> None:
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError, ValueError):  # a stream of a test's, in memory
        stream.write(line)
        return
    data = line.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(descriptor, data) :]


class Formatter(structlog.stdlib.ProcessorFormatter):
    """Renders records as fields; never raises."""

    def __init__(self, *, as_text: bool, secrets: Iterable[str]) -> None:
        """Render as text for people, or as JSON; hide ``secrets``."""
        super().__init__(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _name_process,
                _name_request,
                _name_error,
                _name_warning,
            ],
            processors=[
                self.remove_processors_meta,
                structlog.processors.format_exc_info,
                Tidy(secrets),
                *((to_eyes, _for_people()) if as_text else (to_json,)),
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; of a record that cannot be rendered, that it cannot."""
        try:
            return super().format(record)
        except Exception as error:  # noqa: BLE001 - whatever a field's or an argument's code raises
            return super().format(_unprintable(record, error))


def _for_people() -> structlog.dev.ConsoleRenderer:
    # Stacks are text by now; rich, where it is installed, would print variables, passwords too.
    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)


def _unprintable(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    facts = {"text": record.msg, "error": error, "place": f"{record.pathname}:{record.lineno}"}
    head = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
    return logging.makeLogRecord({**head, "msg": "log_record_unprintable", **facts})


def _name_process(_logger: Any, _name: str, event: Event) -> Event:
    event.setdefault("pid", os.getpid())
    return event


def _name_request(_logger: Any, _name: str, event: Event) -> Event:
    """Name method and path instead of Django's request; the query may hold what is private."""
    request = event.get("request")
    if request is None or isinstance(request, str):
        return event
    del event["request"]
    event.pop("server_time", None)
    if hasattr(request, "path"):
        event["method"], event["path"] = getattr(request, "method", None), request.path
    return event


def _name_error(_logger: Any, _name: str, event: Event) -> Event:
    """Give every error a code, which is always text: indexes of logs want one type a field."""
    exc_info = event.get("exc_info")
    if isinstance(exc_info, tuple) and exc_info[0]:
        event.setdefault("code", exc_info[0].__name__)
    if "code" in event:
        event["code"] = str(event["code"])
    return event


def _name_warning(_logger: Any, _name: str, event: Event) -> Event:
    if event["logger"] == "py.warnings":
        event["event"], event["text"] = "python_warning", event["event"].strip()
    return event


def _log_uncaught() -> None:
    """Log exceptions that end a process, a thread or a destructor, unless others see to that."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable
    # multiprocessing prints what ends a child itself, past the hooks.
    util.register_after_fork(logger, _watch_child)


def _uncaught(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    logger.critical("uncaught_exception", exc_info=(kind, error, stack))


def _uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None and found.exc_type is not SystemExit:
        name = found.thread.name if found.thread else ""
        exc_info = (found.exc_type, found.exc_value, found.exc_traceback)
        logger.error("uncaught_exception", exc_info=exc_info, extra={"thread_name": name})


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    error = found.exc_value or found.exc_type()
    logger.error("exception_ignored", exc_info=error, extra={"place": found.object})


def _watch_child(_registered: object) -> None:
    process = multiprocessing.current_process()
    work = process.run

    def run() -> None:
        try:
            work()
        except Exception:
            logger.critical(
                "uncaught_exception", exc_info=True, extra={"process_name": process.name}
            )
            sys.exit(1)

    process.run = run  # type: ignore[method-assign]
