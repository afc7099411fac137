// The kernels that read and write the channels of feature maps. Compiled once for each instruction set in
// channel_kernels.cpp; the best is chosen at run time.
#pragma once

#include "operands.h"

namespace v1fast {

constexpr int64_t kBlock = 128;      // neurons that are located at a time for reading
constexpr int64_t kSorted = 8192;    // the same for writing: several per cell, in about 400 KiB
constexpr int64_t kImages = 4;       // images that one neuron reads before the next neuron: parts of all stay in L2
constexpr int64_t kFixedImages = 8;  // the same, where neurons are ordered by cell: cells stay in L1
constexpr int64_t kWritten = 8;      // images whose gradients take one block of neurons after the other
constexpr int64_t kShiftBlock = 256; // neurons whose d_shift is summed before the sum over all

// Sums over images that one thread owns for its neurons. Position gradients are summed in double: there are few of
// them.
template <class T>
struct NeuronSums {
    T* d_weight;     // [N, C], null: not requested
    double* d_z;     // [6, N]: d_mu (x, y), then d_z times noise (xx, xy, yx, yy); null: no position gradient wanted
    double* d_shift; // [B, ceil(N / kShiftBlock), 2], null: not requested
    T* d_positions;  // [B, N, 2], in the neurons' own order, null: not requested
};

// Where the gradient of an image is written, [H, W, C], and what it holds before samples are added to it.
template <class T>
struct Canvas {
    T* image;
    bool zeros;      // it holds zeros; false: the contents are unknown, or
    bool values;     // it holds what other neurons have added
    const T* pooled; // the gradient of the image's average pooling [pooled_H, pooled_W, C], to be spread; null: none
    int64_t pooled_H, pooled_W, kernel;
    int64_t done = 0; // pixels that have got their initial values
};

// The channel kernels that one instruction set provides, for one compute type: images b0 .. b1 - 1, at most kImages,
// neurons n0 .. n1 - 1; images b1 .. last - 1 are expected next.
template <class T>
struct ChannelKernels {
    void (*forward)(const Operands<T>&, const ImageReader<T>&, int64_t b0, int64_t b1, int64_t last, int64_t n0,
                    int64_t n1, T* out, Points<T>&);
    void (*backward_neurons)(const Operands<T>&, const ImageReader<T>&, const T* grad, int64_t b0, int64_t b1,
                             int64_t last, int64_t n0, int64_t n1, const NeuronSums<T>&, Points<T>&);
    // Neurons n0 .. n1 - 1, at most kSorted, in their order from 0 to N; those up to N finish the canvas. channels
    // [N, C]: what neurons write, times their gradient; grad null: as it is.
    void (*backward_image)(const Operands<T>&, const T* grad, const T* channels, int64_t b, int64_t n0, int64_t n1,
                           Canvas<T>&, Points<T>&, CellOrder<T>&);

    // For neurons that read the same point in all images: located and ordered by cell once. Samples i0 .. i1 - 1 of
    // that order, at most kFixedImages images.
    void (*locate_fixed)(const Operands<T>&, Points<T>&, CellOrder<T>&);
    void (*forward_fixed)(const Operands<T>&, const ImageReader<T>&, const CellOrder<T>&, int64_t b0, int64_t b1,
                          int64_t i0, int64_t i1, T* out);
    void (*backward_neurons_fixed)(const Operands<T>&, const ImageReader<T>&, const T* grad, const Points<T>&,
                                   const CellOrder<T>&, int64_t b0, int64_t b1, int64_t i0, int64_t i1,
                                   const NeuronSums<T>&);
    // Samples i0 .. i1 - 1, whole cells; as above.
    void (*backward_image_fixed)(const Operands<T>&, const T* grad, int64_t b, int64_t i0, int64_t i1, Canvas<T>&,
                                 const CellOrder<T>&, T* corner_weight); // memory for [4, padded(i1 - i0)]

    // What neurons read in image b, out [N, C]; and the gradient of their positions, out [N, 2].
    void (*gather)(const Operands<T>&, const ImageReader<T>&, int64_t b, int64_t n0, int64_t n1, T* out, Points<T>&);
    void (*gather_positions)(const Operands<T>&, const ImageReader<T>&, const T* channels, int64_t b, int64_t n0,
                             int64_t n1, T* out, Points<T>&);

    // The average pooling of an image [H, W, C]. Kernel and stride are equal; the remainder is dropped.
    void (*pool)(const T* image, int64_t C, int64_t H, int64_t W, int64_t kernel, T* out);
};

template <class T>
const ChannelKernels<T>& channel_kernels();

// Normals [N, 2] of one image.
using DrawNormals = void (*)(uint64_t seed, const uint32_t* neuron_index, int64_t image, int64_t N, float* out);
DrawNormals draw_normals();

} // namespace v1fast
