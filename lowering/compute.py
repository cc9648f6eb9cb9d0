"""What each convolution computes, in TE: no tile, no loop order, no target.

Every function takes the output domain to compute over, which a schedule may have rounded up to whole tiles (see
`tiling`); elements beyond the true output are never stored. Axes are `n, oc, ic, oh, ow, kh, kw`; a packed
tensor is `[n, oc_o, *spatial, oc_v]`.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from tvm import te, tirx

from sepwise.lowering.vector_math import activate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tvm.ir import PrimExpr

    from sepwise.lowering.workload import ConvWorkload, DTypes, LinearWorkload, Stage
    from sepwise.passes.equivalence.winograd import Winograd
    from sepwise.passes.vocabulary import Activation

__all__ = [
    "ConvCompute",
    "GroupWiseCompute",
    "LaneSource",
    "StageTensors",
    "WinogradCompute",
    "conv",
    "expanded",
    "group_wise",
    "groups_of_block",
    "input_extents",
    "lane_source",
    "linear",
    "permuted_channels",
    "plain_depthwise",
    "winograd",
]


@dataclass(frozen=True)
class StageTensors:
    """The tensors of one stage, by the names of their blocks.

    Attributes:
        pad: Name of the block that stages the padded input, or None.
        accumulator: Name of the reduction block.
        output: Name of the epilogue block.
    """

    pad: str | None
    accumulator: str
    output: str


@dataclass(frozen=True)
class ConvCompute:
    """A convolution chain as a PrimFunc.

    Attributes:
        function: Parameters: input, residual if any, then weight and bias of each stage, output.
        stages: Block names of each stage.
    """

    function: tirx.PrimFunc
    stages: tuple[StageTensors, ...]


def conv(
    workload: ConvWorkload,
    domain: Sequence[int],
    oc_blocks: int,
    oc_pack: Sequence[int],
    *,
    flat: bool = False,
    permuted: bool = False,
) -> ConvCompute:
    """Builds the compute of a chain of convolutions.

    Args:
        workload: What to compute.
        domain: Spatial extents of the last stage's output to compute over, at least the true ones; one extent,
            the pixels, where `flat`.
        oc_blocks: Blocks of output channels of the last stage to compute over.
        oc_pack: For each stage the output blocks that lie together in its weights,
            `[oc_o / pack, kh, kw, ic, oc_o % pack, oc_v]`.
        flat: Whether the spatial axes are one; every stage must be flat.
        permuted: Whether lanes of several groups are written as a permutation of `permuted_channels`, not as a selection.

    Returns:
        The PrimFunc and the names of its blocks.
    """
    lanes, last, dtype = workload.output_lanes, len(workload.stages) - 1, _element_type(workload.dtypes)
    true_spatials = [(math.prod(spatial),) if flat else spatial for spatial in workload.spatials]
    rounded = tuple(domain) != true_spatials[-1]
    domains = [tuple(domain)]
    staged: list[bool] = []
    for index in range(last, -1, -1):
        stage = workload.stages[index]
        # A chain computes whole rows of its intermediates, so its input must be readable past its end.
        beyond = last > 0 and rounded and index == 0
        staged.insert(0, stage.padded or beyond)
        if flat:
            domains.insert(0, domains[0])
        else:
            domains.insert(0, true_spatials[index] if staged[0] else input_extents(stage, domains[0]))
    first = workload.stages[0]
    source = _Source.placeholder("data", workload.batch, first.in_channels, domains[0], workload.input_lanes, dtype)
    forms = []
    for index, stage in enumerate(workload.stages):
        blocks = oc_blocks if index == last else math.ceil(stage.out_channels / lanes)
        forms.append(_Form(stage, index, lanes, blocks, oc_pack[index], domains[index + 1], flat, permuted))

    def read(form: _Form, written: _Source) -> tuple[_Source, str | None]:
        if not staged[form.index]:
            return written, None
        pad = form.stage_input(written, true_spatials[form.index])
        return pad, pad.tensor.op.name

    return _chain(workload, source, forms, read)


def expanded(
    workload: ConvWorkload, domain: Sequence[int], width: int, expanded_blocks: int, oc_blocks: int, oc_pack: Sequence[int]
) -> ConvCompute:
    """Builds the compute of a chain whose first stage is flat and whose second is not, without a copy between the two.

    Of rows, and of all axes but the last, the first stage computes those that the second one reads, padding included: for that it
    reads the row at its input's edge, and writes zeros. So equally many rows of the output need equally many of it, wherever they
    lie. Before and behind a row the second stage reads zeros by `if_then_else`.

    Args:
        workload: What to compute, its further stages flat.
        domain: Spatial extents of the last stage's output to compute over, at least the true ones.
        width: Extent of the last axis over which the first stage is computed, at least the true one.
        expanded_blocks: Blocks of channels between the stages to compute over.
        oc_blocks: Blocks of output channels of the last stage to compute over.
        oc_pack: As in `conv`.

    Returns:
        The PrimFunc and the names of its blocks.
    """
    dtype, (*outer, true_width) = _element_type(workload.dtypes), workload.spatial
    first, second = workload.stages[:2]
    reached = input_extents(second, domain)[:-1]
    edges = tuple(map(_Edge, second.pads_begin, outer, reached))
    source = _Source.placeholder("data", workload.batch, first.in_channels, (*outer, width), workload.input_lanes, dtype)
    forms = []
    for index, stage in enumerate(workload.stages):
        computed = tuple(domain) if index else (*reached, width)
        blocks = oc_blocks if index == len(workload.stages) - 1 else expanded_blocks
        forms.append(_Form(stage, index, workload.output_lanes, blocks, oc_pack[index], computed, flat=False, permuted=False))
    forms[0] = replace(forms[0], edges=edges)
    rows = replace(second, pads_begin=(*(0 for _ in outer), second.pads_begin[-1]))

    def read(form: _Form, written: _Source) -> tuple[_Source, str | None]:
        if form.index != 1:
            return written, None
        pad = replace(form, stage=rows).stage_input(written, (*reached, true_width))
        return pad, pad.tensor.op.name

    return _chain(workload, source, forms, read)


def _chain(
    workload: ConvWorkload,
    source: _Source,
    forms: Sequence[_Form],
    read: Callable[[_Form, _Source], tuple[_Source, str | None]],
) -> ConvCompute:
    """Stages one after the other; `read` gives what one reads of what the one before it wrote, and the block that stages it."""
    parameters, last, names = [source.tensor], forms[-1], []
    residual = None
    if workload.residual:
        shape = (workload.batch, last.blocks, *last.domain, last.lanes)
        residual = te.placeholder(shape, source.tensor.dtype, name="residual")
        parameters.append(residual)
    for form in forms:
        taken, pad = read(form, source)
        total, weight = form.accumulate(taken)
        bias = te.placeholder((form.blocks, form.lanes), total.dtype, name=f"bias{form.index}")
        output = form.epilogue(
            lambda *index, sums=total: sums[index],
            total.shape,
            bias,
            residual if form is last else None,
            workload.post_activation if form is last else None,
        )
        parameters += [weight, bias]
        names.append(StageTensors(pad, total.op.name, output.op.name))
        source = _Source(output, form.lanes)
    return ConvCompute(te.create_prim_func([*parameters, source.tensor]), tuple(names))


@dataclass(frozen=True)
class GroupWiseCompute:
    """A grouped convolution of whole vectors of each group, as a PrimFunc.

    Attributes:
        function: Parameters: input, residual if any, weight, bias, output.
        stage: Block names; `output` writes the sums of a group's vectors.
        merged: Name of the block that takes each lane of the output from its group, with the epilogue.
    """

    function: tirx.PrimFunc
    stage: StageTensors
    merged: str


def group_wise(workload: ConvWorkload, domain: Sequence[int], group_blocks: int, pack: int) -> GroupWiseCompute:
    """Builds the compute of a grouped convolution whose output blocks hold lanes of several groups, each group by itself.

    A group computes every block that has a lane of it, all lanes; the others' are not read again.

    Args:
        workload: What to compute, of one stage.
        domain: Spatial extents of the output over which sums are computed, at least the true ones.
        group_blocks: Blocks that are computed of each group, at least those of any one.
        pack: Blocks that lie together in the weights, `[g * group_blocks / pack, *kernel, ic, pack, oc_v]`; those of a group are
            whole packs.

    Returns:
        The PrimFunc, whose bias is `[g * group_blocks, oc_v]`, and the names of its blocks.
    """
    (stage,), lanes, dtype = workload.stages, workload.output_lanes, _element_type(workload.dtypes)
    held = workload.spatial if stage.padded else input_extents(stage, domain)
    source = _Source.placeholder("data", workload.batch, stage.in_channels, held, workload.input_lanes, dtype)
    blocks = stage.groups * group_blocks
    form = _Form(stage, 0, lanes, blocks, pack, tuple(domain), flat=False, permuted=False, group_blocks=group_blocks)
    pad = form.stage_input(source, workload.spatial) if stage.padded else None
    total, weight = form.accumulate(source if pad is None else pad)
    bias = te.placeholder((blocks, lanes), dtype, name="bias0")
    sums = te.compute(total.shape, lambda *index: total[index] + bias[index[1], index[-1]], name="sums0")
    shape = (workload.batch, math.ceil(stage.out_channels / lanes), *domain[:-1], workload.spatials[-1][-1], lanes)
    residual = te.placeholder(shape, dtype, name="residual") if workload.residual else None
    count, per_group = groups_of_block(stage, lanes), stage.out_channels_per_group

    def merge(n: Any, oc_o: Any, *rest: Any) -> PrimExpr:
        first = tirx.floordiv(oc_o * lanes, per_group)

        def lanes_of(place: int) -> PrimExpr:
            """The block as a group computes it, counted from the block's first group; any block where it has no lane of it."""
            group = tirx.min(first + place, stage.groups - 1) if place else first
            block = tirx.max(oc_o - tirx.floordiv(group * per_group, lanes), 0)
            return sums[(n, group * group_blocks + block, *rest)]

        value = lanes_of(count - 1)
        for place in reversed(range(count - 1)):
            value = tirx.Select(rest[-1] < (first + place + 1) * per_group - oc_o * lanes, lanes_of(place), value)
        added = None if residual is None else residual[(n, oc_o, *rest)]
        return _finished(stage, value, added, workload.post_activation)

    output = te.compute(shape, merge, name="output0")
    parameters = [source.tensor, *([] if residual is None else [residual]), weight, bias, output]
    names = StageTensors(None if pad is None else pad.tensor.op.name, total.op.name, sums.op.name)
    return GroupWiseCompute(te.create_prim_func(parameters), names, output.op.name)


