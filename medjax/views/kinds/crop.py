"""The view `crop`: random-resized crops of an image, with flip, blur, changes of grey values, and noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import View, is_number, is_whole
from medjax.views import geometry
from medjax.views.colour import normalise, per_crop, to_unit
from medjax.views.kinds import Draws, Kind, Rows, facts
from medjax.views.photometric import Photometric, find_set

NOISE_KEY, UNDER = 'noise/key', 'under'  # draws that are no facts of a view


def build(
    where: str,
    name: str,
    part: str,
    size: int | Sequence[int],
    count: int = 1,
    area: Sequence[float] = (0.32, 1.0),
    aspect: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
    blur: float | Sequence[float] = 0.0,
    sigma: Sequence[float] = (0.1, 2.0),
    photometric: str | Mapping[str, Any] | None = 'radiograph',
    boxes: str | None = None,
    cutmix: float = 0.0,
    one_size: bool = False,
    noise: float | Sequence[float] = 0.0,
    noise_sigma: Sequence[float] = (0.05, 0.2),
    on_top: bool = False,
) -> Kind:
    """`count` random-resized crops of each image of a part.

    part         the part of the batch
    size         pixels of a crop: one number, or height and width
    area         share of the image's area, uniform between two limits
    aspect       width / height, log-uniform between two limits
    flip         share of the crops that are mirrored left-right; 0 by default, because a mirrored radiograph has its
                 heart on the wrong side
    blur, sigma  share of the crops that are blurred (one number, or one for each crop), and the limits of the standard
                 deviation of the Gaussian in output pixels
    photometric  'radiograph', 'dinov2', a dict(set=…, …) with the keys of the set, or None
    boxes        another view whose boxes and flips these crops take, crop by crop: the same region at another size;
                 area, aspect, flip and one_size then have no effect
    cutmix       share of the crops in which a box comes from another row of the group, see `views.cutmix`; of the terms
                 `supervised` alone can read such a view
    one_size     whether the boxes of all crops of an image have the height and width of the first one
    noise, noise_sigma
                 share of the crops with Gaussian noise, as `blur`, and the limits of its standard deviation; white is 1
    on_top       whether the changes of these crops come on top of those that `photometric` of the view in `boxes` has
                 made, so that the two views differ by the changes of these crops alone
    """
    height, width = _size(size, f'{where}.size')
    if not is_whole(count) or count < 1:
        raise UserError(f'{where}.count={count!r}: must be a whole number of crops, at least 1')
    if not is_number(cutmix) or not 0 <= cutmix <= 1:
        raise UserError(f'{where}.cutmix={cutmix!r}: must be a share of the crops, from 0 to 1')
    for option, value in dict(one_size=one_size, on_top=on_top).items():
        if not isinstance(value, bool):
            raise UserError(f'{where}.{option}={value!r}: must be True or False')
    if on_top and boxes is None:
        raise UserError(f'{where}.on_top: name the view whose changes come first in {where}.boxes')
    return Crop(
        part,
        count,
        (height, width),
        _limits(area, f'{where}.area', most=1.0),
        _limits(aspect, f'{where}.aspect'),
        tuple(per_crop(flip, count, f'{where}.flip').tolist()),
        tuple(per_crop(blur, count, f'{where}.blur').tolist()),
        _limits(sigma, f'{where}.sigma'),
        find_set(photometric, f'{where}.photometric'),
        boxes,
        float(cutmix),
        one_size,
        tuple(per_crop(noise, count, f'{where}.noise').tolist()),
        _limits(noise_sigma, f'{where}.noise_sigma'),
        on_top,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Crop(Kind):
    pixels: tuple[int, int]  # height and width
    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: tuple[float, ...]  # one share for each crop
    blur: tuple[float, ...]
    sigma: tuple[float, float]
    photometric: Photometric
    boxes: str | None  # the view whose boxes and flips these crops take
    cutmix: float  # share of the crops that are mixed
    one_size: bool
    noise: tuple[float, ...]  # one share for each crop
    noise_sigma: tuple[float, float]
    on_top: bool
    under: Photometric | None = None  # with on_top: the changes that come first

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels

    def draw(self, keys: Array, rows: Rows) -> Draws:
        """boxes float32 [B,V,4], flip bool [B,V], blur and noise [B,V] and the parameters of the photometric set."""
        extent = jnp.maximum(rows['image/extent'][:, 0], 1)  # an absent image has extent 0; its crops stay finite
        return jax.vmap(self.draw_row)(keys, extent)

    def draw_row(self, key: Array, extent: Array) -> Draws:
        # one call for all numbers of a row: each call costs half a second of compilation on a CPU
        u = jax.random.uniform(key, (self.count, 4 * geometry.TRIES + 3 + self.photometric.numbers))
        u_box, u_rest, u_grey = jnp.split(u, [4 * geometry.TRIES, 4 * geometry.TRIES + 3], axis=1)
        u_box = u_box.reshape(self.count, geometry.TRIES, 4)
        sigma = geometry.between(u_rest[:, 2], self.sigma)
        boxes = jax.vmap(lambda u: geometry.random_box(u, extent, self.area, self.aspect))(u_box)
        if self.one_size:
            boxes = boxes.at[1:].set(geometry.placed(boxes[0, 2:], extent, u_box[1:, 0, 2:]))
        return dict(
            boxes=boxes,
            flip=u_rest[:, 0] < np.asarray(self.flip, np.float32),
            blur=jnp.where(u_rest[:, 1] < np.asarray(self.blur, np.float32), sigma, 0.0),
            **self.photometric.draw(u_grey),
            **self.draw_noise(jax.random.fold_in(key, 1)),
        )

    def draw_noise(self, key: Array) -> Draws:
        """The deviation of the noise of each crop, and a key for its pixels."""
        if not any(self.noise):
            return dict(noise=jnp.zeros(self.count))
        keys = jax.random.split(key, self.count + 1)
        u = jax.random.uniform(keys[0], (2, self.count))
        sigma = geometry.between(u[0], self.noise_sigma)
        return {'noise': jnp.where(u[1] < np.asarray(self.noise, np.float32), sigma, 0.0), NOISE_KEY: keys[1:]}

    def show(self, rows: Rows, draws: Draws, image: Mapping[str, Any]) -> View:
        """The crops, normalised; the draws become the view's meta."""
        extent = jnp.maximum(rows['image/extent'][:, 0], 1)
        x = jax.vmap(self.show_row)(to_unit(rows['image'][:, 0], image['channels']), extent, draws)
        present = jnp.repeat(rows['image/present'][:, :1], self.count, axis=1)
        x = normalise(x, **image)[:, :, None]  # one slot
        meta = {name: value for name, value in draws.items() if name not in (NOISE_KEY, UNDER)}
        return View(x, rows['row'], present, None, {**meta, **facts(rows)}, present[..., None])

    def show_row(self, image: Array, extent: Array, draws: Draws) -> Array:
        """An image [H,W,C] in [0,1] -> its crops [V,h,w,C] in [0,1]."""

        def one_crop(p: Draws) -> Array:
            sigma = p['blur'] if any(self.blur) else None
            x = geometry.crop(image, extent, p['boxes'], self.pixels, p['flip'], sigma)
            x = jnp.clip(x, 0.0, 1.0)
            x = x if self.under is None else self.under.apply(x, p[UNDER])
            x = self.photometric.apply(x, p)
            if NOISE_KEY not in p:
                return x
            return jnp.clip(x + p['noise'] * jax.random.normal(p[NOISE_KEY], x.shape), 0.0, 1.0)

        return jax.vmap(one_crop)(draws)


def _size(size: int | Sequence[int], where: str) -> tuple[int, int]:
    least = geometry.BLUR_TAPS // 2 + 1  # the blur reflects that many pixels
    if np.shape(size) not in ((), (2,)) or np.asarray(size).dtype.kind != 'i' or np.min(size) < least:
        raise UserError(f'{where}: a whole number of pixels, at least {least}, or height and width; not {size!r}')
    height, width = np.broadcast_to(size, 2).tolist()
    return height, width


def _limits(limits: Sequence[float], where: str, most: float = np.inf) -> tuple[float, float]:
    if np.shape(limits) != (2,) or not 0 < limits[0] <= limits[1] <= most:
        raise UserError(
            f'{where}: two numbers, 0 < low <= high' + f' <= {most:g}' * (most < np.inf) + f', not {limits}'
        )
    return float(limits[0]), float(limits[1])
