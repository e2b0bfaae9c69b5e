"""Every string that people read has its Chinese, and what is compiled is what was translated."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polib
import pytest
import unfold
from django.conf import settings
from django.utils import translation

APPS = ("recovery", "ledger", "splits")
CATALOGUE = Path("locale", "zh_Hans", "LC_MESSAGES", "django.po")
ASKED = ("_", "gettext", "gettext_lazy", "pgettext", "ngettext")
NAMED = re.compile(r"%\(\w+\)[sdf]|%[sdf]|{\w*}")


def catalogue(app, root=None):
    return polib.pofile(str(Path(root or settings.BASE_DIR, app) / CATALOGUE))


def keys(entries):
    return {(entry.msgctxt, entry.msgid, entry.msgid_plural) for entry in entries}


@pytest.mark.parametrize("app", APPS)
def test_every_string_in_the_source_is_in_the_catalogue(app, tmp_path):
    # What is compiled comes and goes while other processes start.
    compiled = shutil.ignore_patterns("__pycache__")
    shutil.copytree(settings.BASE_DIR / app, tmp_path / app, ignore=compiled)
    outside = {key: value for key, value in os.environ.items() if key != "DJANGO_SETTINGS_MODULE"}
    extracted = subprocess.run(
        [sys.executable, "-m", "django", "makemessages", "-l", "zh_Hans"],
        cwd=tmp_path / app, env=outside, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert extracted.returncode == 0, extracted.stderr
    found = [entry for entry in catalogue(app, tmp_path) if not entry.obsolete]
    missing = keys(found) - keys(catalogue(app))
    assert not missing, "run `make messages` and translate these"


@pytest.mark.parametrize("app", APPS)
def test_no_string_to_translate_hides_in_an_f_string(app):
    hidden = [
        f"{path}:{call.lineno}"
        for path in sorted((settings.BASE_DIR / app).rglob("*.py"))
        for text in ast.walk(ast.parse(path.read_text()))
        if isinstance(text, ast.JoinedStr)
        for call in ast.walk(text)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ASKED
    ]
    assert not hidden, "makemessages does not find these"


@pytest.mark.parametrize("app", APPS)
def test_every_string_is_translated_and_compiled(app):
    entries = catalogue(app)
    assert not [entry.msgid for entry in entries if not entry.translated()]
    assert not [entry.msgid for entry in entries if entry.fuzzy or entry.obsolete]
    compiled = polib.mofile(str((settings.BASE_DIR / app / CATALOGUE).with_suffix(".mo")))
    said = {(e.msgctxt, e.msgid): (e.msgstr, e.msgstr_plural) for e in entries}
    assert {(e.msgctxt, e.msgid): (e.msgstr, e.msgstr_plural) for e in compiled} == said


@pytest.mark.parametrize("app", APPS)
def test_translations_keep_the_placeholders(app):
    for entry in catalogue(app):
        wanted = set(NAMED.findall(entry.msgid)) | set(NAMED.findall(entry.msgid_plural))
        for text in (entry.msgstr, *entry.msgstr_plural.values()):
            assert not text or set(NAMED.findall(text)) == wanted, entry.msgid


@pytest.mark.parametrize("app", APPS)
def test_models_and_fields_are_named_in_chinese(app):
    from django.apps import apps

    with translation.override("zh-hans"):
        config = apps.get_app_config(app)
        names = [str(config.verbose_name)]
        for model in config.get_models():
            names += [str(model._meta.verbose_name), str(model._meta.verbose_name_plural)]
        assert not [name for name in names if name.isascii()]


SKIN = Path(unfold.__file__).parent
LEFT_OUT = {"Add row", "Raw passwords are not stored, so there is no way to see this "}
"""Of the skin: what belongs to forms that we have none of, and the beginning of a longer text."""
TEXT = re.compile(r"""(?:{%\s*trans(?:late)?\s+|_\(\s*)(?:"([^"]+)"|'([^']+)')""")


def texts_of_the_skin():
    files = [*SKIN.joinpath("templates").rglob("*.html"), *SKIN.glob("*.py")]
    for file in files:
        for double, single in TEXT.findall(file.read_text()):
            yield double or single


def test_skin_speaks_chinese_where_it_came_without():
    texts = set(texts_of_the_skin())
    assert len(texts) > 60, "the skin's texts were not found"
    with translation.override("zh-hans"):
        left = {text for text in texts if translation.gettext(text) == text}
    assert left - LEFT_OUT == set(), "name them in recovery/skintexts.py and translate them"
