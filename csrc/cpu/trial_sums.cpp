// Sums over the trials of each image, and sums of their products over images, on the CPU.
// v1fast/reference/trial_sums.py defines them.
#include "../boxed.h"
#include "../philox.h" // V1FAST_INLINE
#include "../torch_api.h"
#include "detail/isa.h"

#include <algorithm>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

// The sums, as bits of the op's argument `which`, in the order of its output.
enum TrialSum : int { kSumX = 1, kSumY = 2, kSumXX = 4, kSumYY = 8, kSumXY = 16, kSumError = 32 };

// Trials that are summed in registers; the same number of rows is prefetched at once.
constexpr int64_t kTrials = 10;

// Rows of one image, at the first neuron of a call: `trials` to sum, then `next` that will be summed after them.
template <class T>
struct TrialRows {
    const T *x[2 * kTrials], *y[2 * kTrials];
    int64_t trials, next;
};

// Sums the trials of n neurons. centers [2, N]; the k-th sum is added to sums + k * stride.
template <class T>
using SumTrials = void (*)(const TrialRows<T>&, const double* centers, int64_t N, int64_t n, double* sums,
                           int64_t stride);

} // namespace v1fast

#define V1FAST_ISA_FILE "trial_sums.inc"
#include "detail/foreach_isa.h"

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Neurons that one thread sums at a time. Rows are read in long pieces, and their sums stay in the cache.
constexpr int64_t kNeurons = 2048;

// Checked operands of both ops.
struct Operands {
    Tensor x, y, centers, order, counts;
    int64_t N, images, which, sums;
};

template <class T>
class Sums {
public:
    explicit Sums(const Operands& given)
        : given_(given), x_(given.x.const_data_ptr<T>()), y_(given.y.const_data_ptr<T>()),
          order_(given.order.const_data_ptr<int64_t>()), sum_(V1FAST_PICK_ISA(sum_trials_of<T>)(given.which)) {
        STD_TORCH_CHECK(sum_, "trial_sums: want one of the sets of sums of v1fast.contracts.trial_sums");
    }

    // The sums [k * stride] of the next `count` trials of n neurons from `first`. Returns what comes after these
    // trials.
    int64_t image(int64_t trial, int64_t count, int64_t first, int64_t n, double* sums, int64_t stride) const {
        for (int64_t k = 0; k < given_.sums; ++k)
            std::fill_n(sums + k * stride, n, 0.0);
        const double* centers = given_.centers.const_data_ptr<double>() + first;
        for (const int64_t last = trial + count; trial < last;) {
            TrialRows<T> rows;
            rows.trials = std::min(kTrials, last - trial);
            rows.next = std::min(rows.trials, given_.order.size(0) - trial - rows.trials);
            for (int64_t t = 0; t < rows.trials + rows.next; ++t) {
                rows.x[t] = x_ + order_[trial + t] * given_.x.stride(0) + first;
                rows.y[t] = y_ + order_[trial + t] * given_.y.stride(0) + first;
            }
            sum_(rows, centers, given_.N, n, sums, stride);
            trial += rows.trials;
        }
        return trial;
    }

private:
    const Operands& given_;
    const T *x_, *y_;
    const int64_t* order_;
    SumTrials<T> sum_;
};

// Calls f(first neuron, number of neurons) for each block of neurons, by torch's threads.
template <class F>
void for_each_block(int64_t N, const F& f) {
    torch::stable::parallel_for(0, (N + kNeurons - 1) / kNeurons, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin * kNeurons; n < std::min(N, end * kNeurons); n += kNeurons)
            f(n, std::min(kNeurons, N - n));
    });
}

template <class T>
void sum_all(const Operands& given, double* out) {
    const Sums<T> sums(given);
    const int64_t* counts = given.counts.const_data_ptr<int64_t>();
    for_each_block(given.N, [&](int64_t first, int64_t n) {
        for (int64_t image = 0, trial = 0; image < given.images; ++image)
            trial = sums.image(trial, counts[image], first, n, out + image * given.N + first, given.images * given.N);
    });
}

// The sums of one image at a time stay in the cache.
template <class T>
void sum_products(const Operands& given, const Tensor& factors, const Tensor& weights, double* out) {
    const Sums<T> sums(given);
    const auto add = V1FAST_PICK_ISA(add_product);
    const int64_t *counts = given.counts.const_data_ptr<int64_t>(), *factor = factors.const_data_ptr<int64_t>();
    const double* weight = weights.const_data_ptr<double>();
    for_each_block(given.N, [&](int64_t first, int64_t n) {
        std::vector<double> of_image(given.sums * n);
        const auto operand = [&](int64_t f) { return f == 0 ? nullptr : of_image.data() + (f - 1) * n; };
        for (int64_t k = 0; k < factors.size(0); ++k)
            std::fill_n(out + k * given.N + first, n, 0.0);
        for (int64_t image = 0, trial = 0; image < given.images; ++image) {
            trial = sums.image(trial, counts[image], first, n, of_image.data(), n);
            for (int64_t k = 0; k < factors.size(0); ++k)
                add(out + k * given.N + first, weight[k * given.images + image], operand(factor[2 * k]),
                    operand(factor[2 * k + 1]), n);
        }
    });
}

