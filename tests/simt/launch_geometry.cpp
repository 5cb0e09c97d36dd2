// The arithmetic of launches on the host, for sizes past 2^31 and 2^32: `launch_geometry SCENARIO` prints "right" or
// what is wrong. No thread of a kernel runs.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "chosen_blocks.h"
#include "edm_fast/conv2d_split.h"
#include "edm_fast/randn.h"
#include "edm_fast/residual.h"
#include "edm_fast/solver_step.h"
#include "group_norm_silu_grad.cuh"
#include "group_norm_silu_resident.cuh"
#include "group_norm_silu_streaming.cuh"
#include "image_io.cuh"
#include "rgb_io.cuh"
#include "workspace.cuh"

using namespace edm_fast;

namespace {

constexpr int64_t kTwo31 = int64_t{1} << 31, kTwo32 = int64_t{1} << 32;
constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();

static_assert(cuda::ceil_div(0, 3) == 0 && cuda::ceil_div(kLargest, 2) == kLargest / 2 + 1);
static_assert(cuda::ceil_div(kLargest, kLargest) == 1 && cuda::ceil_div(kTwo32 + 1, kTwo32) == 2);
static_assert(cuda::grid_size(0, 1) == 1 && cuda::grid_size(kLargest, 1) == 2147483647);
static_assert(cuda::grid_size(kTwo31 - 1, 1) == 2147483647 && cuda::grid_size(kTwo31, 1) == 2147483647);
static_assert(cuda::grid_size(kTwo32 * 256, 256, 65535) == 65535);
static_assert(cuda::column_count(kLargest) == 32 && cuda::column_count(kTwo32 + 1, 8) == 8);
static_assert(cuda::moments_scratch(1024, 1 << 26) > kTwo32 && cuda::sums_scratch(3, 1024, 1 << 26) > kTwo32);

// The largest request of an array that was refused, and from where on it is.
std::size_t refused_bytes = 0, refused_from = std::numeric_limits<std::size_t>::max();

void require(bool holds, const std::string& what) {
    if (!holds) throw std::logic_error(what);
}

// Tiles far apart, around the powers of two and at the end: each is where its number says, and inside the image.
template <class T>
void check_tiles(const cuda::Tiling& tiling) {
    const int64_t indices[] = {0, 1, kTwo31 - 1, kTwo31, kTwo31 + 1, kTwo32 - 1, kTwo32, kTwo32 + 1, tiling.tiles - 1};
    for (const int64_t index : indices) {
        if (index >= tiling.tiles) continue;
        const cuda::Tile tile = cuda::tile_at(tiling, index);
        const std::string what = "tile " + std::to_string(index) + " of " + std::to_string(tiling.tiles);
        const int64_t slab = tile.first_channel / tiling.slab_channels, chunk = tile.first_pixel / tiling.chunk_pixels;
        require((tile.sample * tiling.slabs + slab) * tiling.chunks + chunk == index, what + " is elsewhere");
        require(tile.sample >= 0 && tile.sample < tiling.samples, what + ": its sample");
        require(tile.channels > 0 && tile.channels <= tiling.slab_channels, what + ": its channels");
        require(tile.first_channel + tile.channels <= tiling.channels, what + ": its last channel");
        require(tile.first_pixel < tile.end_pixel && tile.end_pixel <= tiling.pixels, what + ": its pixels");
        require(tile.channels <= tiling.columns * cuda::kPack<T>, what + ": channels without a thread");
    }
    const cuda::Tile last = cuda::tile_at(tiling, tiling.tiles - 1);
    require(last.sample == tiling.samples - 1 && last.first_channel + last.channels == tiling.channels &&
                last.end_pixel == tiling.pixels,
            "the last tile does not end the images");
}

void tilings() {
    const struct {
        int64_t samples, channels, pixels, chunk;
    } shapes[] = {{70000, 512, 64 * 64, 256}, {1, 192, kTwo32 * 4, 256}, {kTwo32 * 2 + 1, 8, 1, 64},
                  {3, 200, kTwo31 + 5, 1},    {1, kTwo32 + 3, 7, 64},    {kTwo31 + 9, 72, 3, 2}};
    for (const auto& [samples, channels, pixels, chunk] : shapes) {
        check_tiles<Half>(cuda::line_tiling<Half>(samples, channels, pixels, chunk));
        check_tiles<float>(cuda::line_tiling<float>(samples, channels, pixels, chunk, 4));
    }
}

void quotients() {
    const int64_t dividends[] = {0, 1, kTwo31 - 1, kTwo31, kTwo32 - 1, kTwo32, kTwo32 + 1, kTwo32 * 77 + 5, kLargest};
    for (const int64_t dividend : dividends) {
        for (const int64_t divisor : {int64_t{1}, int64_t{3}, kTwo31 + 1, kTwo32 - 1, kTwo32, kTwo32 + 1}) {
            require(cuda::quotient(dividend, divisor) == dividend / divisor,
                    std::to_string(dividend) + " / " + std::to_string(divisor));
        }
    }
    for (int dividend = 0; dividend <= cuda::kLanes; ++dividend) {
        for (int divisor = 1; divisor <= cuda::kLanes; ++divisor) {
            require(cuda::quotient_of_lanes(dividend, divisor) == dividend / divisor, "a quotient of lanes");
        }
    }
}

// Slabs of whole groups that cover all channels, in as much shared memory as there is; for any number of samples.
template <class T>
void check_resident(int64_t samples, int64_t channels, int64_t groups, int64_t height, int64_t width) {
    GroupNormSiluArgs args{};
    args.samples = samples;
    args.channels[0] = channels;
    args.groups = groups;
    args.height = height;
    args.width = width;
    const int64_t limit = cuda::max_shared_bytes(0);
    const std::optional<cuda::ResidentPlan> plan = cuda::plan_resident<T>(args, limit);
    const std::string what = std::to_string(channels) + " channels of " + std::to_string(height * width) + " pixels";
    // Not even a sector of one group's pixels.
    if (height * width > limit / 16) require(!plan.has_value(), what + " cannot be resident");
    if (!plan.has_value()) return;
    const cuda::Tiling& tiling = plan->tiling;
    require(int64_t(plan->shared_bytes) <= limit, what + ": shared memory");
    require(tiling.slab_channels % (channels / groups) == 0, what + ": a slab of broken groups");
    require(tiling.chunks == 1 && tiling.tiles == samples * tiling.slabs, what + ": tiles");
    require(tiling.columns <= cuda::kLanes, what + ": columns");
    check_tiles<T>(tiling);
}

void resident_plans() {
    for (const int64_t channels : {8, 21, 192, 256, 768, 1536, 1 << 20}) {
        for (const int64_t groups : {int64_t{1}, int64_t{3}, int64_t{32}, channels}) {
            if (channels % groups != 0) continue;
            for (const int64_t size : {1, 8, 32, 64, 91, 120, 121, 1 << 16, 1 << 20}) {
                for (const int64_t samples : {int64_t{1}, kTwo32 + 1}) {
                    check_resident<Half>(samples, channels, groups, size, size);
                    check_resident<float>(samples, channels, groups, size, size);
                }
            }
        }
    }
}

// The corners of images whose pixels 32 bits do not count.
void taps_of_large_images() {
    constexpr int64_t size = 100000;
    for (const int direction : {1, -1}) {
        const cuda::Fir fir = cuda::make_fir({direction, 2, 0, {0.5f, 0.5f}}, size, size);
        const int64_t out_size = direction > 0 ? 2 * size : size / 2;
        require(fir.out_height == out_size && fir.out_width == out_size, "extents");
        int64_t first = kLargest, last = -1;
        float weights = 0;
        cuda::for_each_tap(fir, int(out_size - 1), int(out_size - 1), [&](int64_t pixel, float weight) {
            first = std::min(first, pixel);
            last = std::max(last, pixel);
            weights += weight;
        });
        require(last == size * size - 1, "the last pixel is not the end of the image");
        require(first == (direction > 0 ? last : (size - 2) * size + size - 2), "the first pixel");
        require(weights == 1.0f, "weights");
    }
}

void places_of_quads() {
    const struct {
        int64_t channels, pixels;
    } shapes[] = {{3, kTwo32 / 3}, {3, kTwo32 / 3 + 1}, {kTwo32 + 7, 3}, {1, kTwo32 * 8 + 1}, {5, 13}};
    for (const auto& [channels, pixels] : shapes) {
        const int64_t elements = channels * pixels;
        for (const int64_t first : {int64_t{0}, elements / 2 / 4 * 4, (elements - 1) / 4 * 4}) {
            const cuda::QuadPlace place = cuda::quad_place(first, elements, pixels);
            require(place.channel * pixels + place.pixel == first && place.pixel < pixels, std::to_string(first));
            require(place.count == std::min<int64_t>(4, elements - first), "count");
        }
    }
}

// RGB images go in the order of memory wherever four of their elements can, and no others.
void views_by_tiles() {
    constexpr int64_t pixels = 64 * 64, elements = 3 * pixels;
    const uintptr_t begin = uintptr_t{1} << 40;
    const auto by_tiles = [&](DType dtype, uintptr_t offset, int64_t between, int64_t channel_stride,
                              int64_t pixel_stride, int64_t sample) {
        void* const data = reinterpret_cast<void*>(begin + offset);
        return cuda::goes_by_tiles({data, elements + between, channel_stride, pixel_stride, dtype}, sample);
    };
    for (const DType dtype : {kFloat32, kFloat16, kBFloat16}) {
        const uintptr_t size = dtype == kFloat32 ? 4 : 2;
        for (const int64_t sample : {int64_t{0}, int64_t{1}, kTwo32 + 1}) {
            require(by_tiles(dtype, 0, 0, 1, 3, sample), "dense");
            require(by_tiles(dtype, 4 * size, 8, 1, 3, sample), "at four elements and multiples of it");
            require(!by_tiles(dtype, 2 * size, 0, 1, 3, sample), "at two elements");
            require(!by_tiles(dtype, size, 0, 1, 3, sample), "at one element");
            require(by_tiles(dtype, 0, 1, 1, 3, sample) == (sample == 0), "samples that lie apart");
            require(!by_tiles(dtype, 0, 0, pixels, 1, sample), "channels behind each other");
            require(!by_tiles(dtype, 0, 0, 1, 6, sample), "three channels of six");
        }
    }
    require(!by_tiles(kFloat64, 0, 0, 1, 3, 0), "float64");
    require(!cuda::goes_by_tiles({}, 0), "absent");
    require(planes_of(3, pixels) == 3 && planes_of(3, pixels + 2) == 1 && planes_of(4, pixels) == 1, "planes");
}

// Every element has a thread: blocks in x and y go on in strides of the grid, so that any grid would do, but an empty
// one. What counts is that the device takes it.
void grids_of_quads() {
    for (const int64_t samples : {int64_t{1}, int64_t{65535}, int64_t{65536}, int64_t{70000}, kTwo32 + 1}) {
        for (const int64_t elements : {int64_t{1}, int64_t{3 * 64 * 64}, int64_t{3} << 40}) {
            const dim3 grid = cuda::quad_grid(samples, elements, 1024);
            require(grid.x == std::min<int64_t>((elements + 1023) / 1024, 65535), "x");
            require(grid.y == std::min<int64_t>(samples, 65535) && grid.z == 1, "y");
        }
    }
}

// Addresses that nothing looks at.
template <class T>
T* somewhere() {
    return reinterpret_cast<T*>(uintptr_t{4096});
}

void only_grid(int64_t x, int64_t y, const char* what) {
    require(chosen::grids().size() == 1, what);
    const dim3 grid = chosen::grids()[0];
    require(grid.x == x && grid.y == y && grid.z == 1, std::string(what) + ": " + std::to_string(grid.x));
}

GroupNormSiluArgs norm_args(int64_t samples, int64_t height, int64_t width, int64_t channels, int64_t groups) {
    GroupNormSiluArgs args{};
    args.samples = samples;
    args.height = height;
    args.width = width;
    args.channels[0] = args.source_stride[0] = channels;
    args.groups = groups;
    args.dtype = kFloat16;
    args.source[0] = somewhere<const void>();
    args.out = somewhere<void>();
    return args;
}

// The ops' own launches, for each op one of more items than a grid has blocks and one that just fits.
void launches() {
    using chosen::choose, chosen::none;
    void* const any = somewhere<void>();
    choose(none);
    cuda::randn({70000, 3, 64 * 64, somewhere<int64_t>(), 0, 0, {any, 3 * 64 * 64, 64 * 64, 1, kFloat32}}, 0, nullptr);
    only_grid(12, 65535, "randn");
    choose(none);
    SolverStepArgs step{};
    step.samples = 70000;
    step.channels = 3;
    step.pixels = 64 * 64;
    step.state_dtype = kFloat64;
    cuda::solver_step(step, 0, nullptr);
    only_grid(32, 65535, "solver_step");
    for (const int64_t samples : {kTwo31 - 1, kTwo32 + 1}) {
        choose(none);
        cuda::residual({samples, 1, 64, kFloat16, any, any, nullptr, 1.0f, any, 64, nullptr}, 0, nullptr);
        only_grid(2147483647, 1, "residual");
        choose(none);
        cuda::resample({samples, 2, 2, 8, kFloat16, {-1, 2, 0, {0.5f, 0.5f}}, any, any}, 0, nullptr);
        only_grid(1, 65535, "resample");
        choose(none);
        cuda::group_norm_silu(norm_args(samples, 8, 8, 64, 1), 0, nullptr);
        int64_t blocks = 0;
        for (const dim3 grid : chosen::grids()) blocks += grid.x;
        require(blocks == samples, "group_norm_silu, resident");
        choose(none);
        GroupNormSiluArgs args = norm_args(samples, 8, 8, 64, 8);
        args.moments[0] = somewhere<const float>();
        args.moments_chunk = 64;
        cuda::group_norm_silu(args, 0, nullptr);
        only_grid(2147483647, 1, "group_norm_silu with moments");
    }
    // 3 parts of 21,845 samples at a time, of 16 tiles of pixels and 2 of channels.
    choose(none);
    const int64_t samples = 65535;
    cuda::conv2d_split({samples, 32, 32, 64, 72, 3, 1, kFloat16, any, any, nullptr, nullptr, 1.0f, any, nullptr,
                        static_cast<float*>(any), static_cast<uint32_t*>(any)},
                       0, nullptr);
    int64_t blocks = 0;
    for (const dim3 grid : chosen::grids()) {
        require(grid.x == 16 && grid.y == 2 && grid.z % 3 == 0, "conv2d_split: its grid");
        blocks += grid.z;
    }
    require(blocks == samples * 3 && chosen::grids().size() == 3, "conv2d_split: its samples");
}

// Workspaces are asked for in their whole size, which is refused before anything else happens.
template <class Op>
void asks_for(std::size_t bytes, const Op& op) {
    chosen::choose(chosen::none);
    refused_bytes = 0;
    refused_from = std::size_t{1} << 30;
    bool refused = false;
    try {
        op();
    } catch (const std::bad_alloc&) {
        refused = true;
    }
    refused_from = std::numeric_limits<std::size_t>::max();
    require(refused && chosen::grids().empty(), "a launch without its workspace");
    require(refused_bytes == bytes, std::to_string(refused_bytes) + " bytes and not " + std::to_string(bytes));
}

void workspaces() {
    for (const int64_t samples : {int64_t{1} << 20, kTwo32 + 1}) {
        // 256 x 256 pixels in 32 chunks.
        const GroupNormSiluArgs args = norm_args(samples, 256, 256, 64, 1);
        asks_for(std::size_t(samples) * 32 * 64 * 2 * 4, [&] { cuda::group_norm_silu(args, 0, nullptr); });
        GroupNormSiluGradArgs grad{};
        grad.forward = args;
        grad.grad_out = somewhere<const void>();
        asks_for(std::size_t(samples) * 32 * 64 * 3 * 4, [&] { cuda::group_norm_silu_grad(grad, 0, nullptr); });
    }
}

struct Scenario {
    const char* name;
    void (*run)();
};

constexpr Scenario kScenarios[] = {
    {"tilings", tilings},
    {"quotients", quotients},
    {"resident_plans", resident_plans},
    {"taps_of_large_images", taps_of_large_images},
    {"places_of_quads", places_of_quads},
    {"views_by_tiles", views_by_tiles},
    {"grids_of_quads", grids_of_quads},
    {"launches", launches},
    {"workspaces", workspaces},
};

}  // namespace

void* operator new[](std::size_t bytes) {
    if (bytes >= refused_from) {
        refused_bytes = bytes;
        throw std::bad_alloc();
    }
    if (void* memory = std::malloc(bytes)) return memory;
    throw std::bad_alloc();
}
void operator delete[](void* memory) noexcept {
    std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
    std::free(memory);
}

int main(int argc, char** argv) {
    for (const Scenario& scenario : kScenarios) {
        if (argc != 2 || scenario.name != std::string(argv[1])) continue;
        try {
            scenario.run();
            std::puts("right");
        } catch (const std::exception& error) {
            std::puts(error.what());
        }
        return 0;
    }
    for (const Scenario& scenario : kScenarios) std::puts(scenario.name);
    return 2;
}
