"""The shipped recipes and files of prompts, which a user may name from any folder.

They lie in the folder configs/ of the repository. `medjax/configs` is a link to it, so the same path works in a
checkout, in an editable install and in a wheel, which holds the files themselves.

    medjax train --config demo …                     # configs/demo.py
    medjax probe --prompts phantom_impression …      # configs/prompts/phantom_impression.json
"""

from __future__ import annotations

from pathlib import Path

from medjax.errors import UserError, suggest

FOLDER = Path(__file__).parent / 'configs'


def shipped() -> dict[str, Path]:
    """Name -> file of every shipped recipe."""
    return _by_name('*.py')


def find(name: str) -> Path:
    """The file of a recipe. `name` is the path of a file, or the name of a shipped recipe.

    A file comes first: in a folder with a file `demo`, the name 'demo' is that file. UserError for a wrong name.
    """
    path, recipes = Path(name).expanduser(), shipped()
    if path.is_file():
        return path
    if name in recipes:
        return recipes[name]
    neighbours = [str(file) for file in path.parent.glob('*.py')] if path.parent.is_dir() else []
    near = path.stem if path.stem in recipes else name  # for elsewhere/demo.py the recipe 'demo' is near
    hint = suggest(near, [*neighbours, *recipes])
    raise UserError(f'there is no file {name} and no shipped recipe of that name{hint}')


def find_prompts(name: str) -> Path:
    """A file of prompts. `name` is the path of a file, or the name of a shipped one ('cxr').

    The reader of the file reports a path that does not exist.
    """
    path = Path(name).expanduser()
    return path if path.is_file() else _by_name('prompts/*.json').get(name, path)


def _by_name(pattern: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted(FOLDER.glob(pattern))}
