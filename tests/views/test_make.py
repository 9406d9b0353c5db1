"""make_views: what draws depend on, the config's errors, channels and bit depths, eight devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from medjax.errors import UserError
from medjax.parallel.sharding import make_mesh, replicated, rows_sharding
from medjax.views import host_view, make

ROWS_PER_GROUP = 2
GREY = dict(channels=1, mean=0.5, std=0.25)
VIEWS = {
    'global': dict(view='crop', part='cxr', count=2, size=16, flip=0.5, blur=(0.0, 0.9), photometric='dinov2'),
    'local': dict(view='crop', part='cxr', count=3, size=8, area=(0.05, 0.32), blur=0.5, sigma=(0.1, 1.0)),
    'large': dict(view='crop', part='cxr', count=2, size=(24, 20), photometric=None, boxes='global'),
}
MASKS = {'global~block': dict(mask='blocks')}
GRIDS = {'global': (4, 4), 'local': (2, 2)}


def batch(rows=16, channels=1, dtype=np.uint8, canvas=24, first=0, seed=0):
    rng = np.random.default_rng(seed)
    extent = rng.integers(12, canvas + 1, (rows, 1, 2)).astype(np.int32)
    return {
        'cxr': {
            'row': np.arange(first, first + rows, dtype=np.uint32),
            'image': rng.integers(0, np.iinfo(dtype).max, (rows, 1, canvas, canvas, channels), dtype, endpoint=True),
            'image/present': np.ones((rows, 1), bool),
            'image/extent': extent,
            'label': rng.integers(-2, 2, (rows, 3)).astype(np.int8),
            'key/patient': rng.integers(0, 2**32, (rows, 2), np.uint32),
        }
    }


def build(views=None, masks=None, image=None, rows_per_group=ROWS_PER_GROUP):
    return make.build(make.kinds(VIEWS if views is None else views), masks or {}, image or GREY, GRIDS, rows_per_group)


def rows_of(tree, rows):
    return jax.tree.map(lambda x: x[rows], tree)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def jitted():
    return jax.jit(build(masks=MASKS))


def test_shapes_and_meta(jitted):
    views, masks = jitted(batch(), jax.random.key(0), 3)
    assert views.keys() == VIEWS.keys()
    assert [views[name].x.shape for name in VIEWS] == [
        (16, 2, 1, 16, 16, 1),
        (16, 3, 1, 8, 8, 1),
        (16, 2, 1, 24, 20, 1),
    ]
    assert all(v.x.dtype == jnp.float32 and np.isfinite(v.x).all() for v in views.values())
    assert views['global'].present.shape == (16, 2) and views['global'].row.dtype == jnp.uint32
    meta = views['global'].meta
    assert meta['boxes'].shape == (16, 2, 4) and meta['flip'].shape == (16, 2)
    assert {'blur', 'brightness', 'contrast', 'saturation', 'hue', 'grey', 'solarise'} <= set(meta)
    assert_same_bits(meta['label'], batch()['cxr']['label'])
    assert (meta['blur'][:, 0] == 0).all() and (meta['blur'][:, 1] > 0).mean() > 0.5
    bits = masks['global~block'].bits
    assert bits.shape == (16, 2, 16)
    # a group has 2 rows of 2 crops, so half of its crops is two: one in .1...3 and one in .3...5
    assert ((np.array(bits).sum(-1).reshape(8, 4) > 0).sum(-1) == 2).all()


def test_draws_depend_on_step_row_and_name_alone(jitted):
    whole, key = batch(), jax.random.key(0)
    views, masks = jitted(whole, key, 3)
    assert_same_bits(jitted(whole, key, 3), (views, masks))

    later, later_masks = jitted(whole, key, 4)
    assert (later['global'].meta['boxes'] != views['global'].meta['boxes']).all()
    assert (later_masks['global~block'].bits != masks['global~block'].bits).any()
    boxes = np.array(views['global'].meta['boxes']).reshape(-1, 4)
    assert len(np.unique(boxes, axis=0)) == len(boxes)  # every row and every crop has its own

    # A micro-batch or a host that holds whole groups sees the same: draws to the bit, pixels to the last place (for
    # another number of rows XLA compiles another program, which may sum in another order).
    for rows in (slice(4, 12), np.r_[8:10, 0:2, 14:16]):
        part_views, part_masks = jitted(rows_of(whole, rows), key, 3)
        for name, view in views.items():
            assert_same_bits(part_views[name].meta, rows_of(view.meta, rows))
            np.testing.assert_allclose(part_views[name].x, view.x[rows], atol=2e-6)
        assert_same_bits(part_masks['global~block'].bits, masks['global~block'].bits[rows])

    # nor does another view in the config matter
    alone, _ = jax.jit(build({'global': VIEWS['global']}))(whole, key, 3)
    assert_same_bits(alone['global'].meta, views['global'].meta)


def test_a_view_shares_the_boxes_of_another(jitted):
    views, _ = jitted(batch(), jax.random.key(0), 0)
    for field in ('boxes', 'flip'):
        assert_same_bits(views['large'].meta[field], views['global'].meta[field])
    plain = {name: dict(VIEWS[name], photometric=None, blur=0.0) for name in ('large', 'global')}
    views, _ = jax.jit(build(plain))(batch(canvas=64), jax.random.key(0), 0)
    small = jax.image.resize(views['large'].image, (16, 2, 16, 16, 1), 'linear')
    assert np.corrcoef(np.ravel(small), np.ravel(views['global'].x))[0, 1] > 0.9


def test_flips_happen_only_when_asked_for():
    views = {name: dict(view='crop', part='cxr', size=8, flip=share) for name, share in (('a', 0.0), ('b', 1.0))}
    made, _ = jax.jit(build(views))(batch(), jax.random.key(0), 0)
    assert not made['a'].meta['flip'].any() and made['b'].meta['flip'].all()
    default, _ = jax.jit(build({'c': dict(view='crop', part='cxr', size=8)}))(batch(), jax.random.key(0), 0)
    assert not default['c'].meta['flip'].any()


def test_several_parts_each_with_its_own_rows():
    views = {
        'global': dict(view='crop', part='cxr', size=8),
        'eye': dict(view='crop', part='fundus', size=8),
    }
    parts = batch(4) | {'fundus': batch(6, channels=3, seed=1)['cxr']}
    made, _ = jax.jit(build(views, image=dict(channels=3, mean=(0.4, 0.5, 0.6), std=0.25)))(parts, jax.random.key(0), 0)
    assert made['global'].x.shape == (4, 1, 1, 8, 8, 3) and made['eye'].x.shape == (6, 1, 1, 8, 8, 3)
    assert (made['global'].meta['boxes'] != made['eye'].meta['boxes'][:4]).any()


def test_bit_depths_and_channels():
    views = {'a': dict(view='crop', part='cxr', size=8, photometric=None)}
    eight = batch()
    sixteen = {'cxr': eight['cxr'] | {'image': eight['cxr']['image'].astype(np.uint16) * 257}}
    key = jax.random.key(0)
    grey = jax.jit(build(views))(eight, key, 0)[0]['a'].x
    np.testing.assert_allclose(jax.jit(build(views))(sixteen, key, 0)[0]['a'].x, grey, atol=1e-5)

    means, stds = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.25, 0.3])
    shown = jax.jit(build(views, image=dict(channels=3, mean=means, std=stds)))(eight, key, 0)[0]['a'].x
    np.testing.assert_allclose(shown, (grey * 0.25 + 0.5 - means) / stds, atol=1e-5)

    colour = batch(channels=3)
    red, green, blue = np.moveaxis(colour['cxr']['image'].astype(np.float64), -1, 0)
    luminance = np.round((0.299 * red + 0.587 * green + 0.114 * blue) * 257).astype(np.uint16)[..., None]
    as_grey = {'cxr': colour['cxr'] | {'image': luminance}}
    np.testing.assert_allclose(
        jax.jit(build(views))(colour, key, 0)[0]['a'].x, jax.jit(build(views))(as_grey, key, 0)[0]['a'].x, atol=1e-3
    )


def test_absent_pictures_stay_finite_and_are_marked():
    absent = batch(4)
    absent['cxr']['image/present'][1] = False
    absent['cxr']['image/extent'][1] = absent['cxr']['image'][1] = 0
    views, _ = jax.jit(build(masks=MASKS))(absent, jax.random.key(0), 0)
    for view in views.values():
        assert np.isfinite(view.x).all()
        np.testing.assert_array_equal(view.present.all(1), [True, False, True, True])


@pytest.mark.parametrize(('height', 'width'), [(48, 48), (48, 72), (60, 30)])
def test_whole_equals_pil_resize_of_the_shorter_side_and_centre_crop(height, width):
    size = 24
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    scale = size / min(height, width)
    tall, wide = round(height * scale), round(width * scale)
    resized = np.asarray(Image.fromarray(image.astype(np.float32)).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = (tall - size) // 2, (wide - size) // 2
    reference = np.clip(resized[top : top + size, left : left + size] / 255, 0, 1)
    canvas = np.full((1, 80, 80, 1), 255, np.uint8)
    canvas[0, :height, :width, 0] = image
    got = make.evaluation_view(canvas, np.array([[height, width]]), size, dict(channels=3, mean=0.5, std=0.25))
    assert got.shape == (1, size, size, 3)
    np.testing.assert_allclose(got[0], np.repeat((reference[..., None] - 0.5) / 0.25, 3, -1), atol=1e-4)


@pytest.mark.parametrize(('height', 'width'), [(48, 48), (48, 72), (60, 30), (16, 80), (17, 23)])
@pytest.mark.parametrize('size', [24, 40])
def test_pad_shows_the_whole_image_in_a_black_square(height, width, size):
    """Equal to PIL where the image fills whole pixels of the square; elsewhere its last line may be cut in two."""
    image = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    side = max(height, width)
    top, left = (side - height) / 2 * size / side, (side - width) / 2 * size / side
    canvas = np.full((1, 90, 90, 1), 255, np.uint8)
    canvas[0, :height, :width, 0] = image
    cfg = dict(channels=1, mean=0.5, std=0.25, fit='pad')
    got = np.asarray(make.evaluation_view(canvas, np.array([[height, width]]), size, cfg))[0, ..., 0] * 0.25 + 0.5
    rows, columns = (np.flatnonzero(np.abs(got).max(axis) > 1e-6) for axis in (1, 0))
    for lit, start, length in ((rows, top, height), (columns, left, width)):
        assert abs(lit[0] - start) <= 0.5 and abs(lit[-1] + 1 - (size - start)) <= 0.5
        assert abs(len(lit) - length * size / side) <= 1
    assert np.abs(got[: rows[0]]).max(initial=0) == np.abs(got[:, : columns[0]]).max(initial=0) == 0
    if top == int(top) and left == int(left):
        shape = (round(width * size / side), round(height * size / side))
        small = np.asarray(Image.fromarray(image.astype(np.float32)).resize(shape, Image.Resampling.BICUBIC))
        np.testing.assert_allclose(
            got[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.clip(small / 255, 0, 1), atol=1e-4
        )


def pil(image, width, height):
    """Antialiased bicubic resizing by Pillow, in [0,1]."""
    small = Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(small) / np.iinfo(image.dtype).max, 0, 1)


def seen(image, size, **cfg):
    """The evaluation view of one grey image on a larger canvas, in [0,1]."""
    height, width = image.shape
    canvas = np.full((1, 90, 90, 1), np.iinfo(image.dtype).max, image.dtype)
    canvas[0, :height, :width, 0] = image
    cfg = dict(channels=1, mean=0.5, std=0.25) | cfg
    return np.asarray(make.evaluation_view(canvas, np.array([[height, width]]), size, cfg))[0, ..., 0] * 0.25 + 0.5


@pytest.mark.parametrize(('height', 'width'), [(48, 48), (48, 72), (60, 31), (16, 80), (17, 23)])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_stretch_resizes_both_sides_as_pillow_does(height, width, dtype):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (height, width), dtype)
    np.testing.assert_allclose(seen(image, 24, fit='stretch'), pil(image, 24, 24), atol=1e-4)
    big, cut = pil(image, 32, 32), slice(4, 28)
    np.testing.assert_allclose(seen(image, 24, fit='stretch', zoom=32 / 24), big[cut, cut], atol=1e-4)


@pytest.mark.parametrize(('height', 'width', 'to'), [(64, 64, (32, 32)), (48, 72, (32, 48)), (80, 40, (64, 32))])
def test_zoom_resizes_the_shorter_side_and_cuts_the_centre(height, width, to):
    """Resize to 32, then the centre 24, as the processors of ViT and CLIP do with 256 and 224."""
    image = np.random.default_rng(1).integers(0, 256, (height, width), np.uint8)
    top, left = (to[0] - 24) // 2, (to[1] - 24) // 2
    expected = pil(image, to[1], to[0])[top : top + 24, left : left + 24]
    np.testing.assert_allclose(seen(image, 24, zoom=32 / 24), expected, atol=1e-4)


def test_a_zoomed_pad_cuts_the_centre_of_the_padded_square():
    image = np.random.default_rng(2).integers(0, 256, (32, 64), np.uint8)
    whole = np.zeros((32, 32))
    whole[8:24] = pil(image, 32, 16)
    np.testing.assert_allclose(seen(image, 24, fit='pad', zoom=32 / 24), whole[4:28, 4:28], atol=1e-4)


def test_no_zoom_is_zoom_1():
    image = np.random.default_rng(3).integers(0, 256, (40, 30), np.uint8)
    for fit in ('crop', 'pad'):
        np.testing.assert_array_equal(seen(image, 24, fit=fit), seen(image, 24, fit=fit, zoom=1.0))
    np.testing.assert_array_equal(seen(image, 24), seen(image, 24, fit='crop'))


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
@pytest.mark.parametrize('zoom', [1.0, 8 / 7])
@pytest.mark.parametrize(('shape', 'size'), [((48, 72, 1), 24), ((83, 31, 3), 40), ((17, 23, 3), 56), ((5, 90, 1), 16)])
@pytest.mark.parametrize(('dtype', 'channels'), [(np.uint8, 1), (np.uint16, 3)])
def test_the_host_makes_the_same_square(fit, zoom, shape, size, dtype, channels):
    image = np.random.default_rng(4).integers(0, np.iinfo(dtype).max, shape, dtype)
    image[: shape[0] // 2] = np.iinfo(dtype).max  # an edge, at which the resize overshoots
    canvas = np.full((1, 90, 90, shape[2]), 77, dtype)
    canvas[0, : shape[0], : shape[1]] = image
    cfg = dict(channels=channels, mean=0.0, std=1.0, fit=fit, zoom=zoom)
    expected = make.evaluation_view(canvas, np.array([shape[:2]]), size, cfg)[0]
    got = host_view.square(image, size, cfg)
    assert got.shape == (size, size, channels) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_gradient_of_a_padded_view_is_finite():
    canvas = jnp.ones((1, 32, 32, 1))
    cfg = dict(channels=1, mean=0.5, std=0.25, fit='pad')
    total = lambda x: make.geometry.padded(x[0], jnp.array([9, 30]), 16).sum()  # noqa: E731
    assert np.isfinite(jax.grad(total)(canvas)).all()
    view = make.evaluation_view(np.ones((1, 32, 32, 1), np.uint8), np.array([[9, 30]]), 16, cfg)
    assert np.isfinite(view).all()


@pytest.mark.parametrize(
    ('views', 'masks', 'message'),
    [
        ({'a': dict(view='crop', part='cxr', siez=8)}, {}, r"views.a: unknown key 'siez'; did you mean 'size'\?"),
        ({'a': dict(view='crop', part='cxr')}, {}, "views.a: the key 'size' is missing"),
        (
            {'a': dict(view='corp', part='cxr', size=8)},
            {},
            "views.a.view: there is no view 'corp' .*did you mean 'crop'",
        ),
        (
            {'a': dict(view='crop', part='cxr', size=8, area=(0.5, 2))},
            {},
            'views.a.area: two numbers, 0 < low <= high <= 1, not',
        ),
        ({'a': dict(view='crop', part='cxr', size=8, sigma=2)}, {}, 'views.a.sigma: two numbers'),
        (
            {'a': dict(view='crop', part='cxr', size='8')},
            {},
            "views.a.size: a whole number of pixels, at least 5, .*; not '8'",
        ),
        (
            {'a': dict(view='crop', part='cxr', size=8, blur=(0, 0.9))},
            {},
            'views.a.blur: one share .* each of the 1 crops',
        ),
        ({'a': dict(view='crop', part='cxr', size=8, boxes='b')}, {}, "views.a.boxes: there is no view 'b'"),
        (VIEWS | {'a': dict(view='crop', part='cxr', size=8, boxes='global')}, {}, 'part and count must be equal'),
        (VIEWS, {'globl~block': dict(mask='blocks')}, "masks.globl~block: .* did you mean 'global'"),
        (VIEWS, {'global~block': dict(mask='block')}, "masks.global~block.mask: there is no mask 'block'"),
        (VIEWS, {'global~block': dict(mask='blocks', ration=1)}, "unknown key 'ration'; did you mean 'ratio'"),
    ],
)
def test_mistakes_are_named(views, masks, message):
    with pytest.raises(UserError, match=message):
        build(views, masks)


def test_rows_that_groups_do_not_divide_are_named():
    with pytest.raises(UserError, match='rows_per_group: 3 does not divide 16 rows'):
        jax.eval_shape(build(masks=MASKS, rows_per_group=3), batch(), jax.random.key(0), 0)


@pytest.mark.parametrize('axes', [dict(), dict(data=1, fsdp=-1), dict(data=2, fsdp=2, tensor=2)], ids=str)
def test_eight_devices_make_the_same_views_without_a_collective(axes, jitted):
    if jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices: JAX_NUM_CPU_DEVICES=8')
    mesh, whole, key = make_mesh(**axes), batch(), jax.random.key(0)
    views, masks = jitted(whole, key, 5)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(whole, rows_sharding(mesh))
        step = jax.device_put((key, jnp.int32(5)), replicated(mesh))
        compiled = jax.jit(build(masks=MASKS)).lower(sharded, *step).compile()
        got_views, got_masks = compiled(sharded, *step)
    collectives = re.findall(r'(?:all-|reduce-scatter|collective-)[a-z-]*\(', compiled.as_text())
    assert not collectives
    for name, view in views.items():
        np.testing.assert_allclose(got_views[name].x, view.x, atol=1e-5)
        assert_same_bits(got_views[name].meta['boxes'], view.meta['boxes'])
        assert not got_views[name].x.sharding.is_fully_replicated
    assert_same_bits(got_masks['global~block'].index, masks['global~block'].index)
    assert_same_bits(got_masks['global~block'].bits, masks['global~block'].bits)
