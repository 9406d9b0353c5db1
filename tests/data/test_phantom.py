"""The phantom: line integrals against float64 references; images, masks, labels and reports that agree."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from medjax.cli import main
from medjax.data import phantom, records
from medjax.data.builder import splits
from medjax.data.phantom import anatomy, detector, findings, projection, report as reports
from medjax.data.sources import phantom as source
from medjax.errors import UserError

SMALL = phantom.Settings(size=64)


@pytest.fixture(scope='module')
def frontals() -> list[phantom.Image]:
    return [phantom.record(i, SMALL) for i in range(170) if phantom.identity(i, 0).role == 'frontal']


# Line integrals


def _everything() -> list[projection.SolidPiece]:
    """Scenes with every kind of piece: an effusion below a pneumothorax, and an effusion alone."""
    rng = np.random.default_rng(3)
    body = anatomy.draw_body(rng)._replace(sex='F')
    drawn = {name: findings._draw(name, rng) for name in findings.FINDINGS}
    sides = dict(nodule='left', consolidation='right', effusion='right', pneumothorax='left', cardiomegaly='')
    present = {name: finding._replace(side=sides[name]) for name, finding in drawn.items()}
    wet = {'effusion': present['effusion'], 'pneumothorax': present['pneumothorax']._replace(side='right')}
    return anatomy.scene(body, 0.5, False, present, 'left') + anatomy.scene(body, 0.2, True, wet)


def _primitives(solid: projection.Solid) -> list:
    return (
        [p for inner in solid.solids for p in _primitives(inner)]
        if isinstance(solid, projection.Intersection)
        else [solid]
    )


def _holds(solid: projection.Solid, points: np.ndarray) -> np.ndarray:
    """[n,3] -> bool [n]: whether points lie in a solid, from its definition."""
    if isinstance(solid, projection.Intersection):
        return np.logical_and.reduce([_holds(inner, points) for inner in solid.solids])
    if isinstance(solid, projection.Ellipsoid):
        return (np.linalg.solve(solid.axes, (points - solid.centre).T) ** 2).sum(0) <= 1
    height = points @ solid.normal
    return (solid.low <= height) & (height <= solid.high)


def _inside(piece: projection.SolidPiece, points: np.ndarray) -> np.ndarray:
    held = np.logical_and.reduce([_holds(solid, points) for solid in piece.inside])
    for solid in piece.outside:
        held &= ~_holds(solid, points)
    return held


def _crossings(solid: projection.Ellipsoid | projection.Plate, start: np.ndarray, way: np.ndarray) -> list[float]:
    """The t at which the ray start + t way meets a surface, by numpy's roots in float64."""
    if isinstance(solid, projection.Plate):
        return [(b - solid.normal @ start) / (solid.normal @ way) for b in (solid.low, solid.high) if np.isfinite(b)]
    p, q = np.linalg.solve(solid.axes, start - solid.centre), np.linalg.solve(solid.axes, way)
    roots = np.roots([q @ q, 2 * p @ q, p @ p - 1])
    return [float(r) for r in roots.real] if np.isreal(roots).all() else []


@pytest.mark.parametrize('view', ['PA', 'AP', 'lateral'])
def test_line_integrals_between_surfaces(view: str) -> None:
    """Between two surfaces the density is constant, so the value in the middle times the length is exact."""
    pieces = _everything()
    pose = detector.Pose(view, (0.2, -0.1, 0.15), (1.0, 2.0), 38.0, 150.0)
    camera = detector.camera(pose, 48)
    path, lengths = projection.project(pieces, camera)
    assert lengths.keys() == set(phantom.MASKS)
    rng = np.random.default_rng(0)
    for row, column in rng.integers(0, 48, (20, 2)):
        way = camera.axes.T @ [float(camera.u[column]), float(camera.v[row]), 1.0]
        way /= np.linalg.norm(way)
        expected, named = 0.0, dict.fromkeys(lengths, 0.0)
        for piece in pieces:
            surfaces = [p for solid in (*piece.inside, *piece.outside) for p in _primitives(solid)]
            depths = np.sort([t for solid in surfaces for t in _crossings(solid, camera.source, way)])
            if len(depths) < 2:
                continue
            middle = camera.source + (depths[1:, None] + depths[:-1, None]) / 2 * way
            length = (np.diff(depths) * _inside(piece, middle)).sum()
            expected += piece.density * length
            if piece.name:
                named[piece.name] += length
        assert path[row, column] == pytest.approx(expected, abs=1e-3)
        for name, length in named.items():
            assert lengths[name][row, column] == pytest.approx(length, abs=5e-3), name


