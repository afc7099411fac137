// Sets of rows for the dissimilarity matrices: standardised as they are packed, never copied as a whole.
#pragma once

#include "../../torch_api.h"
#include "rdm_kernels.h"
#include "samples.h"
#include "whole_numbers.h"

#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

namespace v1fast {

enum class Method { correlation, cosine, euclidean };

inline Method method_of(const std::string& name) {
    return name == "correlation" ? Method::correlation : name == "cosine" ? Method::cosine : Method::euclidean;
}

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// 1 / largest, rounded to a power of two, like power_of_two in the reference.
inline double power_of_two(double largest) {
    int exponent = 0;
    std::frexp(largest, &exponent);
    return std::ldexp(1, -std::clamp(exponent, -1000, 1000));
}

// Calls work(i) for 0 .. count - 1, each as soon as a thread is free. Every thread creates its own `work`.
template <class MakeWork>
void for_each_task(int64_t count, const MakeWork& make_work) {
    const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
    std::atomic<int64_t> next = 0;
    torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
        const auto work = make_work();
        for (int64_t task; (task = next++) < count;)
            work(task);
    });
}

// One set of rows, their maps, and their products with themselves. `absent` padding rows stand in front and fill up the
// first panel. So the remainder is a part of a panel's rows, which costs less than a part of a column panel. All counts
// include the padding rows.
template <class T>
struct Rows {
    RowSource<T> source;
    int64_t panel, absent;
    std::vector<RowMap> maps;       // [whole panels]
    std::vector<T> own;             // [whole panels]
    const double* centre = nullptr; // [columns], null: none
    double scale = 1;               // of method euclidean, for all rows
    Steps steps;                    // found: the rows are whole numbers
    std::vector<double> sums;       // [whole panels], for whole numbers

    explicit Rows(const RowSource<T>& rows)
        : source(rows), panel(rdm_kernels<T>().panel), absent(round_up(rows.rows, panel) - rows.rows),
          maps(static_cast<size_t>(absent + rows.rows)), own(maps.size()) {}
    int64_t count() const { return static_cast<int64_t>(maps.size()); }
    int64_t panels() const { return count() / panel; }
    Packing packing(bool plain) const {
        return steps.found ? Packing::whole : centre ? Packing::centred : plain ? Packing::plain : Packing::wide;
    }
};

// In float, a value can be standardised directly if neither it nor the result comes near the ends of the range.
template <class T>
bool is_plain(const RowMap& map, double largest) {
    const auto moderate = [](double value) { return value > 1e-25 && value < 1e25; };
    return sizeof(T) == sizeof(float) && moderate(largest) && moderate(map.scale);
}

template <class T>
RowMap row_map(const RowMoments<T>& found, double before, double shift, Method method, int64_t columns) {
    const double N = static_cast<double>(columns);
    const bool has_direction = method == Method::correlation ? found.low != found.high
                               : method == Method::cosine    ? found.low != 0 || found.high != 0
                                                             : true;
    if (!has_direction || !std::isfinite(found.low) || !std::isfinite(found.high) || !std::isfinite(found.sum))
        return {};
    if (method == Method::correlation)
        return {before, shift + found.sum / N, 1 / std::sqrt(found.squares - found.sum * found.sum / N), true, false};
    return {before, 0, 1 / std::sqrt(found.squares), true, false};
}

