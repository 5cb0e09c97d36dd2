// Each op's .cpp is compiled once per instruction set, with EDM_FAST_ISA naming the namespace its code goes to; the
// first call picks the widest one that the processor has. The noise and the sampler step do
// not depend on the choice; ops that sum do, in the last bits.
#pragma once

#include <string>
#include <vector>

namespace edm_fast::cpu {

// kAvx512Bf16 and kAmx run the code of kAvx512, which then may multiply pairs, or tiles, of bfloat16.
enum class Isa { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmx = 4 };

Isa isa();

// Names, widest last: "baseline", "avx2" (AVX2, FMA, F16C), "avx512" (AVX-512 F, BW, DQ, VL),
// "avx512_bf16" (also AVX512_BF16), "amx_bf16" (also AMX-TILE and AMX-BF16, which the system must let us use).
std::vector<std::string> available_isas();
std::string isa_name();

// Uses the named set from now on; for tests and comparisons. Throws std::invalid_argument if it is not available.
void use_isa(const std::string& name);

}  // namespace edm_fast::cpu
