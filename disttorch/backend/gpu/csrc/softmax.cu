// Softmax over the last axis, one block a row.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"

typedef ELEMENT T;

extern "C" __global__ void softmax_forward(const T* x, T* out, i64 width) {
    typedef Acc<T>::type A;
    __shared__ A scratch[WARP];
    x += blockIdx.x * width;
    out += blockIdx.x * width;
    A top = (A)-INFINITY_;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) top = Max()(top, up(x[i]));
    top = block_reduce(top, Max(), scratch, (A)-INFINITY_);
    A sum = 0;
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) sum += exp(up(x[i]) - top);
    sum = block_reduce(sum, Add(), scratch, (A)0);
    for (i64 i = threadIdx.x; i < width; i += blockDim.x) out[i] = down<T>(exp(up(x[i]) - top) / sum);
}
