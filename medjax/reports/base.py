"""Writes the pages: one style for all (base.html), one way to fill a template, one way to write the file."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jinja2

import medjax
from medjax import files
from medjax.errors import UserError


def render(template: str, **values: Any) -> str:
    """The HTML of a template that extends base.html. All text is escaped. A missing value is an error.

    base.html needs: command; name; sections, a list of (id, title); images, True if the page shows any image.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('medjax.reports', '.'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=medjax.__version__, **values)


def markdown(template: str, **values: Any) -> str:
    """The Markdown of a template. A missing value is an error. Words of the user go through `plain`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('medjax.reports', '.'),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(version=medjax.__version__, **values)


def target(option: str, path: str | None) -> pathlib.Path | None:
    """The file that an option names. UserError if it cannot be written, before the work for it begins."""
    if path is None:
        return None
    file = pathlib.Path(path).expanduser()
    if file.is_dir():
        raise UserError(f'{option} {path}: that is a folder; name a file in it')
    if not file.parent.is_dir():
        raise UserError(f'{option} {path}: there is no folder {file.parent}; make it first, or choose another')
    if not os.access(file.parent, os.W_OK):
        raise UserError(f'{option} {path}: the folder {file.parent} cannot be written to; choose another')
    return file


def write(file: pathlib.Path, html: str) -> None:
    """Writes a page. If the process is killed, the page that was there before stays."""
    with files.writing(f'the page {file}'):
        files.write_text(file, html)
