"""Files that torch wrote, .bin and .pth. This is the only module that imports torch, and it runs no code of a file.

torch opens them with weights_only=True: it reads tensors and plain containers and refuses every other class by name.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickletools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.weights.arrays import Arrays, Stored, check_once, other_content

# Classes that hold settings beside the weights in well-known files. To make one runs no code of the file.
HARMLESS = (argparse.Namespace, collections.Counter, collections.defaultdict, pathlib.PosixPath, pathlib.PurePosixPath)
# Numbers of numpy, such as a best score beside the weights.
NUMBERS = (
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *(type(np.dtype(name)) for name in ('f8', 'f4', 'i8', 'i4', 'bool')),
)
# Where training scripts keep the weights in their checkpoints; the first that is there is taken.
INSIDE = ('teacher', 'model', 'state_dict', 'model_state_dict', 'module', 'network', 'net', 'student')


def read(paths: Sequence[Any]) -> tuple[Arrays, list[str]]:
    """The arrays of one or several files, and notes for the user.

    UserError: torch is not installed, a file is damaged, or it holds a class that is not known to be harmless.
    """
    arrays: dict[str, Stored] = {}
    notes: list[str] = []
    owners: dict[str, Any] = {}
    for path in paths:
        state, inside = _state(_load(path), str(path))
        notes += [f'{path}: the weights are those under {inside}'] if inside else []
        for name in state:
            check_once(name, path, owners)
        arrays |= {name: _stored(tensor) for name, tensor in state.items()}
    return Arrays(arrays), notes


def _load(path: Any) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f'{path} is a file of torch, and torch is not installed: pip install torch; or save the weights as '
            'safetensors where torch is, safetensors.torch.save_file(state_dict, "weights.safetensors")'
        ) from None
    if not pathlib.Path(path).is_file():
        raise UserError(f'{path}: there is no such file')
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([*HARMLESS, *NUMBERS]):
            warnings.simplefilter('ignore')
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ValueError, …
        raise UserError(_refusal(path, str(error))) from None


def _refusal(path: Any, error: str) -> str:
    """The sentence for a file that torch does not open."""
    found = re.search(r'(?:Unsupported|unsupported) (?:global: GLOBAL|GLOBAL|class) ([\w.]+)', error)
    if found:
        return (
            f'{path} holds {found[1]}, which could run code, so the file is not opened; save the weights alone, '
            'safetensors.torch.save_file(state_dict, "weights.safetensors")'
        )
    if 'TorchScript' in error or 'torch.jit' in error:
        return (
            f'{path} is a program of TorchScript, which holds code, so it is not opened; save its state_dict() as '
            'safetensors, or take the file of the same model from Hugging Face or open_clip'
        )
    what = other_content(path) or _pickled(path) or 'it is damaged, or no file of torch'
    return f'{path} cannot be opened: {what}'


def _pickled(path: Any) -> str:
    """What a plain pickle would call, found without running it; '' for other files."""
    try:
        with open(path, 'rb') as file:
            operations = [(code.name, argument) for code, argument, _ in pickletools.genops(file)]
    except (ValueError, OSError):
        return ''
    named = [argument.replace(' ', '.') for name, argument in operations if name == 'GLOBAL']
    texts = [argument for name, argument in operations if 'UNICODE' in name]
    called = named or ['.'.join(texts[:2])] * any(name == 'STACK_GLOBAL' for name, _ in operations)
    return f'it is a pickle of another program, which would run {called[0]}' if called else ''


def _state(content: Any, path: str) -> tuple[Mapping[str, Any], str]:
    """The dict of tensors in what a file holds, and the keys that lead to it."""
    import torch

    inside: list[str] = []
    while isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        nested = [key for key in INSIDE if isinstance(content.get(key), Mapping)]
        others = [key for key, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)]
        nested = nested or (others if len(others) == 1 else [])
        if tensors and not (nested and len(tensors) < 3):
            return tensors, '.'.join(inside)
        if not nested:
            break
        passed_over = [str(key) for key in others if key != nested[0]]
        inside.append(
            f'{nested[0]} ({", ".join(passed_over)} beside it is not read)' if passed_over else str(nested[0])
        )
        content = content[nested[0]]
    kind = type(content).__name__
    keys = ', '.join(map(str, list(content)[:5])) if isinstance(content, Mapping) else ''
    held = f'a dict of {keys}' if keys else f'an object of the kind {kind}'
    raise UserError(f'{path} holds {held}, and no arrays with names')


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    import torch

    return any(isinstance(value, torch.Tensor) for value in content.values())


def _stored(tensor: Any) -> Stored:
    import torch

    def load() -> np.ndarray:
        plain = tensor.detach()
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()

    return Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix('torch.'), load)
