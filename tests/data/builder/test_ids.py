"""Hashed ids, the private key, and splits by patient."""

import hashlib
import hmac

import numpy as np
import pytest

from medjax.data.builder import ids, splits
from medjax.data.types import SPLIT_NAMES, Entry, Source
from medjax.errors import UserError


def test_hashed_is_hmac_sha256_cut_to_64_bits():
    digest = hmac.new(b'secret', b'nih:00017', hashlib.sha256).hexdigest()
    assert f'{int(ids.hashed(b"secret", "nih", "00017")):016x}' == digest[:16]
    assert ids.hashed(b'secret', 'nih', '00017') != ids.hashed(b'secret', 'mimic', '00017')
    assert ids.hashed(b'other', 'nih', '00017') != ids.hashed(b'secret', 'nih', '00017')


def test_key_comes_from_the_environment_or_a_private_file(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))
    monkeypatch.setenv('MEDJAX_ID_KEY', 'my secret')
    assert ids.private_key() == b'my secret'
    assert not ids.key_file().exists()

    monkeypatch.setenv('MEDJAX_ID_KEY', '')
    with pytest.raises(UserError, match='set but empty'):
        ids.private_key()

    monkeypatch.delenv('MEDJAX_ID_KEY')
    key = ids.private_key()
    assert len(key) == 64 and ids.private_key() == key
    assert ids.key_file().stat().st_mode & 0o777 == 0o600
    assert [file.name for file in ids.key_file().parent.iterdir()] == ['id_key']

    ids.key_file().chmod(0o644)
    with pytest.raises(UserError, match='chmod 600'):
        ids.private_key()

    ids.key_file().unlink()
    ids.key_file().mkdir(mode=0o700)
    with pytest.raises(UserError, match='cannot be read'):
        ids.private_key()


def test_fingerprint_does_not_hold_the_key():
    assert len(ids.fingerprint(b'secret')) == 16
    assert ids.fingerprint(b'secret') != ids.fingerprint(b'secret2')


def source(entries, labels=(), label=lambda i: []) -> Source:
    return Source('x', '1', 'x', labels, '', entries, label, load=lambda i: None)


def test_stratified_splits_keep_patients_together_and_labels_in_their_shares():
    rng = np.random.default_rng(0)
    patients = [f'p{i // 3}' for i in range(3000)]
    labels = rng.random((3000, 3)) < [0.5, 0.05, 0.01]
    labels[:, 1] |= np.repeat(rng.random(1000) < 0.02, 3)  # this label belongs to whole patients
    whole = source([Entry(str(i), p, p, None) for i, p in enumerate(patients)], ('a', 'b', 'c'), lambda i: labels[i])
    drawn = np.array(splits.assign(whole, ['a', 'b', 'c']))
    assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 3000, 3))
    for name, share in zip(SPLIT_NAMES, splits.FRACTIONS, strict=True):
        assert abs((drawn == name).mean() - share) < 0.002
        for column in labels.T:
            assert abs((drawn[column] == name).sum() - share * column.sum()) <= 3  # a patient has three images
    plain = np.array(splits.assign(whole))
    rare = [abs((d[labels[:, 2]] == 'val').mean() - 0.1) for d in (drawn, plain)]
    assert rare[0] < rare[1]
    with pytest.raises(UserError, match="no label 'aa'; did you mean 'a'"):
        splits.assign(whole, ['aa'])
    with pytest.raises(UserError, match='--split drawn'):
        splits.assign(source([Entry('a', 'p', 's', 'train')], ('a',), lambda i: [1]), ['a'])


def test_drawn_splits_keep_patients_together_and_meet_their_shares():
    patients = [f'p{i // 3}' for i in range(9000)]
    drawn = np.array(splits.assign(source([Entry(str(i), p, p, None) for i, p in enumerate(patients)])))
    assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 9000, 3))
    for name, share in zip(SPLIT_NAMES, splits.FRACTIONS, strict=True):
        assert abs((drawn == name).mean() - share) < 4 * (share * (1 - share) / 3000) ** 0.5
    # the definition, which is the same on every machine and for every key
    u = int.from_bytes(hashlib.sha256(b'0:x:p5').digest()[:8], 'big') / 2**64
    assert splits.draw('x', 'p5') == ('train' if u < 0.7 else 'val' if u < 0.8 else 'test')
    assert list(drawn) != [splits.draw('y', p) for p in patients]


def test_given_splits_are_checked():
    entries = [Entry('a', 'p1', 's', 'train'), Entry('b', 'p1', 's', 'test'), Entry('c', 'p2', 's', 'val')]
    with pytest.raises(UserError, match=r'1 of 2 patients .*1 in train and test.*add --split drawn') as error:
        splits.assign(source(entries))
    assert 'p1' not in str(error.value)
    assert splits.assign(source(entries[1:])) == ['test', 'val']
    with pytest.raises(UserError, match='train, val or test'):
        splits.assign(source([Entry('a', 'p', 's', 'dev')]))
