"""Models that are near known families, folders whose files contradict each other, and options that no array shows."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from public_models import FAMILIES, IMAGE, SIZES, numpy_state, save_pretrained, shaken, timm_model
from safetensors.numpy import load_file, save_file

from medjax.errors import UserError
from medjax.weights import load

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
VIT = dict(embed_dim=16, depth=2, num_heads=2, img_size=32)
FREE = dict(SIZES, patch_size=4, num_patches=9)


@pytest.fixture(scope='module')
def model():
    return shaken(FAMILIES['dinov2'].make())


@pytest.fixture
def folder(model, tmp_path):
    save_pretrained(model, tmp_path / 'dinov2-tiny')
    return tmp_path / 'dinov2-tiny'


def of_transformers(name, **sizes):
    return lambda: getattr(transformers, f'{name}Model')(getattr(transformers, f'{name}Config')(**sizes))


NOT_READ = {
    'fc_norm': (timm_model('vit_base_patch16_224', **VIT, global_pool='avg'), 'pools its patches before the last norm'),
    'no CLS': (timm_model('vit_base_patch16_siglip_gap_224', **VIT), 'a ViT of timm without a CLS token'),
    'DeiT': (timm_model('deit_base_distilled_patch16_224', **VIT), 'a DeiT with a distillation token'),
    'EVA': (timm_model('eva02_base_patch16_clip_224', **VIT), 'an EVA model'),
    'BEiT': (timm_model('beit_base_patch16_224', **VIT), 'a BEiT'),
    'BEiT of transformers': (of_transformers('Beit', **IMAGE), 'a BEiT'),
    'NaFlex': (of_transformers('Siglip2Vision', **FREE), 'SigLIP 2 of free resolution'),
    'NaFlex of timm': (timm_model('naflexvit_base_patch16_gap', embed_dim=16, depth=2, num_heads=2), 'NaFlex'),
    'Wide-ResNet': (timm_model('wide_resnet50_2', layers=(1, 1, 1, 1)), 'another width or groups'),
    'ResNeXt': (timm_model('resnext50_32x4d', layers=(1, 1, 1, 1)), 'another width or groups'),
    'ResNet-D': (timm_model('resnet18d', layers=(1, 1, 1, 1)), 'another stem'),
    'another ResNet of transformers': (
        of_transformers('ResNet', embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1] * 4), 'another width'),
    'ConvNeXt': (timm_model('convnext_atto', depths=(1,) * 4, dims=(8,) * 4), 'a ConvNeXt'),
    'ConvNeXt of transformers': (of_transformers('DINOv3ConvNext', hidden_sizes=[8] * 4, depths=[1] * 4), 'a ConvNeXt'),
    'Swin': (timm_model('swin_tiny_patch4_window7_224', depths=(1, 1), num_heads=(1, 1), embed_dim=8), 'a Swin'),
    'DistilBERT': (
        of_transformers('DistilBert', dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=30), 'a DistilBERT'),
}  # fmt: skip


@pytest.mark.parametrize('prefix', ['', 'model.'])
@pytest.mark.parametrize('kind', NOT_READ)
def test_a_model_that_is_not_read_is_named(kind, prefix, tmp_path):
    make, words = NOT_READ[kind]
    save_file({prefix + name: array for name, array in numpy_state(make()).items()}, tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match='which medjax does not read; .* (is|are) read') as error:
        load.open(tmp_path / 'x.safetensors')
    assert words in str(error.value) and 'configuration' not in str(error.value)


def test_arrays_of_another_shape_are_told_without_a_configuration(folder):
    """Nobody wrote a recipe where a public folder is read."""
    state = load_file(folder / 'model.safetensors')
    name = 'embeddings.patch_embeddings.projection.weight'
    save_file(state | {name: np.ascontiguousarray(state[name][..., :2])}, folder / 'model.safetensors')
    with pytest.raises(UserError, match="a DINOv2 backbone in Hugging Face's names, does not fit") as error:
        load.as_export(folder)
    assert 'in such a tower' in str(error.value) and 'configuration' not in str(error.value)


@pytest.mark.parametrize('shape', [(), (160,), (1, 1, 10, 16)], ids=str)
def test_a_table_of_positions_of_another_shape(shape, folder):
    state = load_file(folder / 'model.safetensors')
    save_file(state | {'embeddings.position_embeddings': np.zeros(shape, np.float32)}, folder / 'model.safetensors')
    with pytest.raises(UserError, match=r'embeddings\.position_embeddings has shape .* has 2 or 3 axes'):
        load.as_export(folder)


# Files beside each other.


def other_of(model):
    return {name: tensor + 0.01 for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'best.pth', 'model.pt'])
def test_a_pickle_beside_safetensors(name, model, folder):
    torch.save(model.state_dict(), folder / name)
    assert f'{name} holds the same towers/image as model.safetensors' in ' '.join(load.open(folder).notes)
    half = {key: tensor.bfloat16() for key, tensor in model.state_dict().items()}
    torch.save(half, folder / name)
    load.open(folder)
    torch.save(other_of(model), folder / name)
    with pytest.raises(UserError, match=f'holds two models, model.safetensors and {name}; name the file'):
        load.open(folder)


def test_shards_beside_a_file(model, folder):
    state = load_file(folder / 'model.safetensors')
    for change in (0, 1):
        save_file({name: array + change for name, array in state.items()}, folder / 'one.safetensors')
        index = dict(weight_map=dict.fromkeys(state, 'one.safetensors'))
        (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
        if change == 0:
            assert load.open(folder).modules == ('towers/image',)
        else:
            with pytest.raises(UserError, match=r'holds two models, model\.safetensors\.index\.json and model'):
                load.open(folder)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('content', ['junk', 'code', 'settings', 'index without its files'])
def test_a_file_beside_that_cannot_be_compared_is_told(content, folder, tmp_path):
    path = folder / ('pytorch_model.bin.index.json' if 'index' in content else 'other.bin')
    if content == 'junk':
        path.write_bytes(b'junk')
    elif 'index' in content:
        path.write_text(json.dumps(dict(weight_map=dict(a='pytorch_model-00001-of-00001.bin'))))
    else:
        torch.save(Malicious(tmp_path / 'executed') if content == 'code' else dict(epoch=3), path)
    weights = load.open(folder)
    assert weights.modules == ('towers/image',) and f'left out: {path}' in ' '.join(weights.notes)
    assert not (tmp_path / 'executed').exists()


def test_an_array_in_two_shards_and_an_index_that_lies(folder):
    state = load_file(folder / 'model.safetensors')
    names = list(state)
    shards = {'a.safetensors': names[:5], 'b.safetensors': names[5:]}
    where = {name: file for file, held in shards.items() for name in held}
    (folder / 'model.safetensors').unlink()
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = folder / 'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map=where | dict(absent='b.safetensors'))))
    with pytest.raises(UserError, match='names absent, which its files do not hold'):
        load.open(folder)
    index.write_text(json.dumps(dict(weight_map=where)))
    load.open(folder)
    twice = [*shards['b.safetensors'], names[0]]
    save_file({name: state[name] + 1 for name in twice}, folder / 'b.safetensors')
    with pytest.raises(UserError, match=rf'{names[0]} is both in .*a\.safetensors and in .*b\.safetensors'):
        load.open(folder)


def test_names_that_would_become_one_keep_their_own(tmp_path):
    """blocks.0.0 and blocks.1.0 are one block in files of FSDP, and two in an EfficientNet."""
    state = {f'blocks.{i}.0.conv.weight': np.full((2, 2), i, np.float32) for i in range(2)}
    save_file(state, tmp_path / 'x.safetensors')
    with pytest.raises(UserError, match=r'holds 2 arrays .* blocks\.0\.0\.conv\.weight, blocks\.1\.0\.conv\.weight'):
        load.open(tmp_path / 'x.safetensors')


def test_the_file_of_an_export_is_the_export(folder, tmp_path):
    from medjax import cli

    assert cli.main(['convert', str(folder), '--out', str(tmp_path / 'export')]) == 0
    assert load.open(tmp_path / 'export' / 'weights.safetensors').meta == load.open(tmp_path / 'export').meta


# Config files.


@pytest.mark.parametrize(
    'values',
    [
        dict(image_size=[12, 12, 12]),
        dict(image_size=[]),
        dict(mlp_ratio=float('inf')),
        dict(medjax=dict(towers=dict(image=5))),
        dict(medjax=dict(towers={}, pairs=5)),
        dict(medjax=dict(towers=dict(image=dict(tower='vit')))),
        dict(medjax=[]),
    ],
    ids=str,
)
def test_a_config_of_another_form(values, folder):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | values))
    with pytest.raises(UserError, match=r'config\.json: '):
        load.as_export(folder)


def test_a_config_without_end(folder):
    (folder / 'config.json').write_text('[' * 100_000)
    with pytest.raises(UserError, match=r'config\.json is no JSON'):
        load.open(folder)


def test_a_mean_of_another_form(folder):
    levels = dict(image_mean=[[0.5, 0.5, 0.5]], image_std=[0.5, 0.5, 0.5])
    (folder / 'preprocessor_config.json').write_text(json.dumps(levels))
    with pytest.raises(UserError, match='mean of images is'):
        load.open(folder)


def test_heads_that_a_config_leaves_out_are_those_of_the_class(tmp_path):
    """A head of 4 numbers: 64 would be a head with the rule of a single file."""
    config = transformers.Dinov2Config(**(IMAGE | dict(hidden_size=48, num_attention_heads=12)))
    save_pretrained(shaken(transformers.Dinov2Model(config)), tmp_path / 'x')
    said = json.loads((tmp_path / 'x' / 'config.json').read_text())
    assert said.pop('num_attention_heads') == 12
    (tmp_path / 'x' / 'config.json').write_text(json.dumps(said))
    assert load.open(tmp_path / 'x').section('towers/image')['heads'] == 12


TEXT = dict(SIZES, vocab_size=30, max_position_embeddings=9)


@pytest.mark.parametrize('kind', ['Electra', 'Data2VecText', 'Roberta'])
def test_a_type_that_medjax_does_not_know(kind, tmp_path):
    more = dict(embedding_size=16) if kind == 'Electra' else {}
    save_pretrained(shaken(of_transformers(kind, **TEXT, **more)()), tmp_path / 'x')
    if kind == 'Electra':
        assert "model_type='electra', which medjax does not know" in ' '.join(load.open(tmp_path / 'x').notes)
    else:
        with pytest.raises(UserError, match='counts positions from 2'):
            load.open(tmp_path / 'x')


@pytest.mark.parametrize(
    ('tower', 'options'),
    [
        ('text_cfg', dict(no_causal_mask=True)),
        ('text_cfg', dict(pool_type='last')),
        ('text_cfg', dict(proj_bias=True)),
        ('text_cfg', dict(scaled_cosine_attn=True)),
        ('text_cfg', dict(hf_model_name='x', hf_pooler_type='mean_pooler')),
        ('vision_cfg', dict(pool_type='avg')),
        ('vision_cfg', dict(final_ln_after_pool=True)),
        ('vision_cfg', dict(pos_embed_type='sin_cos_2d')),
    ],
    ids=str,
)
def test_options_of_open_clip_that_no_array_shows(tower, options, tmp_path):
    models = pytest.importorskip('open_clip').model
    vision = dict(layers=2, width=16, head_width=8, patch_size=4, image_size=12)
    text = dict(context_length=9, vocab_size=30, width=16, heads=2, layers=2)
    model = shaken(models.CLIP(6, models.CLIPVisionCfg(**vision), models.CLIPTextCfg(**text)))
    save_file(numpy_state(model), tmp_path / 'open_clip_model.safetensors')
    config = dict(embed_dim=6, vision_cfg=vision, text_cfg=text)
    file = tmp_path / 'open_clip_config.json'
    file.write_text(json.dumps(dict(model_cfg=config)))
    assert load.open(tmp_path).section('towers/text')['heads'] == 2
    config[tower] = config[tower] | options
    file.write_text(json.dumps(dict(model_cfg=config)))
    with pytest.raises(UserError, match=rf'open_clip_config\.json: {tower} has .* do not have'):
        load.open(tmp_path)


def test_a_folder_is_left_as_it_was(model, folder, tmp_path):
    """To compare files writes nothing."""
    torch.save(other_of(model), folder / 'pytorch_model.bin')
    shutil.copytree(folder, tmp_path / 'before')
    with pytest.raises(UserError):
        load.open(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / 'before').iterdir()
    }
