// Dissimilarity matrices on the CPU. v1fast/reference/rdm.py defines them.
//
// One product of rows with rows; only the tiles on and above the diagonal are computed. Rows are standardised as they
// are packed, for one group of tiles and one block of columns at a time. So the responses are not copied. A chain of
// additions is kDepth products long. The sums of the chains are added in a fixed order, whatever the tiles and threads.
// Finished sums become dissimilarities while they are still in the cache. They are written once, with their mirror
// image.
#include "../rdm.h"
#include "../boxed.h"

#include "detail/rdm_rows.h"

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kTile = 288;            // rows and columns of a tile: it stays in L2 with its factors
constexpr int64_t kBlock = 896;           // columns whose products are summed before they are added to the total
constexpr int64_t kPackedBytes = 6 << 20; // packed by several threads at a time; at least one block
static_assert(kBlock % kDepth == 0);
constexpr double kNear = 1e-4; // dissimilarity below which "high" accuracy uses the difference of the rows
template <class T>
constexpr int64_t kGroup = sizeof(T) == 4 ? 6 : 4; // tiles in each direction that are summed at the same time: 12 MiB
template <class T>
void pack_panel(const Rows<T>& x, const Packed<T>& to, int64_t p, int64_t begin, int64_t end) {
    static const T zeros[kDepth] = {};
    const RowMap* maps = x.maps.data() + p * x.panel;
    const bool plain = std::all_of(maps, maps + x.panel, [](const RowMap& map) { return map.plain || !map.valid; });
    const Packing packing = x.packing(plain);
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

// Turns the sums of products in a tile into dissimilarities and stores them in the matrix.
template <class T, class Out>
class Finish {
public:
    Finish(const Form& form, const Rows<T>& x, const Rows<T>& y, double factor, Out* out)
        : form_(form), x_(x), y_(y), factor_(factor), out_(out), shortfall_(y.own.size()), own_(y.own.size()),
          angles_(whole_angles(form.method == Method::correlation, x.source.columns, x.steps.offset)) {
        if (x.steps.found && form.method != Method::euclidean)
            norms_.resize(y.own.size()), rests_.resize(y.own.size());
    }

    // Call this when the products of rows with themselves are known.
    void prepare() {
        for (size_t j = 0; j < y_.own.size(); ++j) {
            shortfall_[j] = static_cast<T>(shortfall(y_, static_cast<int64_t>(j)));
            own_[j] = y_.maps[j].valid ? static_cast<double>(y_.own[j]) : kNaN;
        }
        for (size_t j = 0; j < norms_.size(); ++j) {
            const Twice norm = inverse_norm(angles_, own_[j], y_.sums[j]);
            norms_[j] = norm.high, rests_[j] = norm.rest;
        }
    }

    // A tile c that begins with the products of rows i0 .. i1 - 1 with rows j0 .. j1 - 1.
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
        if (x_.steps.found)
            return whole_row(values, i, j, count);
        if (form_.method == Method::euclidean) {
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

    void whole_row(T* values, int64_t i, int64_t j, int64_t count) const {
        const RdmKernels<T>& kernels = rdm_kernels<T>();
        const double own = x_.maps[i].valid ? static_cast<double>(x_.own[i]) : kNaN;
        if (form_.method == Method::euclidean) {
            const double steps[2] = {x_.steps.step, y_.steps.step};
            kernels.row_of_whole_distances(values, count, own, own_.data() + j, steps, angles_.columns);
            return;
        }
        const Twice norm = inverse_norm(angles_, own, x_.sums[i]);
        const double parts[3] = {norm.high, norm.rest, x_.sums[i]};
        const double* others[3] = {norms_.data() + j, rests_.data() + j, y_.sums.data() + j};
        kernels.row_of_whole_angles(values, count, angles_, parts, others);
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
    WholeAngles angles_;
    std::vector<double> norms_, rests_; // 1 / norm of whole rows, in two parts
};
struct Tile {
    int64_t i, j; // in tiles of the matrix
};

// The product of rows x with rows y, by groups of tiles. y may be x.
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
        else // diagonal groups first: they give the products of rows with themselves
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

    // How many columns of these panels are packed at a time: one block, or more with several threads, because threads
    // wait for each other after each packing.
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
    std::vector<bool> known_x_, known_y_; // groups of rows whose products with themselves are known
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
    // One task per panel. For paired rows, a task has a panel of x and the same panel of y, because they are
    // multiplied.
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
    RowSets<T> rows(x, y, form.method, form.symmetric, b, true);
    const double factor = 1 / (rows.x.scale * rows.y().scale * static_cast<double>(x.size(2)));
    Product<T, Out>(form, rows.x, rows.y(), factor, out).run();
}

// All members of a batch. Where there are enough of them, one thread takes a whole member.
template <class T, class Out>
void compute_all(const Tensor& x, const OptionalTensor& y, const Form& form, Out* out, int64_t size) {
    const int64_t batch = x.size(0), threads = torch::stable::get_num_threads();
    torch::stable::parallel_for(0, batch, batch >= threads ? 1 : batch, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            compute<T, Out>(x, y, form, b, out + b * size);
    });
}

void fill(const Tensor& x, const OptionalTensor& y, Form form, const std::string& accuracy, const Tensor& out) {
    if (out.numel() == 0)
        return;
    form.refine = accuracy == "high" && form.method != Method::euclidean;
    ask_for_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
    const int64_t size = out.numel() / out.size(0);
    if (rdm_type(x, y) == ScalarType::Double)
        compute_all<double>(x, y, form, out.mutable_data_ptr<double>(), size);
    else if (accuracy == "high")
        compute_all<double>(x, y, form, out.mutable_data_ptr<float>(), size);
    else
        compute_all<float>(x, y, form, out.mutable_data_ptr<float>(), size);
}

Tensor rdm(const Tensor& x, OptionalTensor y, std::string method, bool condensed, std::string accuracy) {
    const RdmSizes s = check_paired(x, y, method, accuracy);
    const Tensor out = condensed ? torch::stable::new_empty(x, {s.B, pairs_of(s.S)}, rdm_type(x, y))
                                 : torch::stable::new_empty(x, {s.B, s.S, s.S}, rdm_type(x, y));
    fill(x, y, {method_of(method), true, condensed, false, s.S, s.S}, accuracy, out);
    return out;
}

void rdm_out(const Tensor& x, OptionalTensor y, std::string method, bool condensed, std::string accuracy,
             const Tensor& out) {
    const RdmSizes s = check_paired(x, y, method, accuracy);
    if (condensed)
        check_shape(out, {s.B, pairs_of(s.S)}, "out");
    else
        check_shape(out, {s.B, s.S, s.S}, "out");
    STD_TORCH_CHECK(out.is_contiguous() && out.scalar_type() == rdm_type(x, y),
                    "out: want it contiguous, of the dtype that rdm returns");
    check_apart(out, x, "x");
    check_apart(out, y, "y");
    fill(x, y, {method_of(method), true, condensed, false, s.S, s.S}, accuracy, out);
}

Tensor cross_rdm(const Tensor& x, const Tensor& y, std::string method, std::string accuracy) {
    const RdmSizes s = check_rdm(x, y, method, accuracy);
    const Tensor out = torch::stable::new_empty(x, {s.B, s.S, s.T}, rdm_type(x, y));
    fill(x, y, {method_of(method), false, false, false, s.S, s.T}, accuracy, out);
    return out;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("rdm", V1FAST_BOX(rdm));
    m.impl("rdm_out", V1FAST_BOX(rdm_out));
    m.impl("cross_rdm", V1FAST_BOX(cross_rdm));
}

} // namespace v1fast
