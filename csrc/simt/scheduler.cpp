#include "scheduler.h"

#include <cstring>

namespace simt::detail {

constinit thread_local Scheduler* active_scheduler = nullptr;

namespace {

// A fibre takes no argument, so it finds its scheduler here.
void thread_main() {
    active_scheduler->run_thread();
}

std::string place(const char* primitive, const std::source_location& where) {
    const char* slash = std::strrchr(where.file_name(), '/');
    const char* file = slash == nullptr ? where.file_name() : slash + 1;
    return std::string(primitive) + " (" + file + ":" + std::to_string(where.line()) + ")";
}

bool same_text(const char* a, const char* b) {
    return a == b || std::strcmp(a, b) == 0;
}

bool same_place(const Thread& a, const Thread& b) {
    return a.where.line() == b.where.line() && a.where.column() == b.where.column() &&
           same_text(a.primitive, b.primitive) && same_text(a.where.file_name(), b.where.file_name());
}

std::string hex(unsigned value) {
    std::string text = "0x";
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[value >> shift & 15u];
    return text;
}

}  // namespace

void Scheduler::run(const LaunchShape& shape, void (*body)(const void*), const void* call, VisitOrder order) {
    shape_ = &shape;
    body_ = body;
    call_ = call;
    order_ = order;
    failure_ = nullptr;
    thread_count_ = shape.block.x * shape.block.y * shape.block.z;
    stacks_.reserve(thread_count_);
    if (threads_.size() < thread_count_) threads_ = std::vector<Thread>(thread_count_);
    exchange_.resize(threads_.size());
    for (unsigned i = 0; i < thread_count_; ++i) {
        threads_[i].position = {i % shape.block.x, i / shape.block.x % shape.block.y,
                                i / shape.block.x / shape.block.y};
    }
    shared_.emplace(shape.shared_bytes);
    gridDim = shape.grid;
    blockDim = shape.block;
    const std::uint64_t blocks = std::uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
    try {
        for (Visit visit = order_.visit(blocks); !visit.done(); visit.advance()) {
            const std::uint64_t row = visit.index() / shape.grid.x;
            blockIdx = {static_cast<unsigned>(visit.index() % shape.grid.x), static_cast<unsigned>(row % shape.grid.y),
                        static_cast<unsigned>(row / shape.grid.y)};
            run_block();
        }
    } catch (...) {
        stacks_.forget_contents();
        shared_.reset();
        throw;
    }
    shared_.reset();
}

void Scheduler::run_block() {
    shared_->begin_block();
    for (unsigned i = 0; i < thread_count_; ++i) {
        threads_[i].state = Thread::State::ready;
        threads_[i].copies.clear();
        threads_[i].groups.clear();
        threads_[i].fiber.start(stacks_.stack(i), Stacks::stack_bytes(), thread_main);
    }
    const unsigned warps = (thread_count_ + lanes_per_warp - 1) / lanes_per_warp;
    bool at_barrier = true;
    while (at_barrier) {
        bool all_parked = true;
        order_.begin_pass();
        for (Visit visit = order_.visit(warps); !visit.done(); visit.advance()) {
            if (!run_warp(static_cast<unsigned>(visit.index()))) all_parked = false;
        }
        if (all_parked) at_barrier = release_block();
    }
    if (const auto offset = shared_->out_of_bounds_write()) {
        throw error("a write outside of the dynamic shared memory, at byte " + std::to_string(*offset) + " of " +
                    std::to_string(shape_->shared_bytes));
    }
}

unsigned Scheduler::lanes_in(unsigned warp) const {
    const unsigned left = thread_count_ - warp * lanes_per_warp;
    return left < lanes_per_warp ? left : lanes_per_warp;
}

// Runs the warp as far as it gets without the others: true. Or, if the order says so, only a part of the way: false.
bool Scheduler::run_warp(unsigned warp) {
    do {
        for (Visit visit = order_.visit(lanes_in(warp)); !visit.done(); visit.advance()) {
            Thread& thread = threads_[warp * lanes_per_warp + visit.index()];
            if (thread.state == Thread::State::ready) resume(thread);
        }
        // All lanes have run by now, so all have read what they were handed at the last primitive.
        if (!release_warp(warp)) return true;
    } while (!order_.interrupts());
    return false;
}

void Scheduler::resume(Thread& thread) {
    running_ = &thread;
    threadIdx = thread.position;
    Fiber::switch_to(scheduler_, thread.fiber);
    if (failure_) std::rethrow_exception(failure_);
}

void Scheduler::run_thread() {
    Fiber::arrived(scheduler_);
    // No exception may leave the fibre: there is nothing below it to unwind to.
    try {
        body_(call_);
    } catch (...) {
        failure_ = std::current_exception();
    }
    running_->state = Thread::State::exited;
    Fiber::finish(running_->fiber, scheduler_);
}

void Scheduler::park(Thread::State state, const char* primitive, std::source_location where) {
    Thread& thread = *running_;
    thread.state = state;
    thread.primitive = primitive;
    thread.where = where;
    Fiber::switch_to(thread.fiber, scheduler_);
}

WarpExchange Scheduler::wait_for_warp(const char* primitive, unsigned mask, std::uint64_t value,
                                      std::source_location where) {
    Thread& thread = *running_;
    const unsigned index = index_of(thread), lane = index % lanes_per_warp;
    if ((mask >> lane & 1u) == 0) {
        failure_ =
            std::make_exception_ptr(error("thread " + std::to_string(index) + " calls " + place(primitive, where) +
                                          " with mask " + hex(mask) + ", which does not name its own lane"));
        Fiber::finish(thread.fiber, scheduler_);
    }
    thread.mask = mask;
    thread.value = value;
    park(Thread::State::at_warp_primitive, primitive, where);
    return {lane, thread.participants, &exchange_[index - lane]};
}

BlockVotes Scheduler::wait_for_block(const char* primitive, bool predicate, std::source_location where) {
    running_->mask = 0;
    running_->value = predicate;
    park(Thread::State::at_barrier, primitive, where);
    return votes_;
}

void Scheduler::trap(std::source_location where) {
    failure_ = std::make_exception_ptr(
        error("thread " + std::to_string(index_of(*running_)) + " reached " + place("__trap", where)));
    Fiber::finish(running_->fiber, scheduler_);
}

void Scheduler::copy_async(void* destination, const void* source, int bytes) {
    constexpr int most = 16;
    if (bytes < 0 || bytes > most || reinterpret_cast<std::uintptr_t>(destination) % most != 0 ||
        (bytes != 0 && reinterpret_cast<std::uintptr_t>(source) % most != 0)) {
        failure_ = std::make_exception_ptr(error("thread " + std::to_string(index_of(*running_)) + " copies " +
                                                 std::to_string(bytes) + " bytes that are not 16 or not aligned"));
        Fiber::finish(running_->fiber, scheduler_);
    }
    const Thread::Copy copy{destination, source, bytes};
    if (order_.hastens_copy()) {
        copy.run();
    } else {
        running_->copies.push_back(copy);
    }
}

void Scheduler::commit_copies() {
    running_->groups.push_back(running_->copies.size());
}

void Scheduler::wait_for_copies(int pending) {
    Thread& thread = *running_;
    if (thread.groups.size() <= static_cast<std::size_t>(pending)) return;
    const std::size_t ended = thread.groups.size() - static_cast<std::size_t>(pending);
    const std::size_t arriving = thread.groups[ended - 1];
    for (std::size_t i = 0; i < arriving; ++i) thread.copies[i].run();
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(arriving));
    thread.groups.erase(thread.groups.begin(), thread.groups.begin() + static_cast<std::ptrdiff_t>(ended));
    for (std::size_t& end : thread.groups) end -= arriving;
}

