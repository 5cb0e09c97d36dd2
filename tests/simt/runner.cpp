// Runs one scenario on the emulator: `runner SCENARIO [ORDER...]`. For every order (forward, reverse, or the seed of a
// shuffled one) it prints a line: "forward: right", "forward: wrong" or "forward: <what the launch threw>".
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "../../csrc/simt/error.h"
#include "edm_fast/dtypes.h"
#include "kernels/kernels.h"
#include "launch.cuh"
#include "simt.h"

namespace cuda = edm_fast::cuda;

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Small integers: sums of them are exact in float in any order.
std::vector<float> small_integers(std::size_t count) {
    std::vector<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values[i] = float(i * 2654435761u % 64) - 32.0f;
    return values;
}

bool row_moments() {
    constexpr int rows = 3, columns = 1000, threads = 256;
    const std::vector<float> x = small_integers(rows * columns);
    std::vector<float> mean(rows, kNaN), variance(rows, kNaN);
    cuda::row_moments({x.data(), mean.data(), variance.data(), rows, columns}, threads, 0, nullptr);
    for (int row = 0; row < rows; ++row) {
        double sum = 0, squares = 0;
        for (int i = 0; i < columns; ++i) sum += x[row * columns + i];
        for (int i = 0; i < columns; ++i) squares += std::pow(x[row * columns + i] - sum / columns, 2);
        if (!(std::abs(mean[row] - sum / columns) < 1e-4)) return false;
        if (!(std::abs(variance[row] - squares / columns) < 1e-2)) return false;
    }
    return true;
}

bool matrix_product() {
    constexpr int rows = 32, columns = 8, steps = 5, depth = 16 * steps;
    // Integers below 32, which bfloat16 holds.
    const auto bits = [](std::size_t count) {
        std::vector<float> values = small_integers(count);
        std::vector<std::uint16_t> words;
        for (const float value : values) words.push_back(edm_fast::to_bfloat16(value / 2 + 0.5f).bits);
        return words;
    };
    // Sixteen bytes aligned, as every allocation of a vector is here.
    const std::vector<std::uint16_t> a = bits(rows * depth), b = bits(columns * depth);
    std::vector<float> c(rows * columns, kNaN);
    cuda::matrix_product({a.data(), b.data(), c.data(), steps}, 0, nullptr);
    const auto value = [](std::uint16_t word) { return edm_fast::to_float(edm_fast::BFloat16{word}); };
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) {
            float sum = 0;
            for (int k = 0; k < depth; ++k) sum += value(a[row * depth + k]) * value(b[column * depth + k]);
            if (c[row * columns + column] != sum) return false;
        }
    }
    return true;
}

bool transpose() {
    constexpr int rows = 70, columns = 33;
    const std::vector<float> x = small_integers(rows * columns);
    std::vector<float> y(x.size(), kNaN);
    cuda::transpose({x.data(), y.data(), rows, columns}, 0, nullptr);
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) {
            if (y[column * rows + row] != x[row * columns + column]) return false;
        }
    }
    return true;
}

bool diffuse() {
    constexpr int lines = 2, length = 128, steps = 5;
    const std::vector<float> x = small_integers(lines * length);
    std::vector<float> y(x.size(), kNaN), expected = x;
    cuda::diffuse({x.data(), y.data(), lines, steps}, 0, nullptr);
    for (int step = 0; step < steps; ++step) {
        const std::vector<float> before = expected;
        for (int line = 0; line < lines; ++line) {
            const float* from = &before[line * length];
            for (int i = 0; i < length; ++i) {
                const float left = from[i == 0 ? 1 : i - 1], right = from[i == length - 1 ? length - 2 : i + 1];
                expected[line * length + i] = 0.25f * (left + right) + 0.5f * from[i];
            }
        }
    }
    return y == expected;
}

