// Many tensors converted between a 16-bit float type and float32 in one launch: gradients on their way to
// master weights, and those back.
// variants: SOURCE=half_t,bf16_t TARGET=float
// variants: SOURCE=float TARGET=half_t,bf16_t
#include "common.cuh"
#include "multi.cuh"

static const int LANES = 4, THREADS = 256, STEPS = 2;  // STEPS: accesses under way in a thread

extern "C" __global__ void __launch_bounds__(THREADS) convert_all(const __grid_constant__ Table<2> table) {
    Piece piece(table);
    const SOURCE* from = table.template get<SOURCE>(0, piece.tensor);
    TARGET* to = table.template get<TARGET>(1, piece.tensor);
    const bool aligned = ((u64)from | (u64)to) % 16 == 0;
    for (i64 i = piece.begin + threadIdx.x * LANES; i < piece.end; i += THREADS * LANES * STEPS) {
        float values[STEPS][LANES];
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            i64 at = i + k * THREADS * LANES;
            if (at < piece.end) load_some<LANES>(from + at, piece.end - at, aligned, values[k]);
        }
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            i64 at = i + k * THREADS * LANES;
            if (at < piece.end) store_some<LANES>(to + at, piece.end - at, aligned, values[k]);
        }
    }
}
