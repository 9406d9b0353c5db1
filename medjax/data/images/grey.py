"""Stored grey values as grey values on a screen: padding, modality LUT or rescale, VOI LUT or window, inversion.

The order is that of DICOM PS3.3 C.11.1 and C.11.2. Multi-frame files hold some fields for each frame, in functional
groups (C.7.6.16): a frame's own fields count first, then those that all frames share, then those of the file. Tables
and windows of one level belong together, and so do modality LUT and rescale.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.images import lookup
from medjax.data.images.dicom import first_number, first_value, get, levels, several, step
from medjax.data.images.lookup import Table
from medjax.data.images.windows import Window
from medjax.data.types import Unreadable

TRANSFORMS, VOI = 'PixelValueTransformationSequence', 'FrameVOILUTSequence'  # functional groups
# Fields that belong together: all are read from the frame, or all from what the frames share, or all from the file.
MODALITY_FIELDS = 'ModalityLUTSequence', 'RescaleSlope', 'RescaleIntercept'
VOI_FIELDS = 'VOILUTSequence', 'WindowCenter', 'WindowWidth'
MOST_WAYS = 16  # VOI LUTs, and windows, of one picture that are tried; others are not read
HALF = 1 << 15  # values of US from here on are negative as SS

ONE_VALUE = 'it shows nothing: all its pixels have one value'
FEW_GREYS = 0.02  # share of all greys; a window that shows less of a picture is named in a remark
MANY_VALUES = 24  # different ones in a picture; a picture of fewer may be a mask
ALL_PADDING = 'its header calls all of its pixels padding; this is ignored'


class Range(NamedTuple):
    """The smallest and the largest value of a frame or of a run."""

    low: float
    high: float
    is_stored: bool = False  # of stored values: modality LUT or rescale is not used


class Facts(NamedTuple):
    """What the header says about the grey values of a frame."""

    modality: Table | None
    slope: float
    intercept: float
    shown: tuple[tuple[str, Table | Window], ...]  # VOI LUTs, then windows, with their names
    inverse: bool  # MONOCHROME1
    not_hounsfield: str  # why the values are no Hounsfield units; '' if they are
    is_ct: bool
    limits: tuple[int, int]  # the smallest and the largest value that the stored bits can have
    remarks: tuple[str, ...]  # on fields that cannot be read and are not needed


def facts(file: Any, frame: int) -> Facts:
    """The facts of a frame. Raises Unreadable; the reason names the field."""
    little = file.file_meta.TransferSyntaxUID.is_little_endian
    limits = _limits(file)
    modality, slope, intercept, unit = None, None, None, 'HU'
    for level in levels(file, frame, TRANSFORMS, MODALITY_FIELDS):
        with step('its modality LUT'):
            modality = _first_table(get(level, 'ModalityLUTSequence'), *limits, little, 'its modality LUT')
        with step('its rescale slope and intercept'):
            slope, intercept = (_number(get(level, name)) for name in ('RescaleSlope', 'RescaleIntercept'))
        unit = str(get(level, 'RescaleType') or 'HU').strip().upper()
        if modality is not None or slope is not None or intercept is not None:
            break
    is_ct = str(file.get('Modality') or '').strip().upper() == 'CT'
    scaled = slope is not None or intercept is not None
    slope, intercept = (1.0 if slope is None else slope), (intercept or 0.0)
    if modality is not None:
        low, high = float(modality.entries.min()), float(modality.entries.max())
    else:
        low, high = sorted(limit * slope + intercept for limit in limits)
    shown: list[tuple[str, Table | Window]] = []
    remarks: list[str] = []
    for level in levels(file, frame, VOI, VOI_FIELDS):
        tables, broken = _voi_tables(get(level, 'VOILUTSequence'), low, high, little)
        remarks += broken
        found, unread = _windows(level)
        shown, remarks = [*tables, *found], [*remarks, *unread]
        if shown:
            break
    return Facts(
        modality, slope, intercept, tuple(shown),
        str(file.PhotometricInterpretation) == 'MONOCHROME1', _not_hounsfield(is_ct, modality, scaled, unit),
        is_ct, limits, tuple(remarks),
    )  # fmt: skip


def _not_hounsfield(is_ct: bool, modality: Table | None, scaled: bool, unit: str) -> str:
    if not is_ct:
        return 'this is no CT'
    if modality is not None:
        return 'its header has a modality LUT instead'
    if not scaled:
        return 'its header has no RescaleSlope and no RescaleIntercept'
    return '' if unit == 'HU' else 'its header gives another RescaleType than HU'


def _limits(file: Any) -> tuple[int, int]:
    bits = min(max(int(file.get('BitsStored') or file.BitsAllocated), 1), 32)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if file.get('PixelRepresentation') == 1 else (0, (1 << bits) - 1)


def _number(value: Any) -> float | None:
    """The number of a field, which may be no finite one. None: the field is missing or empty."""
    value = first_value(value)
    return None if value is None or value == '' else float(value)


def _first_table(items: Any, low: float, high: float, little: bool, what: str) -> Table | None:
    """The first table of a sequence that has entries. None: there is none."""
    for item in items or ():
        found = lookup.table(item.get('LUTDescriptor'), item.get('LUTData'), low, high, little, what, _is_ow(item))
        if found is not None:
            return found
    return None


def _is_ow(item: Any) -> bool:
    return 'LUTData' in item and item['LUTData'].VR == 'OW'


def _voi_tables(items: Any, low: float, high: float, little: bool) -> tuple[list[tuple[str, Table]], list[str]]:
    """The VOI LUTs of a sequence with their names, and remarks on items that cannot be read."""
    found: list[tuple[str, Table]] = []
    broken: list[str] = []
    items = () if items is None else items if isinstance(items, Sequence) else [items]
    for number, item in enumerate(items[:MOST_WAYS]):
        name = _numbered('its VOI LUT', number)
        try:
            with step(name):
                one = _first_table([item], low, high, little, name)
        except Unreadable:
            broken.append(f'{name} cannot be read, so it is not used')
            continue
        if one is not None:
            found.append((name, one))
    return found, broken


def _windows(level: Any) -> tuple[list[tuple[str, Window]], list[str]]:
    """The valid windows of a data set with their names, and remarks on others that say something."""
    centres, widths = (several(get(level, name)) for name in ('WindowCenter', 'WindowWidth'))
    function = str(get(level, 'VOILUTFunction') or 'LINEAR').strip().upper()
    function = function if function in ('SIGMOID', 'LINEAR_EXACT') else 'LINEAR'
    found: list[tuple[str, Window]] = []
    unread: list[str] = []
    for number, pair in enumerate(itertools.zip_longest(centres[:MOST_WAYS], widths[:MOST_WAYS])):
        centre, width = map(first_number, pair)
        name = _numbered('its window', number)
        if centre is not None and width is not None and (window := Window(centre, width, function)).valid:
            found.append((name, window))
        elif any(value not in (None, '') for value in pair) and width != 0:  # width 0 says nothing
            unread.append(f'{name} has no valid centre and width, so it is not used')
    return found, unread


def _numbered(name: str, number: int) -> str:
    return f'{name} {number + 1}' if number else name


def padding(raw: np.ndarray, stored: np.ndarray, file: Any) -> np.ndarray | None:
    """The mask of padding, bool [H,W]: the detector measured nothing there. None: there is none.

    `raw` are the values with all their allocated bits, `stored` those of the stored bits. The field is read with the
    sign and the bits that the pixels have: on signed pixels 63536 is -2000. It may lie outside of the stored bits.
    """
    if raw.dtype.kind not in 'iu' or raw.ndim != 2:
        return None
    little = file.file_meta.TransferSyntaxUID.is_little_endian
    ends = [_whole(file.get(name), little) for name in ('PixelPaddingValue', 'PixelPaddingRangeLimit')]
    if ends[0] is None:
        return None
    written = ends[0], ends[0] if ends[1] is None else ends[1]
    is_signed = raw.dtype.kind == 'i'
    ways = [written]
    if is_signed and any(HALF <= end < 2 * HALF for end in written):  # US of 16 bits, whatever the bits of the pixels
        ways.append(tuple(end - 2 * HALF if HALF <= end < 2 * HALF else end for end in written))
    if any(end >= 1 << 31 for end in written):  # a negative number of 32 bits, as UL
        ways.append(tuple(end - (1 << 32) if end >= 1 << 31 else end for end in written))
    bits = min(int(file.get('BitsStored') or file.BitsAllocated), int(file.BitsAllocated))
    for low, high in map(sorted, ways):
        # from the largest values of unsigned pixels on to the smallest
        is_round = not is_signed and low < 0 <= high
        for values, size in ((raw, 8 * raw.dtype.itemsize), (stored, bits)):
            first, last = (_wrapped(end, size, is_signed) for end in (low, high))
            if first is None or last is None:
                continue
            if is_round:
                mask = (values >= first) | (values <= last)
            else:
                mask = (values >= min(first, last)) & (values <= max(first, last))
            if mask.any():
                return mask
    return None


def _whole(value: Any, little: bool) -> int | None:
    """The whole number of a field, also where its VR is not a number's. None: there is none."""
    if isinstance(value, bytes):
        return int.from_bytes(value[:4], 'little' if little else 'big') if value else None
    number = first_number(value)
    return None if number is None or number != int(number) else int(number)


