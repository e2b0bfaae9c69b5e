"""Log lines: always whole, always parsed, of plain fields, bounded, without secrets."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import structlog
from django.conf import settings
from django.test import RequestFactory
from django.utils.translation import gettext_lazy
from hypothesis import assume, given
from hypothesis import strategies as st

from settings.logs import Formatter, LineHandler, logging_config, secrets_of
from settings.tidy import LINE_CHARS, STACK_CHARS, TEXT_CHARS

pytestmark = pytest.mark.once

ANY_TEXT = st.text(st.characters())
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.binary()
    | st.decimals(),
    lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner) | st.tuples(inner, inner),
    max_leaves=20,
)
SECRETS = ("s3cret-of-the-metrics", "pa55/word")


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def parsed(line: str) -> dict[str, Any]:
    """Return a line's fields; strictly, and one line it must be."""
    assert "\n" not in line
    line.encode("ascii")
    fields: dict[str, Any] = json.loads(line, parse_constant=refuse)
    json.dumps(fields, ensure_ascii=False).encode()  # no lone surrogates
    return fields


def record(event: str = "event", *args: Any, exc_info: Any = None, **extra: Any) -> Any:
    head = {"name": "test", "levelno": logging.ERROR, "levelname": "ERROR"}
    return logging.makeLogRecord(
        {**head, "msg": event, "args": args, "exc_info": exc_info, **extra}
    )


def logged(event: str = "event", *args: Any, exc_info: Any = None, **extra: Any) -> dict[str, Any]:
    formatter = Formatter(as_text=False, secrets=SECRETS)
    return parsed(formatter.format(record(event, *args, exc_info=exc_info, **extra)))


class Nameless:
    def __str__(self) -> str:
        raise RuntimeError("no")


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


def test_record_has_the_fields_that_all_have():
    fields = logged("lease_lost", fence=7)
    assert list(fields)[:3] == ["timestamp", "level", "event"]
    assert fields["timestamp"].endswith("Z")
    assert (fields["level"], fields["event"], fields["logger"]) == ("error", "lease_lost", "test")
    assert (fields["pid"], fields["fence"]) == (os.getpid(), 7)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5, 1.5),
        (True, True),
        (None, None),
        (2**62, 2**62),
        (2**64, str(2**64)),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("lone \udcff, whole 木😀", "lone \\udcff, whole 木😀"),
        (b"\xff", "b'\\xff'"),
        (gettext_lazy("dead"), "dead"),
        (ValueError("why"), "why"),
        (Nameless(), "<Nameless without a text>"),
        ({"a": {"b": Decimal(1)}}, {"a": {"b": "1"}}),
        ({1: "one", "\udcff": 2}, {"1": "one", "\\udcff": 2}),
        ((1, {2}), [1, [2]]),
        (endless(), [[["[[...]]"]]]),
        (nested(100_000), [[["<list without a text>"]]]),
    ],
)
def test_value_of_any_type_is_shown(value, shown):
    assert logged(value=value)["value"] == shown


def test_number_that_python_will_not_write_out_is_no_trouble():
    assert logged(value=10**5_000)["value"] == "<int without a text>"


@given(st.dictionaries(st.text(min_size=1).map("x".__add__), ANYTHING), ANY_TEXT)
def test_whatever_is_logged_is_one_line_of_json(extra, event):
    fields = logged(event, **extra)
    assert fields["level"] == "error"


def test_message_whose_arguments_do_not_fit_is_said_to_be_so():
    fields = logged("%d orders", "many")
    assert (fields["event"], fields["text"]) == ("log_record_unprintable", "%d orders")
    assert (fields["level"], fields["logger"]) == ("error", "test")


@pytest.mark.parametrize("length", [TEXT_CHARS, TEXT_CHARS + 1, 10**6])
def test_long_text_keeps_its_beginning_and_its_end(length):
    text = logged(text="<" + "x" * (length - 2) + ">")["text"]
    assert len(text) <= TEXT_CHARS + 50
    assert (text[0], text[-1]) == ("<", ">")
    assert ("characters left out" in text) is (length > TEXT_CHARS)


def test_long_line_is_cut_until_it_fits():
    extra = {f"field_{n}": "木" * 10_000 for n in range(100)}
    line = Formatter(as_text=False, secrets=()).format(record("huge", job="aJob", **extra))
    assert len(line) <= LINE_CHARS
    fields = parsed(line)
    assert (fields["event"], fields["job"]) == ("huge", "aJob")
    assert fields["field_0"].startswith("木木木")


def failure(error: BaseException) -> Any:
    try:
        raise error
    except type(error) as caught:
        return (type(caught), caught, caught.__traceback__)


def test_error_has_its_stack_as_text_and_a_code():
    fields = logged(exc_info=failure(ValueError("木 \udcff")))
    assert fields["exception"].startswith("Traceback (most recent call last):\n")
    assert fields["exception"].endswith("ValueError: 木 \\udcff")
    assert fields["code"] == "ValueError"
    assert logged(exc_info=failure(ValueError()), code=1213)["code"] == "1213"


