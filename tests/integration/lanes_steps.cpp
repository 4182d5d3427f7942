// Three steps of lanes.cpp on numbers made up here, for machines that have no Python: prints what they give to the last
// bit.

#include "lanes.cpp"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

// Marsaglia, "Xorshift RNGs", 2003.
uint64_t state = 88172645463325252u;
uint64_t drawn() {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}
float drawn_below_one() { return (drawn() >> 40) * 0x1p-24f; }

template <typename T>
T* zeros(int64_t bytes) {
    void* memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    return static_cast<T*>(std::memset(memory, 0, bytes));
}

void print(const std::vector<double>& sums) {
    double loss = 0, hits = 0;
    for (size_t n = 0; n < sums.size(); n += 2) loss += sums[n], hits += sums[n + 1];
    std::printf("%a %a\n", loss, hits);
}

void print(const std::vector<float>* tensors) {
    for (int i = 0; i < 10; i++)
        for (float value : tensors[i]) std::printf("%a\n", value);
}

}  // namespace

int main() {
    constexpr int64_t COUNT = 205, SIZE = 100, STEPS = 3, THREADS = 2;  // no batch fills its last block
    constexpr int SIZES[] = {150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10}, FAN_IN[] = {25, 150, 400, 120, 84};
    std::vector<float> weights[10], gradients[10], means[10], squares[10];
    float *weight_pointers[10], *gradient_pointers[10], *mean_pointers[10], *square_pointers[10];
    for (int i = 0; i < 10; i++) {
        for (int n = 0; n < SIZES[i]; n++)
            weights[i].push_back((2 * drawn_below_one() - 1) / std::sqrt(float(FAN_IN[i / 2])));
        for (auto* tensors : {gradients, means, squares}) tensors[i].resize(SIZES[i]);
        weight_pointers[i] = weights[i].data();
        gradient_pointers[i] = gradients[i].data();
        mean_pointers[i] = means[i].data();
        square_pointers[i] = squares[i].data();
    }
    std::vector<uint8_t> pixels, boxes, patches;
    std::vector<int64_t> labels, order, shifts, partners;
    std::vector<float> factors;
    bool flips[COUNT];
    for (int64_t n = 0; n < COUNT; n++) {
        for (int i = 0; i < PIXELS; i++) pixels.push_back(drawn() >> 56);
        for (int i = 0; i < DROPPED; i++) factors.push_back(drawn_below_one() < 0.2f ? 0.f : 1.25f);
        for (int i = 0; i < 2; i++) shifts.push_back(int64_t(drawn() % 5) - 2);
        for (auto* corners : {&boxes, &patches})
            for (int i = 0; i < 4; i++) corners->push_back(i / 2 * 8 + drawn() % 8);
        partners.push_back(drawn() % COUNT);
        labels.push_back(drawn() % CLASSES);
        order.push_back(n * 37 % COUNT);
        flips[n] = drawn() & 1024;
    }
    const Batch batch{pixels.data(), labels.data(), order.data(), flips, shifts.data(), boxes.data(),
                      partners.data(), patches.data(), factors.data(), COUNT};
    int64_t places[16 * 6];
    for (int64_t k = 0; k < 16 * 6; k++) places[k] = k;
    const float rates[STEPS] = {0.01f, 0.005f, 0.0025f};
    const Optimizer adamw{rates, mean_pointers, square_pointers, 0.1f, 0, 7};
    const Loss generalised{0.1f, 0.3f};
    const int64_t blocks = (SIZE + LANES - 1) / LANES;
    auto* networks = zeros<Network<Whole>>(THREADS * network_bytes());
    std::vector<double> sums(2 * STEPS * blocks), measured(2 * ((COUNT + LANES - 1) / LANES));

    train(weight_pointers, &batch, THREADS, networks, sums.data(), SIZE, &generalised,
          zeros<Block>(blocks * block_bytes()), zeros<Image>(SIZE * image_bytes()), gradient_pointers,
          weight_pointers[2], places, 16 * 6, &adamw);
    print(sums);
    print(gradients);
    print(weights);
    measure(weight_pointers, &batch, THREADS, networks, measured.data());
    print(measured);
}
