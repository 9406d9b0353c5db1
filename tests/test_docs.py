"""The documents name only what exists: files, folders, dotted names, commands, config keys, links and recipes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from medjax import cli, config, plugins
from medjax.data.text import views as text_views
from medjax.errors import UserError

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
RECIPES = sorted(ROOT.glob('configs/*.py'))
PROMPTS = sorted(ROOT.glob('configs/prompts/*.json'))
BENCHMARKS = sorted(ROOT.glob('benchmarks/*.py'))
FOLDERS = ('medjax', 'tests', 'configs', 'benchmarks', 'docs', 'launch')
pages = pytest.mark.parametrize('page', [*PAGES, *RECIPES, *BENCHMARKS], ids=lambda page: str(page.relative_to(ROOT)))


def text_of(page: Path) -> str:
    """The text of a page without the old names in tables of renames; of a Python file the docstring."""
    text = page.read_text()
    if page.suffix == '.py':
        return ast.get_docstring(ast.parse(text)) or ''
    lines, old = [], None  # the column of old names in the table at hand
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split('|')]
        if not line.startswith('|'):
            old = None
        elif 'old' in cells and 'new' in cells:
            old = cells.index('old')
        lines.append(line if old is None else '|'.join(cell for i, cell in enumerate(cells) if i != old))
    return '\n'.join(lines)


@pages
def test_files_and_folders_exist(page):
    text = text_of(page)
    full = re.findall(rf'(?<![\w./])((?:{"|".join(FOLDERS)})/[\w./-]*\w/?)', text)
    inside = re.findall(r'`((?:[a-z_]+/)+[a-z_]+\.py)`', text)  # of the package: `data/records.py`
    for name in full + [name for name in inside if not name.startswith('mypkg/')]:
        assert (ROOT / name).exists() or (ROOT / 'medjax' / name).exists(), name


@pages
def test_dotted_names_exist(page):
    names = set(re.findall(r'(?<![\w./-])medjax(?:\.[a-z_]\w*)+', text_of(page))) - {'medjax.json'}
    for name in names | set(re.findall(r'(?<=from )medjax[\w.]* import \w+', text_of(page))):
        assert resolves(name.replace(' import ', '.')), name


def resolves(name: str) -> bool:
    """Whether the dotted name is a module, or a chain of attributes of one."""
    parts = name.split('.')
    for n in range(len(parts), 0, -1):
        try:
            value = importlib.import_module('.'.join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            if not hasattr(value, attribute):
                return False
            value = getattr(value, attribute)
        return True
    return False


@pages
def test_commands_exist(page):
    for name in re.findall(r'(?:^    |`|-- )medjax ([a-z]+)', text_of(page), re.MULTILINE):
        assert name in cli.COMMANDS, f'medjax {name}'


@pages
def test_recipes_and_prompts_exist(page):
    for option, files in (('config', RECIPES), ('prompts', PROMPTS)):
        for name in re.findall(rf'--{option}[ =]([\w./]*\w)', text_of(page)):
            known = (ROOT / name).is_file() if '/' in name else name in {file.stem for file in files} | {'FILE'}
            assert known, f'--{option} {name}'


@pytest.fixture(scope='module')
def keys() -> set[str]:
    """Every dotted key of every shipped recipe, defaults filled in."""
    return {key for path in RECIPES for key in keys_of(config.read(str(path)).to_dict())}


def keys_of(value: Any, prefix: str = '') -> Iterator[str]:
    """'terms', 'terms.0', 'terms.0.weight', … of a nested config."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        yield f'{prefix}{name}'
        yield from keys_of(item, f'{prefix}{name}.')


@pages
def test_overrides_are_taken_by_a_recipe(page, keys):
    for key, value in re.findall(r'--config\.([\w.]+)=?([^\s`]*)', text_of(page)):
        assert key in keys | {'KEY'} or any(takes(recipe, f'{key}={value}') for recipe in RECIPES), key


def takes(recipe: Path, override: str) -> bool:
    """Whether the override names a keyword that the recipe leaves at its default."""
    try:
        config.read(str(recipe), [override])
    except UserError:
        return False
    return True


@pages
def test_fenced_parts_of_configs_are_known(page):
    for block in re.findall(r'```python\n(.*?)```', text_of(page), re.DOTALL):
        for statement in ast.parse(block).body:
            section = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else ''
            if section == 'views':
                text_views.from_config(value_of(statement.value))
            elif section == 'data':
                for part in value_of(statement.value).values():
                    assert part.keys() <= config.PART.keys(), part
            elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                check_term(**value_of(statement.value))


def value_of(node: ast.expr) -> dict[str, Any]:
    return eval(compile(ast.Expression(node), 'docs', 'eval'), {})


def check_term(term: str, name: str = '', weight: float = 1.0, **arguments: Any) -> None:
    """Every argument is a parameter of the term's builder; a term of a reader's own package is not looked for."""
    if '.' in term:
        return
    try:
        parameters = inspect.signature(plugins.find(term, 'medjax.objectives.terms', 'docs').build).parameters
    except UserError as error:
        pytest.fail(str(error))
    assert arguments.keys() <= parameters.keys(), (term, arguments)


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


def test_the_readme_names_every_recipe_and_command():
    text = (ROOT / 'README.md').read_text()
    for recipe in RECIPES:
        assert f'`{recipe.stem}`' in text, recipe.stem
    for command in cli.COMMANDS:
        assert f'medjax {command}' in text, command
