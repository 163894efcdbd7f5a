// Many tensors converted between a 16-bit float type and float32 in one launch: gradients on their way to
// master weights, and those back.
// variants: SOURCE=half_t,bf16_t TARGET=float
// variants: SOURCE=float TARGET=half_t,bf16_t
#include "common.cuh"
#include "multi.cuh"

static const int LANES = 4, THREADS = 256;

struct Convert {
    const SOURCE* from;
    TARGET* to;

    template <int V, int N> __device__ __forceinline__ void run(int i, int stride) {
        float values[V][N];
#pragma unroll
        for (int v = 0; v < V; v++) load_pack<N>(from + i + v * stride, values[v]);
#pragma unroll
        for (int v = 0; v < V; v++) store_pack<N>(to + i + v * stride, values[v]);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) convert_all(const __grid_constant__ Table<2> table) {
    Piece piece(table);
    Convert whole = {table.get<SOURCE>(0, piece.tensor) + piece.begin,
                     table.get<TARGET>(1, piece.tensor) + piece.begin};
    bool aligned = ((u64)whole.from | (u64)whole.to) % 16 == 0;
    over_packs<THREADS, LANES>((int)(piece.end - piece.begin), aligned, whole);
}
