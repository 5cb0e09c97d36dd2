// Runs the threads of a block in turn, each until it waits for others or ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>
#include <source_location>
#include <string>
#include <vector>

#include "error.h"
#include "fiber.h"
#include "launch.h"
#include "shared_memory.h"
#include "sync.h"
#include "visit_order.h"

namespace simt::detail {

inline constexpr unsigned lanes_per_warp = 32;

// A CUDA thread.
struct Thread {
    enum class State { ready, at_warp_primitive, at_barrier, exited };

    Fiber fiber;
    uint3 position{};
    State state = State::exited;

    // Where and with what it waits.
    const char* primitive = "";
    std::source_location where;
    unsigned mask = 0;
    std::uint64_t value = 0;

    unsigned participants = 0;  // of the warp primitive that it was last released from

    MatrixElements elements[2];
    unsigned elements_taken = 0;

    // Copies under way, and after how many of them each group of them ended.
    struct Copy {
        void* destination;
        const void* source;
        int bytes;

        void run() const {
            unsigned char content[16] = {};
            if (bytes != 0) std::memcpy(content, source, static_cast<std::size_t>(bytes));
            std::memcpy(destination, content, sizeof(content));
        }
    };
    std::vector<Copy> copies;
    std::vector<std::size_t> groups;
};

class Scheduler {
  public:
    void run(const LaunchShape& shape, void (*body)(const void*), const void* call, VisitOrder order);

    // For the running thread.
    WarpExchange wait_for_warp(const char* primitive, unsigned mask, std::uint64_t value, std::source_location where);
    BlockVotes wait_for_block(const char* primitive, bool predicate, std::source_location where);
    [[noreturn]] void trap(std::source_location where);
    void copy_async(void* destination, const void* source, int bytes);
    void commit_copies();
    void wait_for_copies(int pending);
    MatrixElements& next_elements() { return running_->elements[running_->elements_taken++ % 2]; }
    unsigned char* shared_memory() const { return shared_->data(); }
    [[noreturn]] void run_thread();

  private:
    void run_block();
    bool run_warp(unsigned warp);
    void resume(Thread& thread);
    void park(Thread::State state, const char* primitive, std::source_location where);

    bool release_warp(unsigned warp);
    bool is_complete(unsigned warp, const Thread& leader) const;
    void release_group(unsigned warp, unsigned group);
    bool release_block();

    unsigned index_of(const Thread& thread) const { return static_cast<unsigned>(&thread - threads_.data()); }
    unsigned lanes_in(unsigned warp) const;
    std::string describe(unsigned first, unsigned count) const;
    KernelError error(const std::string& what) const;

    const LaunchShape* shape_ = nullptr;
    void (*body_)(const void*) = nullptr;
    const void* call_ = nullptr;
    VisitOrder order_{ThreadOrder::forward, 0};

    Stacks stacks_;
    Fiber scheduler_;
    std::vector<Thread> threads_;          // the first thread_count_ are in use
    std::vector<std::uint64_t> exchange_;  // what every thread published at its warp's last primitive
    unsigned thread_count_ = 0;
    Thread* running_ = nullptr;
    BlockVotes votes_{};
    std::optional<SharedMemory> shared_;
    std::exception_ptr failure_;
};

// The scheduler whose launch is running on this OS thread, if any.
extern constinit thread_local Scheduler* active_scheduler;

// For messages: "edm_fast simt: kernel 'transpose'" and "(4, 1, 1)".
std::string kernel_text(const LaunchShape& shape);
std::string triple_text(uint3 value);

}  // namespace simt::detail
