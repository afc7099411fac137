// ldmatrix, stmatrix and mma.sync, by the fragment layouts of the PTX manual.
#include "memory.h"
#include "numbers.h"
#include "warp.h"

namespace emulator {
namespace {

// Lane 8 i + r holds the address of row r of matrix i. A lane's part of a matrix is two neighbours of row lane / 4 or,
// if transposed, of column lane / 4.
template <bool transposed>
u64 element(const u64* rows, u32 lane, u32 k) {
    const u32 major = lane / 4, minor = 2 * (lane % 4) + k;
    return transposed ? rows[minor] + 2 * major : rows[major] + 2 * minor;
}

template <int matrices>
void row_addresses(const Step* step, Thread* lanes, const u32* operand, u64* rows) {
    for (int i = 0; i < 8 * matrices; ++i) {
        rows[i] = lanes[i].slot[operand[0]] + lanes[i].slot[operand[1]];
        locate_shared(step, lanes[i], rows[i], 16);
    }
}

template <int matrices, bool transposed>
void load_matrices(const Step* step, Thread* lanes, u32 mask) {
    u64 rows[32];
    row_addresses<matrices>(step, lanes, step->slot + matrices, rows);
    each_lane(mask, [&](u32 lane) {
        for (int i = 0; i < matrices; ++i) {
            u32 both = 0;
            for (u32 k = 0; k < 2; ++k) {
                const u64 at = element<transposed>(rows + 8 * i, lane, k);
                const u8* from = locate_shared(step, lanes[lane], at, 2);
                touch(step, lanes[lane], from, 2, Access::read);
                both |= u32(load<u16>(from)) << (16 * k);
            }
            write(lanes[lane], step->slot[i], both);
        }
    });
}

template <int matrices, bool transposed>
void store_matrices(const Step* step, Thread* lanes, u32 mask) {
    u64 rows[32];
    row_addresses<matrices>(step, lanes, step->slot, rows);
    each_lane(mask, [&](u32 lane) {
        for (int i = 0; i < matrices; ++i)
            for (u32 k = 0; k < 2; ++k) {
                const u64 at = element<transposed>(rows + 8 * i, lane, k);
                u8* to = locate_shared(step, lanes[lane], at, 2);
                const u16 value = u16(read<u32>(lanes[lane], step->slot[2 + i]) >> (16 * k));
                touch(step, lanes[lane], to, 2, Access::write, &value);
                store(to, value);
            }
    });
}

template <int matrices>
void matrix_moves(Table& table) {
    const std::string shape = ".sync.aligned.m8n8.x" + std::to_string(matrices);
    table.add("ldmatrix" + shape + ".shared.b16", matrices + 2, whole_warp<load_matrices<matrices, false>>);
    table.add("ldmatrix" + shape + ".trans.shared.b16", matrices + 2, whole_warp<load_matrices<matrices, true>>);
    table.add("stmatrix" + shape + ".shared.b16", matrices + 2, whole_warp<store_matrices<matrices, false>>);
    table.add("stmatrix" + shape + ".trans.shared.b16", matrices + 2, whole_warp<store_matrices<matrices, true>>);
}

// How the 32 bits of an operand register hold elements, and which column (of A; row of B) element `e` is.
struct Tf32 {
    static constexpr int depth = 8, each = 1;
    static double value(u32 bits, int) { return read_tf32(bits); }
};
template <class T>
struct Halves {
    static constexpr int depth = 16, each = 2;
    static double value(u32 bits, int e) { return float(T{u16(bits >> (16 * e))}); }
};

// d[16, 8] = a[16, depth] @ b[depth, 8] + c. Products are exact and the sum is rounded once. A tensor core truncates
// intermediate sums and so has larger errors.
template <class Format>
void multiply(const Step* step, Thread* lanes, u32) {
    constexpr int depth = Format::depth, each = Format::each;
    const u32 *d = step->slot, *a = d + 4, *b = d + 8, *c = d + 10;
    double left[16][depth], right[depth][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, within = lane % 4;
        for (int e = 0; e < each; ++e) {
            const int k = each * within + e;
            for (int i = 0; i < 4; ++i)
                left[group + 8 * (i % 2)][k + depth / 2 * (i / 2)] = Format::value(read<u32>(lanes[lane], a[i]), e);
            for (int i = 0; i < 2; ++i)
                right[k + depth / 2 * i][group] = Format::value(read<u32>(lanes[lane], b[i]), e);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            double sum = read<float>(lanes[lane], c[i]);
            for (int k = 0; k < depth; ++k)
                sum += left[row][k] * right[k][column];
            write(lanes[lane], d[i], canonical(float(sum)));
        }
    }
}

// The same for an 8 x 4 and a 4 x 8 matrix of float64: a chain of fused multiply-adds. The manual does not define its
// order.
void multiply_doubles(const Step* step, Thread* lanes, u32) {
    const u32 *d = step->slot, *a = d + 2, *b = d + 3, *c = d + 4;
    double left[8][4], right[4][8];
    for (int lane = 0; lane < 32; ++lane) {
        left[lane / 4][lane % 4] = read<double>(lanes[lane], *a);
        right[lane % 4][lane / 4] = read<double>(lanes[lane], *b);
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 2; ++i) {
            double sum = read<double>(lanes[lane], c[i]);
            for (int k = 0; k < 4; ++k)
                sum = std::fma(left[lane / 4][k], right[k][2 * (lane % 4) + i], sum);
            write(lanes[lane], d[i], sum);
        }
}

} // namespace

void tensor_opcodes(Table& table) {
    matrix_moves<1>(table), matrix_moves<2>(table), matrix_moves<4>(table);
    const std::string mma = "mma.sync.aligned.";
    table.add(mma + "m16n8k8.row.col.f32.tf32.tf32.f32", 14, whole_warp<multiply<Tf32>>);
    table.add(mma + "m16n8k16.row.col.f32.f16.f16.f32", 14, whole_warp<multiply<Halves<Half>>>);
    table.add(mma + "m16n8k16.row.col.f32.bf16.bf16.f32", 14, whole_warp<multiply<Halves<BFloat>>>);
    table.add(mma + "m8n8k4.row.col.f64.f64.f64.f64", 6, whole_warp<multiply_doubles>);
}

} // namespace emulator
