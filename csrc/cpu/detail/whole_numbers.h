// Responses of few distinct values as whole numbers, whose sums and products are exact.
// v1fast/reference/whole_numbers.py has the rules.
#pragma once

#include "rdm_kernels.h"
#include "samples.h"

#include <cmath>
#include <vector>

namespace v1fast {

// A value is origin + step * m.
struct Steps {
    double origin = 0, step = 1, offset = 0; // offset: origin / step
    bool found = false;
};

inline double epsilon_of(torch::headeronly::ScalarType type) {
    using torch::headeronly::ScalarType;
    return type == ScalarType::Double  ? 0x1p-52
           : type == ScalarType::Float ? 0x1p-23
           : type == ScalarType::Half  ? 0x1p-10
                                       : 0x1p-7;
}

// Finds origin and step for the values of some sets of rows, for products of T.
template <class T>
class StepSearch {
    static constexpr int64_t kMostRounded = 256, kSample = 512;
    static constexpr double kTolerance = 2, kClearance = 64;
    static constexpr int kMostExact = sizeof(T) == sizeof(double) ? 20 : 11; // n is at most 2 to this power

public:
    StepSearch(std::vector<const RowSource<T>*> sets, bool from_zero, double epsilon)
        : sets_(std::move(sets)), from_zero_(from_zero), epsilon_(epsilon) {}

    Steps find() {
        if (is_continuous() || !set_range())
            return {};
        Steps found{low_, rounded(), 0, true};
        const bool is_rounded = found.step != 0;
        if (!is_rounded)
            found.step = exact();
        found.offset = low_ / found.step;
        if (is_rounded && std::abs(found.offset - round(found.offset)) * found.step <= tolerance_)
            found.offset = round(found.offset);
        const double columns = static_cast<double>(sets_[0]->columns), n = std::rint((high_ - low_) / found.step);
        const bool fits = sizeof(T) == sizeof(double) ? n * columns <= 0x1p26 : n * n * columns <= 0x1p24;
        return fits && found.step >= 0x1p-1000 && found.step <= 0x1p1000 ? found : Steps{};
    }

private:
    // Whether a sample alone shows that there are many distinct values. The sample is then in `seen_`.
    bool is_continuous() {
        const size_t most = static_cast<size_t>((from_zero_ ? 2 : 1) * kMostRounded + 1);
        constexpr size_t kSlots = 2048;
        double slots[kSlots];
        bool taken[kSlots] = {};
        size_t distinct = 0;
        for (const RowSource<T>* set : sets_) {
            const int64_t size = set->rows * set->columns, count = std::min(kSample, size);
            for (int64_t i = 0; i < count; ++i) {
                const int64_t index = i * size / count;
                T copy;
                const double value = *set->part(index / set->columns, index % set->columns, 1, &copy);
                if (!std::isfinite(value))
                    continue;
                seen_.push_back(value);
                uint64_t bits;
                std::memcpy(&bits, &value, sizeof bits);
                size_t slot = (bits * 0x9E3779B97F4A7C15u) >> 53;
                for (; taken[slot] && slots[slot] != value; slot = (slot + 1) % kSlots) {
                }
                distinct += !taken[slot];
                taken[slot] = true;
                slots[slot] = value;
                if (distinct > most)
                    return !sample_is_exact();
            }
        }
        return false;
    }

    // Whether a power of two that is not too small divides all differences from the lowest value of the sample.
    bool sample_is_exact() const {
        double low = from_zero_ ? 0 : seen_[0], high = low;
        for (const double value : seen_) {
            low = std::min(low, from_zero_ ? 0 : value);
            high = std::max(high, from_zero_ ? std::abs(value) : value);
        }
        const double unit = unit_of(low, high);
        return std::all_of(seen_.begin(), seen_.end(), [&](double value) {
            const double z = (value - low) / unit;
            return z == std::rint(z);
        });
    }

