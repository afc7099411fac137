// Bilinear interpolation in an image stored as [H, W, C], with zeros outside: what all kernels agree on.
#pragma once

#include "philox.h"

#include <cstdint>

namespace v1fast {

// How a normalised coordinate becomes a pixel coordinate: pixel = (coordinate + 1) * scale + offset.
template <class T>
struct PixelMap {
    T scale, offset;
    V1FAST_HD PixelMap(int64_t size, bool align_corners)
        : scale(align_corners ? T(size - 1) / 2 : T(size) / 2), offset(align_corners ? T(0) : T(-0.5)) {}
};

// The cell of a pixel coordinate: its lower corner, or -2 where neither corner lies in [0, size). NaN and infinities
// also give -2. Only values that fit an integer are converted to one.
template <class T>
V1FAST_HD int32_t lower_corner(T floor_of_pixel, int64_t size) {
    return floor_of_pixel >= T(-1) && floor_of_pixel < T(size) ? static_cast<int32_t>(floor_of_pixel) : -2;
}

// The four corners (y0 x0, y0 x1, y1 x0, y1 x1) of a cell, each of them C channels. A corner outside the image is
// another place, of zeros to read; it is never a product with zero: a NaN elsewhere in the map must not reach this
// sample.
template <class T>
struct Corners {
    T* channels[4]; // [C] each
    bool inside[4];

    // A cell that lies entirely inside, from its first corner.
    V1FAST_HD Corners(T* first, int64_t C, int64_t W)
        : channels{first, first + C, first + W * C, first + W * C + C}, inside{true, true, true, true} {}

    V1FAST_HD Corners(T* image, T* outside, int32_t x, int32_t y, int64_t C, int64_t H, int64_t W) {
        const bool x0 = x >= 0, x1 = x + 1 >= 0 && x + 1 < W, y0 = y >= 0, y1 = y + 1 >= 0 && y + 1 < H;
        inside[0] = y0 && x0;
        inside[1] = y0 && x1;
        inside[2] = y1 && x0;
        inside[3] = y1 && x1;
        const int64_t first = (static_cast<int64_t>(y) * W + x) * C;
        const int64_t offset[4] = {first, first + C, first + W * C, first + W * C + C};
        for (int k = 0; k < 4; ++k)
            channels[k] = inside[k] ? image + offset[k] : outside;
    }
};

// Weights of the four corners at the fraction (ax, ay) of the cell.
template <class T>
V1FAST_HD void corner_weights(T ax, T ay, T (&weight)[4]) {
    weight[0] = (T(1) - ay) * (T(1) - ax);
    weight[1] = (T(1) - ay) * ax;
    weight[2] = ay * (T(1) - ax);
    weight[3] = ay * ax;
}

} // namespace v1fast
