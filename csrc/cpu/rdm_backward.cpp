// Gradients of the dissimilarity matrices on the CPU. v1fast/reference/rdm.py has the formulas.
//
// The gradient of a row has two parts: a sum of the other rows, each times the weight of its pair, minus a multiple of
// the row itself. That is one product of a matrix of pairs with rows, in the tiles of the forward pass. Rows are
// standardised as they are packed, here with contiguous columns. The weights of the pairs are read from the gradient of
// the matrix, in strips of 32 MiB.
#include "../boxed.h"
#include "../rdm.h"

#include "detail/rdm_rows.h"

#include <tuple>

namespace v1fast {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kRowTile = 384, kColumnTile = 192; // of the gradient: it stays in L2 with the factors of one chain
constexpr int64_t kStripBytes = 32 << 20; // of the pairs' weights that are packed at a time; at least one tile

// Values of the pairs of rows i .. i + rows - 1 with rows j .. j + count - 1.
struct Block {
    int64_t i, rows, j, count, panel;

    // to[(pair's j - j) * panel + pair's i - i] = or += from[pair's i * row_stride + pair's j * column_stride]. One of
    // the strides is 1.
    template <bool kAdd, class G>
    void read(const G* from, int64_t row_stride, int64_t column_stride, G* to) const {
        from += i * row_stride + j * column_stride;
        const int64_t outer = row_stride == 1 ? count : rows, inner = row_stride == 1 ? rows : count;
        const int64_t outer_stride = row_stride == 1 ? column_stride : row_stride;
        const int64_t to_outer = row_stride == 1 ? panel : 1, to_inner = row_stride == 1 ? 1 : panel;
        for (int64_t a = 0; a < outer; ++a)
            for (int64_t b = 0; b < inner; ++b) {
                G& value = to[a * to_outer + b * to_inner];
                value = (kAdd ? value : G(0)) + from[a * outer_stride + b];
            }
    }
};

// How the values and gradients of pairs are read from each form of matrix.
struct SquarePairs {
    int64_t S;

    template <class G>
    void read(const G* values, const Block& block, G* to) const {
        block.read<false>(values, 1, S, to);
    }
    template <class G>
    void read_gradient(const G* grad, const Block& block, G* to) const {
        read(grad, block, to);
        block.read<true>(grad, S, 1, to);
    }
};

struct CondensedPairs {
    int64_t S;

    // The pair of a row with itself is not stored. It reads another value.
    template <class G>
    void read(const G* values, const Block& block, G* to) const {
        const auto before_row = [this](int64_t row) { return row * (2 * S - row - 1) / 2 - row - 1; };
        for (int64_t j = block.j; j < block.j + block.count; ++j)
            for (int64_t i = block.i; i < block.i + block.rows; ++i) {
                const int64_t index = i < j ? before_row(i) + j : before_row(j) + i;
                to[(j - block.j) * block.panel + i - block.i] = i == j ? G(0) : values[index];
            }
    }
    template <class G>
    void read_gradient(const G* grad, const Block& block, G* to) const {
        read(grad, block, to);
    }
};

struct CrossPairs {
    int64_t row_stride, column_stride;

    template <class G>
    void read(const G* values, const Block& block, G* to) const {
        block.read<false>(values, row_stride, column_stride, to);
    }
    template <class G>
    void read_gradient(const G* grad, const Block& block, G* to) const {
        read(grad, block, to);
    }
};

// Which rows j the gradient of row i sums over. after, before: twice the rows after i or before i, where the rows of
// two sets are paired.
enum class Side { others, after, before, all };

// The matrix and its gradient, for one member of a batch.
template <class G, class Pairs>
struct MatrixGradient {
    Pairs pairs;
    const G* grad;
    const G* matrix; // null for method euclidean, which does not ask for it
};

// The gradient of the rows `own`, which are paired with the rows `others`.
template <class T, class G, class Pairs>
class RowGradients {
public:
    RowGradients(const Rows<T>& own, const Rows<T>& others, Side side, const MatrixGradient<G, Pairs>& given,
                 double scale, const Tensor& out, int64_t b)
        : own_(own), others_(others), side_(side), given_(given), scale_(scale), panel_(own.panel),
          others_count_(others.source.rows), out_type_(out.scalar_type()),
          out_(static_cast<char*>(out.mutable_data_ptr()) +
               b * own.source.rows * own.source.columns * static_cast<int64_t>(out.element_size())),
          diagonal_(own.maps.size()) {}

