"""Files that torch wrote, .bin and .pth. This is the only module that imports torch, and it runs no code of a file.

torch opens them with weights_only=True: it reads tensors and plain containers and refuses every other class by name.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.weights.arrays import Arrays, Stored

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
    for path in paths:
        state, inside = _state(_load(path), str(path))
        notes += [f'{path}: the weights are under {inside!r}'] if inside else []
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
            f'{path} holds {found[1]}, a class that could run code, so the file is not opened; save the weights alone, '
            'safetensors.torch.save_file(state_dict, "weights.safetensors")'
        )
    if 'TorchScript' in error or 'torch.jit' in error:
        return (
            f'{path} is a program of TorchScript, which holds code, so it is not opened; save its state_dict() as '
            'safetensors, or take the file of the same model from Hugging Face or open_clip'
        )
    first = error.strip().splitlines()[0] if error.strip() else 'no reason given'
    return f'{path} is damaged or no file of torch: {first}'


def _state(content: Any, path: str) -> tuple[Mapping[str, Any], str]:
    """The dict of tensors in what a file holds, and the keys that lead to it."""
    import torch

    inside: list[str] = []
    while isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        nested = [key for key in INSIDE if isinstance(content.get(key), Mapping)]
        if tensors and not (nested and len(tensors) < 3):
            return tensors, '.'.join(inside)
        if not nested:
            break
        inside.append(nested[0])
        content = content[nested[0]]
    kind = type(content).__name__
    held = f'a dict of {", ".join(map(str, list(content)[:5]))}' if isinstance(content, Mapping) else f'a {kind}'
    raise UserError(f'{path} holds {held} and no weights by name')


def _stored(tensor: Any) -> Stored:
    import torch

    def load() -> np.ndarray:
        plain = tensor.detach()
        return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()

    return Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix('torch.'), load)
