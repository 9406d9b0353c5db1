"""The lines of Python on a model card: how to load the files of a layout, for the very folder that was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from medjax.data.text import tokenizer as tokenizers
from medjax.models.towers.vit import VitTower
from medjax.probes.encode import image_tower
from medjax.weights import layouts_out
from medjax.weights.base import ExportWeights

FOLDER = 'FOLDER'  # stands for the place of the folder, or for its name on the hub


class Block(NamedTuple):
    """A sentence and the code after it."""

    text: str
    code: str


def blocks(weights: ExportWeights, layout: str, folder: Path) -> list[Block]:
    """The blocks of a card; `folder` holds the files."""
    colour = 'L' if weights.meta['image']['channels'] == 1 else 'RGB'
    if layout == 'huggingface':
        found = hugging_face(weights, folder, colour)
    elif layout == 'timm':
        found = [timm(colour)]
    elif layout == 'meta':
        found = [meta(weights)]
    else:
        found = programs(folder, colour)
    return [*found, *own(weights, layout, folder)]


def own(weights: ExportWeights, layout: str, folder: Path) -> list[Block]:
    """medjax itself, with the preprocessing of the encoder; no block if the encoder of images is not in the folder."""
    name = image_tower(weights.meta)
    module = layouts_out.modules(weights, 'towers').get(name)
    if module is None or (layout != 'stablehlo' and layouts_out.kinds(module.tower) not in ('vit', 'resnet')):
        return []
    single = layout != 'huggingface' or (folder / 'config.json').is_file()
    return [
        Block(
            'With medjax, from JPEG, PNG and DICOM files, with the preprocessing of the encoder:',
            'import medjax\n\n'
            f"encoder = medjax.load('{FOLDER}{'' if single else f'/{name}'}')\n"
            "features = encoder.encode(['image.png'])['cls']",
        )
    ]


def hugging_face(weights: ExportWeights, folder: Path, colour: str) -> list[Block]:
    """One model, or one folder for each tower."""
    length = (weights.meta.get('tokenizer') or {}).get('length')
    single = (folder / 'config.json').is_file()
    places = {'': folder} if single else {f'/{p.name}': p for p in sorted(folder.iterdir()) if p.is_dir()}
    found = []
    for name, place in places.items():
        kind = json.loads((place / 'config.json').read_text())['model_type']
        pair = kind in ('clip', 'siglip')
        if (place / 'preprocessor_config.json').is_file():
            get = 'get_image_features(**images)' if pair else '(**images).last_hidden_state'
            found.append(Block(
                'Features of an image:' if single else f'`{name[1:]}/` is the encoder of images:',
                'from PIL import Image\n'
                'from transformers import AutoImageProcessor, AutoModel\n\n'
                f"processor = AutoImageProcessor.from_pretrained('{FOLDER}{name}')\n"
                f"model = AutoModel.from_pretrained('{FOLDER}{name}')\n"
                f"images = processor(Image.open('image.png').convert('{colour}'), return_tensors='pt')\n"
                f'features = model{"." if pair else ""}{get}',
            ))  # fmt: skip
        if (opened := tokenizer(place, FOLDER + name)) is not None:
            get = 'model.get_text_features(ids)' if pair else 'model(ids).last_hidden_state'
            model = 'SiglipTextModel' if kind == 'siglip_text_model' else 'AutoModel'  # which does not know that one
            full = kind.startswith('siglip')  # it reads padding too
            lines = [
                'import torch',
                opened.imported,
                f'from transformers import {model}',
                '',
                opened.line,
                f'tokenizer.enable_truncation({length})',
                *([f'tokenizer.enable_padding(length={length}, pad_id={padding(weights, place)})'] if full else []),
                f"model = {model}.from_pretrained('{FOLDER}{name}')",
                "ids = torch.tensor([tokenizer.encode('No pleural effusion.').ids])",
                f'features = {get}',
            ]
            title = 'Features of a text:' if single else f'`{name[1:]}/` is the encoder of texts:'
            found.append(Block(title, '\n'.join(lines)))
    return found


def padding(weights: ExportWeights, folder: Path) -> int:
    """The number of the token that fills texts up."""
    about = weights.meta['tokenizer']
    file = layouts_out.tokenizer_name(about['file'])
    return tokenizers.load(folder / file, about['pad']).tokens.pad


class Opened(NamedTuple):
    """How to open the tokenizer of a folder."""

    imported: str
    line: str


def tokenizer(folder: Path, place: str = FOLDER) -> Opened | None:
    """The lines for the tokenizer in `folder`, which a reader finds at `place`; None: it has none."""
    if (folder / 'tokenizer.json').is_file():
        return Opened('from tokenizers import Tokenizer', f"tokenizer = Tokenizer.from_file('{place}/tokenizer.json')")
    if (folder / 'vocab.txt').is_file():
        words = (folder / 'vocab.txt').read_text(encoding='utf-8').split('\n')
        lower = not any(word != word.lower() for word in words if word[:1] != '[')
        return Opened(
            'from tokenizers import BertWordPieceTokenizer',
            f"tokenizer = BertWordPieceTokenizer('{place}/vocab.txt', lowercase={lower})",
        )
    return None


def timm(colour: str) -> Block:
    return Block(
        'Features of an image:',
        'import timm\n'
        'from PIL import Image\n\n'
        f"model = timm.create_model('local-dir:{FOLDER}', pretrained=True).eval()\n"
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n'
        f"features = model.forward_features(transform(Image.open('image.png').convert('{colour}'))[None])",
    )


def meta(weights: ExportWeights) -> Block:
    """The class of Meta's code with the sizes of the tower."""
    towers = layouts_out.modules(weights, 'towers').values()
    tower = next(m.tower for m in towers if isinstance(m.tower, VitTower))
    net, family = tower.module, tower.module.family
    rope, gated = family.positions == 'rope', net.ffn == 'swiglu'
    arguments: dict[str, Any] = dict(img_size=max(net.native) * net.patch, patch_size=net.patch, in_chans=net.channels)
    arguments |= dict(embed_dim=net.width, depth=net.depth, num_heads=net.heads, qkv_bias=net.qkv_bias)
    ratio = net.hidden / net.width
    if rope:
        arguments |= dict(ffn_ratio=ratio, layerscale_init=family.layerscale, n_storage_tokens=net.registers)
        arguments |= dict(mask_k_bias=True, norm_layer='layernormbf16')
    else:
        arguments |= dict(mlp_ratio=1.5 * ratio if gated else ratio, init_values=family.layerscale)
        arguments |= dict(num_register_tokens=net.registers, block_chunks=0)
    arguments |= dict(ffn_layer=('swiglu' if rope else 'swiglufused') if gated else 'mlp')
    listed = ', '.join(f'{key}={value!r}' for key, value in arguments.items())
    package = 'dinov3' if rope else 'dinov2'
    return Block(
        f"The backbone, with Meta's package {package}. Files named `dino_head` and `ibot_head` are its heads.",
        'from safetensors.torch import load_file\n'
        f'from {package}.models.vision_transformer import DinoVisionTransformer\n\n'
        f'model = DinoVisionTransformer({listed})\n'
        f"model.load_state_dict(load_file('{FOLDER}/model.safetensors'))\n"
        'features = model.forward_features(images)  # normalised as said above',
    )