    void run() {
        const int64_t tiles = (own_.count() + kRowTile - 1) / kRowTile;
        per_tile_ = (own_.panels() + tiles - 1) / tiles;
        const int64_t tile_bytes = per_tile_ * strip_size() * static_cast<int64_t>(sizeof(T));
        const int64_t step = std::max<int64_t>(kStripBytes / tile_bytes, 1) * per_tile_;
        for (int64_t p = 0; p < own_.panels(); p += step)
            rows(p, std::min(step, own_.panels() - p));
    }

private:
    int64_t chains() const { return (others_count_ + kDepth - 1) / kDepth; }
    int64_t strip_size() const { return chains() * kDepth * panel_; } // of one panel

    void rows(int64_t first, int64_t count);
    void pack(const Packed<T>& strips, int64_t p);
    void add_pairs(const Block&, int64_t j, const G* gradient, const G* matrix, double* sums, T* to) const;
    void tile(const Packed<T>& strips, int64_t p, int64_t k, T* scratch) const;
    void sum(const Packed<T>& strips, int64_t p, int64_t panels, int64_t k, T* right, T* c) const;
    void store(const T* sums, int64_t i, int64_t k, int64_t count) const;

    const Rows<T>&own_, &others_;
    Side side_;
    const MatrixGradient<G, Pairs>& given_;
    double scale_; // of the gradients, for method euclidean; else each row has its own
    int64_t panel_, others_count_, per_tile_ = 0;
    ScalarType out_type_;
    char* out_;
    std::vector<double> diagonal_; // the coefficient of the row itself
};

template <class T, class G, class Pairs>
void RowGradients<T, G, Pairs>::rows(int64_t first, int64_t count) {
    const Scratch<T, 0> strips_scratch(count * strip_size());
    const Packed<T> strips{first, count, strips_scratch.get()};
    torch::stable::parallel_for(first, first + count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p)
            pack(strips, p);
    });
    const int64_t row_tiles = (count + per_tile_ - 1) / per_tile_;
    const int64_t column_tiles = (own_.source.columns + kColumnTile - 1) / kColumnTile;
    for_each_task(row_tiles * column_tiles, [&] {
        return [&, scratch = Scratch<T, 1>((kDepth + per_tile_ * panel_) * kColumnTile)](int64_t t) {
            tile(strips, first + t % row_tiles * per_tile_, t / row_tiles * kColumnTile, scratch.get());
        };
    });
}

// Packs the weights of the pairs of a panel of rows, chain by chain, and sums the coefficients of the rows themselves.
template <class T, class G, class Pairs>
void RowGradients<T, G, Pairs>::pack(const Packed<T>& strips, int64_t p) {
    const int64_t missing = p == 0 ? own_.absent : 0, first = p * panel_ + missing;
    Block block{first - own_.absent, panel_ - missing, 0, 0, panel_};
    G gradient[kDepth * kMostRows] = {}, matrix[kDepth * kMostRows] = {};
    double sums[kMostRows] = {};
    for (; block.j < others_count_; block.j += kDepth) {
        block.count = std::min(kDepth, others_count_ - block.j);
        given_.pairs.read_gradient(given_.grad, block, gradient);
        if (given_.matrix)
            given_.pairs.read(given_.matrix, block, matrix);
        T* to = const_cast<T*>(strips.at(block.j / kDepth, p));
        for (int64_t j = 0; j < block.count; ++j, to += panel_) {
            std::fill_n(to, missing, T(0));
            add_pairs(block, j, gradient + j * panel_, matrix + j * panel_, sums, to + missing);
        }
    }
    std::copy_n(sums, block.rows, diagonal_.begin() + first);
}

// Adds the pairs of one row j of the block.
template <class T, class G, class Pairs>
void RowGradients<T, G, Pairs>::add_pairs(const Block& block, int64_t j, const G* gradient, const G* matrix,
                                          double* sums, T* to) const {
    const int64_t own = block.j + j - block.i; // the index of row j among the block's rows
    const bool half = side_ == Side::after || side_ == Side::before;
    const RowMap* maps = own_.maps.data() + own_.absent + block.i;
    const bool valid = others_.maps[others_.absent + block.j + j].valid;
    for (int64_t r = 0; r < block.rows; ++r) {
        const bool counts = valid && maps[r].valid && (side_ == Side::all || r != own);
        const G value = counts ? gradient[r] : G(0);
        sums[r] += value * (counts ? 1.0 - matrix[r] : 0.0);
        to[r] = static_cast<T>(!half ? value : (side_ == Side::after) == (own > r) ? 2 * value : 0);
    }
}

