// A training step of LeNet-5 on a CPU, every lane of a vector register holding another image.
//
// A block of LANES images goes from its pixels to the loss and back in one task, while its maps stay in the cache of
// the core that computes them. What each block adds to the gradients is kept apart and added up in the order of the
// blocks, so that no sum depends on the number of threads.
//
// Compiled for one ACTIVATION and one POOLING (vectors.hpp). Weights and gradients come in the order and layout of the
// model's state dict, C3's kernels dense.

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "layers.hpp"
#include "optimizer.hpp"

namespace {

constexpr int SIDE = 28, PIXELS = SIDE * SIDE, PADDING = 2, KERNEL = K * K, CLASSES = 10, DROPPED = 120 + 84;

struct Image {
    Factors<400, 120> c5;
    Factors<120, 84> f6;
    Factors<84, CLASSES> output;
};

// What a block leaves: the convolutions' gradients.
struct Block {
    float dc1[6][1][K][K], dc3[16][6][K][K], dc1_bias[6], dc3_bias[16];
};

// A batch: which images, or null for the first ones; what is changed in each, or null: mirrored, moved down and right,
// a box erased, before all of this a patch taken from another image, whose label counts by its share; the factors of
// dropout, (count, DROPPED), or null.
struct Batch {
    const uint8_t* pixels;
    const int64_t *labels, *order;
    const bool* flips;
    const int64_t* shifts;
    const uint8_t* boxes;
    const int64_t* partners;
    const uint8_t* patches;
    const float* factors;
    int64_t count;

    int64_t image(int64_t n) const { return order ? order[n] : n; }

    // Up to `size` images from `first` on, of a batch with an order.
    Batch part(int64_t first, int64_t size) const {
        return {pixels,
                labels,
                order + first,
                flips ? flips + first : nullptr,
                shifts ? shifts + 2 * first : nullptr,
                boxes ? boxes + 4 * first : nullptr,
                partners ? partners + first : nullptr,
                patches ? patches + 4 * first : nullptr,
                factors ? factors + first * DROPPED : nullptr,
                smaller(size, count - first)};
    }
};

// As params.yaml has it: `smoothing` of the labels, `q` of the generalised cross-entropy; the plain one with 0.
struct Loss {
    float smoothing, q;
};
constexpr Loss CROSS_ENTROPY{0, 0};

struct Levels {
    float of[256];
    constexpr Levels() : of() {
        for (int i = 0; i < 256; i++) of[i] = i / 255.f;
    }
};
constexpr Levels LEVELS;

// A box is the first row and column, and the first that are outside again.
constexpr uint8_t WHOLE_IMAGE[] = {0, 0, SIDE, SIDE};
float share(const uint8_t* box) { return float((box[2] - box[0]) * (box[3] - box[1])) / PIXELS; }

// The network on a block of images, one in each lane of a Vector.
template <typename Vector>
struct Network {
    using C1 = Convolution<Vector, 1, 6, SIDE + 2 * PADDING>;
    using C3 = Convolution<Vector, 6, 16, 14>;
    using C5 = Linear<Vector, 400, 120>;
    using F6 = Linear<Vector, 120, 84>;
    using Output = Linear<Vector, 84, CLASSES>;

    // The block's maps and their gradients; c5 and f6 before dropout, kept5 and kept6 after it.
    typename C1::Input x;
    typename C1::Output c1, dc1;
    typename C1::Pooled s2, ds2;
    typename C3::Output c3, dc3;
    typename C3::Pooled s4, ds4;
    Vector c5[120], kept5[120], f6[84], kept6[84], logits[CLASSES], dc5[120], df6[84], dlogits[CLASSES];