def programs(folder: Path, colour: str) -> list[Block]:
    """Programs of jax."""
    signature = json.loads((folder / 'signature.json').read_text())
    needs = 'jax, safetensors and flatbuffers must be installed, and medjax need not be. '
    versions = (
        f'Written with jax {signature["versions"]["jax"]}: jax promises that versions up to 6 months newer and up to 3 '
        'weeks older run it. `signature.json` describes all arguments and results.'
    )
    weights = f"weights = jax.device_put(load_file('{FOLDER}/weights.safetensors'))"
    found = []
    if 'image' in signature['programs']:
        size = signature['preprocessing']['size']
        axis = '[None, ..., None]' if colour == 'L' else '[None]'
        lines = [
            'import jax, numpy as np',
            'from PIL import Image',
            'from safetensors.numpy import load_file',
            '',
            f"encode = jax.export.deserialize(open('{FOLDER}/image.stablehlo', 'rb').read()).call",
            weights,
            f"image = Image.open('image.png').convert('{colour}').resize(({size}, {size}))",
            f"features = encode(weights, np.asarray(image, np.float32){axis} / 255)['cls']",
        ]
        found.append(Block('Features of square images, with values from 0 to 1:', '\n'.join(lines)))
    if 'text' in signature['programs']:
        length = signature['programs']['text']['inputs']['ids']['shape'][1]
        opened, pad = tokenizer(folder), signature.get('tokenizer', {}).get('tokens', {}).get('pad', 0)
        lines = [
            'import jax, numpy as np',
            'from safetensors.numpy import load_file',
            *([opened.imported] if opened else []),
            '',
            f"encode = jax.export.deserialize(open('{FOLDER}/text.stablehlo', 'rb').read()).call",
            weights,
        ]
        if opened:
            lines += [
                opened.line,
                f'tokenizer.enable_truncation({length})',
                f'tokenizer.enable_padding(length={length}, pad_id={pad})',
                "text = tokenizer.encode('No pleural effusion.')",
                'ids, valid = np.int32([text.ids]), np.bool_([text.attention_mask])',
            ]
        else:
            lines.append(f'ids, valid = ...  # int32 and bool [texts,{length}], by the tokenizer of the training')
        lines.append("features = encode(weights, ids, valid)['cls']")
        found.append(Block(f'Features of texts, each filled up to {length} tokens:', '\n'.join(lines)))
    return [Block(f'{needs}{versions}\n\n{found[0].text}', found[0].code), *found[1:]]
