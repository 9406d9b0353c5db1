"""Model FLOPs of a step, counted from its jaxpr, for the MFU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from medjax.models import drop_path, kernels
from medjax.objectives.compose import Objective
from medjax.types import Batch, MakeViews, TrainState


def model_flops(loss: Callable, params: Any, *rest: Any) -> float:
    """FLOPs of one forward and one backward pass of loss(params, *rest) by the parameters, nothing counted twice.

    They are counted in the forward-mode derivative. It holds two more products for each product of activations and
    parameters, as the backward pass does, and nothing that rematerialisation computes again. Only matrix products and
    convolutions count. Attention counts with its products, whichever kernel runs it.
    """
    derivative = jax.make_jaxpr(lambda p, t, *rest: jax.jvp(lambda p: loss(p, *rest), (p,), (t,)))
    with kernels.plain():
        return _count(derivative(params, params, *rest).jaxpr)


def step_flops(objective: Objective, make_views: MakeViews, state: TrainState, batch: Batch) -> float:
    """Model FLOPs of one step over the global batch, without those of the views."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    views, masks = jax.eval_shape(make_views, batch, state.key, state.step)

    def loss(params: Any, aux: Any, views: Any, masks: Any, key: Any, step: Any) -> Any:
        computed, _ = objective.features(params, aux, views, masks, key, step)
        return objective.loss(params, aux, computed, views, masks, key, step)[0]

    return model_flops(loss, shapes.params, shapes.aux, views, masks, shapes.key, shapes.step)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if drop_path.SCOPE in str(eqn.source_info.name_stack):
            continue  # products that only choose rows
        if eqn.primitive.name == 'dot_general':
            (contract, _), _ = eqn.params['dimension_numbers']
            depth = math.prod(_shape(eqn.invars[0])[i] for i in contract)
            total += 2.0 * math.prod(_shape(eqn.outvars[0])) * depth
        elif eqn.primitive.name == 'conv_general_dilated':
            kernel = _shape(eqn.invars[1])
            out_features = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
            total += 2.0 * math.prod(_shape(eqn.outvars[0])) * math.prod(kernel) / out_features
        else:
            times = eqn.params.get('length', 1) if eqn.primitive.name == 'scan' else 1
            inner = (_count(j) for value in eqn.params.values() for j in _jaxprs(value))
            total += times * (max(inner, default=0.0) if eqn.primitive.name == 'cond' else sum(inner))
    return total


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [
        v.jaxpr if isinstance(v, core.ClosedJaxpr) else v
        for v in values
        if isinstance(v, (core.Jaxpr, core.ClosedJaxpr))
    ]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
