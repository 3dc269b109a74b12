"""The product of centers and queries with all that stands between it and the softmax's weights.

A logit lives in registers only: the margin, the masks, the exponential and the sums are the product's epilogue, and
what is written is the weight, 16 bits wide. The two products that take the weights are the library's: on an H200 they
reach 730 to 790 TFLOP/s, while a kernel that holds all three (as FlashAttention does) has room for tiles of 64 by
64 only with 512 numbers a center, and reached 280.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["classes_total", "first"])
def weights_kernel(
    centers,  # [n·K, D]
    inverse,  # [n·K] inverse norms; read with NORMALISED
    queries,  # [G, D]
    targets,  # [LABELS, G] the samples' classes, counted as `first` is; -1 for none
    bounds,  # [G] scaled cosines beyond which a negative is hard; read with LIFTED
    base,  # [] of the lift; read with LIFTED
    relative_to,  # [G] what exponentials are relative to
    out,  # [n·K, G] receives exponentials · slope / norm, without LARGEST
    totals,  # [tiles of rows, G] receives sums of exponentials, or with LARGEST the largest logits
    samples_total,
    classes_total,
    width,
    first,  # class of the first row
    threshold,
    scale,
    K: tl.constexpr,
    KP: tl.constexpr,  # K, rounded up to a power of two
    LABELS: tl.constexpr,
    NORMALISED: tl.constexpr,
    LIFTED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LARGEST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A tile of BLOCK_N rows and BLOCK_G samples."""
    # Programs that run together share GROUP tiles of rows and the samples' tiles: both stay in the L2 cache.
    tiles_n = tl.cdiv(classes_total * KP, BLOCK_N)
    tiles_g = tl.cdiv(samples_total, BLOCK_G)
    number = tl.program_id(0)
    group = number // (GROUP * tiles_g)
    high = tl.minimum(tiles_n - group * GROUP, GROUP)
    tile_n = group * GROUP + (number % (GROUP * tiles_g)) % high
    tile_g = (number % (GROUP * tiles_g)) // high
    row = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real = (row < classes_total * KP) & (row % KP < K)
    place = tl.where(real, row // KP * K + row % KP, 0).to(tl.int64)
    sample = tile_g * BLOCK_G + tl.arange(0, BLOCK_G)
    known = sample < samples_total
    near = tl.where(known, sample, 0).to(tl.int64)
    numbers = tl.arange(0, BLOCK_D)
    left = centers + place[:, None] * width + numbers[None, :]
    right = queries + near[:, None] * width + numbers[None, :]
    logits = tl.zeros((BLOCK_N, BLOCK_G), tl.float32)
    for start in range(0, width, BLOCK_D):
        inside = (start + numbers < width)[None, :]
        some = tl.load(left + start, mask=inside, other=0.0)
        others = tl.load(right + start, mask=inside, other=0.0)
        logits = tl.dot(some, tl.trans(others), logits, input_precision="ieee")
    if NORMALISED:
        per_row = tl.load(inverse + place)
        logits *= per_row[:, None]
    counts = real[:, None] & known[None, :]
    if K > 1:
        by_class = tl.reshape(tl.where(real[:, None], logits, float("-inf")), (BLOCK_N // KP, KP, BLOCK_G))
        nearest = tl.argmax(by_class, axis=1, tie_break_left=True)
        center = tl.arange(0, KP)[None, :, None]
        counts = counts & tl.reshape(center == nearest[:, None, :], (BLOCK_N, BLOCK_G))
    if THRESHOLD:
        counts = counts & (logits <= threshold)
    for label in range(LABELS):  # not unrolled: 64 labels would spill kilobytes, and compile for a minute
        target = tl.load(targets + label * samples_total + near)
        counts = counts & ((first + row // KP)[:, None] != target[None, :])
    if LIFTED:
        bound = tl.load(bounds + near)[None, :]
        lift = tl.load(base)
        hard = logits > bound
        slope = tl.where(hard, lift + 2 * logits / scale, 1.0)
        logits = tl.where(hard, logits * (lift + logits / scale), logits)
    total_places = totals + tile_n.to(tl.int64) * samples_total + sample
    if LARGEST:
        tl.store(total_places, tl.max(tl.where(counts, logits, float("-inf")), axis=0), mask=known)
    else:
        shift = tl.load(relative_to + near)
        weights = tl.where(counts, tl.exp(logits - shift[None, :]), 0.0)
        tl.store(total_places, tl.sum(weights, axis=0), mask=known)
        if LIFTED:
            weights *= slope
        if NORMALISED:
            weights *= per_row[:, None]
        out_places = out + place[:, None] * samples_total + sample[None, :]
        tl.store(out_places, weights.to(out.dtype.element_ty), mask=real[:, None] & known[None, :])