// The gradient of some panels of rows and some columns.
template <class T, class G, class Pairs>
void RowGradients<T, G, Pairs>::tile(const Packed<T>& strips, int64_t p, int64_t k, T* scratch) const {
    const int64_t panels = std::min(per_tile_, strips.first + strips.count - p);
    T* c = scratch + kDepth * kColumnTile;
    sum(strips, p, panels, k, scratch, c);
    for (int64_t r = p == 0 ? own_.absent : 0; r < panels * panel_; ++r)
        store(c + r * kColumnTile, p * panel_ + r, k, std::min(kColumnTile, own_.source.columns - k));
}

template <class T, class G, class Pairs>
void RowGradients<T, G, Pairs>::sum(const Packed<T>& strips, int64_t p, int64_t panels, int64_t k, T* right,
                                    T* c) const {
    const int64_t count = std::min(kColumnTile, own_.source.columns - k);
    TileFactors<T> factors{};
    factors.b = right;
    factors.a_panels = panels;
    factors.b_panels = (count + panel_ - 1) / panel_;
    factors.absent = p == 0 ? own_.absent : 0;
    // Rows i need no rows before the first of them (after), or none after the last (before).
    const int64_t i0 = std::max<int64_t>(p * panel_ - own_.absent, 0), i1 = (p + panels) * panel_ - own_.absent;
    const int64_t begin = side_ == Side::after ? i0 / kDepth * kDepth : 0;
    const int64_t end = side_ == Side::before ? i1 : others_count_;
    const double* centre = others_.centre ? others_.centre + k : nullptr;
    static const T zeros[kColumnTile] = {};
    T copy[kColumnTile];
    for (int64_t j0 = begin; j0 < end; j0 += kDepth) {
        const int64_t depth = std::min(kDepth, end - j0);
        for (int64_t j = j0; j < j0 + depth; ++j) {
            const RowMap& map = others_.maps[others_.absent + j];
            const T* row = map.valid ? others_.source.part(j, k, count, copy) : zeros;
            rdm_kernels<T>().spread(row, map, centre, others_.packing(map.plain), count, right + (j - j0) * panel_);
        }
        factors.a = strips.at(j0 / kDepth, p);
        factors.next_a = j0 + kDepth < end ? strips.at(j0 / kDepth + 1, p) : nullptr;
        rdm_kernels<T>().multiply_tile(factors, depth, c, kColumnTile, j0 == begin);
    }
}

// Computes the gradient of a row from its sums.
template <class T, class G, class Pairs>
void RowGradients<T, G, Pairs>::store(const T* sums, int64_t i, int64_t k, int64_t count) const {
    const RowMap& map = own_.maps[i];
    const int64_t row = i - own_.absent, offset = row * own_.source.columns + k;
    T copy[kColumnTile], buffer[kColumnTile];
    T* to = out_type_ == kScalarType<T> ? reinterpret_cast<T*>(out_) + offset : buffer;
    if (map.valid) {
        int exponent = 0;
        const double mantissa = std::frexp(given_.matrix ? map.before * map.scale : scale_, &exponent);
        const T factor[2] = {static_cast<T>(std::ldexp(mantissa, exponent / 2)),
                             static_cast<T>(std::ldexp(1, exponent - exponent / 2))};
        rdm_kernels<T>().gradient_of_row(sums, own_.source.part(row, k, count, copy), map,
                                         own_.centre ? own_.centre + k : nullptr, own_.packing(map.plain),
                                         static_cast<T>(diagonal_[i]), factor, count, to);
    } else {
        std::fill_n(to, count, T(0));
    }
    if (to == buffer)
        V1FAST_DISPATCH_FLOATING(out_type_, "responses", [&] {
            std::transform(buffer, buffer + count, reinterpret_cast<scalar_t*>(out_) + offset,
                           [](T value) { return static_cast<scalar_t>(value); });
        });
}

// d_x and d_y where requested. A gradient that is not requested has no elements.
struct Gradients {
    Tensor d_x, d_y;
};

template <class T, class G, class Pairs>
void paired(RowSets<T>& rows, bool two_sets, const MatrixGradient<G, Pairs>& given, const Gradients& out, int64_t b) {
    Rows<T>&x = rows.x, &y = rows.y();
    const double columns = static_cast<double>(x.source.columns);
    if (!two_sets) {
        if (out.d_x.numel())
            RowGradients(x, x, Side::others, given, 2 / (columns * x.scale), out.d_x, b).run();
        return;
    }
    if (out.d_x.numel())
        RowGradients(y, y, Side::after, given, 1 / (columns * y.scale), out.d_x, b).run();
    if (out.d_y.numel())
        RowGradients(x, x, Side::before, given, 1 / (columns * x.scale), out.d_y, b).run();
}

