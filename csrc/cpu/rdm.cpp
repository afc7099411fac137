// Dissimilarity matrices on the CPU. See v1fast/reference/rdm.py for what they are.
//
// One product of rows with rows, of which the tiles on and above the diagonal are computed alone. Rows are standardised
// as they are packed, a group of tiles and a block of columns at a time: there is no copy of the responses. A chain of
// additions is kDepth products long; their sums are added in a fixed order, whatever the tiles and threads. What has
// been summed becomes dissimilarities while it is still in the cache, and is written once, with its mirror image.
#include "../rdm.h"

#include "../philox.h"
#include "isa.h"
#include "rows.h"
#include "samples.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace v1fast {

using torch::headeronly::ScalarType;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kDepth = 112;           // columns that are packed together, and added in one chain
constexpr int64_t kTile = 288;            // rows and columns of a tile: it stays in L2 with its factors
constexpr int64_t kBlock = 896;           // columns whose sums are made before they are added to others
constexpr int64_t kPackedBytes = 6 << 20; // that several threads pack at a time; one block at least
static_assert(kBlock % kDepth == 0);
constexpr int64_t kMostRows = 16; // of a panel
constexpr double kNear = 1e-4;    // dissimilarity below which "high" accuracy takes the difference
template <class T>
constexpr int64_t kGroup = sizeof(T) == 4 ? 6 : 4; // tiles in each direction that are summed at the same time: 12 MiB

template <class T>
struct RowMoments {
    T low = std::numeric_limits<T>::infinity(), high = -std::numeric_limits<T>::infinity();
    double sum = 0, squares = 0;
};

// How the values of a panel are made: in double, with or without a centre, or, for float alone, in float.
enum class Packing { wide, centred, plain };

// Panels a and b, of which one tile is the product, and those that come next; see multiply_tile.
template <class T>
struct TileFactors {
    const T *a, *b, *next_a, *next_b; // next: null for none
    int64_t a_panels, b_panels;
    int64_t absent; // rows of the first panel a that are none
    bool diagonal;  // panels b from that of the row on alone
};

enum class Method { correlation, cosine, distance };

// What one instruction set provides, for one compute type; see rdm.inc.
template <class T>
struct RdmKernels {
    int64_t panel;
    void (*row_range)(const T* row, int64_t count, T& low, T& high);
    void (*row_moments)(const T* row, int64_t count, double scale, double shift, RowMoments<T>& found);
    void (*pack)(const T* const* rows, const RowMap* maps, const double* centre, Packing, int64_t depth, T* panel);
    void (*multiply_own)(const T* a, const T* b, int64_t depth, T* own);
    void (*multiply_tile)(const TileFactors<T>&, int64_t depth, T* c, int64_t stride, bool first);
    void (*add_tile)(const T* part, int64_t rows, int64_t columns, int64_t stride, T* c);
    void (*row_of_angles)(T* row, int64_t count, T own, const T* others);
    void (*row_of_distances)(T* row, int64_t count, double own, const double* others, double factor, bool clip);
    void (*transpose_to_float)(const T* tile, int64_t stride, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                               float* out, int64_t out_stride);
    void (*transpose_to_double)(const T* tile, int64_t stride, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                                double* out, int64_t out_stride);
    double (*squared_difference)(const T* a, const T* b, const RowMap&, const RowMap&, int64_t count);
};

} // namespace v1fast

#define V1FAST_ISA_FILE "rdm.inc"
#include "foreach_isa.h"

namespace v1fast {
namespace {

template <class T>
const RdmKernels<T>& rdm_kernels() {
    static const RdmKernels<T> best = V1FAST_PICK_ISA(rdm_kernels<T>());
    return best;
}

Method method_of(const std::string& name) {
    return name == "correlation" ? Method::correlation : name == "cosine" ? Method::cosine : Method::distance;
}

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// 1 / largest, rounded to a power of two; as power_of_two in the reference.
double power_of_two(double largest) {
    int exponent = 0;
    std::frexp(largest, &exponent);
    return std::ldexp(1, -std::clamp(exponent, -1000, 1000));
}

// Calls work(i) for 0 .. count - 1, each as soon as a thread is free; every thread makes its own `work`.
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

// One set of rows, what is done to them, and their products with themselves. In front of them stand `absent` rows that
// fill the first panel up: so what is left over is a part of a panel's rows, which costs less than a part of a column's
// panel would. Everything is counted with them.
template <class T>
struct Rows {
    RowSource<T> source;
    int64_t panel, absent;
    std::vector<RowMap> maps;       // [whole panels]
    std::vector<T> own;             // [whole panels]
    const double* centre = nullptr; // [columns], null: none
    double scale = 1;               // of method distance, for all rows

