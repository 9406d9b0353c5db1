"""An encoder used from Python: medjax.load(…).encode(…)."""

import json
import subprocess
import sys
import warnings

import jax
import numpy as np
import public_models
import pytest
from image_files import dicom
from PIL import Image

import medjax
from medjax.errors import UserError
from medjax.models import build
from medjax.probes import batches, encode
from medjax.types import Input, View
from medjax.weights import export

TOWER = dict(tower='vit', variant='Ti/8', width=32, depth=5, heads=2, native_size=32, layerscale=None)
ROWS = jax.device_count()  # of the smallest batch
META = dict(network='teacher', heads={}, image=dict(channels=1, mean=0.5, std=0.25), size=32, seen=None)


def make_export(folder, step=7, tower=TOWER, **meta):
    params = build.tower(tower, 1, where='towers.image').init(jax.random.key(step))
    return export.save(folder, {'towers': {'image': params}}, META | dict(step=step, towers=dict(image=tower)) | meta)


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    return medjax.load(make_export(tmp_path_factory.mktemp('run') / 'exports' / '7'))


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(20, 60, 2), np.uint8) for _ in range(n)]


def test_outputs_are_those_of_the_tower(encoder):
    image = pictures(1)[0][:32, :32]
    image = np.pad(image, ((0, 32 - image.shape[0]), (0, 32 - image.shape[1])))
    out = encoder.encode([image], outputs=('cls', 'layers', 'patches', 'attention'))
    assert {name: x.shape for name, x in out.items()} == dict(
        cls=(1, 32), layers=(1, 4, 32), patches=(1, 4, 4, 32), attention=(1, 4, 4)
    )
    assert all(x.dtype == np.float32 for x in out.values())
    tower = build.tower(TOWER, 1, where='towers.image')
    view = View(
        (image[None, None, None, ..., None] / 255 - 0.5).astype(np.float32) / 0.25,
        np.zeros(1, np.uint32), np.ones((1, 1), bool), None, {},
    )  # fmt: skip
    expected = tower.apply(encoder.params['image'], Input(view), want=('last4/cls', 'attention'))
    np.testing.assert_allclose(out['cls'], expected['cls'][:, 0], atol=1e-5)
    np.testing.assert_allclose(out['layers'], expected['last4/cls'][:, 0], atol=1e-5)
    np.testing.assert_allclose(out['patches'].reshape(1, 16, 32), expected['patches'][:, 0], atol=1e-5)
    np.testing.assert_allclose(out['attention'].reshape(1, 16), expected['attention'][:, 0], atol=1e-6)
    assert 0 < out['attention'].sum() < 1, 'the rest goes to the CLS token itself'


def test_batches_change_nothing(encoder):
    images = pictures(2 * ROWS + 1)
    whole, parts = encoder.encode(images), list(encoder.encode_batches(images, ('cls',), batch=ROWS))
    assert [len(part.numbers) for part in parts] == [ROWS, ROWS, 1]
    assert np.concatenate([part.numbers for part in parts]).tolist() == list(range(2 * ROWS + 1))
    np.testing.assert_allclose(np.concatenate([part.features['cls'] for part in parts]), whole['cls'], atol=1e-5)
    assert set(parts[0].features) == {'cls'} and set(whole) == {'cls', 'patches'}


def test_a_large_image_does_not_make_the_batch_large(encoder, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        encode, '_of_squares', lambda *_: lambda params, x: shapes.append(x.shape) or dict(cls=np.zeros((len(x), 3)))
    )
    encoder.encode([*pictures(ROWS), np.zeros((3_000, 20), np.uint8)], ('cls',), fit='pad', batch=ROWS)
    assert shapes == [(ROWS, 32, 32, 1)] * 2


def test_files_are_decoded_as_they_are_needed(encoder, tmp_path, monkeypatch):
    read, first = [], None
    monkeypatch.setattr(batches, 'read', lambda image, real=batches.read: read.append(1) or real(image))
    stream = encoder.encode_batches(pictures(20 * ROWS), ('cls',), batch=ROWS)
    next(stream)
    first = len(read)
    stream.close()
    assert ROWS <= first <= 5 * ROWS, 'a few batches ahead, not the whole list'
    assert len(read) <= 6 * ROWS, 'a stream that is closed reads no further'


