"""HTML pages as a reader gets them: parsed from the file, and built by a browser."""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import subprocess

import pytest


class Page(html.parser.HTMLParser):
    """What a reader gets: the text of every section, rows of tables, and every address that the page names."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.rows, self.addresses, self.ids = {}, [], [], []
        self.figures, self.section, self.quiet, self.cell = {}, 'header', 0, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [attributes[name] for name in ('src', 'href', 'xlink:href', 'action') if name in attributes]
        self.ids += [attributes['id']] if 'id' in attributes else []
        self.section = attributes['id'] if tag == 'section' else self.section
        self.quiet += tag in ('style', 'script')
        if tag == 'svg' or tag == 'img':
            self.figures[self.section] = self.figures.get(self.section, 0) + 1
        if tag == 'tr':
            self.rows.append([])
        elif tag in ('td', 'th'):
            self.rows[-1].append('')
            self.cell = True

    def handle_endtag(self, tag):
        self.quiet -= tag in ('style', 'script')
        self.cell = self.cell and tag not in ('td', 'th')

    def handle_data(self, data):
        if not self.quiet:
            self.sections[self.section] = self.sections.get(self.section, '') + data
            if self.cell:
                self.rows[-1][-1] += data.strip()


CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='no chromium on this machine: apt-get install chromium')
QUIET = ('background-networking', 'component-update', 'extensions', 'gpu', 'quic', 'sync')
FLAGS = ['--headless', '--no-sandbox', '--no-first-run', '--enable-logging=stderr', '--dump-dom']


def browse(path, home):
    """The DOM that Chromium builds, what its console says, and what the page (not the browser itself) asked for."""
    log = home / 'net.json'
    flags = [
        *FLAGS,
        *(f'--disable-{what}' for what in QUIET),
        f'--user-data-dir={home / "profile"}',
        f'--log-net-log={log}',
    ]
    environment = os.environ | {'HOME': str(home)}
    command = [CHROMIUM, *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert '</html>' in done.stdout, done.stderr
    console = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
    asked = set()
    for event in log.read_text().splitlines():
        by, url = (re.search(rf'"{key}":"([^"]*)"', event) for key in ('initiator', 'url'))
        if by and url and by[1] != 'not an origin':
            asked.add(url[1])
    return done.stdout, console, {url for url in asked if not url.startswith('data:')}
