#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(EDM_FAST_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(EDM_FAST_SIMT_UCONTEXT)
// void edm_fast_simt_jump(void** saved_stack_pointer, void* next_stack_pointer)
// Saves what the System V ABI wants preserved and continues the other stack where it was saved. The floating-point
// control words are the same everywhere: no kernel changes them.
asm(R"(
    .text
    .globl edm_fast_simt_jump
    .hidden edm_fast_simt_jump
    .type edm_fast_simt_jump, @function
edm_fast_simt_jump:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size edm_fast_simt_jump, .-edm_fast_simt_jump
)");
extern "C" void edm_fast_simt_jump(void** saved_stack_pointer, void* next_stack_pointer);
#endif

namespace simt::detail {

void Fiber::start(unsigned char* stack, std::size_t bytes, void (*entry)()) {
#if defined(EDM_FAST_SIMT_UCONTEXT)
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
#else
    // The stack as if entry() had been called from address 0 and had then been left by edm_fast_simt_jump.
    constexpr int preserved_registers = 6;
    void** top = reinterpret_cast<void**>(stack + bytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < preserved_registers; ++i) *--top = nullptr;
    stack_pointer_ = top;
#endif
#if defined(EDM_FAST_SIMT_ASAN)
    stack_ = stack;
    stack_bytes_ = bytes;
    fake_stack_ = nullptr;
#endif
}

void Fiber::jump(Fiber& to) {
#if defined(EDM_FAST_SIMT_UCONTEXT)
    swapcontext(&context_, &to.context_);
#else
    edm_fast_simt_jump(&stack_pointer_, to.stack_pointer_);
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
#if defined(EDM_FAST_SIMT_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.stack_bytes_);
#endif
    from.jump(to);
#if defined(EDM_FAST_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::finish(Fiber& from, Fiber& to) {
#if defined(EDM_FAST_SIMT_ASAN)
    __sanitizer_start_switch_fiber(nullptr, to.stack_, to.stack_bytes_);
#endif
    from.jump(to);
    std::abort();  // nobody continues a finished fibre
}

void Fiber::arrived([[maybe_unused]] Fiber& origin) {
#if defined(EDM_FAST_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &origin.stack_, &origin.stack_bytes_);
#endif
}

namespace {

#if defined(EDM_FAST_SIMT_ASAN)
constexpr std::size_t bytes_per_stack = 256 * 1024;  // red zones, and room for ASan to write its report
#else
constexpr std::size_t bytes_per_stack = 64 * 1024;
#endif

std::size_t page_bytes() {
    static const std::size_t bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return bytes;
}

std::size_t stride() {
    return bytes_per_stack + page_bytes();
}

}  // namespace

Stacks::~Stacks() {
    if (memory_ == nullptr) return;
    forget_contents();
    munmap(memory_, count_ * stride());
}

void Stacks::reserve(std::size_t count) {
    if (count <= count_) return;
    void* memory = mmap(nullptr, count * stride(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    if (memory_ != nullptr) {
        forget_contents();
        munmap(memory_, count_ * stride());
    }
    memory_ = static_cast<unsigned char*>(memory);
    count_ = count;
    for (std::size_t index = 0; index < count; ++index) {
        if (mprotect(stack(index), bytes_per_stack, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    }
}

unsigned char* Stacks::stack(std::size_t index) const {
    return memory_ + index * stride() + page_bytes();
}

std::size_t Stacks::stack_bytes() {
    return bytes_per_stack;
}

void Stacks::forget_contents() {
#if defined(EDM_FAST_SIMT_ASAN)
    for (std::size_t index = 0; index < count_; ++index) __asan_unpoison_memory_region(stack(index), bytes_per_stack);
#endif
}

}  // namespace simt::detail