    void forward(const float* const* w, const Batch& batch, int64_t first, int have) {
        const float* factors = batch.factors ? batch.factors + first * DROPPED : nullptr;
        load(batch, first, have);
        C1::template forward<6, REGISTERS / 8>(x, kernels<C1>(w[0]), w[1], c1, s2);
        C3::template forward<WIDE ? 16 : 2, WIDE ? 1 : 5>(s2, kernels<C3>(w[2]), w[3], c3, s4);
        C5::template forward<12>(&s4[0][0][0], w[4], w[5], c5);
        activate<120>(factors, have, c5, kept5);
        F6::template forward<12>(kept5, w[6], w[7], f6);
        activate<84>(factors ? factors + 120 : nullptr, have, f6, kept6);
        Output::template forward<CLASSES>(kept6, w[8], w[9], logits);
    }

    // Loss and hits, each summed over the images, and the gradient by the logits of the batch's mean.
    void judge(const Batch& batch, int64_t first, int have, const Loss& loss, double* sums) {
        Vector largest = logits[0], total = {}, shares[CLASSES];
        for (int c = 1; c < CLASSES; c++) largest = larger(largest, logits[c]);
        for (int c = 0; c < CLASSES; c++) total += shares[c] = exponential(logits[c] - largest);
        sums[0] = sums[1] = 0;
        for (int c = 0; c < CLASSES; c++) dlogits[c] = Vector{};  // of lanes without an image
        for (int lane = 0; lane < have; lane++) {
            const int64_t n = first + lane;
            const int label = batch.labels[batch.image(n)];
            const int other = batch.partners ? batch.labels[batch.partners[n]] : label;
            const float part = batch.patches ? share(batch.patches + 4 * n) : 0;
            const double normal = largest[lane] + std::log(double(total[lane]));
            float pulls[CLASSES], pull = loss.q ? 0 : 1;
            int best = 0;
            for (int c = 0; c < CLASSES; c++) {
                const float hard = (c == label ? 1 - part : 0) + (c == other ? part : 0);
                pulls[c] = loss.smoothing / CLASSES + (1 - loss.smoothing) * hard;
                if (pulls[c]) {
                    const double log_share = double(logits[c][lane]) - normal;
                    sums[0] -= pulls[c] * (loss.q ? std::expm1(loss.q * log_share) / loss.q : log_share);
                    if (loss.q) pull += pulls[c] *= std::exp(loss.q * log_share);
                }
                if (logits[c][lane] > logits[best][lane]) best = c;
            }
            for (int c = 0; c < CLASSES; c++)
                dlogits[c][lane] = (shares[c][lane] / total[lane] * pull - pulls[c]) / batch.count;
            sums[1] += best == label;
        }
    }

    void backward(const float* const* w, const Batch& batch, int64_t first, int have, Block& block, Image* images) {
        const float* factors = batch.factors ? batch.factors + first * DROPPED : nullptr;
        Output::template input_gradient<12>(dlogits, w[8], df6);
        activation_gradient<84>(f6, factors ? factors + 120 : nullptr, have, df6);
        F6::template input_gradient<12>(df6, w[6], dc5);
        activation_gradient<120>(c5, factors, have, dc5);
        C5::template input_gradient<10>(dc5, w[4], &ds4[0][0][0]);
        for (int lane = 0; lane < have; lane++) {
            part<400, 120>(&s4[0][0][0], dc5, lane, images[lane].c5);
            part<120, 84>(kept5, df6, lane, images[lane].f6);
            part<84, CLASSES>(kept6, dlogits, lane, images[lane].output);
        }
        C3::unpool(ds4, s4, c3, dc3);
        C3::template kernel_gradient<REGISTERS / 8>(dc3, s2, block.dc3, block.dc3_bias);
        C3::input_gradient(dc3, kernels<C3>(w[2]), ds2);
        C1::unpool(ds2, s2, c1, dc1);
        C1::template kernel_gradient<WIDE ? 3 : 2>(dc1, x, block.dc1, block.dc1_bias);
    }

  private:
    template <typename Layer>
    static const typename Layer::Kernels& kernels(const float* w) {
        return *reinterpret_cast<const typename Layer::Kernels*>(w);
    }