template <class T, class G>
void crossed(RowSets<T>& rows, const G* grad, const G* matrix, const Gradients& out, int64_t b) {
    Rows<T>&x = rows.x, &y = rows.y();
    const double scale = 2 / (static_cast<double>(x.source.columns) * x.scale);
    const int64_t columns = y.source.rows;
    if (out.d_x.numel()) {
        const MatrixGradient<G, CrossPairs> given{{columns, 1}, grad, matrix};
        RowGradients(x, y, Side::all, given, scale, out.d_x, b).run();
    }
    if (out.d_y.numel()) {
        const MatrixGradient<G, CrossPairs> given{{1, columns}, grad, matrix};
        RowGradients(y, x, Side::all, given, scale, out.d_y, b).run();
    }
}

struct Given {
    Tensor grad;
    OptionalTensor matrix;
    const Tensor& x;
    OptionalTensor y;
    Method method;
    bool symmetric, condensed;
    RdmSizes sizes;
};

template <class T, class G>
void member(const Given& g, const Gradients& out, int64_t b) {
    RowSets<T> rows(g.x, g.y, g.method, g.symmetric, b, false);
    const int64_t size = g.grad.numel() / g.sizes.B;
    const G* grad = g.grad.const_data_ptr<G>() + b * size;
    const G* matrix = g.method == Method::euclidean ? nullptr : g.matrix->const_data_ptr<G>() + b * size;
    if (!g.symmetric)
        crossed(rows, grad, matrix, out, b);
    else if (g.condensed)
        paired(rows, g.y.has_value(), MatrixGradient<G, CondensedPairs>{{g.sizes.S}, grad, matrix}, out, b);
    else
        paired(rows, g.y.has_value(), MatrixGradient<G, SquarePairs>{{g.sizes.S}, grad, matrix}, out, b);
}

// All members of a batch. Where there are enough of them, one thread takes a whole member.
template <class T, class G>
void all_members(const Given& given, const Gradients& out) {
    const int64_t batch = given.sizes.B, threads = torch::stable::get_num_threads();
    torch::stable::parallel_for(0, batch, batch >= threads ? 1 : batch, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
            member<T, G>(given, out, b);
    });
}

Tensor gradient_of(const Tensor& x) {
    return x.is_contiguous() ? uninitialised_like(x, true).tensor : torch::stable::new_empty(x, x.sizes());
}

std::tuple<Tensor, Tensor> gradients(Given given, const std::string& accuracy, const std::vector<bool>& output_mask) {
    check_mask(output_mask, 2);
    const Tensor none = torch::stable::new_empty(given.x, {0});
    const Gradients out{output_mask[0] ? gradient_of(given.x) : none,
                        output_mask[1] && given.y ? gradient_of(*given.y) : none};
    if (given.sizes.B == 0 || given.sizes.S == 0 || given.sizes.T == 0) {
        for (Tensor gradient : {out.d_x, out.d_y})
            torch::stable::zero_(gradient);
        return {out.d_x, out.d_y};
    }
    if (out.d_x.numel() == 0 && out.d_y.numel() == 0)
        return {out.d_x, out.d_y};
    given.grad = as_contiguous(given.grad);
    if (given.matrix)
        given.matrix = as_contiguous(*given.matrix);
    if (given.grad.scalar_type() == ScalarType::Double)
        all_members<double, double>(given, out);
    else if (accuracy == "high")
        all_members<double, float>(given, out);
    else
        all_members<float, float>(given, out);
    return {out.d_x, out.d_y};
}

std::tuple<Tensor, Tensor> rdm_backward(const Tensor& grad, OptionalTensor matrix, const Tensor& x, OptionalTensor y,
                                        std::string method, bool condensed, std::string accuracy,
                                        std::vector<bool> output_mask) {
    const RdmSizes s = check_paired(x, y, method, accuracy);
    if (condensed)
        check_matrix(grad, matrix, x, y, method, {s.B, pairs_of(s.S)});
    else
        check_matrix(grad, matrix, x, y, method, {s.B, s.S, s.S});
    return gradients({grad, matrix, x, y, method_of(method), true, condensed, s}, accuracy, output_mask);
}

std::tuple<Tensor, Tensor> cross_rdm_backward(const Tensor& grad, OptionalTensor matrix, const Tensor& x,
                                              const Tensor& y, std::string method, std::string accuracy,
                                              std::vector<bool> output_mask) {
    const RdmSizes s = check_rdm(x, y, method, accuracy);
    check_matrix(grad, matrix, x, y, method, {s.B, s.S, s.T});
    return gradients({grad, matrix, x, y, method_of(method), false, false, s}, accuracy, output_mask);
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(v1fast, CPU, m) {
    m.impl("rdm_backward", V1FAST_BOX(rdm_backward));
    m.impl("cross_rdm_backward", V1FAST_BOX(cross_rdm_backward));
}

} // namespace v1fast