def test_end_of_a_long_stack_is_kept():
    fields = logged(exc_info=failure(ValueError("x" * 10**6 + " the end")))
    assert len(fields["exception"]) <= STACK_CHARS + 50
    assert fields["exception"].startswith("Traceback")
    assert fields["exception"].endswith("the end")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://user:hush@host/db", "mysql://user:***@host/db"),
        ("redis://:hu@sh@host:6379", "redis://:***@host:6379"),
        ("http://host:8000/path", "http://host:8000/path"),
        ("Authorization: Bearer hush.hush", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic aHVzaA=='}", "{'Authorization': 'Basic ***'}"),
        ("sent bearer hush", "sent bearer ***"),
        (f"the token {SECRETS[0]} is wrong", "the token *** is wrong"),
        (f"({SECRETS[1]})", "(***)"),
        ("x" * 2 * TEXT_CHARS + SECRETS[0], None),
    ],
)
def test_secret_in_a_text_is_hidden(text, shown):
    for fields in (
        logged(text=text),
        logged(text),
        logged(facts={"list": [text]}),
        logged(exc_info=failure(ValueError(text))),
        logged(error=ValueError(text)),
        logged("%s", text),
    ):
        shown_fields = json.dumps(fields)
        assert "hush" not in shown_fields
        assert not any(secret in shown_fields for secret in SECRETS)
    if shown:
        assert logged(text=text)["text"] == shown


@pytest.mark.parametrize("name", ["password", "DB_PASSWD", "metrics_token", "Authorization"])
def test_field_that_is_named_like_a_secret_is_hidden(name):
    assert logged(**{name: "x"})[name] == "***"
    assert logged(facts={"headers": {name: "x"}})["facts"]["headers"][name] == "***"


def test_secrets_are_found_in_the_settings_as_written_and_decoded():
    urls = ("mysql://user:pa55%2Fword@host/db", "redis://host/0", "", "redis://:tiny@host")
    assert secrets_of("a-long-key", "", urls=urls) == ["a-long-key", "pa55%2Fword", "pa55/word"]


def test_secrets_of_the_running_settings_are_known_to_their_logging():
    (formatter,) = settings.LOGGING["formatters"].values()
    assert settings.SECRET_KEY in formatter["secrets"]


def test_run_and_order_come_from_the_context():
    with structlog.contextvars.bound_contextvars(job="aJob", run_id="r", attempt=2):
        fields = logged(attempt=5)
        assert (fields["job"], fields["run_id"], fields["attempt"]) == ("aJob", "r", 5)
    assert "job" not in logged()


def test_request_is_named_by_method_and_path():
    request = RequestFactory().get("/admin/?token=hush")
    fields = logged(request=request, status_code=500)
    assert (fields["method"], fields["path"], fields["status_code"]) == ("GET", "/admin/", 500)
    assert "hush" not in json.dumps(fields)
    assert "request" not in logged(request=object(), server_time="now")
    assert logged(request='"GET /" 200')["request"] == '"GET /" 200'


def test_text_for_people_has_the_stack_but_no_values_of_variables():
    def failing(hidden: str) -> None:
        raise ValueError(len(hidden))

    try:
        failing("hush" + "hush")
    except ValueError:
        line = Formatter(as_text=True, secrets=SECRETS).format(
            record("it_broke", exc_info=sys.exc_info(), order="SO-1", bad="\udcff")
        )
    assert "it_broke" in line
    assert "order=SO-1" in line
    assert "Traceback (most recent call last)" in line
    assert "hushhush" not in line


@pytest.mark.parametrize(
    ("level", "root", "django", "queue"),
    [
        ("DEBUG", "DEBUG", "INFO", "WARNING"),
        ("INFO", "INFO", "INFO", "WARNING"),
        ("ERROR", "ERROR", "ERROR", "ERROR"),
    ],
)
def test_level_holds_for_others_too(level, root, django, queue):
    config = logging_config(style="json", level=level)
    loggers = config["loggers"]
    assert config["root"]["level"] == root
    assert (loggers["django"]["level"], loggers["django-q"]["level"]) == (django, queue)


def test_handler_writes_to_a_stream_that_is_gone_without_a_word(tmp_path, capsys):
    with (tmp_path / "log").open("w") as stream, closing(LineHandler(stream)) as handler:
        stream.close()
        handler.emit(record())
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream, closing(LineHandler(stream)) as handler:
        handler.emit(record())
    assert capsys.readouterr() == ("", "")


PREPARED = """
import logging, multiprocessing, sys, threading, time, warnings
from settings.logs import configure, logging_config
configure(logging_config(style={style!r}, level="INFO"))
log = logging.getLogger("test")
"""