    explicit Rows(const RowSource<T>& rows)
        : source(rows), panel(rdm_kernels<T>().panel), absent(round_up(rows.rows, panel) - rows.rows),
          maps(static_cast<size_t>(absent + rows.rows)), own(maps.size()) {}
    int64_t count() const { return static_cast<int64_t>(maps.size()); }
    int64_t panels() const { return count() / panel; }
};

// In float, a value is standardised as it is where neither it nor the result comes near the ends of the range.
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

// The maps of the rows begin .. end - 1, but for the scale of method distance, which is that of all rows.
template <class T>
void measure_rows(Rows<T>& x, Method method, int64_t begin, int64_t end, double* largest) {
    const RdmKernels<T>& kernels = rdm_kernels<T>();
    RowMoments<T> found[kMostRows];
    double shift[kMostRows] = {}, before[kMostRows];
    std::fill_n(before, kMostRows, 1.0);
    if (sizeof(T) == sizeof(double)) { // squares could leave the range
        x.source.for_each_part(begin, end, [&](int64_t row, int64_t, int64_t count, const T* values) {
            kernels.row_range(values, count, found[row - begin].low, found[row - begin].high);
        });
        for (int64_t r = 0; r < end - begin; ++r)
            before[r] = power_of_two(std::max(std::abs(found[r].low), std::abs(found[r].high)));
    }
    x.source.for_each_part(begin, end, [&](int64_t row, int64_t k, int64_t count, const T* values) {
        const int64_t r = row - begin;
        // Less any one of the values, the sum of squares is near that about the mean.
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

// One scale for all rows, for method distance.
template <class T>
void set_scale(Rows<T>& x, double scale) {
    constexpr bool before = sizeof(T) == sizeof(double); // where a row's values may be beyond what can be subtracted
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
    if (method != Method::distance)
        return;
    set_scale(x, power_of_two(*std::max_element(largest.begin(), largest.end())));
}

// The mean of the valid rows, as their maps see it before they scale.
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

// A range of rows, by panels, and where a block of their columns is packed: [kDepth at a time, panel, kDepth, lane].
template <class T>
struct Packed {
    int64_t first, count; // panels
    T* data;

    const T* at(int64_t chain, int64_t panel) const {
        return data + (chain * count + panel - first) * kDepth * rdm_kernels<T>().panel;
    }
};

template <class T>
void pack_panel(const Rows<T>& x, const Packed<T>& to, int64_t p, int64_t begin, int64_t end) {
    static const T zeros[kDepth] = {};
    const RowMap* maps = x.maps.data() + p * x.panel;
    const bool plain = std::all_of(maps, maps + x.panel, [](const RowMap& map) { return map.plain || !map.valid; });
    const Packing packing = x.centre ? Packing::centred : plain ? Packing::plain : Packing::wide;
    T copies[kMostRows][kDepth];
    for (int64_t k = begin; k < end; k += kDepth) {
        const int64_t depth = std::min(kDepth, end - k);
        const T* rows[kMostRows];
        for (int64_t r = 0; r < x.panel; ++r)
            rows[r] = maps[r].valid ? x.source.part(p * x.panel + r - x.absent, k, depth, copies[r]) : zeros;
        rdm_kernels<T>().pack(rows, maps, x.centre ? x.centre + k : nullptr, packing, depth,
                              const_cast<T*>(to.at((k - begin) / kDepth, p)));
    }
}

// Adds the products of the rows of a panel with themselves, over the columns begin .. end - 1.
template <class T>
void add_own(Rows<T>& x, const Packed<T>& a, const Packed<T>& b, int64_t p, int64_t begin, int64_t end) {
    for (int64_t k0 = begin; k0 < end; k0 += kBlock) {
        T sums[kMostRows] = {};
        for (int64_t k = k0; k < std::min(k0 + kBlock, end); k += kDepth) {
            const int64_t chain = (k - begin) / kDepth;
            rdm_kernels<T>().multiply_own(a.at(chain, p), b.at(chain, p), std::min(kDepth, end - k), sums);
        }
        for (int64_t r = 0; r < x.panel; ++r)
            x.own[p * x.panel + r] += sums[r];
    }
}

struct Form {
    Method method;
    bool symmetric, condensed, refine;
    int64_t S, T; // rows and columns of the matrix
};

// Sums of products become dissimilarities, in a tile, and go to their places in the matrix.
template <class T, class Out>
class Finish {
public:
    Finish(const Form& form, const Rows<T>& x, const Rows<T>& y, double factor, Out* out)
        : form_(form), x_(x), y_(y), factor_(factor), out_(out), shortfall_(y.own.size()), own_(y.own.size()) {}

    // Once the products of rows with themselves are known.
    void prepare() {
        for (size_t j = 0; j < y_.own.size(); ++j) {
            shortfall_[j] = static_cast<T>(shortfall(y_, static_cast<int64_t>(j)));
            own_[j] = y_.maps[j].valid ? static_cast<double>(y_.own[j]) : kNaN;
        }
    }

    // A tile of the products of rows i0 .. i1 - 1 with rows j0 .. j1 - 1, which stand at its beginning.
    void tile(T* c, int64_t stride, int64_t i0, int64_t i1, int64_t j0, int64_t j1) const {
        const bool diagonal = form_.symmetric && i0 == j0;
        const int64_t i_begin = std::max(x_.absent - i0, int64_t{0}), j_begin = std::max(y_.absent - j0, int64_t{0});
        for (int64_t i = i_begin; i < i1 - i0; ++i) {
            const int64_t begin = diagonal ? i / x_.panel * x_.panel : 0;
            row(c + i * stride + begin, i0 + i, j0 + begin, j1 - j0 - begin);
        }
        if (diagonal)
            mirror(c, stride, i0, i_begin, i1 - i0);
        for (int64_t i = i_begin; i < i1 - i0; ++i)
            store(c + i * stride, i0 + i, j0, diagonal && form_.condensed ? i + 1 : j_begin, j1 - j0);
        if (form_.symmetric && !form_.condensed && !diagonal)
            transpose(c, stride, i_begin, i1 - i0, j_begin, j1 - j0,
                      out_ + (j0 - y_.absent) * form_.T + (i0 - x_.absent));
    }

private:
    static constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

    static double shortfall(const Rows<T>& rows, int64_t i) {
        return rows.maps[i].valid ? 1 - 1 / std::sqrt(static_cast<double>(rows.own[i])) : kNaN;
    }

    void row(T* values, int64_t i, int64_t j, int64_t count) const {
        const RdmKernels<T>& kernels = rdm_kernels<T>();
        if (form_.method == Method::distance) {
            const double own = x_.maps[i].valid ? static_cast<double>(x_.own[i]) : kNaN;
            kernels.row_of_distances(values, count, own, own_.data() + j, factor_, !form_.symmetric || &x_ == &y_);
            return;
        }
        kernels.row_of_angles(values, count, static_cast<T>(shortfall(x_, i)), shortfall_.data() + j);
        if (form_.refine)
            for (int64_t k = 0; k < count; ++k)
                if (values[k] < kNear && !(form_.symmetric && j + k <= i) && j + k >= y_.absent)
                    values[k] = static_cast<T>(difference(i, j + k) / 2);
    }

    double difference(int64_t i, int64_t j) const {
        constexpr int64_t step = RowSource<T>::kPart;
        T copy[step], other_copy[step];
        double sum = 0;
        for (int64_t k = 0; k < x_.source.columns; k += step) {
            const int64_t count = std::min(step, x_.source.columns - k);
            const T* values = x_.source.part(i - x_.absent, k, count, copy);
            const T* others = y_.source.part(j - y_.absent, k, count, other_copy);
            sum += rdm_kernels<T>().squared_difference(values, others, x_.maps[i], y_.maps[j], count);
        }
        return sum;
    }

    void mirror(T* c, int64_t stride, int64_t i0, int64_t begin, int64_t end) const {
        for (int64_t i = begin; i < end; ++i) {
            c[i * stride + i] = x_.maps[i0 + i].valid ? T(0) : std::numeric_limits<T>::quiet_NaN();
            for (int64_t j = i + 1; j < end; ++j)
                c[j * stride + i] = c[i * stride + j];
        }
    }

    void store(const T* values, int64_t i, int64_t j0, int64_t begin, int64_t end) const {
        const int64_t row = i - x_.absent;
        Out* to = out_ + (form_.condensed ? row * (2 * form_.S - row - 1) / 2 - row - 1 : row * form_.T);
        to += j0 - y_.absent;
        for (int64_t j = begin; j < end; ++j)
            to[j] = static_cast<Out>(values[j]);
    }

    void transpose(const T* c, int64_t stride, int64_t i0, int64_t i1, int64_t j0, int64_t j1, Out* out) const {
        if constexpr (sizeof(Out) == sizeof(float))
            rdm_kernels<T>().transpose_to_float(c, stride, i0, i1, j0, j1, out, form_.T);
        else
            rdm_kernels<T>().transpose_to_double(c, stride, i0, i1, j0, j1, out, form_.T);
    }

    const Form& form_;
    const Rows<T>&x_, &y_;
    double factor_;
    Out* out_;
    std::vector<T> shortfall_;
    std::vector<double> own_;
};

// Memory for numbers while this lives. Up to kKeptBytes it stays with the thread for its next call: given back, it
// would come again page by page, which takes half of a small call's time. One for each kSlot may live in a thread at a
// time.
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

struct Tile {
    int64_t i, j; // in tiles of the matrix
};

// The product of rows x with rows y, by groups of tiles; y may be x.
template <class T, class Out>
class Product {
public:
    Product(const Form& form, Rows<T>& x, Rows<T>& y, double factor, Out* out)
        : form_(form), x_(x), y_(y), panel_(rdm_kernels<T>().panel), side_(tile_side(std::max(x.count(), y.count()))),
          finish_(form, x, y, factor, out) {}

    void run() {
        const int64_t row_groups = groups(x_.count()), column_groups = groups(y_.count());
        known_x_.assign(static_cast<size_t>(row_groups), false);
        known_y_.assign(static_cast<size_t>(column_groups), false);
        if (!form_.symmetric)
            for (int64_t i = 0; i < row_groups; ++i)
                for (int64_t j = 0; j < column_groups; ++j)
                    group(i, j);
        else // those on the diagonal first: they give the products of rows with themselves
            for (int64_t offset = 0; offset < row_groups; ++offset)
                for (int64_t i = 0; i + offset < row_groups; ++i)
                    group(i, i + offset);
    }

private:
    int64_t tile_side(int64_t rows) const {
        const int64_t wanted = torch::stable::get_num_threads() > 1 ? 4 : 1;
        const int64_t tiles = std::max((rows + kTile - 1) / kTile, std::min(wanted, rows / 96));
        return std::min(kTile, round_up((rows + tiles - 1) / std::max<int64_t>(tiles, 1), 3 * panel_));
    }
    int64_t groups(int64_t rows) const { return (rows + kGroup<T> * side_ - 1) / (kGroup<T> * side_); }

    // How many columns of so many panels are packed at a time: a block or, as threads wait for each other after it,
    // more.
    int64_t columns_packed(int64_t panels) const {
        const int64_t bytes = panels * panel_ * kBlock * static_cast<int64_t>(sizeof(T));
        const int64_t blocks = torch::stable::get_num_threads() > 1 ? std::max<int64_t>(kPackedBytes / bytes, 1) : 1;
        return std::min(blocks * kBlock, round_up(x_.source.columns, kDepth));
    }

    void group(int64_t gi, int64_t gj);
    void pack(const Packed<T>& a, const Packed<T>& b, int64_t begin, int64_t end, bool own_x, bool own_y);
    std::vector<Tile> tiles_of(int64_t gi, int64_t gj) const;
    void multiply(const Tile& tile, const Packed<T>& a, const Packed<T>& b, int64_t begin, int64_t end, T* c,
                  T* part) const;

    const Form& form_;
    Rows<T>&x_, &y_;
    int64_t panel_, side_;
    Finish<T, Out> finish_;
    std::vector<bool> known_x_, known_y_; // groups whose rows' products with themselves are known
};

template <class T, class Out>
std::vector<Tile> Product<T, Out>::tiles_of(int64_t gi, int64_t gj) const {
    std::vector<Tile> tiles;
    const int64_t i_end = std::min((gi + 1) * kGroup<T>, (x_.count() + side_ - 1) / side_);
    const int64_t j_end = std::min((gj + 1) * kGroup<T>, (y_.count() + side_ - 1) / side_);
    for (int64_t i = gi * kGroup<T>; i < i_end; ++i)
        for (int64_t j = form_.symmetric && gi == gj ? i : gj * kGroup<T>; j < j_end; ++j)
            tiles.push_back({i, j});
    return tiles;
}

template <class T, class Out>
void Product<T, Out>::group(int64_t gi, int64_t gj) {
    const int64_t columns = x_.source.columns, per_group = kGroup<T> * side_ / panel_;
    const bool same = &x_ == &y_, shared = same && gi == gj, paired = form_.symmetric && !same;
    Packed<T> a{gi * per_group, std::min(per_group, x_.panels() - gi * per_group), nullptr};
    Packed<T> b{gj * per_group, std::min(per_group, y_.panels() - gj * per_group), nullptr};
    const int64_t panels = a.count + (shared ? 0 : b.count), packed = columns_packed(panels);
    const std::vector<Tile> tiles = tiles_of(gi, gj);
    const int64_t sums_size = static_cast<int64_t>(tiles.size()) * side_ * side_;
    const Scratch<T, 0> scratch(sums_size + panels * panel_ * packed);
    T* sums = scratch.get();
    a.data = sums + sums_size;
    b.data = shared ? a.data : a.data + a.count * panel_ * packed;

    const bool own_x = paired ? gi == gj : !known_x_[gi], own_y = !paired && !same && !known_y_[gj];
    known_x_[gi] = known_y_[gj] = true;
    for (int64_t begin = 0; begin < columns; begin += packed) {
        const int64_t end = std::min(begin + packed, columns);
        pack(a, b, begin, end, own_x, own_y);
        if (end == columns)
            finish_.prepare();
        for_each_task(static_cast<int64_t>(tiles.size()), [&] {
            return [&, part = Scratch<T, 1>(side_ * side_)](int64_t t) {
                T* c = sums + t * side_ * side_;
                multiply(tiles[t], a, b, begin, end, c, part.get());
                if (end < columns)
                    return;
                const int64_t i = tiles[t].i * side_, j = tiles[t].j * side_;
                finish_.tile(c, side_, i, std::min(i + side_, x_.count()), j, std::min(j + side_, y_.count()));
            };
        });
    }
}

template <class T, class Out>
void Product<T, Out>::pack(const Packed<T>& a, const Packed<T>& b, int64_t begin, int64_t end, bool own_x, bool own_y) {
    const bool paired = form_.symmetric && &x_ != &y_;
    // One task for a panel of x and its like of y, which paired rows are multiplied with.
    const int64_t tasks = a.data == b.data ? a.count : paired ? std::max(a.count, b.count) : a.count + b.count;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
            const int64_t p = a.first + task, q = b.first + task - (paired ? 0 : a.count);
            const bool in_x = task < a.count, in_y = a.data != b.data && q >= b.first && q < b.first + b.count;
            if (in_x)
                pack_panel(x_, a, p, begin, end);
            if (in_y)
                pack_panel(y_, b, q, begin, end);
            if (in_x && own_x)
                add_own(x_, a, paired ? b : a, p, begin, end);
            if (in_y && own_y)
                add_own(y_, b, b, q, begin, end);
        }
    });
    if (paired && own_x)
        std::copy(x_.own.begin(), x_.own.end(), y_.own.begin());
}

template <class T, class Out>
void Product<T, Out>::multiply(const Tile& tile, const Packed<T>& a, const Packed<T>& b, int64_t begin, int64_t end,
                               T* c, T* part) const {
    const int64_t per_tile = side_ / panel_, p = tile.i * per_tile, q = tile.j * per_tile;
    TileFactors<T> factors{};
    factors.a_panels = std::min(per_tile, x_.panels() - p);
    factors.b_panels = std::min(per_tile, y_.panels() - q);
    factors.absent = p == 0 ? x_.absent : 0;
    factors.diagonal = form_.symmetric && p == q;
    for (int64_t k = begin; k < end; k += kDepth) {
        const int64_t chain = (k - begin) / kDepth, in_block = k % kBlock;
        const bool last = k + kDepth >= end;
        factors.a = a.at(chain, p);
        factors.b = b.at(chain, q);
        factors.next_a = last ? nullptr : a.at(chain + 1, p);
        factors.next_b = last ? nullptr : b.at(chain + 1, q);
        const bool first_block = k < kBlock;
        rdm_kernels<T>().multiply_tile(factors, std::min(kDepth, end - k), first_block ? c : part, side_,
                                       in_block == 0);
        if (!first_block && (last || in_block + kDepth == kBlock))
            rdm_kernels<T>().add_tile(part, factors.a_panels * panel_, factors.b_panels * panel_, side_, c);
    }
}

template <class T, class Out>
void compute(const Tensor& x, const OptionalTensor& y, const Form& form, int64_t b, Out* out) {
    Rows<T> first(RowSource<T>(x, b));
    measure(first, form.method);
    std::optional<Rows<T>> second;
    if (y) {
        second.emplace(RowSource<T>(*y, b));
        measure(*second, form.method);
        if (form.symmetric)
            for (size_t i = 0; i < first.maps.size(); ++i)
                if (!first.maps[i].valid || !second->maps[i].valid)
                    first.maps[i] = second->maps[i] = RowMap{};
    }
    std::vector<double> centre;
    if (form.method == Method::distance && !(form.symmetric && y)) {
        if (second) // one centre serves both
            set_scale(*second, std::min(first.scale, second->scale)), set_scale(first, second->scale);
        centre = mean_row(first);
        first.centre = centre.data();
        if (second)
            second->centre = first.centre;
    }
    const double other_scale = second ? second->scale : first.scale;
    const double factor = 1 / (first.scale * other_scale * static_cast<double>(x.size(2)));
    Product<T, Out>(form, first, second ? *second : first, factor, out).run();
}

// All members of a batch; where there are enough of them, a thread takes each as a whole.
template <class T, class Out>
void compute_all(const Tensor& x, const OptionalTensor& y, const Form& form, Out* out, int64_t size) {
    const int64_t batch = x.size(0), threads = torch::stable::get_num_threads();
    torch::stable::parallel_for(0, batch, batch >= threads ? 1 : batch, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            compute<T, Out>(x, y, form, b, out + b * size);
    });
}

bool is_double(const Tensor& x, const OptionalTensor& y) {
    return x.scalar_type() == ScalarType::Double || (y && y->scalar_type() == ScalarType::Double);
}

void fill(const Tensor& x, const OptionalTensor& y, Form form, const std::string& accuracy, const Tensor& out) {
    if (out.numel() == 0)
        return;
    form.refine = accuracy == "high" && form.method != Method::distance;
    ask_for_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
    const int64_t size = out.numel() / out.size(0);
    if (is_double(x, y))
        compute_all<double>(x, y, form, out.mutable_data_ptr<double>(), size);
    else if (accuracy == "high")
        compute_all<double>(x, y, form, out.mutable_data_ptr<float>(), size);
    else
        compute_all<float>(x, y, form, out.mutable_data_ptr<float>(), size);
}

ScalarType output_type(const Tensor& x, const OptionalTensor& y) {
    return is_double(x, y) ? ScalarType::Double : ScalarType::Float;
}

Tensor rdm(const Tensor& x, OptionalTensor y, std::string method, bool condensed, std::string accuracy) {
    const RdmSizes s = check_rdm(x, y, method);
    STD_TORCH_CHECK(s.S == s.T, "rdm: want x and y with the same number of rows");
    const Tensor out = condensed ? torch::stable::new_empty(x, {s.B, s.S * (s.S - 1) / 2}, output_type(x, y))
                                 : torch::stable::new_empty(x, {s.B, s.S, s.S}, output_type(x, y));
    fill(x, y, {method_of(method), true, condensed, false, s.S, s.S}, accuracy, out);
    return out;
}

void rdm_out(const Tensor& x, OptionalTensor y, std::string method, bool condensed, std::string accuracy,
             const Tensor& out) {
    const RdmSizes s = check_rdm(x, y, method);
    const int64_t size = condensed ? s.S * (s.S - 1) / 2 : s.S * s.S;
    STD_TORCH_CHECK(s.S == s.T && out.is_contiguous() && out.numel() == s.B * size && out.dim() >= 1 &&
                        out.size(0) == s.B && out.scalar_type() == output_type(x, y),
                    "rdm_out: want out contiguous, of the shape and dtype that rdm returns");
    fill(x, y, {method_of(method), true, condensed, false, s.S, s.S}, accuracy, out);
}

Tensor cross_rdm(const Tensor& x, const Tensor& y, std::string method, std::string accuracy) {
    const RdmSizes s = check_rdm(x, y, method);
    const Tensor out = torch::stable::new_empty(x, {s.B, s.S, s.T}, output_type(x, y));
    fill(x, y, {method_of(method), false, false, false, s.S, s.T}, accuracy, out);
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("rdm", TORCH_BOX(&rdm));
    m.impl("rdm_out", TORCH_BOX(&rdm_out));
    m.impl("cross_rdm", TORCH_BOX(&cross_rdm));
}

} // namespace v1fast
