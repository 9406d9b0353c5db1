"""A published folder: its files of weights, and what config.json and preprocessor_config.json say of them.

Read are the folders of Hugging Face's hub for transformers (config.json with `model_type`), timm (config.json with
`architecture`) and open_clip (open_clip_config.json).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.types import is_number, is_whole
from medjax.weights import configs, meta
from medjax.weights.meta import LARGEST

PICKLES = ('.bin', '.pth', '.pt', '.ckpt', '.pkl')
# The file names of Hugging Face's hub, the preferred ones first: transformers and timm, then open_clip.
STANDARD = (
    'model.safetensors.index.json',
    'model.safetensors',
    'pytorch_model.bin.index.json',
    'pytorch_model.bin',
)
OPEN_CLIP = ('open_clip_model.safetensors', 'open_clip_pytorch_model.bin')
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the files beside the weights say. Empty where there are none.

    sizes          'image', 'text' or 'decoder' -> width, depth, heads, hidden, patch, channels, registers, size, eps,
                   activation, vocabulary, context, end (the number of CLIP's end token); only what is said
    image          mean, std, fit, zoom and the image size `size`, of the preprocessor; only what is said
    tokenizer      the file of the tokenizer
    pad            the token that fills texts up, where a file says it
    source         the file that says the sizes
    notes          sentences about what the files say and we do not do
    kind           the word of config.json for the model: its `model_type`
    own            the entry `medjax` of a config.json that medjax wrote: sections of towers and heads, `image`, …
    """

    sizes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    image: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: Path | None = None
    pad: str | None = None
    source: str = ''
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kind: str = ''


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} is no JSON: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path}: a JSON object is expected, not {type(content).__name__}')
    return content


def loose_files(folder: Path) -> list[str]:
    """The names of all files of weights in a folder, without the states of optimizers."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(('.safetensors', *PICKLES)))
    return [name for name in names if not name.startswith(('optimizer', 'scheduler', 'training_args', 'rng_state'))]


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a folder that belong together: one, or the index of a model in several.

    UserError: there is none, or there are several models.
    """
    there = {path.name for path in folder.iterdir() if path.is_file()}
    standard = [name for name in STANDARD if name in there][:1]
    other = [name for name in OPEN_CLIP if name in there][:1]
    if standard and other:
        config = {'config.json', 'open_clip_config.json'} & there
        if len(config) != 1:
            raise UserError(f'{folder} holds two models, {standard[0]} and {other[0]}; name the file that you mean')
        standard, other = (standard, []) if config == {'config.json'} else ([], other)
    if standard or other:
        return [folder / (standard or other)[0]]
    loose = [name for name in loose_files(folder) if name in there]
    stems: dict[str, str] = {}
    for name in loose:  # the same name as .safetensors and as a pickle is one model in two formats
        stem = name.rpartition('.')[0]
        if stem not in stems or name.endswith('.safetensors'):
            stems[stem] = name
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and (p / 'config.json').is_file())
    # `medjax convert` may write a folder for each tower of a pair, and heads.safetensors beside them
    if not stems or (inside and list(stems) == ['heads']):
        hint = f'; its folders {", ".join(inside)} look like weights: name one of them' if inside else ''
        raise UserError(
            f'{folder} holds neither an export (meta.json) nor weights (model.safetensors, pytorch_model.bin, …){hint}'
        )
    return [folder / name for name in sorted(stems.values())]


def named(index: Path) -> dict[str, str]:
    """The arrays that an index (model.safetensors.index.json) names, and the file of each."""
    content = read_json(index).get('weight_map')
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise UserError(f'{index} is no index of weights: it has no `weight_map` of names and files')
    return content


