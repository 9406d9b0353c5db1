"""The keys of a config that were renamed since version 1, applied to the golden dumps of that version.

    python tests/golden/renames.py [COMMIT]     # default: the last commit of version 1

The renamed dumps of COMMIT must equal those beside this file. The script prints what differs and exits with 1 if
anything does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VERSION_1 = '686cab5'
# The section that holds a key ('*' stands for one name or number), the old key, the new key.
RENAMES = (
    ((), 'copies', 'teachers'),
    (('export',), 'copy', 'network'),
    (('optim', 'groups', '*'), 'rate', 'lr_scale'),
    (('optim', 'groups', '*'), 'decay', 'wd_scale'),
    (('optim', 'groups', '*'), 'clip', 'clip_group'),
    (('towers', '*'), 'layout', 'family'),
    (('init_from',), 'parts', 'take'),
    (('init_from', '*'), 'parts', 'take'),
)
# Rules that every recipe repeated and that are the default now (`optim.no_decay`).
NO_DECAY = ('*/bias', '*/scale', '*/gamma?')


def renamed(value: Any, path: tuple[str, ...] = ()) -> Any:
    """The same config with the new keys."""
    if isinstance(value, dict):
        new = {old: name for section, old, name in RENAMES if matches(section, path)}
        return {new.get(key, key): renamed(item, (*path, key)) for key, item in value.items()}
    if path == ('optim', 'groups'):
        value = [rule for rule in value if not (rule['match'] in NO_DECAY and rule.get('decay') == 0)]
    if isinstance(value, list):
        return [renamed(item, (*path, str(i))) for i, item in enumerate(value)]
    return value


def matches(section: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(section) == len(path) and all(a in ('*', b) for a, b in zip(section, path, strict=True))


def main(commit: str = VERSION_1) -> int:
    differ = 0
    for file in sorted(Path(__file__).parent.glob('*.json')):
        shown = subprocess.run(['git', 'show', f'{commit}:tests/golden/{file.name}'], capture_output=True, text=True)
        if shown.returncode:
            print(f'{file.name}: is not in {commit}')
            continue
        now = json.loads(file.read_text())
        now['optim'].pop('no_decay', None)  # written where a recipe of version 1 had no such rules
        if renamed(json.loads(shown.stdout)) != now:
            print(f'{file.name}: differs')
            differ = 1
    return differ


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
