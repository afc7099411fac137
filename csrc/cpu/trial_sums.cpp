// Sums over the trials of each image on the CPU. v1fast/reference/trial_sums.py defines them.
#include "../boxed.h"
#include "../philox.h" // V1FAST_INLINE
#include "../torch_api.h"
#include "detail/isa.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

// The sums, as bits of the op's argument `which`, in the order of its output.
enum TrialSum : int { kSumX = 1, kSumY = 2, kSumXX = 4, kSumYY = 8, kSumXY = 16, kSumError = 32 };

// Responses and predictions of the first neuron of a call, and the strides from one trial to the next.
template <class T>
struct TrialRows {
    const T *x, *y;
    int64_t x_stride, y_stride;
};

// Sums `trials` entries of `order` for n neurons. centers [2, N]; the k-th sum goes to sums + k * stride.
template <class T>
using SumTrials = void (*)(TrialRows<T>, const int64_t* order, int64_t trials, const double* centers, int64_t N,
                           int64_t n, double* sums, int64_t stride);

} // namespace v1fast

#define V1FAST_ISA_FILE "trial_sums.inc"
#include "detail/foreach_isa.h"

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Neurons that one thread sums at a time. Rows are read in long pieces, and their sums stay in the cache.
constexpr int64_t kNeurons = 1024;
// Trials that are summed in registers; the same number of rows is prefetched at once.
constexpr int64_t kTrials = 10;

struct Grouping {
    const int64_t *order, *counts;
    int64_t images;
};

template <class T>
void sum_all(const Tensor& x, const Tensor& y, const Tensor& center, const Grouping& trials, int64_t which,
             double* out) {
    const SumTrials<T> sum = V1FAST_PICK_ISA(sum_trials_of<T>)(which);
    STD_TORCH_CHECK(sum, "trial_sums: want one of the sets of sums of v1fast.ops.trial_sums");
    const int64_t N = x.size(1), stride = trials.images * N;
    const int64_t count = __builtin_popcountll(static_cast<unsigned long long>(which));
    const T *first = x.const_data_ptr<T>(), *second = y.const_data_ptr<T>();
    const double* centers = center.const_data_ptr<double>();
    torch::stable::parallel_for(0, (N + kNeurons - 1) / kNeurons, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin * kNeurons; n < std::min(N, end * kNeurons); n += kNeurons) {
            const TrialRows<T> rows{first + n, second + n, x.stride(0), y.stride(0)};
            const int64_t size = std::min(kNeurons, N - n), *trial = trials.order;
            for (int64_t image = 0; image < trials.images; ++image) {
                double* sums = out + image * N + n;
                for (int64_t k = 0; k < count; ++k)
                    std::fill_n(sums + k * stride, size, 0.0);
                for (const int64_t* last = trial + trials.counts[image]; trial < last;) {
                    const int64_t some = std::min<int64_t>(kTrials, last - trial);
                    sum(rows, trial, some, centers + n, N, size, sums, stride);
                    trial += some;
                }
            }
        }
    });
}

// Rows at any distance whose elements are contiguous.
Tensor with_rows(const Tensor& x) { return x.size(1) <= 1 || x.stride(1) == 1 ? x : torch::stable::contiguous(x); }

Tensor trial_sums(const Tensor& x, const Tensor& y, const Tensor& center, const Tensor& order, const Tensor& counts,
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
    const Tensor rows = torch::stable::contiguous(order), sizes = torch::stable::contiguous(counts);
    const Grouping trials{rows.const_data_ptr<int64_t>(), sizes.const_data_ptr<int64_t>(), sizes.size(0)};
    STD_TORCH_CHECK(std::all_of(trials.order, trials.order + rows.size(0),
                                [&](int64_t trial) { return trial >= 0 && trial < x.size(0); }),
                    "trial_sums: want order from 0 to T - 1");
    int64_t left = rows.size(0);
    for (int64_t image = 0; image < trials.images; ++image) {
        STD_TORCH_CHECK(trials.counts[image] >= 0 && trials.counts[image] <= left,
                        "trial_sums: want counts >= 0 with the sum K");
        left -= trials.counts[image];
    }
    STD_TORCH_CHECK(left == 0, "trial_sums: want counts >= 0 with the sum K");
    const int64_t sums = __builtin_popcountll(static_cast<unsigned long long>(which));
    const Tensor out = torch::stable::new_empty(x, {sums, trials.images, x.size(1)}, ScalarType::Double);
    const Tensor first = with_rows(x), second = with_rows(y), centers = torch::stable::contiguous(center);
    double* values = out.mutable_data_ptr<double>();
    x.scalar_type() == ScalarType::Float ? sum_all<float>(first, second, centers, trials, which, values)
                                         : sum_all<double>(first, second, centers, trials, which, values);
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) { m.impl("trial_sums", V1FAST_BOX(trial_sums)); }

} // namespace v1fast
