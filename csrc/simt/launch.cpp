#include "launch.h"

#include <atomic>
#include <memory>
#include <string>

#include "error.h"
#include "scheduler.h"

namespace simt {

namespace {

std::atomic<ThreadOrder> chosen_order{ThreadOrder::forward};
std::atomic<std::uint64_t> chosen_seed{0};
std::atomic<std::uint64_t> launches{0};

}  // namespace

void set_thread_order(ThreadOrder order, std::uint64_t seed) {
    chosen_order = order;
    chosen_seed = seed;
}

std::uint64_t launch_count() {
    return launches;
}

void copy_async(void* destination, const void* source, int bytes) {
    detail::active_scheduler->copy_async(destination, source, bytes);
}

void commit_copies() {
    detail::active_scheduler->commit_copies();
}

void wait_for_copies(int pending) {
    detail::active_scheduler->wait_for_copies(pending);
}

namespace detail {

// The name as written in the source: a name with a comma stood in parentheses at the launch.
std::string kernel_text(const LaunchShape& shape) {
    std::string name = shape.kernel;
    if (name.size() > 2 && name.front() == '(' && name.back() == ')') name = name.substr(1, name.size() - 2);
    return "edm_fast simt: kernel '" + name + "'";
}

std::string triple_text(uint3 value) {
    return "(" + std::to_string(value.x) + ", " + std::to_string(value.y) + ", " + std::to_string(value.z) + ")";
}

namespace {

// The limits of compute capability 8.0 and newer, with the 227 KiB of shared memory that Hopper has.
void check_limits(const LaunchShape& shape) {
    constexpr std::size_t max_shared_bytes = 227 * 1024;
    constexpr std::uint64_t max_threads = 1024;
    const auto check = [&](bool fits, const std::string& what) {
        if (!fits) throw KernelError(kernel_text(shape) + " failed to launch: " + what);
    };
    const auto within = [](uint3 extents, uint3 limits) {
        return extents.x >= 1 && extents.x <= limits.x && extents.y >= 1 && extents.y <= limits.y && extents.z >= 1 &&
               extents.z <= limits.z;
    };
    constexpr uint3 max_grid{2147483647, 65535, 65535}, max_block{1024, 1024, 64};
    check(within(shape.grid, max_grid),
          "a grid of " + triple_text(shape.grid) + " blocks; the limits are 1 to " + triple_text(max_grid));
    check(within(shape.block, max_block),
          "a block of " + triple_text(shape.block) + " threads; the limits are 1 to " + triple_text(max_block));
    const std::uint64_t threads = std::uint64_t{shape.block.x} * shape.block.y * shape.block.z;
    check(threads <= max_threads,
          "a block of " + std::to_string(threads) + " threads; the limit is " + std::to_string(max_threads));
    check(shape.shared_bytes <= max_shared_bytes, std::to_string(shape.shared_bytes) +
                                                      " bytes of dynamic shared memory; the limit is " +
                                                      std::to_string(max_shared_bytes));
}

}  // namespace

unsigned char* dynamic_shared_memory() {
    return active_scheduler->shared_memory();
}

WarpExchange wait_for_warp(const char* primitive, unsigned mask, std::uint64_t value, std::source_location where) {
    return active_scheduler->wait_for_warp(primitive, mask, value, where);
}

BlockVotes wait_for_block(const char* primitive, bool predicate, std::source_location where) {
    return active_scheduler->wait_for_block(primitive, predicate, where);
}

MatrixElements& next_elements() {
    return active_scheduler->next_elements();
}

void trap(std::source_location where) {
    active_scheduler->trap(where);
}

void run(const LaunchShape& shape, void (*body)(const void*), const void* call) {
    if (active_scheduler != nullptr) throw KernelError(kernel_text(shape) + " was launched by a kernel");
    check_limits(shape);
    // Every OS thread that launches keeps its stacks: a launch is short, and mapping a thousand stacks is not.
    static thread_local const auto scheduler = std::make_unique<Scheduler>();
    struct Activation {
        explicit Activation(Scheduler* current) { active_scheduler = current; }
        ~Activation() { active_scheduler = nullptr; }
    } activation(scheduler.get());
    ++launches;
    scheduler->run(shape, body, call, VisitOrder(chosen_order, chosen_seed));
}

}  // namespace detail

}  // namespace simt