def _wrapped(value: int, bits: int, signed: bool) -> int | None:
    """The value as `bits` bits hold it, signed or not. None: it has more bits."""
    if not -(1 << bits - 1) <= value < 1 << bits:
        return None
    value %= 1 << bits
    return value - (1 << bits) if signed and value >= 1 << bits - 1 else value


def extremes(stored: np.ndarray, mask: np.ndarray | None, facts: Facts) -> Range | None:
    """The smallest and the largest value of a frame after modality LUT or rescale, without padding. None: no pixel."""
    inside = stored if mask is None else stored[~mask]
    if not inside.size:
        return None
    if facts.modality is None:  # the ends of the values belong to the ends of what is stored
        inside = np.array([inside.min(), inside.max()])
    used, unused = _usable(inside, facts)
    ends = _ends(inside, used)
    return Range(float(ends.min()), float(ends.max()), bool(unused))


def _ends(inside: np.ndarray, facts: Facts) -> np.ndarray:
    """Values after modality LUT or rescale, among them the smallest and the largest one of these stored values."""
    # without a table the ends of the values belong to the ends of what is stored
    return _values(inside if facts.modality else np.array([inside.min(), inside.max()]), facts)


def _usable(inside: np.ndarray, facts: Facts) -> tuple[Facts, list[str]]:
    """The facts without a modality LUT or rescale that makes one value of these stored values, and a remark then."""
    ends = _ends(inside, facts)
    if ends.min() != ends.max() or not np.isfinite(ends).all() or inside.min() == inside.max():
        return facts, []
    what = 'its rescale' if facts.modality is None else 'its modality LUT'
    one_value = f'{what} makes one value of all its pixels'
    plain = facts._replace(modality=None, slope=1.0, intercept=0.0, not_hounsfield=one_value)
    return plain, [f'{one_value}, so it is not used']


