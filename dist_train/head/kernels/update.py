"""The optimizer's step of a center in one pass: projection, weight decay, moments and the center itself, in place."""

import triton
import triton.language as tl


@triton.jit
def _rounded(values, key, column, BFLOAT16: tl.constexpr):
    """`values` for a table; with BFLOAT16 rounded stochastically, by bits that follow from key and column."""
    if BFLOAT16:
        noise = tl.randint(key, column, n_rounds=6).to(tl.uint32, bitcast=True) & 0xFFFF
        bits = values.to(tl.uint32, bitcast=True) + noise
        values = (bits & 0xFFFF0000).to(tl.float32, bitcast=True).to(tl.bfloat16)
    return values


_SPREAD = tl.constexpr(-7046029254386353131)  # 2**64 over the golden ratio: keys of two centers are far from each other


@triton.jit(do_not_specialize=["key", "first"])
def update_kernel(
    centers,  # [C·K, width] as stored
    first_state,  # [C·K, width]: sgd's momentum, adamw's mean; [C·K] float32: rowwise_adagrad's squares
    second_state,  # [C·K, width] adamw's mean square
    updates,  # [C] float32: times that adamw updates a class, with this one
    places,  # [n] int64 classes in the tables; read with INDEXED, otherwise they are 0 to n - 1
    gradient,  # [n·K, width] float32, before its projection
    squares,  # [n·K] receives the sum of the squares of the gradient; written with MEASURE
    proceed,  # [] bool: whether anything changes; read with ASKED
    lr,
    decay,  # in the gradient where the optimizer has it there, otherwise on the rows
    beta1,  # sgd's momentum
    beta2,
    eps,
    key,  # of the roundings of this step
    first,  # number of the tables' first center, for the roundings
    width,
    WP: tl.constexpr,  # width, rounded up to a power of two
    K: tl.constexpr,
    OPTIMIZER: tl.constexpr,
    INDEXED: tl.constexpr,
    NORMALISED: tl.constexpr,
    BFLOAT16: tl.constexpr,
    MEASURE: tl.constexpr,
    ASKED: tl.constexpr,
):
    """Updates one center. OPTIMIZER: "sgd", "momentum", "rowwise_adagrad" or "adamw"."""
    if ASKED:
        if tl.load(proceed) == 0:
            return
    number = tl.program_id(0).to(tl.int64)
    place = tl.load(places + number // K) if INDEXED else number // K
    center = place * K + number % K
    column = tl.arange(0, WP)
    own = column < width
    offsets = center * width + column
    key += (first + center) * _SPREAD
    row = tl.load(centers + offsets, mask=own, other=0.0).to(tl.float32)
    slope = tl.load(gradient + number * width + column, mask=own, other=0.0)
    in_gradient = 0.0 if OPTIMIZER == "rowwise_adagrad" or OPTIMIZER == "adamw" else decay
    if NORMALISED:
        # The cosine does not depend on a row's length, so its gradient has no part along the row.
        length = tl.sum(row * row)
        along = tl.where(length > 0, tl.sum(slope * row) / tl.where(length > 0, length, 1.0), 0.0)
        slope += row * (in_gradient - along)
    else:
        slope += row * in_gradient
    if MEASURE:
        tl.store(squares + number, tl.sum(slope * slope))
    if OPTIMIZER == "sgd":
        row -= lr * slope
    elif OPTIMIZER == "momentum":
        moment = beta1 * tl.load(first_state + offsets, mask=own, other=0.0).to(tl.float32) + slope
        row -= lr * moment
        tl.store(first_state + offsets, _rounded(moment, key + (1 << 40), column, BFLOAT16), mask=own)
    elif OPTIMIZER == "rowwise_adagrad":
        total = tl.load(first_state + center) + tl.sum(slope * slope) / width
        tl.store(first_state + center, total)
        row = row * (1 - lr * decay) - lr / (tl.sqrt(total) + eps) * slope
    else:
        mean = tl.load(first_state + offsets, mask=own, other=0.0).to(tl.float32)
        square = tl.load(second_state + offsets, mask=own, other=0.0).to(tl.float32)
        count = tl.load(updates + place)
        mean += (1 - beta1) * (slope - mean)
        square = beta2 * square + (1 - beta2) * slope * slope
        mean_share = 1 - tl.exp2(count * tl.log2(beta1)) if beta1 > 0 else 1.0
        root_share = tl.sqrt(1 - tl.exp2(count * tl.log2(beta2))) if beta2 > 0 else 1.0
        row = row * (1 - lr * decay) - lr * mean / ((tl.sqrt(square) / root_share + eps) * mean_share)
        tl.store(first_state + offsets, _rounded(mean, key + (1 << 40), column, BFLOAT16), mask=own)
        tl.store(second_state + offsets, _rounded(square, key + (2 << 40), column, BFLOAT16), mask=own)
    tl.store(centers + offsets, _rounded(row, key, column, BFLOAT16), mask=own)
