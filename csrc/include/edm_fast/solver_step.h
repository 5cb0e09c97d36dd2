// solver_step: everything a diffusion sampler does between two network evaluations, as one row of a coefficient table.
//
// The state is up to four registers r0 … r3 of shape [N, C, P]: r0 is the point x at which the network was evaluated,
// the others hold what later rows still need. With F the network's output, G the guiding network's, z standard normal:
//
//   D    = d_x · r0 + d_f · F + d_g · G                                  preconditioning and guidance
//   r_i' = u_i0 · r0 + u_i1 · r1 + u_i2 · r2 + u_i3 · r3 + u_iD · D + u_iz · z      i = 0 … 3
//   network input = in · r0'                                             scaled by c_in, cast
//
// A term with coefficient 0 is absent: its tensor is not read. A register whose six coefficients are all 0 keeps its
// value. Where D of a sample is not finite, its first_bad is lowered to the index of the row, so that overflow in the
// network is found where it happens, without another pass. A tensor that a row needs and that is not there reads as
// NaN; a register that is not there is not written. Products and sums are rounded one by one, in the order written, in
// the state's type, so every backend gives the same bits.
#pragma once

#include <cstdint>

#include "edm_fast/image_view.h"

namespace edm_fast {

constexpr int kRegisters = 4;
constexpr int kUpdateTerms = kRegisters + 2;  // the registers, D and z

// A row of the table, as float64 numbers. edm_fast/samplers/table.py holds the same layout.
enum RowColumn : int {
    kDenoisedFromState = 0,
    kDenoisedFromModel = 1,
    kDenoisedFromGuide = 2,
    kUpdate = 3,  // kRegisters × kUpdateTerms, row-major
    kNetInputScale = kUpdate + kRegisters * kUpdateTerms,
    kDraw = kNetInputScale + 1,  // which noise: the draw index of normal(seed, draw, element)
    kRowSize = 32,
};

struct SolverStepArgs {
    int64_t samples, channels, pixels;
    const double* table;                   // [rows, kRowSize], in the state's memory
    int64_t row;                           // the row to execute is row + *row_offset
    const int64_t* row_offset;             // in the state's memory; nullptr: 0
    DType state_dtype;                     // float64 or float32; the type of all arithmetic
    ImageView state[kRegisters];           // read and written
    ImageView model_output, guide_output;  // F and G
    const int64_t* seeds;                  // [samples], for our own noise
    ImageView noise;                       // z, if the caller brings it
    ImageView net_input;                   // written where present
    ImageView denoised;                    // D, written where present
    int64_t* first_bad;                    // [samples], lowered by rows that have a D; nullptr: not wanted
};

namespace cpu {
void solver_step(const SolverStepArgs& args, int threads);
}
namespace cuda {
void solver_step(const SolverStepArgs& args, int device, void* stream);
}

}  // namespace edm_fast