// The maps of the rows begin .. end - 1, but for the scale of method euclidean, which is that of all rows.
template <class T>
void measure_rows(Rows<T>& x, Method method, int64_t begin, int64_t end, double* largest) {
    const RdmKernels<T>& kernels = rdm_kernels<T>();
    RowMoments<T> found[kMostRows];
    double shift[kMostRows] = {}, before[kMostRows];
    std::fill_n(before, kMostRows, 1.0);
    if (sizeof(T) == sizeof(double)) { // squares could overflow or underflow
        x.source.for_each_part(begin, end, [&](int64_t row, int64_t, int64_t count, const T* values) {
            kernels.row_range(values, count, found[row - begin].low, found[row - begin].high);
        });
        for (int64_t r = 0; r < end - begin; ++r)
            before[r] = power_of_two(std::max(std::abs(found[r].low), std::abs(found[r].high)));
    }
    x.source.for_each_part(begin, end, [&](int64_t row, int64_t k, int64_t count, const T* values) {
        const int64_t r = row - begin;
        // With any one of the values subtracted, the sum of squares is close to that about the mean.
        if (k == 0 && method == Method::correlation)
            shift[r] = std::isfinite(values[0]) ? values[0] * before[r] : 0;
        kernels.row_moments(values, count, before[r], shift[r], found[r]);
    });
    for (int64_t r = 0; r < end - begin; ++r) {
        RowMap& map = x.maps[x.absent + begin + r];
        map = row_map(found[r], before[r], shift[r], method, x.source.columns);
        largest[r] = map.valid ? std::max(std::abs(double(found[r].low)), std::abs(double(found[r].high))) : 0;
        map.plain = is_plain<T>(map, largest[r]);
    }
}

// One scale for all rows, for method euclidean.
template <class T>
void set_scale(Rows<T>& x, double scale) {
    constexpr bool before = sizeof(T) == sizeof(double); // double: differences of a row's values may overflow
    x.scale = scale;
    for (RowMap& map : x.maps)
        if (map.valid) {
            map.before = before ? scale : 1;
            map.scale = before ? 1 : scale;
            map.plain = false;
        }
}

template <class T>
void measure(Rows<T>& x, Method method) {
    std::vector<double> largest(x.maps.size());
    torch::stable::parallel_for(0, x.panels(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
            const int64_t first = std::max<int64_t>(p * x.panel - x.absent, 0);
            measure_rows(x, method, first, (p + 1) * x.panel - x.absent, largest.data() + first);
        }
    });
    if (method != Method::euclidean)
        return;
    set_scale(x, power_of_two(*std::max_element(largest.begin(), largest.end())));
}

// Measures rows of few distinct values again, as whole numbers.
template <class T>
void set_steps(Rows<T>& x, const Steps& steps, Method method) {
    const double columns = static_cast<double>(x.source.columns);
    x.steps = steps;
    x.sums.assign(x.maps.size(), 0);
    torch::stable::parallel_for(0, x.source.rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            RowMap& map = x.maps[x.absent + row];
            if (!map.valid)
                continue;
            map = {1, steps.origin, 1 / steps.step, true, false};
            double squares = 0, &sum = x.sums[x.absent + row];
            x.source.for_each_part(row, row + 1, [&](int64_t, int64_t, int64_t count, const T* values) {
                rdm_kernels<T>().add_whole(values, count, map, sum, squares);
            });
            if (method == Method::correlation && columns * squares == sum * sum) // constant except for rounding
                map = {};
        }
    });
}

// The mean of the valid rows, as their maps see it before scaling.
template <class T>
std::vector<double> mean_row(const Rows<T>& x) {
    const int64_t columns = x.source.columns, step = RowSource<T>::kPart;
    std::vector<double> mean(static_cast<size_t>(columns));
    const auto count = std::count_if(x.maps.begin(), x.maps.end(), [](const RowMap& map) { return map.valid; });
    torch::stable::parallel_for(0, (columns + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
        T copy[RowSource<T>::kPart];
        for (int64_t k = begin * step; k < std::min(end * step, columns); k += step) {
            const int64_t size = std::min(step, columns - k);
            for (int64_t row = 0; row < x.source.rows; ++row) {
                const RowMap& map = x.maps[x.absent + row];
                if (!map.valid)
                    continue;
                const T* values = x.source.part(row, k, size, copy);
                const double before = map.before / static_cast<double>(count);
                for (int64_t i = 0; i < size; ++i)
                    mean[k + i] += values[i] * before;
            }
        }
    });
    return mean;
}
// A range of rows, by panels, and the memory of a packed block of their columns: [kDepth at a time, panel, kDepth,
// lane].
template <class T>
struct Packed {
    int64_t first, count; // panels
    T* data;

