// Feature maps of any dtype and strides, seen by the kernels as [H, W, C] images of the compute type T.
//
// Channels-last maps of type T are read and written where they are. Anything else goes through a bounded buffer, a few
// images at a time, so that the channel kernels exist once per compute type and no copy of the whole map is made.
#pragma once

#include "../../torch_api.h"
#include "dispatch.h"
#include "large_memory.h"

#include <algorithm>
#include <memory>

namespace v1fast {

inline constexpr int64_t kBufferBytes = 16 << 20; // stays in the outer caches; holds at least one image

template <class T>
inline constexpr auto kScalarType =
    sizeof(T) == 8 ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;

// Sizes, strides and dtype of a [B, C, H, W] tensor.
template <class T>
struct ImageLayout {
    int64_t B, C, H, W, stride_b, stride_c, stride_h, stride_w;
    torch::headeronly::ScalarType dtype;
    bool direct; // each image is already a dense [H, W, C] block of T

    explicit ImageLayout(const Tensor& t)
        : B(t.size(0)), C(t.size(1)), H(t.size(2)), W(t.size(3)), stride_b(t.stride(0)), stride_c(t.stride(1)),
          stride_h(t.stride(2)), stride_w(t.stride(3)), dtype(t.scalar_type()),
          direct(dtype == kScalarType<T> && (C == 1 || stride_c == 1) && (W == 1 || stride_w == C) &&
                 (H == 1 || stride_h == W * C)) {}

    // Dense images, one after the other.
    ImageLayout(int64_t B_, int64_t C_, int64_t H_, int64_t W_)
        : B(B_), C(C_), H(H_), W(W_), stride_b(C_ * H_ * W_), stride_c(1), stride_h(W_ * C_), stride_w(C_),
          dtype(kScalarType<T>), direct(true) {}

    int64_t size() const { return C * H * W; }
    bool dense() const { return direct && (B == 1 || stride_b == size()); } // one block of T, channels last
    int64_t offset(int64_t c, int64_t w) const { return c * stride_c + w * stride_w; }

    // Calls work(c, w) for all elements of one row, in the order of the tensor's memory.
    template <class Work>
    void for_each_in_row(const Work& work) const {
        if (stride_c == 1)
            for (int64_t w = 0; w < W; ++w)
                for (int64_t c = 0; c < C; ++c)
                    work(c, w);
        else
            for (int64_t c = 0; c < C; ++c)
                for (int64_t w = 0; w < W; ++w)
                    work(c, w);
    }
};

template <class T>
class ImageReader {
public:
    // whole: all images at a time, for several passes over them.
    explicit ImageReader(const Tensor& features, bool whole = false)
        : layout_(features), data_(features.const_data_ptr()) {
        const int64_t image_bytes = std::max<int64_t>(1, layout_.size() * static_cast<int64_t>(sizeof(T)));
        chunk_ = layout_.direct || whole
                     ? layout_.B
                     : std::clamp<int64_t>(kBufferBytes / image_bytes, 1, std::max<int64_t>(1, layout_.B));
        if (!layout_.direct)
            buffer_.reset(new T[static_cast<size_t>(chunk_ * layout_.size())]);
    }

    // Dense images that the caller owns. `data` is where image 0 is, or would be.
    ImageReader(const T* data, const ImageLayout<T>& dense) : layout_(dense), data_(data), chunk_(dense.B) {}

    // The largest number of images at a time.
    int64_t chunk() const { return chunk_; }

    // Calls work(first, last) for consecutive ranges of images. image() is valid for the images of the current range.
    template <class Work>
    void for_each_chunk(const Work& work) {
        for (first_ = 0; first_ < layout_.B; first_ += chunk_) {
            const int64_t last = std::min(first_ + chunk_, layout_.B);
            if (!layout_.direct && filled_ != last)
                fill(last);
            filled_ = last;
            work(first_, last);
        }
    }

    const T* image(int64_t b) const {
        return layout_.direct ? static_cast<const T*>(data_) + b * layout_.stride_b
                              : buffer_.get() + (b - first_) * layout_.size();
    }

private:
    void fill(int64_t last) {
        const ImageLayout<T>& s = layout_;
        V1FAST_DISPATCH_FLOATING(s.dtype, "features", [&] {
            const scalar_t* source = static_cast<const scalar_t*>(data_);
            torch::stable::parallel_for(0, (last - first_) * s.H, 8, [&](int64_t begin, int64_t end) {
                for (int64_t row = begin; row < end; ++row) {
                    const scalar_t* from = source + (first_ + row / s.H) * s.stride_b + (row % s.H) * s.stride_h;
                    T* to = buffer_.get() + row * s.W * s.C;
                    s.for_each_in_row(
                        [&](int64_t c, int64_t w) { to[w * s.C + c] = static_cast<T>(from[s.offset(c, w)]); });
                }
            });
        });
    }

    ImageLayout<T> layout_;
    const void* data_;
    std::unique_ptr<T[]> buffer_;
    int64_t chunk_ = 0, first_ = 0;
    int64_t filled_ = 0; // the buffer holds images up to this one
};

// The gradient of feature maps: accumulated image by image in T, and rounded once to the tensor's dtype.
template <class T>
class ImageWriter {
public:
    // whole: images are begun several times before they are finished.
    explicit ImageWriter(const Tensor& features, bool whole = false)
        : ImageWriter(uninitialised_like(features, ImageLayout<T>(features).dense())) {
        if (whole && !layout_.direct)
            whole_.reset(new T[static_cast<size_t>(layout_.B * layout_.size())]);
    }

    const Tensor& gradient() const { return gradient_; }

    // Whether the memory from begin() holds zeros.
    bool zeros() const { return zeros_ && layout_.direct; }

    // A buffer for the images of one thread. There is none where the tensor itself is written.
    std::unique_ptr<T[]> buffer() const {
        return std::unique_ptr<T[]>(layout_.direct || whole_ ? nullptr : new T[static_cast<size_t>(layout_.size())]);
    }

    // Where to write all of image b.
    T* begin(int64_t b, T* buffer) const {
        if (layout_.direct)
            return static_cast<T*>(data_) + b * layout_.stride_b;
        return whole_ ? whole_.get() + b * layout_.size() : buffer;
    }

    void finish(int64_t b, T* buffer) const {
        if (layout_.direct)
            return;
        const ImageLayout<T>& s = layout_;
        const T* const image = begin(b, buffer);
        V1FAST_DISPATCH_FLOATING(s.dtype, "features", [&] {
            scalar_t* gradient = static_cast<scalar_t*>(data_) + b * s.stride_b;
            for (int64_t h = 0; h < s.H; ++h) {
                scalar_t* to = gradient + h * s.stride_h;
                const T* from = image + h * s.W * s.C;
                s.for_each_in_row(
                    [&](int64_t c, int64_t w) { to[s.offset(c, w)] = static_cast<scalar_t>(from[w * s.C + c]); });
            }
        });
    }

private:
    Tensor gradient_;
    bool zeros_;
    ImageLayout<T> layout_;
    void* data_;
    std::unique_ptr<T[]> whole_;

    explicit ImageWriter(Uninitialised gradient)
        : gradient_(std::move(gradient.tensor)), zeros_(gradient.zeros), layout_(gradient_),
          data_(gradient_.mutable_data_ptr()) {}
};

} // namespace v1fast
