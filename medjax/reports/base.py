"""What all pages share: one style (base.html), one way to fill a template, one way to write a file."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jinja2

import medjax
from medjax import files
from medjax.errors import UserError


def render(template: str, **facts: Any) -> str:
    """The page of a template that extends base.html, which needs: command, name, sections (id, title), and images,
    whether the page shows any. Every text is escaped; what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('medjax.reports', '.'),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(version=medjax.__version__, **facts)


def target(option: str, path: str | None) -> pathlib.Path | None:
    """The file that an option names; UserError where it cannot be written, before any work is done for it."""
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


def write(file: pathlib.Path, text: str) -> None:
    """The whole file or, after a kill, the one that was there before."""
    files.write_text(file, text)
