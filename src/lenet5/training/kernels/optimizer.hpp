// A step of SGD or AdamW, as PyTorch's fused ones take it.

#pragma once

#include <cmath>
#include <cstdint>

namespace {

constexpr double BETA1 = 0.9, BETA2 = 0.999, EPSILON = 1e-8;  // torch.optim.AdamW's own

// `rates`: the learning rate of each step. `first` and `second`: what is kept of each tensor of weights, momentum for
// SGD, both moments for AdamW; null what is not kept. AdamW has taken `taken` steps before.
struct Optimizer {
    const float* rates;
    float *const *first, *const *second;
    float decay, momentum;
    int64_t taken;
};

// The step that has number `step` of those that `rates` has.
class Update {
  public:
    Update(const Optimizer& optimizer, int64_t step)
        : with(optimizer), rate(optimizer.rates[step]), taken(optimizer.taken + step + 1) {}

    // `size` numbers from `begin` on of a tensor, whose weights from there on and their gradients are given.
    void operator()(int tensor, int64_t begin, int64_t size, float* w, const float* dw) const {
        float *first = with.first ? with.first[tensor] + begin : nullptr,
              *second = with.second ? with.second[tensor] + begin : nullptr;
        if (second)
            adamw(size, w, dw, first, second);
        else if (first)
            momentum(size, w, dw, first);
        else
            descent(size, w, dw);
    }

  private:
    const Optimizer& with;
    const float rate;
    const int64_t taken;

    void descent(int64_t size, float* w, const float* dw) const {
#pragma omp simd
        for (int64_t i = 0; i < size; i++) w[i] -= rate * (dw[i] + with.decay * w[i]);
    }

    void momentum(int64_t size, float* w, const float* dw, float* kept) const {
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            kept[i] = with.momentum * kept[i] + dw[i] + with.decay * w[i];
            w[i] -= rate * kept[i];
        }
    }

    // Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.
    void adamw(int64_t size, float* w, const float* dw, float* mean, float* square) const {
        const float stays = 1 - rate * with.decay, step = rate / (1 - std::pow(BETA1, taken)),
                    root = std::sqrt(1 - std::pow(BETA2, taken)), new1 = 1 - BETA1, new2 = 1 - BETA2, old2 = BETA2,
                    epsilon = EPSILON;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) {
            mean[i] += new1 * (dw[i] - mean[i]);
            square[i] = old2 * square[i] + new2 * dw[i] * dw[i];
            w[i] = w[i] * stays - step * mean[i] / (std::sqrt(square[i]) / root + epsilon);
        }
    }
};

}  // namespace
