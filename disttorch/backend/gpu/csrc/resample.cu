// Linear maps along one dim, given as tables of taps: resizing, padding by copies, uneven means.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

// out[a][j][b] = Σ_k weight[k][j]·x[a][index[k][j]][b]; x: outer × size × inner, out: outer × n × inner.
// Without weights (null) elements are copied.
extern "C" __global__ void apply_taps(const T* x, const i64* index, const A* weight, T* out, i64 count,
                                      i64 size, i64 n, i64 inner, i64 taps) {
    i64 stride = (i64)gridDim.x * blockDim.x;
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < count; i += stride) {
        i64 high = i / inner, b = i - high * inner, a = high / n, j = high - a * n;
        const T* from = x + a * size * inner + b;
        if (!weight) {
            out[i] = from[index[j] * inner];
            continue;
        }
        A sum = 0;
        for (i64 k = 0; k < taps; ++k) {
            sum += up(from[index[k * n + j] * inner]) * weight[k * n + j];
        }
        out[i] = down<T>(sum);
    }
}
