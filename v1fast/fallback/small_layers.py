# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""What the kernels share: the noise, sample positions, the cell of a position, and its four corners.

The functions work on blocks of any shapes that broadcast. So the same lines serve a tile of neurons x images and a list
of samples. Positions and normals are sums of explicit fused multiply-adds in the order of csrc/. Their bits are a
contract: no product feeds a plain addition, so there is nothing for a compiler to contract.
"""

import triton
import triton.language as tl


def _constants(*values):
    return tl.constexpr(tuple(float.fromhex(v) for v in values))


# As in csrc/philox.h, which says what they approximate and how accurate they are.
_LOG = _constants(
    "-0x1.5d8646p-3", "0x1.243c02p-2", "-0x1.32bcb8p-2", "0x1.53846ep-2", "-0x1.98b290p-2",
    "0x1.00038cp-1", "-0x1.555796p-1", "0x1.fffffep-1", "-2.0",
)  # fmt: skip
_MINUS_TWO_LN_2 = tl.constexpr(float.fromhex("-0x1.62e430p+0"))
_SINE = _constants("-0x1.2d9b40p-8", "0x1.465ec4p-4", "-0x1.4abbbap-1", "0x1.921fb6p+0")
_COSINE = _constants("0x1.d9c2e8p-11", "-0x1.55c57ap-6", "0x1.03c1dcp-2", "-0x1.3bd3ccp+0", "1.0")

CLAMP_X = tl.constexpr(16)
CLAMP_Y = tl.constexpr(32)
"""Bits beside the corners' (1, 2, 4, 8): the clamp lets the gradient of this coordinate through."""


# Noise -----------------------------------------------------------------------------------------------------------


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr):
    """Evaluate a polynomial by Horner's scheme, highest power first."""
    p = tl.fma(x, COEFFICIENTS[0], COEFFICIENTS[1])
    for i in tl.static_range(2, len(COEFFICIENTS)):
        p = tl.fma(p, x, COEFFICIENTS[i])
    return p