def process(script: str, *, style: str = "json") -> tuple[int, str]:
    """Run ``script`` in a process that logs; return its status and its standard error."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARED.format(style=style) + script],
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    return done.returncode, done.stderr


def lines_of(text: str) -> list[dict[str, Any]]:
    return [parsed(line) for line in text.splitlines()]


def events_of(fields: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(it["level"], it["event"]) for it in fields]


def test_exception_that_ends_a_process_is_a_record():
    status, errors = process("raise ValueError('木')")
    (fields,) = lines_of(errors)
    assert (status, fields["event"], fields["level"]) == (1, "uncaught_exception", "critical")
    assert fields["exception"].endswith("ValueError: 木")


def test_exception_that_ends_a_thread_is_a_record():
    script = "it = threading.Thread(target=lambda: 1 / 0, name='clerk'); it.start(); it.join()"
    status, errors = process(script)
    (fields,) = lines_of(errors)
    assert (status, fields["event"], fields["code"]) == (
        0,
        "uncaught_exception",
        "ZeroDivisionError",
    )
    assert fields["thread_name"] == "clerk"


def test_exception_that_ends_a_forked_child_is_a_record():
    script = """
child = multiprocessing.get_context("fork").Process(target=lambda: 1 / 0, name="clerk")
child.start()
child.join()
sys.exit(child.exitcode + 10)
"""
    status, errors = process(script)
    (fields,) = lines_of(errors)
    assert (status, fields["event"], fields["code"]) == (
        11,
        "uncaught_exception",
        "ZeroDivisionError",
    )
    assert fields["process_name"] == "clerk"


def test_exception_in_a_destructor_is_a_record():
    _status, errors = process("class It:\n    def __del__(self): 1 / 0\nit = It(); del it")
    assert events_of(lines_of(errors)) == [("error", "exception_ignored")]


def test_python_warning_is_a_record():
    _status, errors = process("warnings.warn('careful')")
    (fields,) = lines_of(errors)
    assert (fields["event"], fields["level"]) == ("python_warning", "warning")
    assert "UserWarning: careful" in fields["text"]


def test_uncaught_exception_is_left_to_python_where_people_read():
    status, errors = process("raise ValueError('木')", style="text")
    assert status == 1
    assert errors.startswith("Traceback (most recent call last):")


def test_hooks_of_others_are_left_alone():
    script = """
mine = lambda *_: None
sys.excepthook = threading.excepthook = sys.unraisablehook = mine
configure(logging_config(style="json", level="INFO"))
assert {sys.excepthook, threading.excepthook, sys.unraisablehook} == {mine}
"""
    assert process(script) == (0, "")


@pytest.mark.parametrize(("style", "is_json"), [("auto", True), ("json", True), ("text", False)])
def test_logs_are_json_unless_a_terminal_reads_them(style, is_json):
    _status, errors = process("log.warning('hello')", style=style)
    assert errors.startswith("{") is is_json
    assert "hello" in errors


def test_long_lines_of_many_processes_do_not_mix():
    script = """
import settings.logs
settings.logs.TURN_PATIENCE_S = 60
def clerk():
    for _ in range(25):
        log.info("long", extra={f"field_{n}": "x" * 3_900 for n in range(10)})
clerks = [multiprocessing.get_context("fork").Process(target=clerk) for _ in range(4)]
for it in clerks: it.start()
for it in clerks: it.join()
"""
    _status, errors = process(script)
    fields = lines_of(errors)
    assert len(fields) == 100
    assert len({it["pid"] for it in fields}) == 4


OUTSIDE = st.text(max_size=200) | st.sampled_from(
    ["a\nb", "\r", "\x1b[31mred", "\x00", "\x7f", "\x9b31m", "\u2028", "\u202eback", "\ufeff"]
)


def rendered(*, as_text, event, name, value, message):
    """Return a record all of whose texts come from outside."""
    try:
        raise ValueError(message)
    except ValueError:
        exc_info = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "p", 1, event, None, exc_info)
    setattr(record, name or "empty", value)
    return Formatter(as_text=as_text, secrets=()).format(record)


@given(event=OUTSIDE, value=OUTSIDE, message=OUTSIDE)
def test_no_text_from_outside_makes_a_second_line_of_json(event, value, message):
    line = rendered(as_text=False, event=event, name="order", value=value, message=message)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["level"] == "error"


@given(event=OUTSIDE, name=st.text(max_size=20), value=OUTSIDE, message=OUTSIDE)
def test_no_text_from_outside_can_pass_for_a_record_on_a_terminal(event, name, value, message):
    assume(name not in logging.makeLogRecord({}).__dict__)
    text = rendered(as_text=True, event=event, name=name, value=value, message=message)
    first, *stack = text.split("\n")
    assert all(it.isprintable() for it in (first, *stack))
    assert all(it.startswith("    ") for it in stack), "a stack is indented, as no record is"