    void load(const Batch& batch, int64_t first, int have) {
        std::memset(&x, 0, sizeof x);
        for (int lane = 0; lane < have; lane++) {
            const int64_t n = first + lane;
            place(batch, n, batch.image(n), WHOLE_IMAGE, lane);
            if (batch.patches) place(batch, n, batch.partners[n], batch.patches + 4 * n, lane);
            if (batch.boxes) erase(batch.boxes + 4 * n, lane);
        }
    }

    // What `image` has in `box`, mirrored and moved as the image at place `n` is.
    void place(const Batch& batch, int64_t n, int64_t image, const uint8_t* box, int lane) {
        const bool flip = batch.flips && batch.flips[n];
        const int down = batch.shifts ? batch.shifts[2 * n] : 0, right = batch.shifts ? batch.shifts[2 * n + 1] : 0;
        const int step = flip ? -1 : 1, start = PADDING + (flip ? SIDE - 1 + right : right), aside = step * right;
        for (int row = larger<int>(box[0], -down); row < smaller<int>(box[2], SIDE - down); row++) {
            const uint8_t* from = batch.pixels + image * PIXELS + row * SIDE;
            auto& to = x[0][row + down + PADDING];
            for (int column = larger<int>(box[1], -aside); column < smaller<int>(box[3], SIDE - aside); column++)
                to[start + step * column][lane] = LEVELS.of[from[column]];
        }
    }

    void erase(const uint8_t* box, int lane) {
        for (int row = box[0]; row < box[2]; row++)
            for (int column = box[1]; column < box[3]; column++)
                x[0][row + PADDING][column + PADDING][lane] = 0;
    }

    template <int SIZE>
    static void drop(const float* factors, int have, Vector* y) {
        for (int lane = 0; factors && lane < have; lane++)
            for (int i = 0; i < SIZE; i++) y[i][lane] *= factors[lane * DROPPED + i];
    }

    template <int SIZE>
    static void activate(const float* factors, int have, Vector* y, Vector* kept) {
        for (int i = 0; i < SIZE; i++) kept[i] = y[i] = Activation::of(y[i]);
        drop<SIZE>(factors, have, kept);
    }

    template <int SIZE>
    static void activation_gradient(const Vector* y, const float* factors, int have, Vector* dy) {
        drop<SIZE>(factors, have, dy);
        for (int i = 0; i < SIZE; i++) dy[i] *= Activation::slope(y[i]);
    }

    template <int IN, int OUT>
    static void part(const Vector* inputs, const Vector* outputs, int lane, Factors<IN, OUT>& factors) {
        for (int i = 0; i < IN; i++) factors.x[i] = inputs[i][lane];
        for (int o = 0; o < OUT; o++) factors.dy[o] = outputs[o][lane];
    }
};

template <typename Part>
void add_up(const Block* blocks, int64_t count, Part Block::*part, int begin, int end, float* sum) {
    std::memset(sum + begin, 0, (end - begin) * sizeof *sum);
    for (int64_t n = 0; n < count; n++) {
        const float* added = reinterpret_cast<const float*>(&(blocks[n].*part));
#pragma omp simd
        for (int i = begin; i < end; i++) sum[i] += added[i];
    }
}

}  // namespace

