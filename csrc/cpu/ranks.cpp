// Ranks on the CPU, ties averaged. v1fast/reference/ranks.py defines them.
//
// Values become integers of the same order. The bits that differ are sorted digit by digit. Each pass reads in order,
// and writes in order to each of a few hundred regions. No pass writes to random addresses: for 8 million ranks, that
// would take as long as everything else.
#include "../boxed.h"
#include "../torch_api.h"
#include "detail/large_memory.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;

constexpr int kMostDigitBits = 10;
constexpr int kRegionBits = 15; // of indices whose ranks are written together: 256 KiB
// A power of two between addresses that are written in turn would make them evict each other from the cache.
constexpr size_t kRegionGap = 72, kRegionStride = (size_t(1) << kRegionBits) + kRegionGap;

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

// A key with the order of the values. -0 and 0 have the same key.
template <class T>
Key<T> key_of(T value) {
    const Key<T> bits = std::bit_cast<Key<T>>(value + T(0)), sign = Key<T>(1) << (8 * sizeof(T) - 1);
    return bits & sign ? ~bits : bits | sign;
}

template <class T>
struct Item {
    Key<T> key;
    Key<T> label; // the payload of the key
};

struct Rank {
    uint32_t twice, index;
};

// Memory that is written before it is read.
template <class T>
class Buffer {
    std::unique_ptr<T[]> data_;

public:
    explicit Buffer(size_t size) : data_(new T[size]) {
        ask_for_huge_pages(data_.get(), static_cast<int64_t>(size * sizeof(T)));
    }
    T* get() const { return data_.get(); }
};

size_t regions_of(size_t size) { return ((size - 1) >> kRegionBits) + 1; }

// Sorts sets of `size` values, one set after another. size > 0.
template <class T>
class Sorter {
public:
    explicit Sorter(size_t size)
        : size_(size), items_(size + regions_of(size) * kRegionGap), others_(size + regions_of(size) * kRegionGap) {}

    // The items (key, label(i)) in the order of their keys. item(i) gives value and label. `values` are those of all
    // items, in any order.
    template <class MakeItem>
    Item<T>* sort(const T* values, const MakeItem& item) {
        Key<T> least = ~Key<T>(0), most = 0;
        for (size_t i = 0; i < size_; ++i) {
            least = std::min(least, key_of(values[i]));
            most = std::max(most, key_of(values[i]));
        }
        const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<Key<T>>(most - least))));
        const int passes = (bits + kMostDigitBits - 1) / kMostDigitBits, width = (bits + passes - 1) / passes;
        const size_t places = size_t(1) << width;
        const Key<T> mask = static_cast<Key<T>>(places - 1);
        std::vector<uint32_t> next = starts(values, least, passes, width);
        for (size_t i = 0; i < size_; ++i) {
            const auto [value, label] = item(i);
            const Key<T> key = key_of(value) - least;
            to_[next[key & mask]++] = {key, label};
        }
        for (int pass = 1; pass < passes; ++pass) {
            std::swap(from_, to_);
            for (size_t i = 0; i < size_; ++i)
                to_[next[pass * places + (from_[i].key >> (pass * width) & mask)]++] = from_[i];
        }
        std::swap(from_, to_);
        return from_;
    }

    // Calls run(begin, end) for each run of equal keys.
    template <class Run>
    void for_each_run(const Item<T>* sorted, const Run& run) const {
        for (size_t i = 0; i < size_;) {
            size_t end = i + 1;
            while (end < size_ && sorted[end].key == sorted[i].key)
                ++end;
            run(i, end);
            i = end;
        }
    }

    // Where the next sort begins to write.
    void* room() const { return to_; }

private:
    // Where the items of each digit begin, for each pass.
    std::vector<uint32_t> starts(const T* values, Key<T> least, int passes, int width) const {
        const size_t places = size_t(1) << width, all = passes * places;
        // Counts go to several tables in turn. Neighbours often share a digit, and one table would wait for the
        // previous count.
        constexpr size_t kTables = 4;
        std::vector<uint32_t> counts(kTables * all);
        for (size_t i = 0; i < size_; ++i) {
            Key<T> key = key_of(values[i]) - least;
            uint32_t* table = counts.data() + i % kTables * all;
            for (int pass = 0; pass < passes; ++pass, key >>= width)
                ++table[pass * places + (key & (places - 1))];
        }
        uint32_t start = 0;
        for (size_t place = 0; place < all; ++place) {
            if (place % places == 0)
                start = 0;
            uint32_t count = 0;
            for (size_t table = 0; table < kTables; ++table)
                count += counts[table * all + place];
            counts[place] = std::exchange(start, start + count);
        }
        return counts;
    }

    size_t size_;
    Buffer<Item<T>> items_, others_;
    Item<T>*from_ = items_.get(), *to_ = others_.get();
};