bool histogram() {
    constexpr int count = 1000;
    std::vector<unsigned char> values(count);
    for (int i = 0; i < count; ++i) values[i] = static_cast<unsigned char>(i * i % 251);
    std::vector<unsigned> bins(256, 0), expected(256, 0);
    float sum = 0, expected_sum = 0;
    int largest = -1;
    cuda::histogram({values.data(), bins.data(), &sum, &largest, count}, 0, nullptr);
    for (const unsigned char value : values) {
        ++expected[value];
        expected_sum += value;
    }
    return bins == expected && sum == expected_sum && largest == *std::max_element(values.begin(), values.end());
}

// The value that lane `source` of the thread's warp published, or NaN bytes if the block has no such thread.
template <class T>
T published(int thread, int source, int threads) {
    const int index = thread / 32 * 32 + source;
    if (index < threads) return T(index + 0.25);
    if constexpr (std::is_floating_point_v<T>) return std::numeric_limits<T>::quiet_NaN();
    return T(-1);
}

template <class T>
bool shuffles_of(int threads) {
    std::vector<T> out(cuda::kShuffleRows * threads, T(77));
    cuda::shuffles(out.data(), threads, 0, nullptr);
    for (int thread = 0; thread < threads; ++thread) {
        const int lane = thread % 32;
        const int sources[cuda::kShuffleRows] = {
            3,
            lane / 8 * 8 + (lane + 1) % 8,
            lane >= 2 ? lane - 2 : lane,
            lane % 8 >= 2 ? lane - 2 : lane,
            lane + 5 < 32 ? lane + 5 : lane,
            lane % 16 + 5 < 16 ? lane + 5 : lane,
            lane ^ 1,
            lane < 16 ? 15 - lane : 31,
        };
        for (int row = 0; row < cuda::kShuffleRows; ++row) {
            const T got = out[row * threads + thread], expected = published<T>(thread, sources[row], threads);
            if (got != expected && !(got != got && expected != expected)) return false;
        }
    }
    return true;
}

bool shuffles() {
    bool right = true;
    for (const int threads : {64, 45}) {
        right = right && shuffles_of<float>(threads) && shuffles_of<double>(threads) && shuffles_of<int>(threads) &&
                shuffles_of<unsigned>(threads) && shuffles_of<long>(threads) &&
                shuffles_of<unsigned long long>(threads);
    }
    return right;
}

bool votes() {
    constexpr int threads = 64;
    std::vector<int> out(cuda::kVoteRows * threads, 77);
    cuda::votes(out.data(), threads, 0, nullptr);
    for (int thread = 0; thread < threads; ++thread) {
        unsigned ballot = 0;
        for (int lane = 0; lane < 32; ++lane) ballot |= unsigned((thread / 32 * 32 + lane) % 3 == 0) << lane;
        const bool second_warp = thread >= 32;
        const int expected[cuda::kVoteRows] = {int(ballot), second_warp, !second_warp, 13, 1, 0, 1, 0};
        for (int row = 0; row < cuda::kVoteRows; ++row) {
            if (out[row * threads + thread] != expected[row]) return false;
        }
    }
    return true;
}

bool intrinsics() {
    const float infinity = std::numeric_limits<float>::infinity();
    int counter = 2147483647;
    atomicAdd(&counter, 1);
    unsigned word = 5;
    return __umulhi(0xFFFFFFFFu, 0xFFFFFFFFu) == 0xFFFFFFFEu && __float_as_uint(1.0f) == 0x3F800000u &&
           __uint_as_float(0x40000000u) == 2.0f && __float2int_rn(2.5f) == 2 && __float2int_rn(-3.5f) == -4 &&
           __float2int_rn(1e20f) == 2147483647 && __float2int_rn(kNaN) == 0 && rsqrtf(4.0f) == 0.5f &&
           __fdividef(1.0f, 4.0f) == 0.25f && __fdividef(1.0f, 0x1p127f) == 0.0f &&
           std::isnan(__fdividef(infinity, 0x1p127f)) && __fdividef(1.0f, infinity) == 0.0f &&
           max(1.0f, kNaN) == 1.0f && counter == -2147483647 - 1 && atomicCAS(&word, 5u, 9u) == 5 && word == 9 &&
           atomicCAS(&word, 5u, 1u) == 9 && word == 9 && alignof(float4) == 16 && alignof(float2) == 8;
}