def test_line_integrals_by_small_steps() -> None:
    """∫ mu dl as a sum over points along the ray."""
    pieces = _everything()
    camera = detector.camera(detector.Pose('PA', (0.1, 0.05, -0.1), (0.0, 2.0), 36.0, 150.0), 32)
    path, _ = projection.project(pieces, camera)
    step = 0.01
    t = np.arange(150 - 35, 150 + 35, step)[:, None] + step / 2
    for row, column in ((6, 12), (16, 8), (18, 22), (25, 16)):
        way = camera.axes.T @ [float(camera.u[column]), float(camera.v[row]), 1.0]
        points = camera.source + t * way / np.linalg.norm(way)
        expected = step * sum(piece.density * _inside(piece, points).sum() for piece in pieces)
        assert path[row, column] == pytest.approx(expected, abs=0.02)


def test_a_shadow_box_cuts_nothing_off() -> None:
    """Compares each ellipsoid with its chords on the whole image: no ray outside its box meets it."""
    camera = detector.camera(detector.Pose('lateral', (0.2, 0.1, 0.1), (0.0, 2.0), 38.0, 150.0), 40)
    rays = np.stack([*np.meshgrid(camera.u, camera.v), np.ones((40, 40))], -1).astype(np.float64) @ camera.axes
    for piece in _everything()[::7]:
        solid = piece.inside[0]
        if not isinstance(solid, projection.Ellipsoid):
            continue
        p = np.linalg.solve(solid.axes, camera.source - solid.centre)
        q = rays @ np.linalg.inv(solid.axes).T
        disc = (q @ p) ** 2 - (q * q).sum(-1) * (p @ p - 1)
        expected = 2 * np.sqrt(np.maximum(disc, 0)) / (q * q).sum(-1) * np.linalg.norm(rays, axis=-1)
        lengths, _ = projection.project([projection.SolidPiece(1.0, (solid,))], camera)
        np.testing.assert_allclose(lengths, expected, atol=2e-3)


# The detector

PERFECT = detector.Site(photons=1e30, blur=0.0, scatter=0.0, film=False)


def test_beer_lambert() -> None:
    a, b = np.float32([0.5, 1.0, 3.0]), np.float32([0.1, 2.0, 0.0])
    np.testing.assert_allclose(detector.transmit(a + b), detector.transmit(a) * detector.transmit(b), rtol=1e-6)
    np.testing.assert_allclose(detector.transmit(np.float32([0, np.log(2)])), [1, 0.5], rtol=1e-6)


def test_a_perfect_detector_shows_the_line_integral() -> None:
    path = np.linspace(2, 4, 64 * 64, dtype=np.float32).reshape(64, 64)
    seen = detector.expose(path, PERFECT, detector.Exposure(1.0, 0.0, 5.0), 0.2, np.random.default_rng(0))
    np.testing.assert_allclose(seen, (path - path[16:-16, 16:-16].mean()) / 5 + 0.5, atol=1e-4)


@pytest.mark.parametrize('thickness', [1.0, 3.0])
def test_noise_is_that_of_counted_photons(thickness: float) -> None:
    """The standard deviation of log(counts) is 1 / sqrt(counts)."""
    site = PERFECT._replace(photons=1e5)
    path = np.full((200, 200), thickness, np.float32)
    seen = detector.expose(path, site, detector.Exposure(2.0, 0.0, 5.0), 0.3, np.random.default_rng(0))
    counts = 1e5 * 2.0 * 0.3**2 * np.exp(-thickness)
    assert seen.std() * 5 == pytest.approx(1 / np.sqrt(counts), rel=0.03)


# Records


def test_records_depend_on_seed_and_index_alone() -> None:
    first = phantom.record(5, SMALL)
    phantom.record(900, SMALL)
    second = phantom.record(5, SMALL)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.mask, second.mask)
    assert (first.text, first.attributes, first.labels) == (second.text, second.attributes, second.labels)
    assert not np.array_equal(first.image, phantom.record(5, SMALL._replace(seed=1)).image)
    assert source.source(records=20).entries == source.source(records=70).entries[:20]


