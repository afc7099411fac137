// The kernels of the dissimilarity matrices. rdm_kernels.cpp compiles them once for each instruction set. The best one
// is chosen at run time.
#pragma once

#include "rdm_row_source.h"

#include <limits>

namespace v1fast {

constexpr int64_t kDepth = 112;   // columns that are packed together and added in one chain
constexpr int64_t kMostRows = 16; // of a panel

template <class T>
struct RowMoments {
    T low = std::numeric_limits<T>::infinity(), high = -std::numeric_limits<T>::infinity();
    double sum = 0, squares = 0;
};

// How the values of a panel are computed. In double: with or without a centre, or rounded to whole numbers. Only for T
// = float: in float.
enum class Packing { wide, centred, whole, plain };

// Adding and subtracting it rounds values below 2^51 to whole numbers.
constexpr double kRounding = 0x1.8p52;

// For rows of whole numbers; see whole_numbers.h. constant: columns * offset^2; constant_rest: its rounding error.
struct WholeAngles {
    bool centred;
    double columns, offset, constant, constant_rest;
};

// Panels a and b, whose product is one tile, and the panels that come next; see multiply_tile.
template <class T>
struct TileFactors {
    const T *a, *b, *next_a, *next_b; // next: null for none
    int64_t a_panels, b_panels;
    int64_t absent; // rows of the first panel a that are padding
    bool diagonal;  // each row uses only the panels b from its own panel on
};

// What one instruction set provides, for one compute type; see rdm_kernels.inc.
template <class T>
struct RdmKernels {
    int64_t panel;
    void (*row_range)(const T* row, int64_t count, T& low, T& high);
    void (*row_moments)(const T* row, int64_t count, double scale, double shift, RowMoments<T>& found);
    void (*pack)(const T* const* rows, const RowMap* maps, const double* centre, Packing, int64_t depth, T* panel);
    void (*spread)(const T* row, const RowMap&, const double* centre, Packing, int64_t count, T* panel);
    void (*gradient_of_row)(const T* sums, const T* row, const RowMap&, const double* centre, Packing, T own,
                            const T* factor, int64_t count, T* out);
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
    void (*finite_range)(const T* row, int64_t count, T& low, T& high);
    int64_t (*first_off)(const T* row, int64_t count, double origin, double inverse, double tolerance);
    bool (*add_bits)(const T* row, int64_t count, double origin, double inverse, uint64_t& bits);
    void (*add_whole)(const T* row, int64_t count, const RowMap&, double& sum, double& squares);
    void (*whole_product)(const WholeAngles&, double gram, double sum, double other, double& high, double& rest);
    void (*row_of_whole_angles)(T* row, int64_t count, const WholeAngles&, const double* own,
                                const double* const* others);
    void (*row_of_whole_distances)(T* row, int64_t count, double own, const double* others, const double* steps,
                                   double columns);
};

template <class T>
const RdmKernels<T>& rdm_kernels();

} // namespace v1fast