def shards(index: Path) -> list[Path]:
    """The files that an index names, all in its folder."""
    files = sorted(set(named(index).values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise UserError(f'{index} names {outside[0]!r}, which is not a file of its folder')
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f'{index} names {", ".join(missing)}, which the folder does not have')
    return [index.parent / name for name in files]


def facts(folder: Path, file: Path) -> Facts:
    """What the files of a folder say of the weights in one of its files."""
    sizes: dict[str, Any] = {}
    image: dict[str, Any] = {}
    own: dict[str, Any] = {}
    notes: list[str] = []
    source = kind = ''
    if (folder / 'config.json').is_file() and not (
        file.name in OPEN_CLIP and (folder / 'open_clip_config.json').is_file()
    ):
        config, source = read_json(folder / 'config.json'), 'config.json'
        own, kind = config.pop('medjax', {}), str(config.get('model_type', ''))
        if own != {}:
            if isinstance(own, dict):
                why = meta.problem(own) or ', '.join(f'it lacks {key}' for key in meta.lacking(own))
            else:
                why = 'it is no object'
            if why:
                raise UserError(f'{folder / "config.json"}: the entry `medjax` is none that medjax wrote: {why}')
        try:
            if 'architecture' in config and 'model_type' not in config:
                sizes, image = configs.of_timm(config)
            else:
                sizes = configs.of_transformers(config)
        except (TypeError, ValueError, AttributeError, OverflowError, KeyError) as error:
            raise UserError(f'{folder / "config.json"}: it cannot be read ({error})') from None
    elif (folder / 'open_clip_config.json').is_file():
        source = 'open_clip_config.json'
        try:
            sizes, image = configs.of_open_clip(read_json(folder / source))
        except (TypeError, ValueError, AttributeError, OverflowError, KeyError) as error:
            raise UserError(f'{folder / source}: it cannot be read ({error})') from None
    if (folder / 'preprocessor_config.json').is_file():
        image, notes = preprocessor(folder / 'preprocessor_config.json')
    for tower, said in sizes.items():
        for name, value in said.items():
            if not _is_size(name, value):
                raise UserError(f'{folder / source}: {name}={value!r} of the {tower} tower fits no tower')
    tokenizers = [folder / name for name in ('tokenizer.json', 'vocab.txt') if (folder / name).is_file()]
    return Facts(sizes, image, tokenizers[0] if tokenizers else None, _pad(folder), source, own, tuple(notes), kind)


def _pad(folder: Path) -> str | None:
    """The padding token that special_tokens_map.json or tokenizer_config.json name."""
    for name in ('special_tokens_map.json', 'tokenizer_config.json'):
        if (folder / name).is_file():
            token = read_json(folder / name).get('pad_token')
            token = token.get('content') if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
    return None


def _is_size(name: str, value: Any) -> bool:
    if name in ('activation', 'ffn'):
        return isinstance(value, str)
    if name == 'eps' or name.startswith('rope_'):
        return is_number(value) and value > 0
    numbers = value if isinstance(value, (list, tuple)) and name in ('size', 'patch', 'depths') else [value]
    if numbers is value and len(value) != 2 and name != 'depths':
        return False
    return all(is_whole(n) and n >= (0 if name == 'registers' else 1) for n in numbers)


# What preprocessor_config.json says.


def preprocessor(path: Path) -> tuple[dict[str, Any], list[str]]:
    """mean, std, fit, zoom and size of an image processor of transformers, and notes on what we do in another way."""
    config = read_json(path)
    config = config.get('image_processor', config)
    try:
        image = _preprocessor(config)
        check_image(image, path)
        return image, [f'{path}: {note}' for note in _differences(config)]
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError):
        raise UserError(f'{path}: a mean, a deviation or a size in it cannot be read') from None


def check_image(image: Mapping[str, Any], path: Path) -> None:
    """UserError for a size, mean or deviation that no image can have."""
    for name, above in (('mean', -np.inf), ('std', 0)):
        levels = np.atleast_1d(np.asarray(image.get(name, 0.5), float))
        if levels.ndim > 1 or not (np.isfinite(levels) & (levels > above)).all():
            raise UserError(
                f'{path}: {name} of images is {image[name]}; finite numbers{" above 0" * (not above)} are needed'
            )
    size = image.get('size', 224)
    if not is_whole(size) or not 1 <= size <= LARGEST:
        raise UserError(f'{path}: images of {size} px; a side has 1 to {LARGEST} px')


def _differences(config: Mapping[str, Any]) -> list[str]:
    """What a processor of transformers does and medjax does not, in sentences."""
    notes = []
    size = config.get('size')
    if config.get('do_resize') is False:
        notes.append('it does not resize images; medjax does')
    if isinstance(size, Mapping) and size.get('height') != size.get('width'):
        notes.append(f'its images are {size["height"]} x {size["width"]}; medjax makes squares')
    if (
        isinstance(size, Mapping)
        and 'shortest_edge' in size
        and not config.get('do_center_crop', 'crop_size' in config)
    ):
        notes.append('it keeps the whole of an image whose sides differ; medjax shows the centre square')
    if config.get('resample', 3) not in (3, 'bicubic'):
        notes.append('it resizes by another rule than bicubic, which medjax takes')
    return notes


def _preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
    image: dict[str, Any] = {}
    if config.get('do_normalize', True) and 'image_mean' in config and 'image_std' in config:
        image |= dict(mean=config['image_mean'], std=config['image_std'])
    elif config.get('do_normalize') is False:
        image |= dict(mean=0.0, std=1.0)
    # values of pixels are from 0 to 1 here; a processor may leave them from 0 to 255, or scale them in another way
    scale = 255.0 * (config.get('rescale_factor', 1 / 255) if config.get('do_rescale', True) else 1.0)
    if abs(scale - 1) > 1e-6 and 'mean' in image:
        image |= {name: (np.asarray(image[name], float) / scale).tolist() for name in ('mean', 'std')}
    size, crop = config.get('size'), config.get('crop_size')
    if isinstance(crop, Mapping):
        crop = crop['height']
    if not config.get('do_center_crop', crop is not None):
        crop = None
    if isinstance(size, Mapping) and 'shortest_edge' in size:
        size, fit = size['shortest_edge'], 'crop'
    elif isinstance(size, Mapping):
        size, fit = max(size['height'], size['width']), 'stretch'
    else:
        fit = 'crop' if crop is not None else 'stretch'
    if config.get('do_pad'):
        fit = 'pad'
    if crop is None and size is not None and size < 384 and config.get('crop_pct'):  # transformers' ResNet and ConvNeXt
        crop, size, fit = size, size / config['crop_pct'], 'crop'
    if size is None and crop is None:
        return image
    final = crop if crop is not None else size
    image |= dict(size=int(final), fit=fit)
    if fit == 'crop' and crop is not None and size is not None and size != crop:
        image['zoom'] = size / crop
    return image


def default_levels(section: Mapping[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of images where nothing says them: those of public models of the tower's family."""
    return dict(clip=CLIP, siglip=HALF, vit=HALF).get(section.get('family'), IMAGENET)
