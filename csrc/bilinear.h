// Bilinear interpolation in an image stored as [H, W, C] rows, with zeros outside: the rows that several ops share.
#pragma once

#include "dispatch.h"

#include <cstdint>

namespace v1fast {

// How a normalised coordinate becomes a pixel coordinate: pixel = (coordinate + 1) * scale + offset.
template <class T>
struct PixelMap {
    T scale, offset;
    PixelMap(int64_t size, bool align_corners)
        : scale(align_corners ? T(size - 1) / 2 : T(size) / 2), offset(align_corners ? T(0) : T(-0.5)) {}
};

// The cell of a pixel coordinate: its lower corner, or -2 where neither corner lies in [0, size), NaN and infinities
// included. No conversion to an integer is made of a value that has none.
template <class T>
V1FAST_INLINE int32_t lower_corner(T floor_of_pixel, int64_t size) {
    return floor_of_pixel >= T(-1) && floor_of_pixel < T(size) ? static_cast<int32_t>(floor_of_pixel) : -2;
}

// The four corners (y0 x0, y0 x1, y1 x0, y1 x1) of a cell as rows of C values. A corner outside the image is the row of
// zeros, never a product with zero: a NaN elsewhere in the map must not reach this sample.
template <class T>
struct Corners {
    T* row[4];
    bool inside[4];

    V1FAST_INLINE Corners(T* image, T* outside, int32_t x, int32_t y, int64_t C, int64_t H, int64_t W) {
        const bool x0 = x >= 0, x1 = x + 1 >= 0 && x + 1 < W, y0 = y >= 0, y1 = y + 1 >= 0 && y + 1 < H;
        inside[0] = y0 && x0;
        inside[1] = y0 && x1;
        inside[2] = y1 && x0;
        inside[3] = y1 && x1;
        const int64_t first = (static_cast<int64_t>(y) * W + x) * C;
        const int64_t offset[4] = {first, first + C, first + W * C, first + W * C + C};
        for (int k = 0; k < 4; ++k)
            row[k] = inside[k] ? image + offset[k] : outside;
    }
};

// Weights of the four corners at the fraction (ax, ay) of the cell.
template <class T>
V1FAST_INLINE void corner_weights(T ax, T ay, T (&weight)[4]) {
    weight[0] = (T(1) - ay) * (T(1) - ax);
    weight[1] = (T(1) - ay) * ax;
    weight[2] = ay * (T(1) - ax);
    weight[3] = ay * ax;
}

// Partial sums are kept in as many lanes as the widest register holds, so that the sum has one order on every
// instruction set and the compiler may use vectors for it.
template <class T>
inline constexpr int kLanes = 64 / sizeof(T);

template <class T>
V1FAST_INLINE T sum_lanes(const T (&lanes)[kLanes<T>]) {
    T folded[kLanes<T>];
    for (int l = 0; l < kLanes<T>; ++l)
        folded[l] = lanes[l];
    for (int width = kLanes<T> / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l)
            folded[l] += folded[l + width];
    return folded[0];
}

// sum_c weight[c] * (interpolated features)[c]
template <class T>
V1FAST_INLINE T dot_bilinear(const Corners<const T>& corners, const T (&w)[4], const T* weight, int64_t C) {
    const T *f0 = corners.row[0], *f1 = corners.row[1], *f2 = corners.row[2], *f3 = corners.row[3];
    T lanes[kLanes<T>] = {};
    int64_t c = 0;
    for (; c + kLanes<T> <= C; c += kLanes<T>)
        for (int l = 0; l < kLanes<T>; ++l)
            lanes[l] += weight[c + l] * (w[0] * f0[c + l] + w[1] * f1[c + l] + w[2] * f2[c + l] + w[3] * f3[c + l]);
    for (int l = 0; c < C; ++c, ++l)
        lanes[l] += weight[c] * (w[0] * f0[c] + w[1] * f1[c] + w[2] * f2[c] + w[3] * f3[c]);
    return sum_lanes<T>(lanes);
}

// The same read, for the backward pass: d_weight += grad * (interpolated features) where kWeight, and the four dot
// products of the corners with the weight, of which the gradient of the position is made, where kPosition.
template <class T, bool kPosition, bool kWeight>
V1FAST_INLINE void dot_bilinear_backward(const Corners<const T>& corners, const T (&w)[4], const T* weight, T grad,
                                         int64_t C, T* d_weight, T (&dot)[4]) {
    const T *f0 = corners.row[0], *f1 = corners.row[1], *f2 = corners.row[2], *f3 = corners.row[3];
    const T g0 = grad * w[0], g1 = grad * w[1], g2 = grad * w[2], g3 = grad * w[3];
    T lanes0[kLanes<T>] = {}, lanes1[kLanes<T>] = {}, lanes2[kLanes<T>] = {}, lanes3[kLanes<T>] = {};
    const auto step = [&](int64_t c, int l) __attribute__((always_inline)) {
        if constexpr (kWeight)
            d_weight[c] += g0 * f0[c] + g1 * f1[c] + g2 * f2[c] + g3 * f3[c];
        if constexpr (kPosition) {
            lanes0[l] += weight[c] * f0[c];
            lanes1[l] += weight[c] * f1[c];
            lanes2[l] += weight[c] * f2[c];
            lanes3[l] += weight[c] * f3[c];
        }
    };
    int64_t c = 0;
    for (; c + kLanes<T> <= C; c += kLanes<T>) {
#pragma GCC ivdep
        for (int l = 0; l < kLanes<T>; ++l)
            step(c + l, l);
    }
    for (int l = 0; c < C; ++c, ++l)
        step(c, l);
    if constexpr (kPosition) {
        dot[0] = sum_lanes<T>(lanes0);
        dot[1] = sum_lanes<T>(lanes1);
        dot[2] = sum_lanes<T>(lanes2);
        dot[3] = sum_lanes<T>(lanes3);
    }
}

// d_features += grad * weight at the four corners; nothing outside the image.
template <class T>
V1FAST_INLINE void scatter_bilinear(const Corners<T>& corners, const T (&w)[4], const T* weight, T grad, int64_t C) {
    for (int k = 0; k < 4; ++k) {
        if (!corners.inside[k])
            continue;
        T* row = corners.row[k];
        const T scale = grad * w[k];
#pragma GCC ivdep
        for (int64_t c = 0; c < C; ++c)
            row[c] += scale * weight[c];
    }
}

} // namespace v1fast
