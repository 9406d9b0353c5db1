"""The memory that a plan states is what a run holds, and its FLOPs are the compiler's."""

from __future__ import annotations

import jax
import pytest
import recipes

from medjax.parallel import sharding
from medjax.plan import memory
from medjax.training.flops import model_flops
from medjax.training.state import state_shardings

if jax.device_count() != 8:
    pytest.skip('needs 8 (virtual) devices', allow_module_level=True)


def held(tree, device):
    """Bytes of a tree of arrays that lie on one device."""
    shards = (shard for x in jax.tree.leaves(tree) for shard in x.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


@pytest.mark.slow
def test_the_state_and_the_batch_on_eight_devices():
    """After a step, against the live arrays of the process and the arguments that the compiler counts."""
    recipe = recipes.tiny(rows_per_group=2)
    sizes = dict(data=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(**sizes)
    jax.set_mesh(mesh)
    objective, optimizer, step = recipes.parts(recipe)
    abstract = jax.eval_shape(lambda: recipes.start(objective, optimizer))
    planned = memory.state_bytes(abstract, state_shardings(objective, abstract, sharding.abstract_mesh(sizes)))
    shardings = state_shardings(objective, abstract, mesh)
    by_row = sharding.rows_sharding(mesh)
    before = {id(x) for x in jax.live_arrays()}
    state = recipes.start(objective, optimizer, shardings)
    batch = jax.device_put(recipes.batch(16), by_row)
    run = jax.jit(step.train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
    compiled = run.lower(state, batch).compile()
    arguments = compiled.memory_analysis().argument_size_in_bytes
    state, metrics = compiled(state, batch)
    del metrics
    # before `held` looks at shards, because each shard becomes an array of its own over the same bytes
    alive = [x for x in jax.live_arrays() if id(x) not in before and not x.is_deleted()]

    of_batch = memory.batch_bytes(batch, by_row)
    for device in (jax.devices()[0], jax.devices()[7]):
        assert planned['parameters'] == held(state.params, device)
        assert planned['moments'] == held(state.opt, device)
        assert planned['teachers'] == held(state.aux['teachers'], device)
        assert sum(planned.values()) == held(state, device)
        assert of_batch == held(batch, device)
        assert held(alive, device) == sum(planned.values()) + of_batch
    images = batch['cxr']['image'].nbytes // 4  # rows lie on data x fsdp = 4 shards
    assert sum(planned.values()) + images <= arguments <= sum(planned.values()) + of_batch  # jit drops unused fields
    whole = memory.state_bytes(abstract)
    assert whole['parameters'] == sum(x.nbytes for x in jax.tree.leaves(state.params)) > planned['parameters']


def test_parts_sum_up_to_the_peak():
    state = dict(parameters=40, moments=80, teachers=40, **{'other state': 8})
    parts = memory.by_part(state, batch=16, peak=500, arguments=200)
    assert parts['filling of tiles'] == 16 and parts['activations and temporaries'] == 300
    assert sum(parts.values()) == 500


@pytest.mark.slow
def test_flops_are_those_of_the_compiler_where_nothing_is_scanned():
    """The compiler counts elementwise work as well: a few percent of a model that is wide enough."""
    recipe = recipes.tiny(prototypes=2048)
    recipe['towers']['image'] |= dict(width=256, heads=4, unroll=2, remat='none')
    recipe['terms'] = [term for term in recipe['terms'] if term['term'] == 'distill_cls']
    jax.set_mesh(recipes.one_device())
    objective, optimizer, _ = recipes.parts(recipe)
    state = jax.eval_shape(lambda: recipes.start(objective, optimizer))
    views, masks = jax.eval_shape(recipes.views(recipe, objective), recipes.batch(8), state.key, state.step)

    def loss(params, aux, views, masks, key, step):
        computed, _ = objective.features(params, aux, views, masks, key, step)
        return objective.loss(params, aux, computed, views, masks, key, step)[0]

    given = state.params, state.aux, views, masks, state.key, state.step
    counted = model_flops(loss, *given)
    compiled = jax.jit(jax.grad(loss)).lower(*given).compile().cost_analysis()['flops']
    assert counted < compiled < 1.1 * counted