def plain_depthwise(workload: ConvWorkload, domain: Sequence[int]) -> ConvCompute:
    """Builds the compute of a convolution of one input channel a group, on plain tensors.

    Rows and planes behind the border are told by `if_then_else`, columns by `Select`, whose sides a vector computes both
    (see `width_loads`).

    Args:
        workload: What to compute, of one stage.
        domain: Spatial extents of the output to compute over, at least the true ones; tests tell the border for true ones.

    Returns:
        The PrimFunc over `[n, c, *spatial]`, its weights `[oc, *kernel]`, its bias `[oc]`; and the names of its blocks.
    """
    (stage,), dtype = workload.stages, _element_type(workload.dtypes)
    data = te.placeholder((workload.batch, stage.in_channels, *workload.spatial), dtype, name="data")
    shape = (workload.batch, stage.out_channels, *domain)
    residual = te.placeholder(shape, dtype, name="residual") if workload.residual else None
    weight = te.placeholder((stage.out_channels, *stage.kernel), dtype, name="weight0")
    bias = te.placeholder((stage.out_channels,), dtype, name="bias0")
    names = ("kd", "kh", "kw")[-len(stage.kernel) :]
    taps = [te.reduce_axis((0, extent), name=name) for extent, name in zip(stage.kernel, names, strict=True)]
    reached = input_extents(stage, workload.spatials[-1])
    zero = tirx.const(0.0, dtype)

    def multiply(n: PrimExpr, oc: PrimExpr, *spatial: PrimExpr) -> PrimExpr:
        position, inside = [], []
        for s, tap, stride, dilation, begin, extent, available in zip(
            spatial, taps, stage.strides, stage.dilations, stage.pads_begin, reached, workload.spatial, strict=True
        ):
            p = s * stride + tap * dilation - begin
            position.append(p)
            tests = [p >= 0] if begin else []
            inside.append([*tests, p < available] if extent - begin > available else tests)
        value = data[(n, tirx.floordiv(oc, stage.out_channels_per_group), *position)]
        *outer, columns = inside
        if columns:
            value = tirx.Select(tirx.all(*columns), value, zero)
        if rows := [test for tests in outer for test in tests]:
            value = tirx.if_then_else(tirx.all(*rows), value, zero)
        return te.sum(value * weight[(oc, *taps)], axis=taps)

    total = te.compute(shape, multiply, name="conv0")

    def finish(n: PrimExpr, oc: PrimExpr, *spatial: PrimExpr) -> PrimExpr:
        added = None if residual is None else residual[(n, oc, *spatial)]
        return _finished(stage, total[(n, oc, *spatial)] + bias[oc], added, workload.post_activation)

    output = te.compute(shape, finish, name="output0")
    parameters = [data, *([] if residual is None else [residual]), weight, bias, output]
    return ConvCompute(te.create_prim_func(parameters), (StageTensors(None, total.op.name, output.op.name),))


