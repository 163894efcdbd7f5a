// start + i·step for i = 0, 1, …: computed as VALUE, each operation rounded, stored as RESULT.
// variants: VALUE=double RESULT=float,double,bf16_t,half_t
// variants: VALUE=i64 RESULT=i64,i32,u8
#include "common.cuh"
#include "elementwise.cuh"

__device__ __forceinline__ double at(double start, double step, i64 i) {
    return __dadd_rn(__dmul_rn((double)i, step), start);
}
__device__ __forceinline__ i64 at(i64 start, i64 step, i64 i) { return plus(times(i, step), start); }

extern "C" __global__ void ramp(RESULT* out, i64 n, VALUE start, VALUE step) {
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < n; i += (i64)gridDim.x * blockDim.x) {
        out[i] = Put<RESULT>::from(at(start, step, i));
    }
}
