// The layers of LeNet-5 on one block of images, a Vector for each number of an image, and their gradients.

#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.hpp"

namespace {

constexpr int K = 5;

// Valid cross-correlation, activation and pooling. Sums stay in registers: GROUP output maps by COLUMNS pixels of them,
// or by the K columns of a kernel.
template <typename Vector, int IN, int OUT, int SIZE>
struct Convolution {
    static constexpr int CONVOLVED = SIZE - K + 1, POOLED = CONVOLVED / 2;

    typedef Vector Input[IN][SIZE][SIZE];
    typedef Vector Output[OUT][CONVOLVED][CONVOLVED];
    typedef Vector Pooled[OUT][POOLED][POOLED];
    typedef float Kernels[OUT][IN][K][K];

    template <int GROUP, int COLUMNS>
    static void forward(const Input& x, const Kernels& w, const float* bias, Output& y, Pooled& pooled) {
        static_assert(OUT % GROUP == 0 && CONVOLVED % COLUMNS == 0);
        for (int row = 0; row < CONVOLVED; row++)
            for (int first = 0; first < OUT; first += GROUP)
                for (int column = 0; column < CONVOLVED; column += COLUMNS) {
                    Vector sum[GROUP][COLUMNS];
                    for (int o = 0; o < GROUP; o++)
                        for (int j = 0; j < COLUMNS; j++) sum[o][j] = Vector{} + bias[first + o];
                    for (int i = 0; i < IN; i++)
                        for (int r = 0; r < K; r++)
                            for (int c = 0; c < K; c++)
#pragma GCC unroll 16
                                for (int o = 0; o < GROUP; o++)
#pragma GCC unroll 16
                                    for (int j = 0; j < COLUMNS; j++)
                                        sum[o][j] += w[first + o][i][r][c] * x[i][row + r][column + j + c];
                    for (int o = 0; o < GROUP; o++)
                        for (int j = 0; j < COLUMNS; j++) y[first + o][row][column + j] = Activation::of(sum[o][j]);
                }
        for (int o = 0; o < OUT; o++)
            for (int r = 0; r < POOLED; r++)
                for (int c = 0; c < POOLED; c++)
                    pooled[o][r][c] = Pooling::of(&y[o][2 * r][2 * c], &y[o][2 * r + 1][2 * c]);
    }

    // The gradient by what was pooled becomes that by the sums of products.
    static void unpool(const Pooled& dpooled, const Pooled& pooled, const Output& y, Output& dy) {
        for (int o = 0; o < OUT; o++)
            for (int r = 0; r < POOLED; r++)
                for (int c = 0; c < POOLED; c++) {
                    const Vector *above = &y[o][2 * r][2 * c], *below = &y[o][2 * r + 1][2 * c];
                    Vector *dabove = &dy[o][2 * r][2 * c], *dbelow = &dy[o][2 * r + 1][2 * c];
                    Pooling::back(dpooled[o][r][c], pooled[o][r][c], above, below, dabove, dbelow);
                    for (int j = 0; j < 2; j++) {
                        dabove[j] *= Activation::slope(above[j]);
                        dbelow[j] *= Activation::slope(below[j]);
                    }
                }
    }

    // By two columns of pixels at a time: a kernel's number, once fetched, serves both.
    static void input_gradient(const Output& dy, const Kernels& w, Input& dx) {
        static_assert(SIZE % 2 == 0);
        for (int row = 0; row < SIZE; row++)
            for (int column = 0; column < SIZE; column += 2) {
                Vector sum[2][IN] = {};
                // Of the kernel's columns, those under which dy has pixels for both.
                const int first = larger(0, column + 2 - CONVOLVED), last = smaller(K - 1, column);
                for (int o = 0; o < OUT; o++)
                    for (int r = larger(0, row - CONVOLVED + 1); r <= smaller(K - 1, row); r++) {
                        const auto& at = dy[o][row - r];
                        for (int c = first; c <= last; c++)
#pragma GCC unroll 16
                            for (int i = 0; i < IN; i++) {
                                sum[0][i] += w[o][i][r][c] * at[column - c];
                                sum[1][i] += w[o][i][r][c] * at[column + 1 - c];
                            }
                        if (first > 0)
#pragma GCC unroll 16
                            for (int i = 0; i < IN; i++) sum[0][i] += w[o][i][r][first - 1] * at[column + 1 - first];
                        if (last < K - 1)
#pragma GCC unroll 16
                            for (int i = 0; i < IN; i++) sum[1][i] += w[o][i][r][last + 1] * at[column - last];
                    }
                for (int i = 0; i < IN; i++)
                    for (int j = 0; j < 2; j++) dx[i][row][column + j] = sum[j][i];
            }
    }