@pytest.mark.parametrize(('size', 'bits'), [(32, 8), (99, 8), (161, 16), (1024, 8)])
def test_sizes_and_depths_show_one_scene(size: int, bits: int) -> None:
    rendered = phantom.record(0, SMALL._replace(size=size, bits=bits))
    coarse = phantom.record(0, SMALL._replace(size=32))
    assert rendered.image.shape == rendered.mask.shape == (size, size)
    assert rendered.image.dtype == (np.uint8 if bits == 8 else np.uint16)
    nearest = (np.arange(32) * 2 + 1) * size // 64
    shown = rendered.image[np.ix_(nearest, nearest)] / (2.0**bits - 1)
    assert np.corrcoef(shown.ravel(), coarse.image.ravel())[0, 1] > 0.97
    assert rendered.text == coarse.text


def test_a_study_has_one_anatomy_and_one_report() -> None:
    pairs = [(i, i + 1) for i in range(60) if phantom.identity(i + 1, 0).role == 'lateral']
    assert len(pairs) > 15
    for one, two in pairs[:4]:
        frontal, lateral = phantom.record(one, SMALL), phantom.record(two, SMALL)
        assert frontal.identity.study == lateral.identity.study and frontal.identity.image != lateral.identity.image
        assert frontal.status == lateral.status and frontal.labels == lateral.labels
        assert {k: v for k, v in frontal.text.items() if k != 'findings'} == {
            k: v for k, v in lateral.text.items() if k != 'findings'
        }
        strip = re.compile(r'^(Lateral view|Frontal view, (PA|AP))\. ')
        assert strip.sub('', frontal.text['findings']) == strip.sub('', lateral.text['findings'])


def test_labels_agree_with_masks(frontals: list[phantom.Image]) -> None:
    wide = {0: [], 1: []}
    for rendered in frontals:
        shown = {name: (rendered.mask >> bit & 1).astype(bool) for bit, name in enumerate(phantom.MASKS)}
        for name in ('nodule', 'consolidation', 'effusion', 'pneumothorax'):
            assert shown[name].any() == bool(rendered.labels[name]) == (name in rendered.status.present), name
            if name in rendered.status.present:  # the patient's right side is on the left of the image
                middle = np.nonzero(shown['lung'].any(0))[0].mean()
                left = np.nonzero(shown[name])[1].mean() > middle
                assert left == (rendered.status.present[name].side == 'left'), name
        columns = np.nonzero(shown['lung'].any(0))[0]
        wide[rendered.labels['cardiomegaly']].append(np.ptp(np.nonzero(shown['heart'].any(0))[0]) / np.ptp(columns))
    assert np.mean(np.array(wide[1])[:, None] > np.array(wide[0])) > 0.97
    for name in phantom.LABELS:
        assert 0.1 < np.mean([rendered.labels[name] for rendered in frontals]) < 0.4, name


def test_findings_can_be_seen(frontals: list[phantom.Image]) -> None:
    """Lungs are dark, the heart is bright, and a nodule is brighter than the ring around it."""
    brighter = []
    for rendered in frontals:
        lung, heart = rendered.mask & 1 > 0, rendered.mask >> 1 & 1 > 0
        assert np.median(rendered.image[heart]) > np.median(rendered.image[lung & ~heart & ~(rendered.mask >> 2 > 0)])
        if 'nodule' in rendered.status.present:
            ball = rendered.mask >> 2 & 1 > 0
            rows, columns = np.nonzero(ball)
            y, x = np.mgrid[:64, :64]
            ring = (
                (np.hypot(y - rows.mean(), x - columns.mean()) < 6)
                & ~ball
                & lung
                & ~heart
                & ~(rendered.mask >> 4 & 1 > 0)
            )
            brighter.append(rendered.image[ball].astype(float).mean() > rendered.image[ring].mean())
    assert np.mean(brighter) > 0.75  # ribs and vessels cover some nodules


# Texts

SAYS = dict(
    nodule=r'\d\.\d cm nodule in the (right|left) (upper|mid|lower) zone',
    consolidation=r'\d+ cm consolidation in the (right|left) (upper|mid|lower) zone',
    effusion=r'(small|moderate|large) (right|left) pleural effusion',
    pneumothorax=r'(small|moderate|large) (right|left) pneumothorax',
    cardiomegaly=r'(mild|moderate|marked) cardiomegaly',
)
DENIES = dict(
    nodule=r'\bno (pulmonary |suspicious )?nodule',
    consolidation=r'\bno (focal )?consolidation',
    effusion=r'\bno (pleural )?effusion',
    pneumothorax=r'\bno pneumothorax',
    cardiomegaly=r'\bno cardiomegaly|heart size is normal|heart is of normal size',
)