// Lets those groups of lanes go on that have all arrived. False if no lane waits; throws if lanes wait in vain.
bool Scheduler::release_warp(unsigned warp) {
    const unsigned first = warp * lanes_per_warp, lanes = lanes_in(warp);
    bool waiting = false, released = false;
    for (unsigned lane = 0; lane < lanes; ++lane) {
        const Thread& leader = threads_[first + lane];
        if (leader.state != Thread::State::at_warp_primitive) continue;
        waiting = true;
        if (!is_complete(warp, leader)) continue;
        release_group(warp, leader.mask);
        released = true;
    }
    // Nobody else can help them: lanes at a barrier wait for the whole block, so for these lanes as well.
    if (waiting && !released) throw error("divergent warp primitive: " + describe(first, lanes));
    return released;
}

// Whether all lanes in the leader's mask wait at the same call. CUDA would let lanes that have exited be absent; except
// at __syncwarp, which hands over no values, that is a mistake here, for the others read nothing from them. Lanes that
// the last, partial warp of a block lacks may be named.
bool Scheduler::is_complete(unsigned warp, const Thread& leader) const {
    const bool may_have_exited = same_text(leader.primitive, "__syncwarp");
    for (unsigned lane = 0; lane < lanes_in(warp); ++lane) {
        const Thread& thread = threads_[warp * lanes_per_warp + lane];
        if ((leader.mask >> lane & 1u) == 0) continue;
        if (thread.state == Thread::State::exited && may_have_exited) continue;
        if (thread.state != Thread::State::at_warp_primitive || thread.mask != leader.mask ||
            !same_place(thread, leader)) {
            return false;
        }
    }
    return true;
}

