"""The search finds what compiling everything would find, with fewer compilations, and says why others lose."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from medjax.aot import programs
from medjax.errors import UserError
from medjax.parallel import sharding
from medjax.plan import memory
from medjax.plan.exchanges import Exchange
from medjax.plan.facts import Facts
from medjax.plan.kernels import Kernel
from medjax.plan.meshes import GAIN, Candidate, Search, fits_rows, meshes, on_torus
from medjax.plan.roofline import estimate
from medjax.plan.settings import AS_WRITTEN, Setting, settings
from medjax.plan.topology import GIB, parse
from medjax.training.state import state_shardings

CONFIG = dict(rows_per_group=2, data=dict(cxr=dict(rows=2_048)))
SETTINGS = tuple(
    Setting(remat, unrolled, (f'remat={remat}', f'unroll={unrolled}'))
    for remat in ('products', 'none', 'blocks')
    for unrolled in (False, True)
)
STORED = dict(products=1.0, none=1.6, blocks=0.2)  # activations


class Machine:
    """A compiler by formulas: activations, kernels and exchanges that depend on the mesh as those of a ViT do."""

    def __init__(self, topology, parameters, activations, seconds, inefficiency, copies=0.0, none=1.0, ways=None):
        """copies: seconds that a loop stacks; none: the time of remat=none, relative to products."""
        self.topology, self.parameters, self.activations = parse(topology), parameters, activations
        self.time, self.inefficiency, self.runs = seconds, inefficiency, []
        self.copies, self.none, self.ways = copies, none, ways or (AS_WRITTEN,)

    def state(self, one):
        return 4 * self.parameters // (one.fsdp * one.tensor)

    def facts(self, one):
        chip, shards = self.topology.chip, one.data * one.fsdp
        remat, unrolled = one.setting.remat, one.setting.unrolled
        again = 1 + ((one.micro_batches > 1) + (remat == 'blocks')) / 3
        copied = 0 if unrolled else self.copies * chip.reached[1] * chip.bandwidth
        flops = chip.reached[0] * chip.flops * self.time
        slower = 1 + self.inefficiency * np.log2(one.fsdp * one.micro_batches)
        kernels = (
            Kernel('MLP', 1, flops * again * slower * (1.2 * self.none if remat == 'none' else 1.2), 0),
            Kernel('copies', 1, 0.0, round(copied)),
            Kernel('norms', 1, 0.0, round(copied)),  # which reads what was stacked
            Kernel('optimizer', 1, 0.0, 2 * self.state(one)),
        )
        gradient = Exchange('all-reduce', 1, self.parameters // one.tensor, shards, 1, (), '')
        weights = Exchange('all-gather', 3, self.parameters // 2, one.fsdp, 1, (), '')
        return Facts(
            device='', hosts=1, mesh=one.mesh, dtype='bfloat16', rows=dict(cxr=2_048), canvas=1,
            flops=flops * self.topology.chips, state=dict(parameters=self.state(one)), whole_state={}, batch=0,
            peak=self.state(one) + self.state(one) // 4 + self.stored(one),
            versions={}, lowering_s=0, compile_s=0, kernels=kernels, exchanges=(gradient, weights),
        )  # fmt: skip

    def stored(self, one):
        share = STORED[one.setting.remat] * (0.9 if one.setting.unrolled else 1.0)
        return int(share * self.activations * one.tensor / one.micro_batches)

    def compiled(self, one):
        self.runs.append(one)
        return self.facts(one)

    def search(self, **more):
        found = Search(self.topology, CONFIG, self.state, self.parameters, self.compiled, self.ways, **more)
        return found.run()

    def everything(self):
        """Seconds of every candidate that fits, with tensor=1."""
        found = {}
        for mesh, more, way in itertools.product(meshes(self.topology, CONFIG), range(11), self.ways):
            one = mesh._replace(micro_batches=2**more, setting=way)
            facts = self.facts(one)
            if mesh.tensor == 1 and fits_rows(one, CONFIG) and facts.peak <= self.topology.usable:
                found[one] = estimate(self.topology, facts).step
        return found


@pytest.mark.parametrize('topology', ['h100:1x8', 'h100:8x8'])
@pytest.mark.parametrize('seed', range(12))
def test_the_search_finds_what_compiling_everything_finds(topology, seed):
    rng = np.random.default_rng(seed)
    parameters, activations = (int(10 ** rng.uniform(8, 10.3)), int(10 ** rng.uniform(9, 11.5)))
    seconds, inefficiency, copies = 10 ** rng.uniform(-2, 0), rng.choice([0.0, 0.05]), rng.choice([0.0, 0.01, 0.1])
    none, ways = rng.uniform(0.9, 1.1), SETTINGS if seed % 2 else None
    machine = Machine(topology, parameters, activations, seconds, inefficiency, copies * seconds, none, ways)
    all_of_them = machine.everything()
    if not all_of_them:
        pytest.skip('nothing fits without tensor')
    best, *others = machine.search()
    assert best.why == 'best' and best.time.step <= min(all_of_them.values()) / (1 - GAIN)
    assert len(machine.runs) == len(set(machine.runs)) < len(all_of_them) + len(others)
    for one in others:  # no bound says more than the truth
        facts = machine.facts(one.candidate)
        if one.candidate.tensor == 1:
            assert one.least_bytes <= facts.peak and one.least_seconds <= estimate(machine.topology, facts).step * 1.001


def test_settings_are_compiled_where_no_bound_excludes_them():
    """The loop first, because it compiles fastest; then what may be faster. No second mesh."""
    machine = Machine('h100:8x8', 10**8, 10**10, 0.3, 0.01, copies=0.02, none=0.95, ways=SETTINGS)
    told, counts = [], []
    best, *others = machine.search(tell=told.append, count=lambda *pair: counts.append(pair))
    assert best.candidate.setting == Setting('none', True, ('remat=none', 'unroll=True'))
    assert machine.runs[0].setting == SETTINGS[0] and {one[:4] for one in machine.runs} == {(64, 1, 1, 1)}
    assert 3 <= len(machine.runs) <= 4 and all(one.setting.remat != 'blocks' for one in machine.runs)
    assert best.candidate.overrides[-2:] == ('remat=none', 'unroll=True')
    settled, last = zip(*counts, strict=True)
    assert settled == tuple(range(1, len(counts) + 1)) and settled[-1] == last[-1]  # the bar gets to its end
    assert len(told) == 2 * len(machine.runs) and told[1].endswith('ms a step')


def test_remat_and_micro_batches_compete_where_memory_is_short():
    """A step of 300 GiB fits eight cards with blocks that store their inputs alone; no micro-batch is faster."""
    machine = Machine('h100:1x8', 10**8, 300 * GIB, 0.3, 0.01, ways=SETTINGS[::2])
    best, *others = machine.search()
    assert best.time.step <= min(machine.everything().values()) / (1 - GAIN)
    assert best.candidate[:4] == (8, 1, 1, 1) and best.candidate.setting.remat == 'blocks'
    with pytest.raises(UserError, match='fits no mesh'):  # a recipe that takes no micro-batches
        Machine('h100:1x8', 10**8, 300 * GIB, 0.3, 0.01).search(more=False)


def test_settings_of_recipes():
    """Each change once; what the user sets stays; towers without these keywords and unknown values stay too."""

    def changes(name, *given):
        recipe = programs.prepare(name, given)
        return [one.overrides for one in settings(recipe.config, recipe.abstract.params['towers'], given)]

    depth, remat = 'towers.image.unroll=2', 'towers.image.remat='
    found = changes('tiny')
    assert found == [(), (depth,), (f'{remat}none',), (f'{remat}none', depth), (f'{remat}blocks',)] + [
        (f'{remat}blocks', depth)
    ]
    assert changes('tiny', depth) == [(), (f'{remat}none',), (f'{remat}blocks',)]
    assert changes('supervised_resnet50') == [(), (f'{remat}blocks',)]


def test_a_small_model_is_compiled_once():
    machine = Machine('h100:8x8', 10**8, 10**10, 0.3, 0.01)
    best, *others = machine.search()
    assert best.candidate == Candidate(64, 1, 1, 1) and machine.runs == [best.candidate]
    assert {one.why for one in others} >= {'cannot be faster by 2%'}


def test_activations_that_do_not_fit_take_micro_batches():
    machine = Machine('h100:1x8', 10**8, 300 * GIB, 0.3, 0.01)
    best, *others = machine.search()
    assert best.candidate.micro_batches == 8 and best.facts.peak <= machine.topology.usable
    assert machine.runs[0] == Candidate(8, 1, 1, 1) and Candidate(8, 1, 1, 2) not in machine.runs  # 150 GiB at least
    assert {one.candidate: one.why for one in others}[Candidate(8, 1, 1, 1)] == 'needs 300.5 GiB'


def test_a_large_state_takes_fsdp_and_then_tensor():
    machine = Machine('h100:1x8', 50 * GIB, 10**9, 0.3, 0.01)  # 200 GiB of state
    best, *_ = machine.search()
    assert best.candidate.tensor == 1 and best.candidate.fsdp in (4, 8)
    assert all(one.fsdp >= 4 for one in machine.runs)  # smaller ones are excluded by their state alone


@pytest.mark.parametrize(
    ('parameters', 'activations', 'words'),
    [(900 * GIB, 0, 'the state is 450.0 GiB; more chips'), (GIB, 10**18, 'a smaller batch_size')],
)
def test_a_recipe_that_fits_no_mesh_is_a_sentence(parameters, activations, words):
    with pytest.raises(UserError, match='fits no mesh; the smallest is mesh.data') as error:
        Machine('h100:1x8', parameters, activations, 0.3, 0.01).search()
    assert words in str(error.value)


def test_rows_that_no_mesh_divides_are_a_sentence():
    with pytest.raises(UserError, match='no mesh of 8 chips divides the rows'):
        Search(parse('h100:1x8'), dict(rows_per_group=3, data=dict(cxr=dict(rows=8))), None, 1, None, None).run()


def test_meshes_of_a_torus_take_whole_axes():
    sizes = {one.data for one in meshes(parse('v5p:4x4x4'), CONFIG)}
    assert sizes == {1, 4, 16, 64}
    assert on_torus(parse('v5p:8x8x8'), (64, 8, 1)) and not on_torus(parse('v5p:8x8x8'), (256, 2, 1))
    assert on_torus(parse('v5e:4x4'), (2, 8, 1))  # jax splits the axes of a torus of two dimensions


def test_the_state_of_a_recipe_without_devices():
    """fsdp and tensor split the state; data does not."""
    recipe = programs.prepare('tiny')

    def state(**sizes):
        mesh = sharding.abstract_mesh(dict(data=1, fsdp=1, tensor=1) | sizes)
        return memory.state_bytes(recipe.abstract, state_shardings(recipe.objective, recipe.abstract, mesh))

    whole = memory.state_bytes(recipe.abstract)
    assert state(data=8) == whole
    assert all(state(fsdp=4)[part] < whole[part] for part in ('parameters', 'moments', 'teachers'))
    assert state(fsdp=2, tensor=2)['parameters'] < state(fsdp=2)['parameters']
    assert jax.device_count() == 8
