// Prints what a program sees that needs a GPU where there may be none.
#include <cstdio>
#include <stdexcept>

#include "launch.cuh"
#include "simt.h"

namespace {

__global__ void empty_kernel() {}

template <class Action>
void report(const Action& action) {
    try {
        action();
        std::printf("done\n");
    } catch (const std::runtime_error& error) {
        std::printf("%s\n", error.what());
    }
}

}  // namespace

int main() {
    report([] { edm_fast::cuda::DeviceGuard guard(0); });
    report([] { EDM_FAST_LAUNCH(empty_kernel, dim3(1), dim3(32), 0, nullptr); });
    report([] { EDM_FAST_LAUNCH(empty_kernel, dim3(1), dim3(2048), 0, nullptr); });
}
