#pragma once

// Before a loop whose iterations read and write no memory of each other, so that vectors may take several at a time.
#if defined(__clang__)
#define EDM_FAST_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define EDM_FAST_INDEPENDENT _Pragma("GCC ivdep")
#endif