    static double unit_of(double low, double high) {
        int exponent = 0;
        std::frexp(high - low, &exponent);
        return std::ldexp(1, std::clamp(exponent - kMostExact, -1000, 1000));
    }

    template <class Work>
    bool all_parts(const Work& work) const {
        T copy[RowSource<T>::kPart];
        for (const RowSource<T>* set : sets_)
            for (int64_t row = 0; row < set->rows; ++row)
                for (int64_t k = 0; k < set->columns; k += RowSource<T>::kPart) {
                    const int64_t count = std::min(RowSource<T>::kPart, set->columns - k);
                    if (!work(set->part(row, k, count, copy), count))
                        return false;
                }
        return true;
    }

    bool set_range() {
        T low = std::numeric_limits<T>::infinity(), high = -low;
        all_parts([&](const T* values, int64_t count) {
            rdm_kernels<T>().finite_range(values, count, low, high);
            return true;
        });
        low_ = low, high_ = high;
        const double largest = std::max(std::abs(low_), std::abs(high_));
        tolerance_ = kTolerance * epsilon_ * largest;
        if (from_zero_)
            low_ = 0, high_ = largest;
        return high_ > low_ && std::isfinite(high_ - low_);
    }

    // The step of the fewest places such that all values are near one; 0 if there is none.
    double rounded() {
        for (int64_t n = 1; n <= kMostRounded;) {
            const double step = (high_ - low_) / static_cast<double>(n);
            if (step < kClearance * tolerance_)
                return 0;
            const double inverse = 1 / step, tolerance = tolerance_ * inverse;
            const bool near = std::all_of(seen_.begin(), seen_.end(), [&](double value) {
                const double z = (value - low_) * inverse;
                return std::abs(z - round(z)) <= tolerance;
            });
            if (!near) {
                ++n;
                continue;
            }
            const bool all = all_parts([&](const T* values, int64_t count) {
                const int64_t off = rdm_kernels<T>().first_off(values, count, low_, inverse, tolerance);
                if (off < count)
                    seen_.insert(seen_.begin(), static_cast<double>(values[off]));
                return off == count;
            });
            if (all)
                return step;
        }
        return 0;
    }

    // The largest power of two that divides all differences from the lowest value; 0 if there is none.
    double exact() const {
        const double unit = unit_of(low_, high_);
        uint64_t bits = 0;
        const bool all = all_parts([&](const T* values, int64_t count) {
            return rdm_kernels<T>().add_bits(values, count, low_, 1 / unit, bits);
        });
        return all && bits ? unit * static_cast<double>(bits & -bits) : 0;
    }

    static double round(double z) { return (z + kRounding) - kRounding; }

    std::vector<const RowSource<T>*> sets_;
    bool from_zero_;
    double epsilon_, low_ = 0, high_ = 0, tolerance_ = 0;
    std::vector<double> seen_;
};

// A number as the sum of two float64.
struct Twice {
    double high, rest;
};

inline Twice two_product(double a, double b) {
    const double p = a * b;
    return {p, std::fma(a, b, -p)};
}

// Turns the products of whole rows into those of the responses; Angles in the reference.
inline WholeAngles whole_angles(bool centred, int64_t columns, double offset) {
    const Twice square = two_product(offset, offset), first = two_product(square.high, static_cast<double>(columns));
    return {centred, static_cast<double>(columns), offset, first.high,
            first.rest + static_cast<double>(columns) * square.rest};
}

// 1 / the norm of a row, in two parts. NaN for a row of zeros.
inline Twice inverse_norm(const WholeAngles& angles, double squares, double sum) {
    double high, rest;
    rdm_kernels<double>().whole_product(angles, squares, sum, sum, high, rest);
    if (!(high > 0))
        return {std::numeric_limits<double>::quiet_NaN(), 0};
    const double y = 1 / std::sqrt(high);
    const Twice p = two_product(y, y), q = two_product(high, p.high);
    return {y, y * (0.5 * (((1 - q.high) - q.rest) - (high * p.rest + rest * p.high)))};
}

} // namespace v1fast