bool grid_size() {
    return cuda::grid_size(0, 32) == 1 && cuda::grid_size(1, 32) == 1 && cuda::grid_size(32, 32) == 1 &&
           cuda::grid_size(33, 32) == 2 && cuda::grid_size(int64_t{1} << 40, 32, 65535) == 65535 &&
           cuda::ceil_div(INT64_MAX, 2) == (int64_t{1} << 62);
}

bool launch_count() {
    const std::uint64_t before = simt::launch_count();
    for (int i = 0; i < 3; ++i) cuda::launch_empty({2, 32, 1, 0}, 0, nullptr);
    try {
        cuda::launch_empty({2, 1025, 1, 0}, 0, nullptr);
    } catch (const simt::KernelError&) {
    }
    return simt::launch_count() == before + 3;
}

// A launch that failed in the middle of its threads must not disturb the next.
bool launch_after_failure() {
    const std::vector<float> x = small_integers(64);
    std::vector<float> out(64, kNaN);
    // The scheduler finds the first, a thread the second.
    for (const cuda::Fault fault : {cuda::Fault::exited_lane_at_shuffle, cuda::Fault::trap}) {
        bool thrown = false;
        try {
            cuda::run_fault(fault, x.data(), out.data(), 0, nullptr);
        } catch (const simt::KernelError&) {
            thrown = true;
        }
        if (!thrown || !row_moments() || !shuffles()) return false;
    }
    return true;
}

// The heap block has exactly 64 elements, so that AddressSanitizer sees the end of it.
std::unique_ptr<float[]> run_fault(cuda::Fault fault) {
    const auto x = std::make_unique<float[]>(64);
    std::fill_n(x.get(), 64, 1.0f);
    auto out = std::make_unique<float[]>(64);
    cuda::run_fault(fault, x.get(), out.get(), 0, nullptr);
    return out;
}

bool uninitialised_shared_memory_is_nan() {
    const auto out = run_fault(cuda::Fault::shared_read_uninitialised);
    for (int i = 0; i < 64; ++i) {
        if (i % 2 == 0 ? out[i] != 1.0f : !std::isnan(out[i])) return false;
    }
    return true;
}

template <cuda::Fault kind>
bool fault() {
    return run_fault(kind) != nullptr;
}

void throwing_kernel(int thread) {
    if (int(threadIdx.x) == thread) throw std::runtime_error("thrown by a kernel");
    __syncthreads();
}

bool exception_in_kernel() {
    simt::launch("throwing_kernel", throwing_kernel, dim3(1), dim3(64), 0, 33);
    return false;
}

void tracing_kernel(std::vector<int>* trace) {
    trace->push_back(int(blockIdx.x * blockDim.x + threadIdx.x));
}

std::vector<int> trace(simt::ThreadOrder order, std::uint64_t seed = 0) {
    std::vector<int> result;
    simt::set_thread_order(order, seed);
    simt::launch("tracing_kernel", tracing_kernel, dim3(5), dim3(70), 0, &result);
    return result;
}

bool thread_orders() {
    using simt::ThreadOrder;
    const std::vector<int> forward = trace(ThreadOrder::forward), shuffled = trace(ThreadOrder::shuffled, 1);
    const std::vector<int> reverse = trace(ThreadOrder::reverse);
    std::vector<int> sorted = shuffled;
    std::sort(sorted.begin(), sorted.end());
    const auto blocks = [](std::vector<int> threads) {
        for (int& thread : threads) thread /= 70;
        return threads;
    };
    return forward.size() == 350 && std::is_sorted(forward.begin(), forward.end()) && sorted == forward &&
           std::equal(forward.rbegin(), forward.rend(), reverse.begin(), reverse.end()) &&
           blocks(shuffled) != blocks(forward) && shuffled[0] % 70 != 0 &&
           shuffled == trace(ThreadOrder::shuffled, 1) && shuffled != trace(ThreadOrder::shuffled, 2);
}

template <class T, int size>
void template_kernel() {}

bool name_with_a_comma() {
    EDM_FAST_LAUNCH((template_kernel<int, 2>), dim3(0), dim3(1), 0, nullptr);
    return true;
}

