"""Where the time of a program goes on a device: a trace of jax's profiler, by part of the step.

    costs = profile(lambda: jax.block_until_ready(run(x)), compiled.as_text(), count=3)
    by_part(costs)                                     {'MLP': 22.4, 'attention': 18.0, …} in ms

Each kernel of the trace belongs to an instruction of the optimised program, and its source says which part of the step
it comes from. With CUDA graphs (XLA's command buffers, which are on by default) kernels of libraries have no
instruction. Then products count as the part 'products without a source', unless XLA_FLAGS holds
--xla_gpu_enable_command_buffer= (nothing after it), which costs about 1 % of the time.
"""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from medjax.aot.hlo import FREE, Instruction, Program

# Parts of a step, by the scopes in the names that jax gives to operations; the first that fits counts.
PARTS = (
    ('views', r'\bviews\b'),
    ('optimizer', r'\boptimizer\b|^jit\(\w+\)/jit\(_where\)/'),  # a step that is not finite leaves the state as it is
    ('teachers', r'\bteachers\b'),
    ('copies', r'dynamic_update_slice'),  # what a scan stacks
    ('drop path', r'\bdrop_path\b|blocks.*jit\(_take\)'),
    ('attention', r'/(attn|cross)\b'),
    ('MLP', r'/mlp\b'),
    ('norms', r'/norm'),
    ('heads', r'\bheads/'),
    ('terms', r'\bterms/'),
    ('residuals', r'\bblocks?\b'),
    ('towers, other', r'\([A-Z]\w*\)'),
)
# Parts of a step, by the names of kernels that belong to no instruction.
KERNELS = (
    ('copies', r'(?i)^mem(cpy|set)'),
    ('attention', r'(?i)sdpa|fmha|flash|compute_dot_do_o|convert_dq'),
    ('products without a source', r'(?i)nvjet|cutlass|gemm|cublas|xmma|splitk'),
)


class Cost(NamedTuple):
    """All launches of one kernel for one instruction, in a step."""

    part: str
    ms: float
    launches: float
    kernel: str
    source: str  # the operation of jax; '' if it is unknown


def profile(run: Callable[[], Any], text: str, count: int) -> list[Cost]:
    """The costs of `run`, which runs the program with this optimised text once and waits for it. It runs `count` times.

    The largest come first. The list is empty if the trace holds no kernels of the program.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                run()
        files = sorted(Path(folder).rglob('*.xplane.pb'))
        planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(str(file)).planes]
        return costs(planes, Program(text), count)


def costs(planes: Iterable[Any], program: Program, count: int) -> list[Cost]:
    """The costs in the planes of a trace of `count` runs, for each run; the largest come first."""
    find = _finder(program)
    ns: collections.Counter[tuple[str, str, str]] = collections.Counter()
    launches: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for event in _kernels(list(planes)):
        one = find(event)
        if one is not None and one.op in FREE:
            continue  # a loop lasts as long as its kernels, which are counted
        source = '' if one is None else program.source(one)
        key = _part(one, source, event.name), event.name, source
        ns[key] += event.duration_ns
        launches[key] += 1
    return [
        Cost(part, total / count / 1e6, launches[part, kernel, name] / count, kernel, name)
        for (part, kernel, name), total in ns.most_common()
    ]


def by_part(costs: Iterable[Cost]) -> dict[str, float]:
    """Milliseconds of a step by part, the largest first."""
    ms: dict[str, float] = collections.defaultdict(float)
    for one in costs:
        ms[one.part] += one.ms
    return {part: round(total, 3) for part, total in sorted(ms.items(), key=lambda item: -item[1])}


def part_of(source: str) -> str:
    """The part of a step that an operation belongs to, by the name that jax gave it."""
    return next((part for part, words in PARTS if re.search(words, source)), 'other')


def _part(one: Instruction | None, source: str, kernel: str) -> str:
    """The part of a step that a kernel belongs to."""
    if one is None:
        return next((part for part, words in KERNELS if re.search(words, kernel)), 'other')
    copies = one.op in ('copy', 'copy-start') or re.search(r'(?i)^mem(cpy|set)|dynamic.update.slice', kernel)
    return 'copies' if copies else part_of(source)


def _kernels(planes: list[Any]) -> Iterator[Any]:
    """The events of kernels: those on the streams of a GPU, the operations of a TPU, or those of a CPU's threads.

    A plane of a GPU may have more lines, which repeat the kernels under names of operations or of steps.
    """
    devices = [plane for plane in planes if plane.name.startswith('/device:') and any(_events(plane))]
    for plane in devices:
        lines = {line.name: line for line in plane.lines}
        streams = [line for name, line in lines.items() if name.startswith('Stream')]
        for line in streams or [line for name, line in lines.items() if name == 'XLA Ops']:
            yield from line.events
    if not devices:
        yield from (event for plane in planes for event in _events(plane) if 'hlo_op' in dict(event.stats))


def _events(plane: Any) -> Iterator[Any]:
    for line in plane.lines:
        yield from line.events


def _finder(program: Program) -> Callable[[Any], Instruction | None]:
    """The function from an event to its instruction.

    An event names its instruction, or the CUDA graph that holds it. A kernel that XLA wrote has the name of its
    instruction, with _ in place of other signs.
    """
    labels = {one.label: one for instructions in program.computations.values() for one in instructions}
    kernels = {re.sub(r'\W', '_', label): one for label, one in labels.items()}

    def find(event: Any) -> Instruction | None:
        named = labels.get(str(dict(event.stats).get('hlo_op', '')))
        if named is not None and named.op != 'call':
            return named
        name = event.name.removeprefix('%').partition(' = ')[0]  # a TPU gives the text of the instruction
        return labels.get(name) or kernels.get(re.sub(r'\W', '_', name))

    return find