template <class T>
void rank(Sorter<T>& sorter, const T* values, size_t size, double* ranks) {
    const Item<T>* sorted = sorter.sort(values, [&](size_t i) { return std::pair(values[i], static_cast<Key<T>>(i)); });
    const size_t regions = regions_of(size);
    std::vector<uint32_t> next(regions);
    for (size_t region = 0; region < regions; ++region)
        next[region] = static_cast<uint32_t>(region * kRegionStride);
    static_assert(sizeof(Rank) <= sizeof(Item<T>));
    Rank* by_region = static_cast<Rank*>(sorter.room());
    sorter.for_each_run(sorted, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) {
            const uint32_t index = static_cast<uint32_t>(sorted[i].label);
            by_region[next[index >> kRegionBits]++] = {static_cast<uint32_t>(begin + end + 1), index};
        }
    });
    for (size_t region = 0; region < regions; ++region)
        for (const Rank* found = by_region + region * kRegionStride; found < by_region + next[region]; ++found)
            ranks[found->index] = found->twice / 2.0;
}

// Sorting by a with the values of b as labels puts the ranks of a in order. Sorting by b with these ranks as labels
// puts both in order. So no rank has to be written back to the index of its value.
template <class T>
void sum_ranks(const T* a, const T* b, size_t size, double* sums) {
    Sorter<T> sorter(size);
    Item<T>* by_a = sorter.sort(a, [&](size_t i) { return std::pair(a[i], std::bit_cast<Key<T>>(b[i])); });
    const double mean = (static_cast<double>(size) + 1) / 2;
    double squares_a = 0, squares_b = 0, products = 0;
    const auto from_mean = [&](size_t twice) { return static_cast<double>(twice) / 2 - mean; };
    sorter.for_each_run(by_a, [&](size_t begin, size_t end) {
        const size_t twice = begin + end + 1;
        squares_a += static_cast<double>(end - begin) * from_mean(twice) * from_mean(twice);
        // The keys of this run can be overwritten. They are not read again: the next run has other items.
        for (size_t i = begin; i < end; ++i)
            by_a[i].key = static_cast<Key<T>>(twice);
    });
    const Item<T>* by_b =
        sorter.sort(b, [&](size_t i) { return std::pair(std::bit_cast<T>(by_a[i].label), by_a[i].key); });
    sorter.for_each_run(by_b, [&](size_t begin, size_t end) {
        const double rank = from_mean(begin + end + 1);
        squares_b += static_cast<double>(end - begin) * rank * rank;
        double others = 0;
        for (size_t i = begin; i < end; ++i)
            others += from_mean(by_b[i].label);
        products += rank * others;
    });
    sums[0] = products;
    sums[1] = squares_a;
    sums[2] = squares_b;
}

template <class T>
void rank_rows(const Tensor& x, double* ranks) {
    const size_t size = static_cast<size_t>(x.size(1));
    const T* values = x.const_data_ptr<T>();
    torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
        Sorter<T> sorter(size);
        for (int64_t row = begin; row < end; ++row)
            rank(sorter, values + row * x.size(1), size, ranks + row * x.size(1));
    });
}

void check_values(const Tensor& x, int64_t dim) {
    STD_TORCH_CHECK(x.dim() == dim && x.size(dim - 1) < (int64_t(1) << 31),
                    "ranks: want [M, L] (rank_sums: [L]) with L < 2^31");
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                    "ranks: want float32 or float64");
}

Tensor average_ranks(const Tensor& x) {
    check_values(x, 2);
    const Tensor values = as_contiguous(x);
    const Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)}, ScalarType::Double);
    if (out.numel() == 0)
        return out;
    double* ranks = out.mutable_data_ptr<double>();
    ask_for_huge_pages(ranks, out.numel() * static_cast<int64_t>(sizeof(double)));
    x.scalar_type() == ScalarType::Float ? rank_rows<float>(values, ranks) : rank_rows<double>(values, ranks);
    return out;
}

Tensor rank_sums(const Tensor& a, const Tensor& b) {
    check_values(a, 1);
    check_values(b, 1);
    STD_TORCH_CHECK(a.size(0) == b.size(0) && a.scalar_type() == b.scalar_type(),
                    "rank_sums: want a and b of one length and one dtype");
    const Tensor first = as_contiguous(a), second = as_contiguous(b);
    const Tensor out = torch::stable::new_empty(a, {3}, ScalarType::Double);
    double* sums = out.mutable_data_ptr<double>();
    const size_t size = static_cast<size_t>(a.size(0));
    if (size == 0)
        std::fill_n(sums, 3, 0);
    else if (a.scalar_type() == ScalarType::Float)
        sum_ranks(first.const_data_ptr<float>(), second.const_data_ptr<float>(), size, sums);
    else
        sum_ranks(first.const_data_ptr<double>(), second.const_data_ptr<double>(), size, sums);
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("average_ranks", V1FAST_BOX(average_ranks));
    m.impl("rank_sums", V1FAST_BOX(rank_sums));
}

} // namespace v1fast