void Scheduler::release_group(unsigned warp, unsigned group) {
    const unsigned first = warp * lanes_per_warp, lanes = lanes_in(warp);
    const unsigned existing = lanes == lanes_per_warp ? 0xFFFFFFFFu : (1u << lanes) - 1u;
    for (unsigned lane = 0; lane < lanes; ++lane) {
        Thread& thread = threads_[first + lane];
        if ((group >> lane & 1u) == 0 || thread.state == Thread::State::exited) continue;
        exchange_[first + lane] = thread.value;
        thread.participants = group & existing;
        thread.state = Thread::State::ready;
    }
}

// Opens the barrier at which all threads wait that have not exited. False if all have.
bool Scheduler::release_block() {
    const Thread* leader = nullptr;
    votes_ = {};
    for (unsigned i = 0; i < thread_count_; ++i) {
        const Thread& thread = threads_[i];
        if (thread.state == Thread::State::exited) continue;
        if (leader == nullptr) leader = &thread;
        if (!same_place(thread, *leader)) throw error("divergent barrier: " + describe(0, thread_count_));
        ++votes_.arrived;
        votes_.nonzero += thread.value != 0;
    }
    for (unsigned i = 0; i < thread_count_; ++i) {
        if (threads_[i].state == Thread::State::at_barrier) threads_[i].state = Thread::State::ready;
    }
    return leader != nullptr;
}

// "threads 0-15 wait at __syncthreads (transpose.cu:21); thread 16 has exited; …"
std::string Scheduler::describe(unsigned first, unsigned count) const {
    constexpr int max_groups = 8;
    std::string text;
    const unsigned end = first + count;
    int groups = 0;
    for (unsigned start = first, next; start < end; start = next) {
        const Thread& thread = threads_[start];
        const bool exited = thread.state == Thread::State::exited;
        for (next = start + 1; next < end && threads_[next].state == thread.state; ++next) {
            if (!exited && !(same_place(threads_[next], thread) && threads_[next].mask == thread.mask)) break;
        }
        if (!text.empty()) text += "; ";
        if (++groups > max_groups) return text + "…";
        const bool one = next == start + 1;
        text += one ? "thread " + std::to_string(start)
                    : "threads " + std::to_string(start) + "-" + std::to_string(next - 1);
        if (exited) {
            text += one ? " has exited" : " have exited";
            continue;
        }
        text += (one ? " waits at " : " wait at ") + place(thread.primitive, thread.where);
        if (thread.state == Thread::State::at_warp_primitive) text += " with mask " + hex(thread.mask);
    }
    return text;
}

KernelError Scheduler::error(const std::string& what) const {
    return KernelError(kernel_text(*shape_) + ", block " + triple_text(blockIdx) + ": " + what);
}

}  // namespace simt::detail