    template <int GROUP>
    static void kernel_gradient(const Output& dy, const Input& x, Kernels& dw, float* dbias) {
        static_assert(OUT % GROUP == 0);
        for (int first = 0; first < OUT; first += GROUP)
            for (int i = 0; i < IN; i++)
                for (int r = 0; r < K; r++) {
                    Vector sum[GROUP][K] = {};
                    for (int row = 0; row < CONVOLVED; row++)
                        for (int column = 0; column < CONVOLVED; column++)
#pragma GCC unroll 16
                            for (int o = 0; o < GROUP; o++)
#pragma GCC unroll 16
                                for (int c = 0; c < K; c++)
                                    sum[o][c] += dy[first + o][row][column] * x[i][row + r][column + c];
                    for (int o = 0; o < GROUP; o++)
                        for (int c = 0; c < K; c++) dw[first + o][i][r][c] = sum_of(sum[o][c]);
                }
        for (int o = 0; o < OUT; o++) {
            Vector sum[CONVOLVED] = {};
            for (int row = 0; row < CONVOLVED; row++)
                for (int column = 0; column < CONVOLVED; column++) sum[column] += dy[o][row][column];
            for (int column = 1; column < CONVOLVED; column++) sum[0] += sum[column];
            dbias[o] = sum_of(sum[0]);
        }
    }
};

// A fully connected layer; its weights are [output][input].
template <typename Vector, int IN, int OUT>
struct Linear {
    template <int GROUP>
    static void forward(const Vector* x, const float* w, const float* bias, Vector* y) {
        static_assert(OUT % GROUP == 0);
        for (int first = 0; first < OUT; first += GROUP) {
            Vector sum[GROUP];
            for (int o = 0; o < GROUP; o++) sum[o] = Vector{} + bias[first + o];
            for (int i = 0; i < IN; i++)
#pragma GCC unroll 16
                for (int o = 0; o < GROUP; o++) sum[o] += w[(first + o) * IN + i] * x[i];
            for (int o = 0; o < GROUP; o++) y[first + o] = sum[o];
        }
    }

    template <int GROUP>
    static void input_gradient(const Vector* dy, const float* w, Vector* dx) {
        static_assert(IN % GROUP == 0);
        for (int first = 0; first < IN; first += GROUP) {
            Vector sum[GROUP] = {};
            for (int o = 0; o < OUT; o++)
#pragma GCC unroll 16
                for (int i = 0; i < GROUP; i++) sum[i] += w[o * IN + first + i] * dy[o];
            for (int i = 0; i < GROUP; i++) dx[first + i] = sum[i];
        }
    }
};

constexpr int COLUMN = 2 * LANES;  // inputs of an image that are taken together

// What an image leaves for the gradient of a fully connected layer: its inputs, filled up to whole columns, and the
// gradient by its outputs.
template <int IN, int OUT>
struct Factors {
    static constexpr int ROW = (IN + COLUMN - 1) / COLUMN * COLUMN;

    alignas(Whole) float x[ROW];
    float dy[OUT];
};

// The gradient by the weights and biases of OUTPUTS outputs. Here the lanes of a vector are inputs of one image.
template <int OUTPUTS, typename Image, int IN, int OUT>
void linear_gradient(const Image* images, int64_t count, Factors<IN, OUT> Image::*layer, int begin, float* dw,
                     float* dbias) {
    constexpr int VECTORS = COLUMN / LANES, GROUP = WIDE ? OUTPUTS : OUTPUTS / 2, FEW = 16;
    static_assert(OUT % OUTPUTS == 0 && OUTPUTS % GROUP == 0);
    // A column of all images' inputs stays in the cache for all outputs.
    for (int start = 0; start < IN; start += COLUMN)
        for (int first = begin; first < begin + OUTPUTS; first += GROUP) {
            Whole sum[GROUP][VECTORS] = {};
            for (int64_t from = 0; from < count; from += FEW) {
                Whole part[GROUP][VECTORS] = {};  // sums of few numbers round less
                for (int64_t n = from; n < smaller(from + FEW, count); n++) {
                    const Whole* x = reinterpret_cast<const Whole*>((images[n].*layer).x + start);
                    const float* dy = (images[n].*layer).dy + first;
#pragma GCC unroll 16
                    for (int o = 0; o < GROUP; o++)
#pragma GCC unroll 16
                        for (int j = 0; j < VECTORS; j++) part[o][j] += dy[o] * x[j];
                }
#pragma GCC unroll 16
                for (int o = 0; o < GROUP; o++)
#pragma GCC unroll 16
                    for (int j = 0; j < VECTORS; j++) sum[o][j] += part[o][j];
            }
            const int size = smaller(COLUMN, IN - start);
            for (int o = 0; o < GROUP; o++) std::memcpy(dw + (first + o) * IN + start, sum[o], size * sizeof(float));
        }
    for (int o = begin; o < begin + OUTPUTS; o++) {
        float sum[FEW] = {};
        for (int64_t n = 0; n < count; n++) sum[n % FEW] += (images[n].*layer).dy[o];
        dbias[o] = 0;
        for (float part : sum) dbias[o] += part;
    }
}

}  // namespace
