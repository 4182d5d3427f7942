// The convolutions of LeNet-5 and their gradients, every lane of a vector register holding another image.
//
// Valid cross-correlation of square maps. A block of maps is [block][map][row][column], one Vector for each pixel;
// kernels are as PyTorch has them, [output map][input map][row][column].

#include <algorithm>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int LANES = 8, REGISTERS = 16;
#else
#error "vector registers too small to hold eight images"
#endif

typedef float Vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

float sum_of(Vector vector) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += vector[lane];
    return sum;
}

constexpr int K = 5;

// Sums stay in registers: GROUP output maps by COLUMNS pixels of them, or by the K columns of a kernel.
template <int IN, int OUT, int SIZE>
struct Convolution {
    static constexpr int OUT_SIZE = SIZE - K + 1;

    typedef Vector Input[IN][SIZE][SIZE];
    typedef Vector Output[OUT][OUT_SIZE][OUT_SIZE];
    typedef float Kernel[IN][K][K];

    template <int GROUP, int COLUMNS>
    static void forward(const Input* x, const Kernel* w, const float* bias, Output* y, int blocks) {
        static_assert(OUT % GROUP == 0 && OUT_SIZE % COLUMNS == 0);
#pragma omp parallel for collapse(2)
        for (int n = 0; n < blocks; n++)
            for (int row = 0; row < OUT_SIZE; row++)
                for (int first = 0; first < OUT; first += GROUP)
                    for (int column = 0; column < OUT_SIZE; column += COLUMNS) {
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
                                            sum[o][j] += w[first + o][i][r][c] * x[n][i][row + r][column + j + c];
                        for (int o = 0; o < GROUP; o++)
                            for (int j = 0; j < COLUMNS; j++) y[n][first + o][row][column + j] = sum[o][j];
                    }
    }

    static void input_gradient(const Output* dy, const Kernel* w, Input* dx, int blocks) {
        static_assert(OUT % 2 == 0);
#pragma omp parallel for collapse(2)
        for (int n = 0; n < blocks; n++)
            for (int row = 0; row < SIZE; row++)
                for (int column = 0; column < SIZE; column++) {
                    Vector sum[2][IN] = {};  // two, for the next addition need not wait for the last
                    for (int o = 0; o < OUT; o += 2)
                        for (int r = std::max(0, row - OUT_SIZE + 1); r <= std::min(K - 1, row); r++)
                            for (int c = std::max(0, column - OUT_SIZE + 1); c <= std::min(K - 1, column); c++)
#pragma GCC unroll 16
                                for (int i = 0; i < IN; i++) {
                                    sum[0][i] += w[o][i][r][c] * dy[n][o][row - r][column - c];
                                    sum[1][i] += w[o + 1][i][r][c] * dy[n][o + 1][row - r][column - c];
                                }
                    for (int i = 0; i < IN; i++) dx[n][i][row][column] = sum[0][i] + sum[1][i];
                }
    }

    // Sums of each block by itself: how they are added up must not depend on the number of threads.
    template <int GROUP>
    static void kernel_gradient(const Output* dy, const Input* x, Kernel (*dw)[OUT], int blocks) {
        static_assert(OUT % GROUP == 0);
#pragma omp parallel for collapse(2)
        for (int n = 0; n < blocks; n++)
            for (int first = 0; first < OUT; first += GROUP)
                for (int i = 0; i < IN; i++)
                    for (int r = 0; r < K; r++) {
                        Vector sum[GROUP][K] = {};
                        for (int row = 0; row < OUT_SIZE; row++)
                            for (int column = 0; column < OUT_SIZE; column++)
#pragma GCC unroll 16
                                for (int o = 0; o < GROUP; o++)
#pragma GCC unroll 16
                                    for (int c = 0; c < K; c++)
                                        sum[o][c] += dy[n][first + o][row][column] * x[n][i][row + r][column + c];
                        for (int o = 0; o < GROUP; o++)
                            for (int c = 0; c < K; c++) dw[n][first + o][i][r][c] = sum_of(sum[o][c]);
                    }
    }

    static void bias_gradient(const Output* dy, float (*db)[OUT], int blocks) {
#pragma omp parallel for collapse(2)
        for (int n = 0; n < blocks; n++)
            for (int o = 0; o < OUT; o++) {
                Vector sum[OUT_SIZE] = {};
                for (int row = 0; row < OUT_SIZE; row++)
                    for (int column = 0; column < OUT_SIZE; column++) sum[column] += dy[n][o][row][column];
                for (int column = 1; column < OUT_SIZE; column++) sum[0] += sum[column];
                db[n][o] = sum_of(sum[0]);
            }
    }
};

using C1 = Convolution<1, 6, 32>;
using C3 = Convolution<6, 16, 14>;

}  // namespace

extern "C" {

int lanes() { return LANES; }

void c1_forward(const C1::Input* x, const C1::Kernel* w, const float* bias, C1::Output* y, int blocks) {
    C1::forward<6, REGISTERS / 8>(x, w, bias, y, blocks);
}

void c3_forward(const C3::Input* x, const C3::Kernel* w, const float* bias, C3::Output* y, int blocks) {
    C3::forward<REGISTERS / 2, 1>(x, w, bias, y, blocks);
}

void c3_input_gradient(const C3::Output* dy, const C3::Kernel* w, C3::Input* dx, int blocks) {
    C3::input_gradient(dy, w, dx, blocks);
}

void c1_kernel_gradient(const C1::Output* dy, const C1::Input* x, C1::Kernel (*dw)[6], float (*db)[6], int blocks) {
    C1::kernel_gradient<REGISTERS == 32 ? 3 : 2>(dy, x, dw, blocks);
    C1::bias_gradient(dy, db, blocks);
}

void c3_kernel_gradient(const C3::Output* dy, const C3::Input* x, C3::Kernel (*dw)[16], float (*db)[16], int blocks) {
    C3::kernel_gradient<REGISTERS / 8>(dy, x, dw, blocks);
    C3::bias_gradient(dy, db, blocks);
}

}  // extern "C"
