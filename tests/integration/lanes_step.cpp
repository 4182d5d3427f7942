// One step of lanes.cpp on numbers made up here, for machines that have no Python: prints what it gives to the last bit.

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
    void* memory = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    return static_cast<T*>(std::memset(memory, 0, bytes));
}

void print(const double* sums, int64_t blocks) {
    double loss = 0, hits = 0;
    for (int64_t n = 0; n < blocks; n++) loss += sums[2 * n], hits += sums[2 * n + 1];
    std::printf("%a %a\n", loss, hits);
}

}  // namespace

int main() {
    constexpr int64_t COUNT = 205, THREADS = 2;  // the last block is not full
    constexpr int SIZES[] = {150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10}, FAN_IN[] = {25, 150, 400, 120, 84};
    std::vector<float> weights[10], gradients[10];
    const float* weight_pointers[10];
    float* gradient_pointers[10];
    for (int i = 0; i < 10; i++) {
        for (int n = 0; n < SIZES[i]; n++)
            weights[i].push_back((2 * drawn_below_one() - 1) / std::sqrt(float(FAN_IN[i / 2])));
        gradients[i].resize(SIZES[i]);
        weight_pointers[i] = weights[i].data();
        gradient_pointers[i] = gradients[i].data();
    }
    std::vector<uint8_t> pixels;
    std::vector<int64_t> labels, order, shifts;
    std::vector<float> factors;
    bool flips[COUNT];
    for (int64_t n = 0; n < COUNT; n++) {
        for (int i = 0; i < PIXELS; i++) pixels.push_back(drawn() >> 56);
        for (int i = 0; i < DROPPED; i++) factors.push_back(drawn_below_one() < 0.2f ? 0.f : 1.25f);
        for (int i = 0; i < 2; i++) shifts.push_back(int64_t(drawn() % 5) - 2);
        labels.push_back(drawn() % CLASSES);
        order.push_back(n * 37 % COUNT);
        flips[n] = drawn() & 1024;
    }
    const Batch batch{pixels.data(), labels.data(), order.data(), flips, shifts.data(), factors.data(), COUNT};
    const int64_t blocks = (COUNT + LANES - 1) / LANES;
    auto* networks = zeros<Network<Whole>>(THREADS * network_bytes());
    std::vector<double> sums(2 * blocks);

    step(weight_pointers, &batch, THREADS, networks, sums.data(), 0.1f, zeros<Block>(blocks * block_bytes()),
         zeros<Image>(COUNT * image_bytes()), gradient_pointers);
    print(sums.data(), blocks);
    for (const auto& gradient : gradients)
        for (float value : gradient) std::printf("%a\n", value);
    measure(weight_pointers, &batch, THREADS, networks, sums.data());
    print(sums.data(), blocks);
}
