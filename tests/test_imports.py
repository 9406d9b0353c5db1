"""The layers: each library has one home, imports point one way, and TensorFlow and torch are never imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / 'medjax').rglob('*.py'))
COMMANDS = {
    'cli',
    '__main__',
    'config',
    'overrides',
    'train',
    'stages',
    'branch',
    'life',
    'folder',
    'commands',
}

# Where a library may be imported: a prefix of the module, under medjax.
HOMES = {
    'flax': ('models',),
    'orbax': ('training.checkpoint',),
    'grain': ('data',),
    'tensorflow_datasets': ('data',),
    'array_record': ('data',),
    'apache_beam': ('data',),
    'pydicom': ('data',),
    'pyarrow': ('probes.feature_files',),
    'tokenizers': ('data.text', 'data.builder.vocabulary'),
    'ml_collections': tuple(COMMANDS),
    'absl': tuple(COMMANDS),
    'jinja2': ('reports',),
    'matplotlib': ('reports',),
    'tensorboardX': ('training.metrics',),
    'prometheus_client': ('training.prometheus',),
    'tensorflow': (),
    'torch': ('weights.pickled',),
    'transformers': (),
    'sklearn': (),
    'venn_abers': (),
    'mapie': (),
    'crepes': (),
}

# What a layer may import, besides itself. `commands` may import everything.
BASE = {'', 'types', 'errors', 'files', 'plugins', 'recipes', 'run_config'}  # '' is medjax itself: its version
LAYERS = {
    'types': BASE,
    'errors': BASE,
    'files': BASE,
    'plugins': BASE,
    'recipes': BASE,
    'run_config': BASE,
    'presets': BASE,
    'parallel': BASE,
    'data': BASE | {'parallel'},
    'views': BASE | {'parallel', 'data'},  # the view `text` takes the options of the host's text views
    'models': BASE | {'parallel'},
    'weights': BASE | {'parallel', 'models'},
    'objectives': BASE | {'parallel', 'data', 'views', 'models'},
    'training': BASE | {'parallel', 'data', 'views', 'models', 'weights', 'objectives'},
    'aot': BASE | {'parallel', 'data', 'views', 'models', 'weights', 'objectives', 'training', 'config', 'probes'},
    'plan': BASE | {'parallel', 'training', 'config', 'aot'},
    'probes': BASE | {'parallel', 'data', 'views', 'models', 'weights'},
    'reports': BASE | {'parallel', 'data', 'views', 'models', 'weights', 'probes'},
}

MESH_AXES = {'data', 'fsdp', 'tensor'}
PLACING = {'PartitionSpec', 'AxisType', 'shard_map'}  # what takes names of mesh axes


def module_of(path: Path) -> str:
    """'training.step' for medjax/training/step.py."""
    return (
        '.'.join(path.relative_to(ROOT / 'medjax').with_suffix('').parts)
        .removesuffix('.__init__')
        .replace('__init__', '')
    )


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at any depth of its code; `from medjax import x` counts as medjax.x."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: imports are written in full'
            inside = node.module.split('.')[0] == 'medjax'
            modules |= {f'{node.module}.{alias.name}' if inside else node.module for alias in node.names}
    return modules


def layer_of(name: str) -> str:
    """'training' of medjax.training.step; '' of medjax.__version__."""
    first = (name.split('.') + [''])[1]
    return first if (ROOT / 'medjax' / first).exists() or (ROOT / 'medjax' / f'{first}.py').exists() else ''


@pytest.mark.parametrize('path', FILES, ids=module_of)
def test_libraries_stay_at_home_and_imports_point_one_way(path):
    module = module_of(path)
    layer = module.split('.')[0]
    for name in sorted(imports(path)):
        homes = HOMES.get(name.split('.')[0])
        if homes is not None:
            assert any(f'{module}.'.startswith(f'{home}.') for home in homes), f'{module} imports {name}'
        if name.split('.')[0] == 'medjax' and layer not in COMMANDS | {''}:
            assert layer_of(name) in LAYERS[layer] | {layer}, f'{module} imports {name}'


# Within data/: what a file may not import, so that a reader of a data set needs neither its builder nor its audit.
FORBIDDEN = {
    'data.types': ('medjax.data',),
    'data.format': ('medjax.data',),
    'data.records': ('medjax.data.builder', 'medjax.data.audit'),
}


@pytest.mark.parametrize('module', FORBIDDEN)
def test_the_low_files_of_the_data_room_import_no_higher_ones(module):
    path = (ROOT / 'medjax' / module.replace('.', '/')).with_suffix('.py')
    for name in imports(path):
        assert not any(f'{name}.'.startswith(f'{forbidden}.') for forbidden in FORBIDDEN[module]), name


def test_the_check_sees_what_is_inside_functions(tmp_path):
    path = tmp_path / 'x.py'
    path.write_text('def f():\n    import torch.nn\n    from medjax.training import step\n')
    assert imports(path) == {'torch.nn', 'medjax.training.step'}


@pytest.mark.parametrize(
    'path', [p for p in FILES if module_of(p).split('.')[0] not in {'parallel', 'config'}], ids=module_of
)
def test_mesh_and_axis_names_stay_in_parallel(path):
    """No file outside parallel/ writes a specification or a tuple of mesh axes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            assert name not in PLACING, f'{path.name}:{node.lineno} {name}'
        if isinstance(node, ast.Tuple | ast.List):
            texts = {e.value for e in node.elts if isinstance(e, ast.Constant)}
            assert len(texts & MESH_AXES) < 2, f'{path.name}:{node.lineno} names mesh axes'


def python(program: str) -> str:
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


WALK = """
import importlib, pkgutil, sys
import medjax
names = [m.name for m in pkgutil.walk_packages(medjax.__path__, 'medjax.') if not m.name.endswith('__main__')]
"""


def test_importing_everything_imports_no_other_framework():
    out = python(
        WALK + 'for n in names: importlib.import_module(n)\nprint(*sorted({m.split(".")[0] for m in sys.modules}))'
    )
    assert not {'tensorflow', 'torch', 'keras', 'sklearn', 'transformers'} & set(out.split())
    assert 'medjax' in out.split()


def test_training_and_what_is_below_needs_few_packages():
    """jax, flax, optax, orbax, einops, numpy (and what they bring along) are enough; the rest is imported when used."""
    blocked = ['grain', 'tensorflow_datasets', 'array_record', 'ml_collections', 'PIL', 'pydicom', 'simplejpeg',
               'tensorboardX', 'tqdm', 'jinja2', 'matplotlib', 'tokenizers']  # fmt: skip
    out = python(
        WALK
        + f'sys.modules.update(dict.fromkeys({blocked!r}))\n'  # None makes an import raise ModuleNotFoundError
        + 'layers = ["types", "errors", "files", "plugins", "parallel", "data", "views", "models", "objectives"]\n'
        + 'layers += ["training"]\n'
        + 'names = [n for n in names if n.split(".")[1] in layers]\n'
        + 'for n in names: importlib.import_module(n)\nprint(len(names))'
    )
    assert int(out) > 20