void launching_kernel() {
    cuda::launch_empty({1, 32, 1, 0}, 0, nullptr);
}

bool launch_in_kernel() {
    simt::launch("launching_kernel", launching_kernel, dim3(1), dim3(1), 0);
    return false;
}

bool launches_from_two_os_threads() {
    bool first = true, second = true;
    const auto repeat = [](bool& right) {
        for (int i = 0; i < 20; ++i) right = right && row_moments() && shuffles();
    };
    std::thread thread(repeat, std::ref(first));
    repeat(second);
    thread.join();
    return first && second;
}

template <cuda::LaunchSizes sizes>
bool launch_of() {
    cuda::launch_empty(sizes, 0, nullptr);
    return true;
}

struct Scenario {
    const char* name;
    bool (*run)();
};

constexpr Scenario kScenarios[] = {
    {"row_moments", row_moments},
    {"transpose", transpose},
    {"diffuse", diffuse},
    {"matrix_product", matrix_product},
    {"histogram", histogram},
    {"shuffles", shuffles},
    {"votes", votes},
    {"intrinsics", intrinsics},
    {"thread_orders", thread_orders},
    {"grid_size", grid_size},
    {"launch_count", launch_count},
    {"launch_after_failure", launch_after_failure},
    {"uninitialised_shared_memory_is_nan", uninitialised_shared_memory_is_nan},
    {"exited_lane_at_shuffle", fault<cuda::Fault::exited_lane_at_shuffle>},
    {"lane_at_barrier_at_shuffle", fault<cuda::Fault::lane_at_barrier_at_shuffle>},
    {"mask_without_own_lane", fault<cuda::Fault::mask_without_own_lane>},
    {"two_barriers", fault<cuda::Fault::two_barriers>},
    {"shared_write_past_end", fault<cuda::Fault::shared_write_past_end>},
    {"shared_write_before_start", fault<cuda::Fault::shared_write_before_start>},
    {"shared_read_past_end", fault<cuda::Fault::shared_read_past_end>},
    {"global_read_past_end", fault<cuda::Fault::global_read_past_end>},
    {"trap", fault<cuda::Fault::trap>},
    {"exception_in_kernel", exception_in_kernel},
    {"launch_in_kernel", launch_in_kernel},
    {"name_with_a_comma", name_with_a_comma},
    {"launches_from_two_os_threads", launches_from_two_os_threads},
    {"largest_launch", launch_of<cuda::LaunchSizes{1, 1024, 1, 227 * 1024}>},
    {"block_too_wide", launch_of<cuda::LaunchSizes{1, 1025, 1, 0}>},
    {"block_of_too_many_threads", launch_of<cuda::LaunchSizes{1, 33, 32, 0}>},
    {"block_empty", launch_of<cuda::LaunchSizes{1, 0, 1, 0}>},
    {"grid_empty", launch_of<cuda::LaunchSizes{0, 32, 1, 0}>},
    {"shared_memory_too_large", launch_of<cuda::LaunchSizes{1, 32, 1, 227 * 1024 + 1}>},
};

void set_order(const std::string& order) {
    if (order == "forward") {
        simt::set_thread_order(simt::ThreadOrder::forward);
    } else if (order == "reverse") {
        simt::set_thread_order(simt::ThreadOrder::reverse);
    } else {
        simt::set_thread_order(simt::ThreadOrder::shuffled, std::stoull(order));
    }
}

}  // namespace

int main(int argc, char** argv) {
    const Scenario* scenario =
        std::find_if(std::begin(kScenarios), std::end(kScenarios),
                     [&](const Scenario& candidate) { return argc >= 3 && candidate.name == std::string(argv[1]); });
    if (scenario == std::end(kScenarios)) {
        std::fprintf(stderr, "usage: runner SCENARIO ORDER...\n");
        return 2;
    }
    for (int i = 2; i < argc; ++i) {
        std::string result;
        try {
            set_order(argv[i]);
            result = scenario->run() ? "right" : "wrong";
        } catch (const std::exception& error) {
            result = error.what();
        }
        std::printf("%s: %s\n", argv[i], result.c_str());
    }
    return 0;
}