@dataclass(frozen=True)
class WinogradCompute:
    """A convolution by transformed tiles as a PrimFunc.

    Attributes:
        function: Parameters: input, residual if any, weight, bias, output.
        pad: Name of the block that stages the padded input.
        rows: Name of the block that transforms the columns of input tiles, which makes rows of values.
        values: Name of the block that transforms these rows.
        accumulator: Name of the reduction block.
        product: Name of the block that writes sums to memory.
        columns: Name of the block that transforms the columns of sums.
        output: Name of the block that transforms their rows, with the epilogue.
    """

    function: tirx.PrimFunc
    pad: str
    rows: str
    values: str
    accumulator: str
    product: str
    columns: str
    output: str


def winograd(
    workload: ConvWorkload, algorithm: Winograd, grid: tuple[int, int], oc_blocks: int, oc_pack: int
) -> WinogradCompute:
    """Builds the compute of a 3 x 3 convolution by transformed tiles.

    Args:
        workload: What to compute, packed alike in and out.
        algorithm: The points, and with them the size of tiles.
        grid: Rows and columns of the blocks of tiles over which tensors between the stages are laid out.
        oc_blocks: Blocks of output channels to compute over.
        oc_pack: Output blocks that lie together in the weights, `[oc_o / pack, n * n, ic, oc_o % pack, oc_v]`.

    Returns:
        The PrimFunc over whole blocks of tiles, and the names of its blocks.
    """
    (stage,), lanes, dtype = workload.stages, workload.output_lanes, _element_type(workload.dtypes)
    m, size, (rows, columns) = algorithm.outputs, algorithm.size, grid
    blocks = [math.ceil(extent / (m * tiles)) for extent, tiles in zip(workload.spatials[-1], grid, strict=True)]
    domain = tuple(count * tiles * m for count, tiles in zip(blocks, grid, strict=True))
    source = _Source.placeholder("data", workload.batch, stage.in_channels, workload.spatial, lanes, dtype)
    form = _Form(stage, 0, lanes, oc_blocks, oc_pack, domain, flat=False, permuted=False)
    pad = form.stage_input(source, workload.spatial)
    outer = (workload.batch, *blocks)
    in_blocks, tiles = math.ceil(stage.in_channels / lanes), rows * columns

    def start(s_h: PrimExpr, s_w: PrimExpr, p: PrimExpr) -> tuple[PrimExpr, PrimExpr]:
        """The first row and column of a tile."""
        return (s_h * rows + tirx.floordiv(p, columns)) * m, (s_w * columns + tirx.floormod(p, columns)) * m

    def transform_columns(n: Any, s_h: Any, s_w: Any, ic_o: Any, p: Any, a: Any, v: Any, ic_v: Any) -> PrimExpr:
        row, column = start(s_h, s_w, p)
        return _one_of(a, _input_transform(algorithm, [pad.tensor[n, ic_o, row + u, column + v, ic_v] for u in range(size)]))

    first = te.compute((*outer, in_blocks, tiles, size, size, lanes), transform_columns, name="rows0")

    def transform_rows(n: Any, s_h: Any, s_w: Any, e: Any, ic_o: Any, p: Any, ic_v: Any) -> PrimExpr:
        a, b = tirx.floordiv(e, size), tirx.floormod(e, size)
        return _one_of(b, _input_transform(algorithm, [first[n, s_h, s_w, ic_o, p, a, v, ic_v] for v in range(size)]))

    values = te.compute((*outer, size**2, in_blocks, tiles, lanes), transform_rows, name="values0")
    weight = te.placeholder((oc_blocks // oc_pack, size**2, stage.in_channels, oc_pack, lanes), dtype, name="weight0")
    ic = te.reduce_axis((0, stage.in_channels), name="ic")

    def multiply(n: Any, s_h: Any, s_w: Any, e: Any, oc_o: Any, p: Any, oc_v: Any) -> PrimExpr:
        value = values[n, s_h, s_w, e, tirx.floordiv(ic, lanes), p, tirx.floormod(ic, lanes)]
        return te.sum(value * weight[tirx.floordiv(oc_o, oc_pack), e, ic, tirx.floormod(oc_o, oc_pack), oc_v], axis=ic)

    shape = (*outer, size**2, oc_blocks, tiles, lanes)
    total = te.compute(shape, multiply, name="conv0")
    product = te.compute(shape, lambda *index: total[index], name="product0")

    def gather_columns(n: Any, s_h: Any, s_w: Any, oc_o: Any, p: Any, i: Any, b: Any, oc_v: Any) -> PrimExpr:
        column = [product[n, s_h, s_w, a * size + b, oc_o, p, oc_v] for a in range(size)]
        return _one_of(i, _output_transform(algorithm, column))

    second = te.compute((*outer, oc_blocks, tiles, m, size, lanes), gather_columns, name="columns0")

    def gather_rows(n: Any, oc_o: Any, oh: Any, ow: Any, oc_v: Any) -> PrimExpr:
        s_h, s_w = tirx.floordiv(oh, rows * m), tirx.floordiv(ow, columns * m)
        p = tirx.floormod(tirx.floordiv(oh, m), rows) * columns + tirx.floormod(tirx.floordiv(ow, m), columns)
        row = [second[n, s_h, s_w, oc_o, p, tirx.floormod(oh, m), b, oc_v] for b in range(size)]
        return _one_of(tirx.floormod(ow, m), _output_transform(algorithm, row))

    shape = (workload.batch, oc_blocks, *domain, lanes)
    residual = te.placeholder(shape, dtype, name="residual") if workload.residual else None
    bias = te.placeholder((oc_blocks, lanes), dtype, name="bias0")
    output = form.epilogue(gather_rows, shape, bias, residual, workload.post_activation)
    parameters = [source.tensor, *([] if residual is None else [residual]), weight, bias, output]
    blocks_of = (pad.tensor, first, values, total, product, second, output)
    return WinogradCompute(te.create_prim_func(parameters), *(tensor.op.name for tensor in blocks_of))


def _one_of(index: PrimExpr, values: Sequence[PrimExpr]) -> PrimExpr:
    """The value of an index that is constant once loops are unrolled."""
    *others, chosen = values
    for number, value in reversed(list(enumerate(others))):
        chosen = tirx.Select(index == number, value, chosen)
    return chosen


def _weighted(values: Sequence[PrimExpr], factors: Sequence[float]) -> PrimExpr:
    """The sum of values times constants, multiplied by those that are not 1."""
    terms = [v if factor == 1 else v * factor for v, factor in zip(values, factors, strict=True)]
    return functools.reduce(operator.add, terms)


def _input_transform(algorithm: Winograd, d: Sequence[PrimExpr]) -> list[PrimExpr]:
    """B' d, the sums of even and of odd elements shared by the points of a pair."""
    whole = algorithm.even()
    values = [_weighted(d[0:-1:2], whole)]
    for square in algorithm.squares:
        part = algorithm.even(square)
        even, odd = _weighted(d[2::2], part), _weighted(d[1:-1:2], part)
        odd = odd if square == 1 else odd * math.sqrt(square)
        values += [even + odd, even - odd]
    return [*values, _weighted(d[1::2], whole)]


def _output_transform(algorithm: Winograd, m: Sequence[PrimExpr]) -> list[PrimExpr]:
    """A' m, sums and differences shared by even and by odd powers."""
    both = [(m[1 + 2 * pair] + m[2 + 2 * pair], m[1 + 2 * pair] - m[2 + 2 * pair]) for pair in range(len(algorithm.squares))]
    values = []
    for power in range(algorithm.outputs):
        factors = [square ** (power // 2) * (math.sqrt(square) if power % 2 else 1.0) for square in algorithm.squares]
        values.append(_weighted([pair[power % 2] for pair in both], factors))
    values[0], values[-1] = values[0] + m[0], values[-1] + m[-1]
    return values


def linear(workload: LinearWorkload, rows: int, tile_features: int) -> ConvCompute:
    """Builds the compute of a matrix product with constant weights.

    Args:
        workload: What to compute.
        rows: Rows to compute over, at least the true ones.
        tile_features: Output features of one tile; the weights lie as `[tile, ic, feature]`.

    Returns:
        The PrimFunc with the output as `[row, tile, feature]`, and the names of its blocks.
    """
    tiles = math.ceil(workload.out_features / tile_features)
    dtype = _element_type(workload.dtypes)
    data = te.placeholder((rows, workload.in_features), dtype, name="data")
    weight = te.placeholder((tiles, workload.in_features, tile_features), dtype, name="weight0")
    bias = te.placeholder((tiles, tile_features), dtype, name="bias0")
    ic = te.reduce_axis((0, workload.in_features), name="ic")
    shape = (rows, tiles, tile_features)
    total = te.compute(shape, lambda m, t, j: te.sum(data[m, ic] * weight[t, ic, j], axis=ic), name="linear0")
    output = te.compute(
        shape, lambda m, t, j: activate(workload.activation, total[m, t, j] + bias[t, j]), name="output0"
    )
    function = te.create_prim_func([data, weight, bias, output])
    return ConvCompute(function, (StageTensors(None, "linear0", "output0"),))


def input_extents(stage: Stage, domain: Sequence[int]) -> tuple[int, ...]:
    """Gives the padded input extents that a stage reads for an output domain.

    Args:
        stage: The convolution.
        domain: Spatial extents of its output.

    Returns:
        `(extent - 1) * stride + dilation * (kernel - 1) + 1` for each axis.
    """
    return tuple(
        (extent - 1) * stride + dilation * (kernel - 1) + 1
        for extent, stride, dilation, kernel in zip(
            domain, stage.strides, stage.dilations, stage.kernel, strict=True
        )
    )


class LaneSource(Enum):
    """Which input channel a lane of an output block reads."""

    BROADCAST = "the same channel for all lanes"
    LANE = "its own channel"
    GATHER = "a channel of its group"


def lane_source(stage: Stage, lanes: int) -> LaneSource:
    """Tells which input channels the lanes of an output block read.

    Args:
        stage: The convolution.
        lanes: Lanes of its output.

    Returns:
        `BROADCAST` for dense stages and groups that fill whole blocks, `LANE` for depthwise ones of multiplier 1.
    """
    if stage.groups > 1 and stage.in_channels_per_group == 1 and stage.out_channels_per_group == 1:
        return LaneSource.LANE
    if stage.groups == 1 or stage.out_channels_per_group % lanes == 0:
        return LaneSource.BROADCAST
    return LaneSource.GATHER


def groups_of_block(stage: Stage, lanes: int) -> int:
    """Counts the groups that the lanes of one output block belong to.

    Args:
        stage: The convolution.
        lanes: Lanes of its output.

    Returns:
        The most that any block has, 1 where groups fill whole blocks.
    """
    per_group = stage.out_channels_per_group
    return min(stage.groups, math.ceil((lanes - math.gcd(lanes, per_group)) / per_group) + 1)


def permuted_channels(stage: Stage, input_lanes: int, lanes: int) -> int:
    """Tells from how many consecutive input channels each step of an output block is one constant permutation.

    Args:
        stage: The convolution.
        input_lanes: Lanes of its input, 0 for a plain one.
        lanes: Lanes of its output.

    Returns:
        The input channels of a block's groups, which divide the input's blocks or are whole ones; 0 where they do
        neither, or where groups do not fill the output's blocks.
    """
    if input_lanes != lanes or lanes % stage.out_channels_per_group:
        return 0
    channels = lanes // stage.out_channels_per_group * stage.in_channels_per_group
    return channels if lanes % channels == 0 or channels % lanes == 0 else 0


def _element_type(dtypes: DTypes) -> str:
    """The type of a workload's tensors and sums, which is one: sums in float16 are rounded to float16 at every step."""
    kinds = {dtypes.input, dtypes.weight, dtypes.accumulator, dtypes.output}
    assert len(kinds) == 1, f"no kernel mixes types: {dtypes}"
    return dtypes.input


def _finished(stage: Stage, total: PrimExpr, residual: PrimExpr | None, post: Activation | None) -> PrimExpr:
    """`post(activation(total) + residual)`."""
    result = activate(stage.activation, total)
    return activate(post, result if residual is None else result + residual)


@dataclass(frozen=True)
class _Source:
    """A stage's input: a tensor and its lanes (0: plain)."""

    tensor: Any
    lanes: int

    @classmethod
    def placeholder(cls, name: str, batch: int, channels: int, spatial: Sequence[int], lanes: int, dtype: str) -> _Source:
        """Declares an input of the PrimFunc."""
        if lanes:
            shape = (batch, math.ceil(channels / lanes), *spatial, lanes)
        else:
            shape = (batch, channels, *spatial)
        return cls(te.placeholder(shape, dtype, name=name), lanes)

    def read(self, n: PrimExpr, channel: PrimExpr, spatial: Sequence[PrimExpr]) -> PrimExpr:
        """Element `(n, channel, *spatial)`."""
        if not self.lanes:
            return self.tensor[(n, channel, *spatial)]
        block, lane = tirx.floordiv(channel, self.lanes), tirx.floormod(channel, self.lanes)
        return self.tensor[(n, block, *spatial, lane)]


@dataclass(frozen=True)
class _Edge:
    """An axis of `extent` elements of which `reached` are computed, `begin` of them before the first one."""

    begin: int
    extent: int
    reached: int

    def inside(self, position: PrimExpr) -> list[PrimExpr]:
        """Tests whether a computed element is one of the axis."""
        tests = [position >= self.begin] if self.begin else []
        return [*tests, position < self.begin + self.extent] if self.reached > self.begin + self.extent else tests

    def nearest(self, position: PrimExpr) -> PrimExpr:
        """The element of the axis that is nearest to a computed one."""
        element = tirx.max(position - self.begin, 0) if self.begin else position
        return tirx.min(element, self.extent - 1) if self.reached > self.begin + self.extent else element


@dataclass(frozen=True)
class _Form:
    """One stage computed over `domain` output positions and `blocks` output channel blocks."""

    stage: Stage
    index: int
    lanes: int
    blocks: int
    pack: int
    domain: tuple[int, ...]
    flat: bool
    permuted: bool
    edges: tuple[_Edge, ...] = ()  # of the first axes, of a flat stage
    group_blocks: int = 0  # of each group, where they are computed one by one

    @property
    def source(self) -> LaneSource:
        """Which input channels the lanes read."""
        return lane_source(self.stage, self.lanes)

    def read(
        self, source: _Source, n: PrimExpr, oc_o: PrimExpr, oc_v: PrimExpr, ic: PrimExpr, position: Sequence[PrimExpr]
    ) -> PrimExpr:
        """What lane `oc_v` of block `oc_o` reads at step `ic` of its reduction."""
        stage = self.stage
        if stage.groups == 1:
            return source.read(n, ic, position)
        if self.group_blocks:
            return source.read(n, tirx.floordiv(oc_o, self.group_blocks) * stage.in_channels_per_group + ic, position)
        if self.source is LaneSource.LANE:
            return source.tensor[(n, oc_o, *position, oc_v)]
        if self.permuted:
            return self.read_permuted(source, n, oc_o, oc_v, ic, position)
        first = tirx.floordiv(oc_o * self.lanes, stage.out_channels_per_group)

        def channel(group: int) -> PrimExpr:
            """The channel of a group, counted from the block's first."""
            number = tirx.min(first + group, stage.groups - 1) if group else first
            return source.read(n, number * stage.in_channels_per_group + ic, position)

        last = 0 if self.source is LaneSource.BROADCAST else groups_of_block(stage, self.lanes) - 1
        value = channel(last)
        for group in reversed(range(last)):
            end = (first + group + 1) * stage.out_channels_per_group - oc_o * self.lanes
            value = tirx.Select(oc_v < end, channel(group), value)
        return value

    def read_permuted(
        self, source: _Source, n: PrimExpr, oc_o: PrimExpr, oc_v: PrimExpr, ic: PrimExpr, position: Sequence[PrimExpr]
    ) -> PrimExpr:
        """The same, by a lane of the input that is a constant beside those of the other lanes."""
        channels = permuted_channels(self.stage, source.lanes, self.lanes)
        inside = tirx.floordiv(oc_v, self.stage.out_channels_per_group) * self.stage.in_channels_per_group + ic
        if channels <= self.lanes:
            parts = self.lanes // channels
            block, lane = tirx.floordiv(oc_o, parts), tirx.floormod(oc_o, parts) * channels + inside
        else:
            last = source.tensor.shape[1] - 1
            block = tirx.min(oc_o * (channels // self.lanes) + tirx.floordiv(inside, self.lanes), last)
            lane = tirx.floormod(inside, self.lanes)
        return source.tensor[(n, block, *position, lane)]

    def stage_input(self, source: _Source, true_input: tuple[int, ...]) -> _Source:
        """Copies the input with its borders: `[n, ic_o, *padded, ic_v]` or plain `[n, ic, *padded]`."""
        name = f"pad{self.index}"
        extents = input_extents(self.stage, self.domain)
        rank = len(extents)

        def copy(n: PrimExpr, block: PrimExpr, *rest: PrimExpr) -> PrimExpr:
            """The input inside, 0 outside."""
            inside, position = [], []
            for p, begin, extent, available in zip(
                rest[:rank], self.stage.pads_begin, extents, true_input, strict=True
            ):
                position.append(p - begin)
                if begin:
                    inside.append(p >= begin)
                if extent - begin > available:
                    inside.append(p < available + begin)
            value = source.tensor[(n, block, *position, *rest[rank:])]
            return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0.0, source.tensor.dtype)) if inside else value

        shape = (*source.tensor.shape[:2], *extents, *source.tensor.shape[2 + rank :])
        return _Source(te.compute(shape, copy, name=name), source.lanes)

    def accumulate(self, source: _Source) -> tuple[Any, Any]:
        """The reduction and its weights, `[oc_o / pack, *kernel, ic, oc_o % pack, oc_v]`."""
        stage, pack = self.stage, self.pack
        names = ("kd", "kh", "kw")[-len(stage.kernel) :]
        kernel = [] if self.flat else list(zip(names, stage.kernel, strict=True))
        axes = [te.reduce_axis((0, extent), name=name) for name, extent in kernel]
        axes.append(te.reduce_axis((0, stage.in_channels_per_group), name="ic"))
        batch = source.tensor.shape[0]
        weight = te.placeholder(
            (
                self.blocks // pack,
                *(extent for _, extent in kernel),
                stage.in_channels_per_group,
                pack,
                self.lanes,
            ),
            source.tensor.dtype,
            name=f"weight{self.index}",
        )

        def total(n: PrimExpr, oc_o: PrimExpr, *rest: PrimExpr) -> PrimExpr:
            *spatial, oc_v = rest
            *taps, ic = axes
            position = list(spatial)
            if not self.flat:
                position = [
                    s * stride + tap * dilation
                    for s, stride, tap, dilation in zip(
                        spatial, stage.strides, taps, stage.dilations, strict=True
                    )
                ]
            position[: len(self.edges)] = [edge.nearest(p) for edge, p in zip(self.edges, position, strict=False)]
            value = self.read(source, n, oc_o, oc_v, ic, position)
            index = (tirx.floordiv(oc_o, pack), *taps, ic, tirx.floormod(oc_o, pack), oc_v)
            return te.sum(value * weight[index], axis=axes)

        shape = (batch, self.blocks, *self.domain, self.lanes)
        return te.compute(shape, total, name=f"conv{self.index}"), weight

    def epilogue(
        self,
        total: Callable[..., PrimExpr],
        shape: Sequence[int],
        bias: Any,
        residual: Any,
        post: Activation | None,
    ) -> Any:
        """`post(activation(total + bias) + residual)`; zero behind the edges."""

        def value(n: PrimExpr, oc_o: PrimExpr, *rest: PrimExpr) -> PrimExpr:
            added = None if residual is None else residual[(n, oc_o, *rest)]
            result = _finished(self.stage, total(n, oc_o, *rest) + bias[oc_o, rest[-1]], added, post)
            inside = [test for edge, position in zip(self.edges, rest, strict=False) for test in edge.inside(position)]
            return tirx.Select(tirx.all(*inside), result, tirx.const(0.0, bias.dtype)) if inside else result

        return te.compute(shape, value, name=f"output{self.index}")
