// The emulator's exception. In a header of its own, since kernels, which never see it, compile faster without <string>.
#pragma once

#include <stdexcept>

namespace simt {

// A mistake in a launch or in a kernel that was found while it ran. The message names the kernel, and where it applies
// the block and the threads.
class KernelError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace simt
