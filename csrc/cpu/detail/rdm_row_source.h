// Rows of responses, of any dtype and strides, seen by the kernels as parts of rows of the compute type T.
#pragma once

#include "images.h"
#include "large_memory.h"

namespace v1fast {

// What is done to the values of one row before they are multiplied.
struct RowMap {
    double before = 1, mean = 0, scale = 0; // before: a power of two, and 1 unless T is double
    bool valid = false;
    bool plain = false; // all intermediate values fit float

    template <class T>
    double apply(T value) const {
        return (static_cast<double>(value) * before - mean) * scale;
    }
};

// The rows of one member of a batch [B, rows, columns]. Contiguous rows of T are read in place. Others are copied one
// part at a time.
template <class T>
class RowSource {
public:
    int64_t rows, columns;

    RowSource(const Tensor& t, int64_t b)
        : rows(t.size(1)), columns(t.size(2)), dtype_(t.scalar_type()), stride_row_(t.stride(1)),
          stride_column_(t.stride(2)), direct_(dtype_ == kScalarType<T> && (stride_column_ == 1 || columns == 1)),
          data_(static_cast<const char*>(t.const_data_ptr()) +
                b * t.stride(0) * static_cast<int64_t>(t.element_size())) {}

    // `count` columns of a row from column k on. `copy` has memory for them.
    const T* part(int64_t row, int64_t k, int64_t count, T* copy) const {
        if (direct_)
            return reinterpret_cast<const T*>(data_) + row * stride_row_ + k;
        V1FAST_DISPATCH_FLOATING(dtype_, "responses", [&] {
            const scalar_t* from = reinterpret_cast<const scalar_t*>(data_) + row * stride_row_ + k * stride_column_;
            for (int64_t i = 0; i < count; ++i)
                copy[i] = static_cast<T>(from[i * stride_column_]);
        });
        return copy;
    }

    // Calls work(row, k, count, values) for all parts of some rows. The parts of one row come in order. They are the
    // same for all strides, and so are the sums over them.
    template <class Work>
    void for_each_part(int64_t begin, int64_t end, const Work& work) const {
        T copy[kPart];
        // Contiguous rows are read one after the other. Otherwise all rows of one part are read, because they may share
        // cache lines.
        const int64_t step = direct_ ? 1 : end - begin;
        for (int64_t first = begin; first < end; first += step)
            for (int64_t k = 0; k < columns; k += kPart)
                for (int64_t row = first; row < first + step; ++row) {
                    const int64_t count = std::min(kPart, columns - k);
                    work(row, k, count, part(row, k, count, copy));
                }
    }

    static constexpr int64_t kPart = 1024; // columns per part

private:
    torch::headeronly::ScalarType dtype_;
    int64_t stride_row_, stride_column_;
    bool direct_;
    const char* data_;
};

} // namespace v1fast