// Rows at any distance whose elements are contiguous.
Tensor with_rows(const Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1 ? x : as_contiguous(x); }

Operands checked(const Tensor& x, const Tensor& y, const Tensor& center, const Tensor& order, const Tensor& counts,
                 int64_t which) {
    STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && y.size(0) == x.size(0) && y.size(1) == x.size(1),
                    "trial_sums: want x and y [T, N]");
    STD_TORCH_CHECK((x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double) &&
                        y.scalar_type() == x.scalar_type(),
                    "trial_sums: want x and y both float32 or both float64");
    STD_TORCH_CHECK(center.dim() == 2 && center.size(0) == 2 && center.size(1) == x.size(1) &&
                        center.scalar_type() == ScalarType::Double,
                    "trial_sums: want center [2, N] in float64");
    STD_TORCH_CHECK(order.dim() == 1 && counts.dim() == 1 && order.scalar_type() == ScalarType::Long &&
                        counts.scalar_type() == ScalarType::Long,
                    "trial_sums: want order [K] and counts [I] in int64");
    const Tensor rows = as_contiguous(order), sizes = as_contiguous(counts);
    const int64_t *trial = rows.const_data_ptr<int64_t>(), *count = sizes.const_data_ptr<int64_t>();
    STD_TORCH_CHECK(
        std::all_of(trial, trial + rows.size(0), [&](int64_t each) { return each >= 0 && each < x.size(0); }),
        "trial_sums: want order from 0 to T - 1");
    int64_t left = rows.size(0);
    for (int64_t image = 0; image < sizes.size(0); ++image) {
        STD_TORCH_CHECK(count[image] >= 0 && count[image] <= left, "trial_sums: want counts >= 0 with the sum K");
        left -= count[image];
    }
    STD_TORCH_CHECK(left == 0, "trial_sums: want counts >= 0 with the sum K");
    return {with_rows(x),  with_rows(y), as_contiguous(center),
            rows,          sizes,        x.size(1),
            sizes.size(0), which,        __builtin_popcountll(static_cast<unsigned long long>(which))};
}

Tensor trial_sums(const Tensor& x, const Tensor& y, const Tensor& center, const Tensor& order, const Tensor& counts,
                  int64_t which) {
    const Operands given = checked(x, y, center, order, counts, which);
    const Tensor out = torch::stable::new_empty(x, {given.sums, given.images, given.N}, ScalarType::Double);
    double* values = out.mutable_data_ptr<double>();
    x.scalar_type() == ScalarType::Float ? sum_all<float>(given, values) : sum_all<double>(given, values);
    return out;
}

Tensor trial_products(const Tensor& x, const Tensor& y, const Tensor& center, const Tensor& order, const Tensor& counts,
                      const Tensor& factors, const Tensor& weights, int64_t which) {
    const Operands given = checked(x, y, center, order, counts, which);
    STD_TORCH_CHECK(factors.dim() == 2 && factors.size(1) == 2 && factors.scalar_type() == ScalarType::Long,
                    "trial_products: want factors [K, 2] in int64");
    STD_TORCH_CHECK(weights.dim() == 2 && weights.size(0) == factors.size(0) && weights.size(1) == given.images &&
                        weights.scalar_type() == ScalarType::Double,
                    "trial_products: want weights [K, I] in float64");
    const Tensor pairs = as_contiguous(factors), of_images = as_contiguous(weights);
    const int64_t* factor = pairs.const_data_ptr<int64_t>();
    STD_TORCH_CHECK(
        std::all_of(factor, factor + pairs.numel(), [&](int64_t each) { return each >= 0 && each <= given.sums; }),
        "trial_products: want factors from 0 to the number of sums");
    const Tensor out = torch::stable::new_empty(x, {pairs.size(0), given.N}, ScalarType::Double);
    double* values = out.mutable_data_ptr<double>();
    x.scalar_type() == ScalarType::Float ? sum_products<float>(given, pairs, of_images, values)
                                         : sum_products<double>(given, pairs, of_images, values);
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("trial_sums", V1FAST_BOX(trial_sums));
    m.impl("trial_products", V1FAST_BOX(trial_products));
}

} // namespace v1fast
