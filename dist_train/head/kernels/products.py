"""The head's products fused with the softmax between them: no logit leaves the chip.

Both kernels hold a tile of one side and stream the other side past it: a tile's products become weights, and the
weights times the streamed tile add up in registers, as in FlashAttention (Dao et al. 2022, section 3.1). Products take
their operands as stored (bfloat16 on a GPU) and add in float32; margins, exponentials and sums are float32.

Shapes: G samples, padded to Gp; n rows, K centers a class, each class padded to KP rows, a power of two; D numbers of
a center, padded to DP. Padded rows and numbers are zeros. Tiles: BLOCK_G samples, BLOCK_N rows.
"""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1e30)  # stands for minus infinity where a difference of two must not be NaN
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def forward_kernel(
    queries,  # [Gp, DP]
    units,  # [n, DP] centers over their norms
    biases,  # [n] float32; read with BIAS
    targets,  # [LABELS, Gp] classes of the samples' targets, counted as `first` is; -1 for none
    bounds,  # [Gp] scaled cosines beyond which a negative is hard; read with LIFTED
    lift,  # [] what a hard negative's cosine is added to before it is multiplied; read with LIFTED
    tops,  # [splits, Gp] largest logit so far; changed with ONLINE
    sums,  # [splits, Gp] of exponentials relative to it
    gradients,  # [splits, Gp, DP] of exponentials · slope · unit; changed with GRADIENT
    padded_samples,
    rows,
    rows_per_split,
    first,  # class of the first row
    threshold,
    scale,
    DP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    LABELS: tl.constexpr,
    BIAS: tl.constexpr,
    LIFTED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    ONLINE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Adds the rows of a split to a tile of samples: largest logit, sum of exponentials, gradient of queries.

    Without ONLINE all exponentials are relative to `tops` as it is found, which no logit may exceed by 80.
    """
    samples = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    split = tl.program_id(1)
    numbers = tl.arange(0, DP)
    state = split.to(tl.int64) * padded_samples + samples
    query = tl.load(queries + samples[:, None] * DP + numbers[None, :])
    top = tl.load(tops + state)
    total = tl.load(sums + state)
    if GRADIENT:
        gradient_places = state[:, None] * DP + numbers[None, :]
        gradient = tl.load(gradients + gradient_places)
    if not ONLINE:
        part = tl.zeros((BLOCK_G, BLOCK_N), tl.float32)
    begin = split * rows_per_split
    for start in range(begin, tl.minimum(begin + rows_per_split, rows), BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        unit = tl.load(units + row[:, None] * DP + numbers[None, :])
        logits = tl.dot(query, tl.trans(unit), input_precision="ieee")
        if BIAS:
            logits += tl.load(biases + row)[None, :]
        counts = (row < rows)[None, :]
        if K > 1:
            classes = tl.reshape(logits, (BLOCK_G, BLOCK_N // KP, KP))
            center = tl.arange(0, KP)[None, None, :]
            classes = tl.where(center < K, classes, float("-inf"))
            nearest = tl.argmax(classes, axis=2, tie_break_left=True)
            counts = counts & tl.reshape(center == nearest[:, :, None], (BLOCK_G, BLOCK_N))
        if THRESHOLD:
            counts = counts & (logits <= threshold)
        for label in tl.static_range(LABELS):
            target = tl.load(targets + label * padded_samples + samples)
            counts = counts & ((first + row // KP)[None, :] != target[:, None])
        if LIFTED:
            bound = tl.load(bounds + samples)[:, None]
            base = tl.load(lift)
            hard = logits > bound
            slope = tl.where(hard, base + 2 * logits / scale, 1.0)
            logits = tl.where(hard, logits * (base + logits / scale), logits)
        logits = tl.where(counts, logits, float("-inf"))
        if ONLINE:
            higher = tl.maximum(top, tl.max(logits, axis=1))
            fade = tl.exp(top - higher)
            weights = tl.exp(logits - higher[:, None])
            total = total * fade + tl.sum(weights, axis=1)
            top = higher
            if GRADIENT:
                gradient *= fade[:, None]
        else:
            weights = tl.exp(logits - top[:, None])
            part += weights
        if GRADIENT:
            if LIFTED:
                weights *= slope
            gradient = tl.dot(weights.to(unit.dtype), unit, gradient, input_precision="ieee")
    if ONLINE:
        tl.store(tops + state, top)
    else:
        total += tl.sum(part, axis=1)
    tl.store(sums + state, total)
    if GRADIENT:
        tl.store(gradients + gradient_places, gradient)


@triton.jit
def row_gradient_kernel(
    units,  # [n, DP] centers over their norms
    biases,  # [n] float32; read with BIAS
    inverse,  # [n / KP · K] inverse norms; read unless BIAS
    queries,  # [Gp, DP]
    targets,  # [LABELS, Gp] classes of the samples' targets, counted as `first` is; -1 for none
    bounds,  # [Gp] scaled cosines beyond which a negative is hard; read with LIFTED
    lift,  # [] what a hard negative's cosine is added to before it is multiplied; read with LIFTED
    log_sums,  # [Gp] what logits are relative to; infinite for padding
    factors,  # [Gp] what a sample's weights are multiplied by
    out,  # [n / KP · K, width] receives the gradient of rows before its projection
    width,
    padded_samples,
    rows,
    first,  # class of the first row
    threshold,
    scale,
    DP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    LABELS: tl.constexpr,
    BIAS: tl.constexpr,
    LIFTED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sums weight · query over all samples for a tile of rows; the weights are the softmax's, formed again."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    numbers = tl.arange(0, DP)
    unit = tl.load(units + row[:, None].to(tl.int64) * DP + numbers[None, :])
    classes = first + row // KP
    gradient = tl.zeros((BLOCK_N, DP), tl.float32)
    if BIAS:
        bias = tl.load(biases + row)
        bias_gradient = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, padded_samples, BLOCK_G):
        samples = start + tl.arange(0, BLOCK_G)
        query = tl.load(queries + samples[:, None] * DP + numbers[None, :])
        logits = tl.dot(unit, tl.trans(query), input_precision="ieee")
        if BIAS:
            logits += bias[:, None]
        log_sum = tl.load(log_sums + samples)
        factor = tl.load(factors + samples)
        counts = tl.full((BLOCK_N, BLOCK_G), True, tl.int1)
        if K > 1:
            by_class = tl.reshape(logits, (BLOCK_N // KP, KP, BLOCK_G))
            center = tl.arange(0, KP)[None, :, None]
            by_class = tl.where(center < K, by_class, float("-inf"))
            nearest = tl.argmax(by_class, axis=1, tie_break_left=True)
            counts = tl.reshape(center == nearest[:, None, :], (BLOCK_N, BLOCK_G))
        if THRESHOLD:
            counts = counts & (logits <= threshold)
        for label in tl.static_range(LABELS):
            target = tl.load(targets + label * padded_samples + samples)
            counts = counts & (classes[:, None] != target[None, :])
        if LIFTED:
            bound = tl.load(bounds + samples)[None, :]
            base = tl.load(lift)
            hard = logits > bound
            slope = tl.where(hard, base + 2 * logits / scale, 1.0)
            logits = tl.where(hard, logits * (base + logits / scale), logits)
        weights = tl.exp2(logits * _LOG2_E - (log_sum * _LOG2_E)[None, :]) * factor[None, :]
        if LIFTED:
            weights *= slope
        weights = tl.where(counts, weights, 0.0)
        if BIAS:
            bias_gradient += tl.sum(weights, axis=1)
        gradient = tl.dot(weights.to(query.dtype), query, gradient, input_precision="ieee")
    place = row // KP * K + row % KP
    own = (row < rows) & (row % KP < K)
    if BIAS:
        tl.store(out + place.to(tl.int64) * width + width - 1, bias_gradient, mask=own)
    else:
        gradient *= tl.load(inverse + place, mask=own, other=0.0)[:, None]
    last = width - 1 if BIAS else width
    places = place[:, None].to(tl.int64) * width + numbers[None, :]
    tl.store(out + places, gradient, mask=own[:, None] & (numbers < last)[None, :])


@triton.jit
def weights_kernel(
    centers,  # [n, DP] as stored, rounded
    inverse,  # [n] inverse norms; biases where BIAS
    queries,  # [Gp, DP]
    targets,  # [LABELS, Gp] classes of the samples' targets, counted as `first` is; -1 for none
    bounds,  # [Gp] scaled cosines beyond which a negative is hard; read with LIFTED
    lift,  # [] what a hard negative's cosine is added to before it is multiplied; read with LIFTED
    tops,  # [Gp] what exponentials are relative to
    out,  # [n, Gp] receives exponentials · slope / norm
    sums,  # [tiles of rows, Gp] receives the sums of exponentials
    padded_samples,
    rows,
    first,  # class of the first row
    threshold,
    scale,
    DP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    LABELS: tl.constexpr,
    BIAS: tl.constexpr,
    LIFTED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Weights of a tile of rows and samples, and their sums over the tile's rows."""
    # Programs that run together share GROUP tiles of rows and their samples' tiles: both stay in the L2 cache.
    tiles_n = tl.cdiv(rows, BLOCK_N)
    tiles_g = padded_samples // BLOCK_G
    number = tl.program_id(0)
    group = number // (GROUP * tiles_g)
    high = tl.minimum(tiles_n - group * GROUP, GROUP)
    tile_n = group * GROUP + (number % (GROUP * tiles_g)) % high
    tile_g = (number % (GROUP * tiles_g)) // high
    row = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    samples = tile_g * BLOCK_G + tl.arange(0, BLOCK_G)
    numbers = tl.arange(0, BLOCK_D)
    left = centers + row[:, None].to(tl.int64) * DP + numbers[None, :]
    right = queries + samples[:, None] * DP + numbers[None, :]
    logits = tl.zeros((BLOCK_N, BLOCK_G), tl.float32)
    for start in range(0, DP, BLOCK_D):
        logits = tl.dot(tl.load(left + start), tl.trans(tl.load(right + start)), logits, input_precision="ieee")
    per_row = tl.load(inverse + row)
    if BIAS:
        logits += per_row[:, None]
    else:
        logits *= per_row[:, None]
    counts = (row < rows)[:, None]
    if K > 1:
        by_class = tl.reshape(logits, (BLOCK_N // KP, KP, BLOCK_G))
        center = tl.arange(0, KP)[None, :, None]
        by_class = tl.where(center < K, by_class, float("-inf"))
        nearest = tl.argmax(by_class, axis=1, tie_break_left=True)
        counts = counts & tl.reshape(center == nearest[:, None, :], (BLOCK_N, BLOCK_G))
    if THRESHOLD:
        counts = counts & (logits <= threshold)
    for label in tl.static_range(LABELS):
        target = tl.load(targets + label * padded_samples + samples)
        counts = counts & ((first + row // KP)[:, None] != target[None, :])
    if LIFTED:
        bound = tl.load(bounds + samples)[None, :]
        base = tl.load(lift)
        hard = logits > bound
        slope = tl.where(hard, base + 2 * logits / scale, 1.0)
        logits = tl.where(hard, logits * (base + logits / scale), logits)
    top = tl.load(tops + samples)
    weights = tl.where(counts, tl.exp(logits - top[None, :]), 0.0)
    if SUMS:
        tl.store(sums + tile_n.to(tl.int64) * padded_samples + samples, tl.sum(weights, axis=0))
    if LIFTED:
        weights *= slope
    if not BIAS:
        weights *= per_row[:, None]
    places = row[:, None].to(tl.int64) * padded_samples + samples[None, :]
    tl.store(out + places, weights.to(out.dtype.element_ty))
