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
# Rules that recipes repeated and that are the default now (`optim.no_decay`). Recipes without LayerScale left out the
# last one. test_config.py compares the groups of every parameter.
NO_DECAY = ('*/bias', '*/scale', '*/gamma?')


def renamed(value: Any, path: tuple[str, ...] = ()) -> Any:
    """The same config with the new keys."""
    if isinstance(value, dict):
        new = {old: name for section, old, name in RENAMES if matches(section, path)}
        return {new.get(key, key): renamed(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, (*path, str(i))) for i, item in enumerate(value)]
    return value


def with_no_decay(config: dict[str, Any]) -> dict[str, Any]:
    """A config of version 1 with its rules against decay as `optim.no_decay`, left out where it is the default.

    The order of the rules does not matter: their factors multiply.
    """
    optim = config['optim']
    rules = {pattern: dict(match=pattern, decay=0) for pattern in NO_DECAY}
    had = [pattern for pattern, rule in rules.items() if rule in optim.get('groups', [])]
    new = {**optim}
    if 'groups' in optim:
        new['groups'] = [rule for rule in optim['groups'] if rule not in rules.values()]
    if had not in (list(NO_DECAY), list(NO_DECAY[:2])):
        new['no_decay'] = had
    return {**config, 'optim': new}


def matches(section: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(section) == len(path) and all(a in ('*', b) for a, b in zip(section, path, strict=True))


def main(commit: str = VERSION_1) -> int:
    differ = 0
    for file in sorted(Path(__file__).parent.glob('*.json')):
        shown = subprocess.run(['git', 'show', f'{commit}:tests/golden/{file.name}'], capture_output=True, text=True)
        if shown.returncode:
            print(f'{file.name}: is not in {commit}')
            continue
        if renamed(with_no_decay(json.loads(shown.stdout))) != json.loads(file.read_text()):
            print(f'{file.name}: differs')
            differ = 1
    return differ


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