@triton.jit
def _box_muller_radius(word):
    u = ((word >> 8) + 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    return tl.sqrt_rn(tl.fma(e.to(tl.float32), _MINUS_TWO_LN_2, f * _polynomial(f, _LOG)))


@triton.jit
def _flip_sign(value, sign):
    return (value.to(tl.int32, bitcast=True) ^ (sign << 30)).to(tl.float32, bitcast=True)


@triton.jit
def _normal_pair(first, second):
    """Return two independent standard normals from two words of Philox."""
    radius = _box_muller_radius(first)
    k = (second >> 8).to(tl.int32)
    q = (k + (1 << 21)) >> 22
    t = (k - (q << 22)).to(tl.float32) * 2.384185791015625e-07  # 2^-22
    s = t * t
    sine = _polynomial(s, _SINE) * t
    cosine = _polynomial(s, _COSINE)
    swap = (q & 1) != 0
    x = radius * _flip_sign(tl.where(swap, sine, cosine), (q + 1) & 2)
    y = radius * _flip_sign(tl.where(swap, cosine, sine), q & 2)
    return x, y


@triton.jit
def philox_normals(seed, neuron, block, odd):
    """Return the normals (x, y) of a neuron for the even image of a Philox block, or for the odd image after it."""
    w0, w1, w2, w3 = tl.philox(seed, neuron, block, 0, 0)
    return _normal_pair(tl.where(odd, w2, w0), tl.where(odd, w3, w1))


@triton.jit
def load_pair(pairs, at, has):
    """Load (x, y) from ``pairs[at]``; ``at`` is int64."""
    return tl.load(pairs + at * 2, mask=has, other=0), tl.load(pairs + at * 2 + 1, mask=has, other=0)


@triton.jit
def draw(noise, seed, neuron_index, n, has_n, b, has_b, N, first_block, odd, SHARED: tl.constexpr, dtype: tl.constexpr):
    """Return the noise (x, y) of neurons n for images b, given [B, N, 2] or drawn. SHARED: one noise for all images.

    The first image of the batch has the number 2 * first_block + odd in the count of the population's images.
    """
    if seed is not None:
        neuron = n if neuron_index is None else tl.load(neuron_index + n, mask=has_n, other=0).to(tl.int32)
        key = tl.load(seed)
        if SHARED:
            x, y = philox_normals(key, neuron, 0, False)
        else:
            image = b + odd
            x, y = philox_normals(key, neuron, first_block + (image >> 1), (image & 1) != 0)
    else:
        if SHARED:
            at, has = n.to(tl.int64), has_n
        else:
            at, has = b.to(tl.int64) * N + n, has_n & has_b
        x, y = load_pair(noise, at, has)
    return x.to(dtype), y.to(dtype)


# Positions -------------------------------------------------------------------------------------------------------


@triton.jit
def _load_gaussian(mu, sigma, n, has_n, SIGMA: tl.constexpr):
    """Load the mean (x, y) and the square root of the covariance (xx, xy, yx, yy) of neurons n.

    SIGMA is the number of columns of sigma: 4, 2, 1, or 0 for none. Entries that sigma lacks must not be used.
    """
    x, y = load_pair(mu, n.to(tl.int64), has_n)
    xx, xy, yx, yy = x, x, y, y
    if SIGMA > 0:
        row = sigma + n.to(tl.int64) * SIGMA
        xx = tl.load(row, mask=has_n, other=0)
        yy = xx if SIGMA == 1 else tl.load(row + SIGMA - 1, mask=has_n, other=0)
        if SIGMA == 4:
            xy = tl.load(row + 1, mask=has_n, other=0)
            yx = tl.load(row + 2, mask=has_n, other=0)
    return x, y, xx, xy, yx, yy


@triton.jit
def _displace(gaussian, ex, ey, SIGMA: tl.constexpr):
    """Return mu + A (ex, ey)."""
    x, y, xx, xy, yx, yy = gaussian
    if SIGMA == 4:
        return tl.fma(xy, ey, tl.fma(xx, ex, x)), tl.fma(yy, ey, tl.fma(yx, ex, y))
    return tl.fma(xx, ex, x), tl.fma(yy, ey, y)


@triton.jit
def of_all_images(mu, sigma, noise, seed, neuron_index, n, has_n, N, SIGMA: tl.constexpr, SHARED: tl.constexpr):
    """Return what neurons n have in every image: Gaussian, noise (x, y) and position before the clamp (x, y).

    Noise and positions that differ between images come from ``of_images``; their values here must not be used.
    """
    gaussian = _load_gaussian(mu, sigma, n, has_n, SIGMA)
    e_x, e_y, z_x, z_y = gaussian[0], gaussian[1], gaussian[0], gaussian[1]
    if SHARED:
        e_x, e_y = draw(noise, seed, neuron_index, n, has_n, 0, True, N, 0, 0, True, mu.dtype.element_ty)
        z_x, z_y = _displace(gaussian, e_x, e_y, SIGMA)
    return gaussian, e_x, e_y, z_x, z_y


@triton.jit
def of_images(
    every, mu, noise, seed, neuron_index, n, has_n, b, has_b, N, first_block, odd,
    SIGMA: tl.constexpr, SHARED: tl.constexpr, PER_IMAGE: tl.constexpr,
):  # fmt: skip
    """Return noise (x, y) and position before the clamp (x, y); ``every`` is the result of ``of_all_images``."""
    gaussian, e_x, e_y, z_x, z_y = every
    if PER_IMAGE:
        z_x, z_y = load_pair(mu, b.to(tl.int64) * N + n, has_n & has_b)
    elif SIGMA > 0 and not SHARED:
        dtype: tl.constexpr = mu.dtype.element_ty
        e_x, e_y = draw(noise, seed, neuron_index, n, has_n, b, has_b, N, first_block, odd, False, dtype)
        z_x, z_y = _displace(gaussian, e_x, e_y, SIGMA)
    return e_x, e_y, z_x, z_y


@triton.jit
def pixels_per_unit(size, ALIGN_CORNERS: tl.constexpr, dtype: tl.constexpr):
    """Pixels per unit of the normalised coordinate."""
    return (size - 1).to(dtype) * 0.5 if ALIGN_CORNERS else size.to(dtype) * 0.5


@triton.jit
def _locate_axis(z, shift, size, ALIGN_CORNERS: tl.constexpr, CLAMP: tl.constexpr):
    """Clamp, shift, convert to pixels: lower corner of the cell, -2 if no corner is in the map, and fraction.

    NaN stays NaN and lies in no cell. Only values that fit an integer are converted to one.
    """
    position = z
    if CLAMP:
        position = tl.where(z < -1, -1.0, tl.where(z > 1, 1.0, z))  # tl.clamp does not compile for float64 on sm_90
    if shift is not None:
        position = position + shift
    pixel = tl.fma(position + 1, pixels_per_unit(size, ALIGN_CORNERS, z.dtype), 0.0 if ALIGN_CORNERS else -0.5)
    lower = tl.floor(pixel)
    near = (lower >= -1) & (lower < size)
    return tl.where(near, lower, -2).to(tl.int32), pixel - lower


@triton.jit
def locate(z_x, z_y, shift, b, has_b, H, W, ALIGN_CORNERS: tl.constexpr, CLAMP: tl.constexpr):
    """Return cells (x, y) and fractions (x, y) in images b, of positions before the clamp. shift is [B, 2] or None."""
    shift_x, shift_y = None, None
    if shift is not None:
        shift_x, shift_y = load_pair(shift, b.to(tl.int64), has_b)
    x, ax = _locate_axis(z_x, shift_x, W, ALIGN_CORNERS, CLAMP)
    y, ay = _locate_axis(z_y, shift_y, H, ALIGN_CORNERS, CLAMP)
    return x, y, ax, ay


@triton.jit
def corner_bits(x, y, valid, H, W):
    """Return which corners (y0 x0, y0 x1, y1 x0, y1 x1) are in the map, as bits 1, 2, 4, 8.

    The test of the far corner does not add to the near corner's coordinate, which may be the largest integer.
    """
    row = tl.where(x >= 0, 1, 0) | tl.where((x >= -1) & (x < W - 1), 2, 0)
    near_y, far_y = valid & (y >= 0), valid & (y >= -1) & (y < H - 1)
    return tl.where(near_y, row, 0) | tl.where(far_y, row << 2, 0)


@triton.jit
def clamp_bits(z_x, z_y):
    """CLAMP_X and CLAMP_Y where the clamp lets the gradient through: at the bounds too, but not for NaN."""
    pass_x, pass_y = (z_x >= -1) & (z_x <= 1), (z_y >= -1) & (z_y <= 1)
    return tl.where(pass_x, CLAMP_X, 0) | tl.where(pass_y, CLAMP_Y, 0)


@triton.jit
def corner_weights(ax, ay):
    """Return the weights of the four corners at a fraction of the cell."""
    return (1 - ay) * (1 - ax), (1 - ay) * ax, ay * (1 - ax), ay * ax


# Tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
def columns(tile, T: tl.constexpr):
    """Return the T columns of [BN, T], or the one column of [BN, 1] T times.

    tl.split also stops the compiler from recomputing the tile in the layout of each use, once per lane of channels.
    That would cost more than everything else.
    """
    BN: tl.constexpr = tile.shape[0]
    if tile.shape[1] == 1:
        column = tl.reshape(tile, [BN])
        result = (column, column) if T == 2 else (column, column, column, column)
    elif T == 2:
        result = tl.split(tile)
    else:
        even, odd = tl.split(tl.reshape(tile, [BN, 2, 2]))
        c0, c2 = tl.split(even)
        c1, c3 = tl.split(odd)
        result = (c0, c1, c2, c3)
    return result


@triton.jit
def in_range(c, C: tl.constexpr, BC: tl.constexpr):
    """Which of a chunk's channels exist. This is known at compile time where the chunks fit."""
    return c < C if C % BC else tl.full(c.shape, True, tl.int1)


@triton.jit
def load_corners(
    first,  # [BN, BC] pointers to the near corner y0 x0
    bits,  # [BN, 1]
    has_c,  # [1, BC]
    pixel,
    row,
    dtype: tl.constexpr,
):
    """Load the four corners [BN, BC], zero outside the map. pixel and row are the steps to the next pixel and row."""
    f00 = tl.load(first, mask=((bits & 1) != 0) & has_c, other=0).to(dtype)
    f01 = tl.load(first + pixel, mask=((bits & 2) != 0) & has_c, other=0).to(dtype)
    f10 = tl.load(first + row, mask=((bits & 4) != 0) & has_c, other=0).to(dtype)
    f11 = tl.load(first + row + pixel, mask=((bits & 8) != 0) & has_c, other=0).to(dtype)
    return f00, f01, f10, f11