    const T* at(int64_t chain, int64_t panel) const {
        return data + (chain * count + panel - first) * kDepth * rdm_kernels<T>().panel;
    }
};

// The rows x and y of one member of a batch, measured. Without y, the rows of x are both. paired: row i of x belongs to
// row i of y, and the matrix is symmetric.
template <class T>
class RowSets {
    std::optional<Rows<T>> second_;
    std::vector<double> centre_;

public:
    Rows<T> x;
    Rows<T>& y() { return second_ ? *second_ : x; }

    // whole: rows of few distinct values become whole numbers. This is for the dissimilarities, not for their gradient.
    RowSets(const Tensor& x_, const OptionalTensor& y_, Method method, bool paired, int64_t b, bool whole)
        : x(RowSource<T>(x_, b)) {
        measure(x, method);
        if (y_) {
            second_.emplace(RowSource<T>(*y_, b));
            measure(*second_, method);
        }
        if (second_ && paired)
            for (size_t i = 0; i < x.maps.size(); ++i)
                if (!x.maps[i].valid || !second_->maps[i].valid)
                    x.maps[i] = second_->maps[i] = RowMap{};
        if (whole && find_steps(x_, y_, paired)) {
            set_steps(x, x.steps, method);
            if (second_)
                set_steps(*second_, second_->steps, method);
        } else if (method == Method::euclidean && !(second_ && paired)) {
            subtract_mean();
        }
    }
    RowSets(const RowSets&) = delete;

private:
    bool find_steps(const Tensor& x_, const OptionalTensor& y_, bool paired) {
        const double epsilon = epsilon_of(x_.scalar_type()), other = y_ ? epsilon_of(y_->scalar_type()) : epsilon;
        if (!second_) {
            x.steps = StepSearch<T>({&x.source}, false, epsilon).find();
        } else if (paired) {
            x.steps = StepSearch<T>({&x.source}, true, epsilon).find();
            if (x.steps.found)
                second_->steps = StepSearch<T>({&second_->source}, true, other).find();
            x.steps.found = second_->steps.found;
        } else {
            x.steps = StepSearch<T>({&x.source, &second_->source}, false, std::max(epsilon, other)).find();
            second_->steps = x.steps;
        }
        return x.steps.found;
    }
    void subtract_mean() {
        if (second_) // one scale and one centre for both
            set_scale(*second_, std::min(x.scale, second_->scale)), set_scale(x, second_->scale);
        centre_ = mean_row(x);
        x.centre = y().centre = centre_.data();
    }
};

// Memory for numbers during the lifetime of this object. Up to kKeptBytes stay with the thread for its next call. Freed
// memory would come back page by page, which takes half of a small call's time. A thread may hold one object per kSlot
// at a time.
template <class T, int kSlot>
class Scratch {
    static constexpr int64_t kKeptBytes = 8 << 20;
    std::optional<AlignedArray<char>> own_;
    T* data_;

public:
    explicit Scratch(int64_t size) {
        const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
        thread_local std::optional<AlignedArray<char>> kept;
        thread_local int64_t kept_bytes = 0;
        if (bytes > kKeptBytes) {
            own_.emplace(bytes);
            ask_for_huge_pages(own_->get(), bytes);
        } else if (bytes > kept_bytes) {
            kept.reset();
            kept_bytes = 0;
            kept.emplace(bytes);
            kept_bytes = bytes;
        }
        data_ = reinterpret_cast<T*>(own_ ? own_->get() : kept->get());
    }
    T* get() const { return data_; }
};

} // namespace v1fast
