// Points of a feature map that a block of neurons reads, and the memory in which one thread computes them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace v1fast {

// Uninitialised numbers at the start of a cache line.
template <class T>
class AlignedArray {
public:
    explicit AlignedArray(int64_t size)
        : data_(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), kLine))) {}
    T* get() const { return data_.get(); }

private:
    static constexpr std::align_val_t kLine{64};
    struct Delete {
        void operator()(T* data) const { ::operator delete(data, kLine); }
    };
    std::unique_ptr<T, Delete> data_;
};

constexpr int64_t kPadding = 16; // vector loops run over whole multiples of this many neurons

constexpr int64_t padded(int64_t count) { return (count + kPadding - 1) / kPadding * kPadding; }

// Philox words of a block of neurons. One Philox block serves an even image and the odd one after it.
class NoiseWords {
    AlignedArray<uint32_t> array_;

public:
    const int64_t stride;
    uint32_t* const words;                 // [4, stride]
    int64_t first_neuron = -1, block = -1; // the neurons and Philox block that the words belong to

    explicit NoiseWords(int64_t neurons) : array_(4 * padded(neurons)), stride(padded(neurons)), words(array_.get()) {}
};

// Where a block of neurons reads in one image. Each array has `capacity` elements, in the order of the neurons.
template <class T>
struct Samples {
    static constexpr int64_t kReals = 9, kIntegers = 4; // arrays of each kind

    int64_t capacity; // a multiple of kPadding
    T *noise_x, *noise_y;
    T *ax, *ay;                         // fractions of the cell
    T* corner_weight;                   // [4, capacity]
    T* grad;                            // upstream gradients
    int32_t *unclamped_x, *unclamped_y; // 1: the clamp lets the gradient through
    int32_t *bucket, *place;            // the cell's number in two forms: see `Places`

    Samples(T* reals, int32_t* integers, int64_t capacity_)
        : capacity(capacity_), noise_x(reals), noise_y(noise_x + capacity), ax(noise_y + capacity), ay(ax + capacity),
          corner_weight(ay + capacity), grad(corner_weight + 4 * capacity), unclamped_x(integers),
          unclamped_y(unclamped_x + capacity), bucket(unclamped_y + capacity), place(bucket + capacity) {}
};

// Where a block of neurons reads in each of a few images.
template <class T>
class Points {
    AlignedArray<T> reals_, values_;
    AlignedArray<int32_t> integers_;

public:
    const int64_t capacity;                    // neurons
    const int64_t real_stride, integer_stride; // from one image to the next, in any array of Samples
    NoiseWords words;
    T *const value_x, *const value_y; // results, [capacity, images], and memory for one more vector

    Points(int64_t images, int64_t neurons)
        : reals_(Samples<T>::kReals * images * padded(neurons)), values_(2 * (images + 1) * padded(neurons)),
          integers_(Samples<T>::kIntegers * images * padded(neurons)), capacity(padded(neurons)),
          real_stride(Samples<T>::kReals * capacity), integer_stride(Samples<T>::kIntegers * capacity), words(neurons),
          value_x(values_.get()), value_y(value_x + (images + 1) * capacity) {}

    Samples<T> operator[](int64_t image) const {
        return {reals_.get() + image * real_stride, integers_.get() + image * integer_stride, capacity};
    }
};

// The samples of a block in the order of their cells. Contributions to one cell are summed before they are written.
template <class T>
class CellOrder {
    AlignedArray<T> reals_;
    AlignedArray<int32_t> integers_;

public:
    const int64_t capacity;
    T *const ax, *const ay, *const grad;
    T* const corner_weight;              // [4, capacity]
    int32_t *const neuron, *const place; // index within the block, and see `Places`
    std::vector<uint32_t> start;         // of each bucket

    explicit CellOrder(int64_t neurons)
        : reals_(7 * padded(neurons)), integers_(2 * padded(neurons)), capacity(padded(neurons)), ax(reals_.get()),
          ay(ax + capacity), grad(ay + capacity), corner_weight(grad + capacity), neuron(integers_.get()),
          place(neuron + capacity) {}
};

// Numbers of cells. Each cell with a corner in the map of height x width pixels has its own bucket. One last bucket
// holds all other cells. If all four corners are inside, a place is the pixel of the lower corner. Otherwise it is the
// complement of the bucket, which is < 0.
struct Places {
    int32_t width, height;

    int32_t nowhere() const { return (height + 1) * (width + 1); }
    int32_t count() const { return nowhere() + 1; }
    // The lower corner of a bucket.
    void decode(int32_t bucket, int32_t& x, int32_t& y) const {
        const bool none = bucket == nowhere();
        x = none ? -2 : bucket % (width + 1) - 1;
        y = none ? -2 : bucket / (width + 1) - 1;
    }
};

} // namespace v1fast