def _reports(patients: int) -> list[tuple[findings.Status, findings.Status | None, dict[str, str]]]:
    """Status, earlier status and sections of all studies of many patients, without rendering."""
    studies = []
    for number in range(patients):
        rng = np.random.default_rng(number)
        course = findings.history(rng, 4)
        for visit, status in enumerate(course):
            text = reports.write(rng, status, 60, 'F', 30 if visit else 0, 'PA', False)
            studies.append((status, course[visit - 1] if visit else None, text))
    return studies


def test_reports_name_present_and_absent_findings() -> None:
    for status, _, text in _reports(200):
        words, impression = text['findings'].lower(), text['impression'].lower()
        for name in phantom.LABELS:
            assert bool(re.search(SAYS[name], words)) == (name in status.present), (name, words)
            assert bool(re.search(DENIES[name], words)) == (name not in status.present), (name, words)
            assert bool(re.search(SAYS[name], impression)) == (name in status.present), (name, impression)
        assert ('no acute findings' in impression) == (not status.present)
        for name in ('nodule', 'consolidation'):
            if finding := status.present.get(name):
                size, side, zone = re.search(rf'([\d.]+) cm {name} in the (\w+) (\w+) zone', words).groups()
                assert (side, zone) == (finding.side, finding.zone)
                assert abs(float(size) - finding.size) <= (0.051 if name == 'nodule' else 0.51)


def test_follow_up_sentences_agree_with_the_states() -> None:
    seen = set()
    for status, before, text in _reports(200):
        if before is None:
            assert status.change == {} and text['comparison'] == 'None.'
            assert not re.search('than before|unchanged|new|resolved', text['findings'])
            continue
        assert text['comparison'] == 'Radiograph of 30 days before.'
        for name in phantom.LABELS:
            now, then, change = status.present.get(name), before.present.get(name), status.change.get(name)
            expected = (
                None if not now and not then
                else 'new' if not then
                else 'resolved' if not now
                else 'larger' if now.size > then.size
                else 'smaller' if now.size < then.size
                else 'unchanged'
            )  # fmt: skip
            assert change == expected
            if now and then:
                assert now._replace(size=then.size) == then
            if change and change != 'resolved':
                says = dict(new='which is new', larger='larger than before', smaller='smaller than before')
                assert re.search(SAYS[name] + ', ' + says.get(change, 'unchanged'), text['findings'].lower())
            noun = 'pleural effusion' if name == 'effusion' else name
            assert (f'The {noun} seen before has resolved.' in text['findings']) == (change == 'resolved')
            seen.add((name, change))
    assert len(seen) == 5 * 6  # every finding had all five changes, and none


def test_prevalence_stays_the_same_at_follow_up() -> None:
    courses = [findings.history(np.random.default_rng(i), 4) for i in range(2500)]
    for name, share in findings.PREVALENCE.items():
        for visit in range(4):
            assert np.mean([name in course[visit].present for course in courses]) == pytest.approx(share, abs=0.035)


# Settings


def test_label_noise_flips_its_share_and_nothing_else() -> None:
    tiny = phantom.Settings(size=32, label_noise=0.2)
    nothing = findings.Status({}, {})
    flips = [list(phantom._labels(tiny, phantom.identity(i, 0), nothing).values()) for i in range(0, 6000, 4)]
    np.testing.assert_allclose(np.mean(flips, 0), 0.2, atol=0.04)
    noisy, clean = phantom.record(11, tiny), phantom.record(11, tiny._replace(label_noise=0.0))
    np.testing.assert_array_equal(clean.image, noisy.image)
    assert clean.text == noisy.text
    assert clean.labels == {name: int(name in clean.status.present) for name in phantom.LABELS}
    assert phantom.record(11, tiny._replace(label_noise=1.0)).labels == {k: 1 - v for k, v in clean.labels.items()}