def test_one_path_and_a_folder(encoder, tmp_path):
    grey = pictures(1)[0]
    (tmp_path / 'b' / 'deep').mkdir(parents=True)
    (tmp_path / '.hidden').mkdir()
    Image.fromarray(grey).save(tmp_path / 'c.png')
    Image.fromarray(grey[::-1]).save(tmp_path / 'b' / 'deep' / 'x.JPG', 'JPEG')
    (tmp_path / 'b' / '0001').write_bytes(dicom(grey))
    for other in ('.c.png', 'notes.txt', 'DICOMDIR', '.hidden/x.png'):
        (tmp_path / other).write_bytes(b'nothing')
    found = list(batches.in_folder(tmp_path))
    assert [str(path.relative_to(tmp_path)) for path in found] == ['b/0001', 'b/deep/x.JPG', 'c.png']
    whole = encoder.encode(tmp_path)
    assert len(whole['cls']) == 3
    for i, path in enumerate(found):
        np.testing.assert_allclose(encoder.encode(path)['cls'][0], whole['cls'][i], atol=1e-5)
        np.testing.assert_allclose(encoder.encode(str(path))['cls'][0], whole['cls'][i], atol=1e-5)


def test_arrays_alone_and_in_a_stack(encoder):
    stack = np.random.default_rng(0).integers(0, 256, (3, 40, 40), np.uint8)
    expected = encoder.encode(list(stack))['cls']
    np.testing.assert_array_equal(encoder.encode(stack)['cls'], expected)
    np.testing.assert_allclose(encoder.encode(stack[0])['cls'], expected[:1], atol=1e-5)
    colour = np.repeat(stack[0][..., None], 3, 2)
    np.testing.assert_allclose(encoder.encode(colour)['cls'], expected[:1], atol=1e-4)


def test_fit(encoder, tmp_path):
    wide = np.random.default_rng(0).integers(0, 256, (30, 60), np.uint8)
    with pytest.warns(batches.CropWarning):
        cropped = encoder.encode([wide], ('cls',))['cls']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        by_fit = {fit: encoder.encode([wide], ('cls',), fit=fit)['cls'] for fit in ('pad', 'stretch')}
    square = np.pad(wide, ((15, 15), (0, 0)))
    # the resize of `square` mixes its edges with the black beside them
    assert (
        np.abs(by_fit['pad'] - encoder.encode([square], ('cls',))['cls']).max() < np.abs(by_fit['pad'] - cropped).max()
    )
    assert np.abs(by_fit['stretch'] - cropped).max() > 0.01
    folder = make_export(tmp_path / '7', image=META['image'] | dict(fit='stretch'))
    np.testing.assert_allclose(medjax.load(folder).encode([wide], ('cls',))['cls'], by_fit['stretch'], atol=1e-5)
    np.testing.assert_allclose(medjax.load(folder, 'pad').encode([wide], ('cls',))['cls'], by_fit['pad'], atol=1e-5)


def test_zoom_of_the_preprocessing(tmp_path, encoder):
    folder = make_export(tmp_path / '7', image=META['image'] | dict(zoom=1.25))
    image = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    zoomed = medjax.load(folder).encode([image], ('cls',))['cls']  # 40 to 40, then the centre 32
    np.testing.assert_allclose(zoomed, encoder.encode([image[4:36, 4:36]], ('cls',))['cls'], atol=1e-4)


def test_a_run_shows_its_newest_export(tmp_path):
    make_export(tmp_path / 'exports' / '3', 3)
    make_export(tmp_path / 'exports' / '20', 20)
    assert medjax.load(tmp_path).name == 20
    with pytest.raises(UserError, match='no such file or folder'):
        medjax.load(tmp_path / 'nowhere')


