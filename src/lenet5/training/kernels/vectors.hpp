// Vectors of numbers of as many images, what activations and pooling make of them, and the way back.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int LANES = 8, REGISTERS = 16;
#else
#error "vector registers too small to hold eight images"
#endif
constexpr bool WIDE = REGISTERS == 32;

typedef float Whole __attribute__((vector_size(LANES * sizeof(float))));
typedef float Half __attribute__((vector_size(LANES / 2 * sizeof(float))));

template <typename Vector>
constexpr int LANES_OF = sizeof(Vector) / sizeof(float);

template <typename Vector>
float sum_of(Vector vector) {
    float sum = 0;
    for (int lane = 0; lane < LANES_OF<Vector>; lane++) sum += vector[lane];
    return sum;
}

// Of numbers or, lane by lane, of vectors. <algorithm> would take a compiler as long as a tenth of all that is here.
template <typename Some>
Some larger(Some a, Some b) {
    return a > b ? a : b;
}

template <typename Some>
Some smaller(Some a, Some b) {
    return b < a ? b : a;
}

// e^x for x = n ln 2 + r, with a polynomial (Cephes) for e^r. What float32 cannot hold is 2e38 or 1e-38; NaN stays.
template <typename Vector>
Vector exponential(Vector x) {
    typedef int32_t Integers __attribute__((vector_size(sizeof(Vector))));
    const Vector least = Vector{} - 87.3f, most = Vector{} + 88.3f;
    x = x < least ? least : x > most ? most : x;
    const float shift = 12582912.f;  // 1.5 * 2^23, beside which fractions are rounded away
    const Vector n = (x * 1.44269504f + shift) - shift;
    x = x - n * 0.693359375f + n * 2.12194440e-4f;
    // In pairs (Estrin): one product after the other would keep the processor waiting.
    const Vector square = x * x;
    Vector y = (x * 1.9875691500e-4f + 1.3981999507e-3f) * square + (x * 8.3334519073e-3f + 4.1665795894e-2f);
    y = y * square + (x * 1.6666665459e-1f + 5.0000001201e-1f);
    y = y * square + (x + 1.f);
    const Integers bits = (__builtin_convertvector(n, Integers) + 127) << 23;
    Vector power;
    std::memcpy(&power, &bits, sizeof power);
    return y * power;
}

// An activation, and its slope where it gave y.
struct sigmoid {
    template <typename Vector>
    static Vector of(Vector x) { return 1.f / (1.f + exponential(-x)); }
    template <typename Vector>
    static Vector slope(Vector y) { return y * (1.f - y); }
};

struct tanh {
    template <typename Vector>
    static Vector of(Vector x) {
        const Vector square = x * x;
        Vector y = square * -5.70498872745e-3f + 2.06390887954e-2f;
        y = y * square - 5.37397155531e-2f;
        y = y * square + 1.33314422036e-1f;
        y = y * square - 3.33332819422e-1f;
        const Vector near_zero = y * square * x + x;  // Cephes, up to 0.625
        return square < 0.390625f ? near_zero : 1.f - 2.f / (exponential(x + x) + 1.f);
    }
    template <typename Vector>
    static Vector slope(Vector y) { return 1.f - y * y; }
};

struct relu {
    template <typename Vector>
    static Vector of(Vector x) { return x < 0.f ? Vector{} : x; }
    template <typename Vector>
    static Vector slope(Vector y) { return y > 0.f ? Vector{} + 1.f : Vector{}; }
};

struct leaky_relu {
    static constexpr float BELOW = .01f;  // as nn.LeakyReLU
    template <typename Vector>
    static Vector of(Vector x) { return x < 0.f ? BELOW * x : x; }
    template <typename Vector>
    static Vector slope(Vector y) { return y > 0.f ? Vector{} + 1.f : Vector{} + BELOW; }
};

// Pooling of 2 x 2 pixels, and the gradient's way back to them.
struct avg {
    template <typename Vector>
    static Vector of(const Vector* above, const Vector* below) {
        return (above[0] + above[1] + below[0] + below[1]) * .25f;
    }
    template <typename Vector>
    static void back(Vector dy, Vector, const Vector*, const Vector*, Vector* above, Vector* below) {
        above[0] = above[1] = below[0] = below[1] = dy * .25f;
    }
};

struct max {
    template <typename Vector>
    static Vector of(const Vector* above, const Vector* below) {
        return larger(larger(above[0], above[1]), larger(below[0], below[1]));
    }
    // To the first of those that are largest, as PyTorch has it.
    template <typename Vector>
    static void back(Vector dy, Vector y, const Vector* x_above, const Vector* x_below, Vector* above, Vector* below) {
        const Vector* x[] = {x_above, x_above + 1, x_below, x_below + 1};
        Vector* to[] = {above, above + 1, below, below + 1};
        for (int i = 0; i < 4; i++) {
            *to[i] = *x[i] == y ? dy : Vector{};
            dy = *x[i] == y ? Vector{} : dy;
        }
    }
};

using Activation = ACTIVATION;
using Pooling = POOLING;

}  // namespace
