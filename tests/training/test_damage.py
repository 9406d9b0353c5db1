"""Damaged checkpoints: the one before is taken, and that is said."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UserError
from medjax.training import checkpoint, file_list
from medjax.training.checkpoint import Checkpoints, abstract
from medjax.types import TrainState

LIST = file_list.NAME


def state(value: float, shape: tuple[int, ...] = (64, 96)) -> TrainState:
    """A state with an array that is stored in a file of its own, and with small ones."""
    large = jax.random.normal(jax.random.key(int(value)), shape)
    return TrainState(
        jnp.int32(value), {'w': large}, {'m': jnp.full(3, value)}, {}, jax.random.key(0), {'total': jnp.int32(0)}
    )


def like(of: TrainState) -> TrainState:
    return abstract(of, jax.tree.map(lambda x: x.sharding, of))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Checkpoints of the steps 4 and 8."""
    folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
    checkpoints = Checkpoints(folder, every=4, keep=2)
    for step in (4, 8):
        checkpoints.save(step, state(step))
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'run' / 'checkpoints')


def resumed(folder: Path, want: TrainState | None = None):
    """What a run that starts takes: the step, and the sentences. Its numbers are those that were saved."""
    checkpoints = Checkpoints(folder, every=4, keep=2)
    found, notes = checkpoints.resume(like(want or state(8)))
    if found is None:
        return None, notes
    right = state(int(found.step), found.params['w'].shape)
    for name in ('params', 'opt', 'step'):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(right, name))
    # a later save of a damaged step works
    checkpoints.save(8, state(8, found.params['w'].shape))
    checkpoints.close()
    assert checkpoint.steps(folder)[-1] == 8 and file_list.damage(folder / '8') is None
    return int(found.step), notes


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def changed(path: Path) -> None:
    """As many bytes, but one of them is another: a bad disk, or a part that was never written."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def removed(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize('damage', [half, empty, changed, removed])
def test_every_file_and_folder_of_the_newest_checkpoint(saved, tmp_path, damage):
    names = [path.relative_to(saved / '8') for path in sorted((saved / '8').rglob('*'))]
    assert len(names) > 10 and LIST in map(str, names)
    for i, name in enumerate(names):
        if (damage is not removed and (saved / '8' / name).is_dir()) or (damage is removed and str(name) == LIST):
            continue
        folder = shutil.copytree(saved, tmp_path / str(i) / 'checkpoints')
        damage(folder / '8' / name)
        checkpoints = Checkpoints(folder, every=4, keep=2)
        found, (note,) = checkpoints.resume(like(state(8)))
        checkpoints.close()
        np.testing.assert_array_equal(found.params['w'], state(4).params['w'])
        assert int(found.step) == 4 and 'checkpoint of step 8 cannot be used' in note, name
        assert 'the one of step 4 is taken' in note and note.endswith('is now 8.damaged'), note
        assert sorted(os.listdir(folder)) == ['4', '8.damaged']  # set aside, not deleted
        shutil.rmtree(tmp_path / str(i))


def test_a_damaged_step_is_saved_again(folder):
    half(next((folder / '8' / 'default' / 'd').iterdir()))
    assert resumed(folder)[0] == 4
    step, notes = resumed(folder)
    assert (step, notes) == (8, ())
    half(folder / '8' / LIST)
    step, (note,) = resumed(folder)
    assert step == 4 and f'its list of files, {LIST}, is damaged' in note
    assert sorted(os.listdir(folder)) == ['4', '8', '8.damaged']


def test_whole_checkpoints_are_taken_without_a_word(folder):
    assert resumed(folder) == (8, ())
    assert resumed(folder / 'none') == (None, ())


def test_a_checkpoint_without_a_list_is_taken_if_it_can_be_read(folder, capfd):
    """It is of an older version, or the run was killed between the save and the list."""
    (folder / '8' / LIST).unlink()
    assert resumed(folder) == (8, ())
    for name in ('default', 'default/_METADATA', 'default/d', 'default/ocdbt.process_0', 'default/manifest.ocdbt'):
        again = shutil.copytree(folder, folder.parent / name.replace('/', '-'))
        (again / '8' / LIST).unlink(missing_ok=True)
        removed(again / '8' / name)
        step, (note,) = resumed(again)
        assert step == 4 and 'it cannot be read' in note, name
    assert 'Traceback' not in capfd.readouterr().err


def test_a_newest_checkpoint_of_another_shape(folder):
    other = Checkpoints(folder.parent / 'other', every=4, keep=2)
    other.save(8, state(8, (64, 32)))
    other.close()
    shutil.rmtree(folder / '8')
    shutil.copytree(folder.parent / 'other' / '8', folder / '8')
    step, (note,) = resumed(folder)
    assert step == 4 and 'params/w is float32[64, 32] in the checkpoint and float32[64, 96] by the config' in note


def test_all_checkpoints_are_damaged(folder):
    (folder.parent / 'exports' / '4').mkdir(parents=True)
    for step in (4, 8):
        half(next((folder / str(step) / 'default' / 'd').iterdir()))
    with pytest.raises(
        UserError, match=r'none of the checkpoints can be used \(step 8: .* bytes of .*; step 4: '
    ) as told:
        resumed(folder)
    assert '--from OTHER' in str(told.value) and '/run/exports/4")\'' in str(told.value)
    assert sorted(os.listdir(folder)) == ['4', '8']  # nothing is changed


def test_a_parent_with_a_damaged_checkpoint(folder):
    before = sorted(os.listdir(folder))
    changed(next((folder / '8' / 'default' / 'd').iterdir()))
    parent = Checkpoints(folder, every=1, keep=2, read_only=True)
    with pytest.raises(UserError, match='has other bytes than were saved; there are also checkpoints of step 4'):
        parent.restore(8, like(state(8)))
    np.testing.assert_array_equal(parent.restore(4, like(state(4))).params['w'], state(4).params['w'])
    assert sorted(os.listdir(folder)) == before


def test_a_sigterm_before_the_first_step_of_a_resumed_run(folder, monkeypatch):
    """jax stops at the number after the greatest one of its calls, 1 where there was none, and never later."""
    stop = 1
    monkeypatch.setattr(checkpoint.multihost_utils, 'reached_preemption_sync_point', lambda number: number == stop)
    checkpoints = Checkpoints(folder, every=4, keep=2)
    assert checkpoints.stopping(9)
    stop = 3
    assert [checkpoints.stopping(step) for step in (10, 11, 12)] == [False, True, False]
    checkpoints.close()


def test_a_list_that_names_no_file_is_damage(folder):
    (folder / '8' / file_list.NAME).write_text('{}')
    shutil.rmtree(folder / '8' / 'default')
    checkpoints = Checkpoints(folder, every=4, keep=2)
    found, notes = checkpoints.resume(like(state(8)))
    checkpoints.close()
    assert int(found.step) == 4 and 'is empty' in notes[0]


def test_what_a_killed_save_leaves_is_swept(folder):
    left = folder / '12.orbax-checkpoint-tmp'
    (left / 'default.orbax-checkpoint-tmp').mkdir(parents=True)
    (left / 'default.orbax-checkpoint-tmp' / 'd').write_bytes(b'half')
    Checkpoints(folder, every=1, keep=2, read_only=True)
    assert left.exists()  # another run may be writing it
    Checkpoints(folder, every=4, keep=2).close()
    assert sorted(os.listdir(folder)) == ['4', '8']