def test_the_shortcut_comes_with_a_pneumothorax() -> None:
    tiny = phantom.Settings(size=32)
    lung = findings.Finding('left', '', 0.2, (0.0, 0.0, 0.0))
    for present, share in (({'pneumothorax': lung}, 0.6), ({}, 0.03)):
        status = findings.Status(present, {})
        sides = [
            phantom._tube_side(tiny._replace(shortcut=0.6), phantom.identity(i, 0), status) for i in range(0, 6000, 4)
        ]
        assert np.mean([side != '' for side in sides]) == pytest.approx(share, abs=0.04)
        assert not present or set(sides) == {'left', ''}
        assert phantom._tube_side(tiny, phantom.identity(0, 0), status) == ''
    seen = set()
    for i in range(24):
        rendered, plain = phantom.record(i, tiny._replace(shortcut=1.0)), phantom.record(i, tiny)
        tube = rendered.attributes['tube'] != 'none'
        assert tube == bool((rendered.mask >> 6 & 1).any()) == ('chest tube' in rendered.text['findings'])
        assert plain.attributes['tube'] == 'none' and np.array_equal(plain.image, rendered.image) != tube
        seen.add(tube)
    assert seen == {True, False}


def test_healthy_patients_have_no_finding_and_others_do_not_change() -> None:
    tiny = phantom.Settings(size=32)
    some = tiny._replace(healthy=0.43)
    before, now = ([phantom.labels(i, s) for i in range(4000)] for s in (tiny, some))
    normal = [np.mean([not any(labels.values()) for labels in of]) for of in (before, now)]
    assert normal[0] == pytest.approx(0.3, abs=0.02) and normal[1] == pytest.approx(0.6, abs=0.03)
    assert all(b == a or not any(b.values()) for a, b in zip(before, now))
    i = next(i for i, labels in enumerate(now) if any(labels.values()))
    np.testing.assert_array_equal(phantom.record(i, some).image, phantom.record(i, tiny).image)
    i = next(i for i, (a, b) in enumerate(zip(before, now)) if a != b)
    rendered = phantom.record(i, some)
    assert rendered.text['impression'] == 'No acute findings.' and not (rendered.mask >> 2).any()


# The source and the command


def test_splits_are_disjoint_and_the_ids_do_not_depend_on_the_size() -> None:
    whole = source.source(records=3000)
    drawn = splits.assign(whole)
    splits.check([entry.patient for entry in whole.entries], drawn)
    assert np.mean([name == 'train' for name in drawn]) == pytest.approx(0.7, abs=0.05)
    assert len({entry.image for entry in whole.entries}) == 3000
    patient_of_study = {entry.study: entry.patient for entry in whole.entries}
    assert all(patient_of_study[entry.study] == entry.patient for entry in whole.entries)
    counts = np.unique([entry.patient for entry in whole.entries], return_counts=True)[1]
    assert counts.max() > 4 and (counts > 1).mean() > 0.6


def test_build(tmp_path) -> None:
    out, npz = tmp_path / 'data', tmp_path / 'phantom.npz'
    assert main(['build', 'phantom', '--records', '40', '--size', '32', '--out', str(out), '--npz', str(npz)]) == 0
    data = records.open(out)
    assert data.labels == phantom.LABELS and data.size == 32 and sum(data.splits.values()) == 40
    rendered = [phantom.record(i, phantom.Settings(size=32)) for i in range(40)]
    train = data.split('train')
    by_image = {image.image.tobytes(): image for image in rendered}
    for i in range(5):
        record = train[i]
        twin = by_image[record.image[..., 0].tobytes()]
        assert record.label.tolist() == [twin.labels[name] for name in phantom.LABELS]
        np.testing.assert_array_equal(train.mask(i), twin.mask)
        assert record.attributes['sex'] == twin.attributes['sex']
    with np.load(npz) as arrays:
        assert arrays['train_images'].shape == (data.splits['train'], 32, 32)
        np.testing.assert_array_equal(arrays['train_labels'], train.labels_array)


@pytest.mark.parametrize(
    'options',
    [dict(records=0), dict(records=1, size=31), dict(records=1, size=2000), dict(records=1, label_noise=1.5),
     dict(records=1, shortcut=-0.1), dict(records=1, healthy=1.1), dict(records=1, seed=-1), dict(records=1, bits=12)],
)  # fmt: skip
def test_wrong_options_are_named(options: dict) -> None:
    with pytest.raises(UserError):
        source.source(**options)


def test_settings_and_version_are_in_the_fingerprint() -> None:
    versions = {
        source.source(1, seed=s, label_noise=n, shortcut=c, healthy=h).version
        for s, n, c, h in itertools.product((0, 1), (0, 0.1), (0, 1), (0, 0.4))
    }
    assert len(versions) == 16 and all(version.startswith(str(phantom.VERSION)) for version in versions)