extern "C" {

int lanes() { return LANES; }
int64_t network_bytes() { return sizeof(Network<Whole>); }
int64_t block_bytes() { return sizeof(Block); }
int64_t image_bytes() { return sizeof(Image); }

// `sums` (blocks, 2): loss and hits of each block.
void measure(const float* const* weights, const Batch* batch, int threads, Network<Whole>* networks, double* sums) {
    const int64_t blocks = (batch->count + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t n = 0; n < blocks; n++) {
        Network<Whole>& network = networks[omp_get_thread_num()];
        const int have = smaller<int64_t>(LANES, batch->count - n * LANES);
        network.forward(weights, *batch, n * LANES, have);
        network.judge(*batch, n * LANES, have, CROSS_ENTROPY, sums + 2 * n);
    }
}

// A step of training on every `size` images of the batch, one step after the other. As `measure`, `sums` (steps, blocks
// of `size`, 2). `gradients` are those of the last step. What `kernels` holds, C3's connections, stands at `places` of
// its dense weights.
void train(float* const* weights, const Batch* batch, int threads, Network<Whole>* networks, double* sums,
           int64_t size, const Loss* loss, Block* kept, Image* images, float* const* gradients, float* kernels,
           const int64_t* places, int64_t connections, const Optimizer* optimizer) {
    const int64_t most = (size + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    for (int64_t step = 0; step * size < batch->count; step++) {
        const Batch now = batch->part(step * size, size);
        const int64_t blocks = (now.count + LANES - 1) / LANES;
        const Update update(*optimizer, step);
        const auto learn = [&](int tensor, int64_t begin, int64_t count) {
            update(tensor, begin, count, weights[tensor] + begin, gradients[tensor] + begin);
        };
        Network<Whole>& network = networks[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
        for (int64_t n = 0; n < blocks; n++) {
            const int64_t first = n * LANES, have = smaller<int64_t>(LANES, now.count - first);
            const auto pass = [&](auto& on) {
                on.forward(weights, now, first, have);
                on.judge(now, first, have, *loss, sums + 2 * (step * most + n));
                on.backward(weights, now, first, have, kept[n], images + first);
            };
            if (WIDE && have <= LANES / 2)  // a batch's last images, in half the time
                pass(reinterpret_cast<Network<Half>&>(network));
            else
                pass(network);
        }
#pragma omp for schedule(dynamic) nowait
        for (int o = 0; o < 120; o += 12) {
            linear_gradient<12>(images, now.count, &Image::c5, o, gradients[4], gradients[5]);
            learn(4, o * 400, 12 * 400);
            learn(5, o, 12);
        }
#pragma omp for schedule(dynamic) nowait
        for (int o = 0; o < 84; o += 12) {
            linear_gradient<12>(images, now.count, &Image::f6, o, gradients[6], gradients[7]);
            learn(6, o * 120, 12 * 120);
            learn(7, o, 12);
        }
#pragma omp single nowait
        {
            linear_gradient<CLASSES>(images, now.count, &Image::output, 0, gradients[8], gradients[9]);
            learn(8, 0, CLASSES * 84);
            learn(9, 0, CLASSES);
        }
#pragma omp for schedule(dynamic) nowait
        for (int o = 0; o < 16; o++) {
            add_up(kept, blocks, &Block::dc3, o * 6 * KERNEL, (o + 1) * 6 * KERNEL, gradients[2]);
            add_up(kept, blocks, &Block::dc3_bias, o, o + 1, gradients[3]);
            for (int64_t k = 0; k < connections; k++)
                if (places[k] / 6 == o) {
                    const int64_t at = places[k] * KERNEL;
                    update(2, k * KERNEL, KERNEL, kernels + k * KERNEL, gradients[2] + at);
                    std::memmove(weights[2] + at, kernels + k * KERNEL, KERNEL * sizeof(float));
                }
            learn(3, o, 1);
        }
#pragma omp for schedule(dynamic) nowait
        for (int o = 0; o < 6; o++) {
            add_up(kept, blocks, &Block::dc1, o * KERNEL, (o + 1) * KERNEL, gradients[0]);
            add_up(kept, blocks, &Block::dc1_bias, o, o + 1, gradients[1]);
            learn(0, o * KERNEL, KERNEL);
            learn(1, o, 1);
        }
#pragma omp barrier
    }
}

// The activation of `count` numbers, a multiple of LANES: for tests of how exact it is.
void activation(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) {
        Whole numbers;
        std::memcpy(&numbers, x + i, sizeof numbers);
        numbers = Activation::of(numbers);
        std::memcpy(y + i, &numbers, sizeof numbers);
    }
}

}  // extern "C"