@pytest.mark.parametrize(
    ('call', 'words'),
    [
        (lambda e, p: e.encode([]), 'no images given'),
        (lambda e, p: e.encode(p / 'empty'), 'holds no JPEG, PNG or DICOM file'),
        (lambda e, p: e.encode([p / 'none.png']), 'none.png: there is no such file'),
        (lambda e, p: e.encode([p / 'empty']), 'cannot be opened: Is a directory'),
        (lambda e, p: e.encode([p / 'torn.png']), 'torn.png: damaged PNG'),
        (lambda e, p: e.encode([np.zeros((4, 4), np.float32)]), 'image 0: an image must be uint8|uint16'),
        (lambda e, p: e.encode([np.zeros((0, 4), np.uint8)]), 'image 0: an image must be'),
        (lambda e, p: e.encode([np.zeros((4, 4, 2), np.uint8)]), 'image 0: an image must be'),
        (lambda e, p: e.encode(pictures(1), ('patch',)), "no output 'patch'; did you mean 'patches'"),
        (lambda e, p: e.encode(pictures(1), ()), 'name at least one output'),
        (lambda e, p: e.encode(pictures(1), batch=0), 'batch=0: at least 1 image'),
        (lambda e, p: e.encode(pictures(1), fit='squash'), "fit='squash'"),
        (lambda e, p: encode.raw_pixels(e).encode(pictures(1), ('cls', 'patches')), "no output 'patches'"),
    ],
)
def test_mistakes_are_sentences(encoder, tmp_path, call, words):
    (tmp_path / 'empty').mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / 'torn.png')
    (tmp_path / 'torn.png').write_bytes((tmp_path / 'torn.png').read_bytes()[:200])
    with pytest.raises(UserError) as error:
        call(encoder, tmp_path)
    assert words in str(error.value)


def test_a_tower_without_cls_token_has_no_attention(tmp_path):
    encoder = medjax.load(make_export(tmp_path / '7', tower=TOWER | dict(family='siglip')))
    assert encoder.encode(pictures(1))['cls'].shape == (1, 32)
    with pytest.raises(UserError, match="no CLS token, so it has no output 'attention'"):
        encoder.encode(pictures(1), ('attention',))
    resnet = medjax.load(make_export(tmp_path / '8', tower=dict(tower='resnet', depths=[1, 1, 1, 1])))
    with pytest.raises(UserError, match="no output 'attention'"):
        resnet.encode(pictures(1), ('cls', 'attention'))


def test_unreadable_images_can_be_left_out(encoder, tmp_path):
    images = [*pictures(3), tmp_path / 'none.png', *pictures(ROWS)]
    told = []
    parts = list(encoder.encode_batches(images, ('cls',), batch=ROWS, left_out=lambda *one: told.append(one)))
    assert told == [(3, 'there is no such file')]
    assert np.concatenate([part.numbers for part in parts]).tolist() == [i for i in range(len(images)) if i != 3]
    got = np.concatenate([part.features['cls'] for part in parts])
    np.testing.assert_allclose(got, encoder.encode([x for x in images if x is not images[3]])['cls'], atol=1e-5)


def test_importing_medjax_imports_nothing_heavy():
    heavy = ['jax', 'numpy', 'flax', 'PIL', 'pydicom']
    program = f'import sys, json, medjax; print(json.dumps([m for m in {heavy} if m in sys.modules]))'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_public_folder_with_its_own_preprocessing(tmp_path):
    """The features of transformers, with its image processor: resize to 16, the centre 12, three levels."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    public = public_models.FAMILIES['dinov2']
    model = public.make()
    public.save(model, tmp_path / 'dinov2-mini')
    processor = transformers.BitImageProcessorPil(size=dict(shortest_edge=16), crop_size=dict(height=12, width=12))
    processor.save_pretrained(tmp_path / 'dinov2-mini')
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 20, 3), np.uint8)
    with torch.no_grad():
        inputs = processor(images=list(images), return_tensors='pt')['pixel_values']
        cls, patches = public.features(model, inputs)
    encoder = medjax.load(tmp_path / 'dinov2-mini')
    assert (encoder.name, encoder.size, encoder.image['zoom']) == ('dinov2-mini', 12, pytest.approx(16 / 12))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        got = encoder.encode(images)
    np.testing.assert_allclose(got['cls'], cls.numpy(), atol=2e-4)
    np.testing.assert_allclose(got['patches'].reshape(3, 9, -1), patches.numpy(), atol=2e-4)


def test_other_pictures_in_a_folder_are_told(tmp_path):
    for name in ('a.png', 'b.tif', 'c.webp', 'notes.txt'):
        (tmp_path / name).write_bytes(b'x')
    with pytest.warns(
        batches.OtherKinds, match=r'2 picture\(s\) of a kind that is not read \(\.tif, \.webp\) are left out'
    ):
        assert [path.name for path in batches.in_folder(tmp_path)] == ['a.png']


@pytest.mark.parametrize('image', [object(), 5, None, b'x'])
def test_other_objects_are_no_images(image):
    for given in (image, [image]):
        with pytest.raises(UserError, match='an image is a path or an array, not an object of the kind'):
            batches.listed(given)
