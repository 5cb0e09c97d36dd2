// Switching between stacks. The emulator gives every CUDA thread of a block a fibre: a stack of its own, on which the
// kernel can stop at a barrier and go on later. Everything happens on one OS thread.
#pragma once

#include <cstddef>

// x86-64 has a switch of a dozen instructions; ucontext makes two system calls per switch, and serves other machines.
#if !defined(EDM_FAST_SIMT_UCONTEXT) && !(defined(__x86_64__) && defined(__ELF__))
#define EDM_FAST_SIMT_UCONTEXT
#endif

#if defined(__SANITIZE_ADDRESS__)
#define EDM_FAST_SIMT_ASAN
#endif

#if defined(EDM_FAST_SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace simt::detail {

// A flow of control that can be left and continued. A default-constructed one stands for the code that is running: it
// may be the origin of a switch. Not to be moved between start() and its last switch.
class Fiber {
  public:
    // The next switch here calls entry() on this stack. entry() begins with arrived() and never returns.
    void start(unsigned char* stack, std::size_t bytes, void (*entry)());

    // Leaves `from`, which is running, and continues `to`. Returns when somebody switches back to `from`.
    static void switch_to(Fiber& from, Fiber& to);

    // Leaves `from` for good.
    [[noreturn]] static void finish(Fiber& from, Fiber& to);

    // Tells AddressSanitizer that a new fibre runs, and learns from it the stack of `origin`, which switched here.
    static void arrived(Fiber& origin);

  private:
    void jump(Fiber& to);

#if defined(EDM_FAST_SIMT_UCONTEXT)
    ucontext_t context_;
#else
    void* stack_pointer_ = nullptr;
#endif
#if defined(EDM_FAST_SIMT_ASAN)
    const void* stack_ = nullptr;
    std::size_t stack_bytes_ = 0;
    void* fake_stack_ = nullptr;
#endif
};

// Stacks for the threads of one block, used again for block after block. Below every stack lies a page that may not be
// touched, so that a kernel that overflows its stack stops there instead of writing over its neighbour's.
class Stacks {
  public:
    Stacks() = default;
    ~Stacks();
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;

    // Room for `count` stacks. Throws std::bad_alloc.
    void reserve(std::size_t count);

    unsigned char* stack(std::size_t index) const;
    static std::size_t stack_bytes();

    // A launch that failed leaves threads in the middle of their kernels. AddressSanitizer would go on to watch the
    // variables they had there, in the stacks of the next launch.
    void forget_contents();

  private:
    unsigned char* memory_ = nullptr;
    std::size_t count_ = 0;
};

}  // namespace simt::detail