def _values(stored: np.ndarray, facts: Facts) -> np.ndarray:
    """The stored values after modality LUT or rescale, float64."""
    if facts.modality is not None:
        return facts.modality(stored).astype(np.float64)
    return stored.astype(np.float64) * facts.slope + facts.intercept


def picture(
    stored: np.ndarray,
    mask: np.ndarray | None,
    facts: Facts,
    bits: int,
    windows: Sequence[Window],
    run: Callable[[], Range | None],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The grey values of a frame on a screen, uint8|uint16 [H,W,C], and remarks on what does not fit.

    `bits` up to 8 give uint8, more give uint16, and three windows give uint8. `windows`: those of the user, in
    Hounsfield units. `run` gives the range of the file's frames, for frames without a window. Where a window of
    the header makes one value of a picture, it cannot be meant, and the next one is taken, at last the picture's range.
    In CT the last window stays, because a slice of air is black there. Padding is black. Raises Unreadable.
    """
    remarks = [] if windows else list(facts.remarks)
    if mask is not None and mask.all() and int(stored.max()) > int(stored.min()):
        mask = None
        remarks.append(ALL_PADDING)
    top, dtype = (255, np.uint8) if bits <= 8 or len(windows) > 1 else (65_535, np.uint16)
    inside = stored if mask is None else stored[~mask]
    if not inside.size:
        _check_units(facts, windows)
        return np.zeros((*stored.shape, max(len(windows), 1)), dtype), (ONE_VALUE,)
    low, high = inside.min(), inside.max()
    facts, more = _usable(inside if facts.modality else np.array([low, high]), facts)
    _check_units(facts, windows)
    remarks += more
    # Each value is treated alike. So the steps run on the values between the two ends, not on every pixel.
    by_level = stored.dtype.kind in 'iu' and int(high) - int(low) < 2 * stored.size
    values = _values(np.arange(int(low), int(high) + 1) if by_level else stored, facts)
    _check_finite(values)

    def on_screen(shares: np.ndarray) -> np.ndarray:
        _check_finite(shares)
        shares = np.clip(shares, 0.0, 1.0)
        shown = np.round((1.0 - shares if facts.inverse else shares) * top).astype(dtype)
        if by_level:
            between = stored if mask is None else np.clip(stored, low, high)
            shown = shown.take((between - low).view(f'u{stored.dtype.itemsize}'))  # the difference may need all bits
        if mask is not None:
            shown[mask] = 0
        return shown

    def is_flat(shown: np.ndarray) -> bool:
        seen = shown if mask is None else shown[~mask]
        return bool(seen.min() == seen.max())

    def few(name: str, shown: np.ndarray) -> tuple[str, ...]:
        """A remark on a window that shows hardly anything of a picture with many values."""
        seen = shown if mask is None else shown[~mask]
        black, white = int(seen.min()), int(seen.max())
        between = seen[(seen > black) & (seen < white)]
        is_dim = white - black < FEW_GREYS * top
        is_step = not between.size or between.min() == between.max()
        if not (is_dim or is_step) or len(np.unique(inside)) < MANY_VALUES:
            return ()
        if is_dim:
            return (f'{name} shows all its pixels in less than {FEW_GREYS:.0%} of all greys',)
        return (f'{name} makes two or three greys of all its pixels',)

    def flat(name: str) -> str:
        return ONE_VALUE if low == high else f'{name} makes one value of all its pixels'

    if windows:
        planes = [on_screen(window(values)) for window in windows]
        return np.stack(planes, -1), (*remarks, *([flat('its window')] if all(map(is_flat, planes)) else []))
    for name, how in facts.shown:
        shown = on_screen(_shares(how, values))
        if not is_flat(shown):
            return shown[..., None], (*remarks, *few(name, shown))
        if low == high or (facts.is_ct and name == facts.shown[-1][0]):
            return shown[..., None], (*remarks, flat(name))
        remarks.append(f'{flat(name)}, so it is not used')
    found = run()
    if found is None or found.is_stored != bool(more):  # the range of other units is none of this frame
        found = extremes(inside if facts.modality else np.array([low, high]), None, facts)
    least, most, _ = found or Range(0.0, 0.0)
    if least == most:
        return np.zeros((*stored.shape, 1), dtype), (*remarks, ONE_VALUE)
    shown = on_screen((values - least) / max(most - least, 1e-12))
    return shown[..., None], (*remarks, ONE_VALUE) if is_flat(shown) else tuple(remarks)


def takes_range(stored: np.ndarray, mask: np.ndarray | None, facts: Facts, bits: int) -> bool:
    """Whether a frame is shown by its range: it has no window, or none that shows something. Raises Unreadable."""
    if not facts.shown:
        return True
    asked = False

    def run() -> None:
        nonlocal asked
        asked = True

    picture(stored, mask, facts, bits, (), run)
    return asked


def _shares(how: Table | Window, values: np.ndarray) -> np.ndarray:
    """The display of each value, 0 to 1: by a window, or by a table, whose largest entry is white."""
    if isinstance(how, Window):
        return how(values)
    return how(values) / max(float(how.entries.max()), 1.0)


def _check_units(facts: Facts, windows: Sequence[Window]) -> None:
    if not windows or not facts.not_hounsfield:
        return
    advice = 'leave --window out to keep it'
    if not facts.is_ct:
        advice = f"{advice}, or build CT alone: --where 'modality=CT'"
    raise Unreadable(f'--window is for CT in Hounsfield units, and {facts.not_hounsfield}; {advice}')


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise Unreadable('a DICOM file whose rescaling or window makes no numbers of its pixels')
