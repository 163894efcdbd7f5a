// Rotary position embedding: pairs of elements turned by an angle of their position and place.
//
// x: outer×positions×inner×width; cos, sin: positions×width/2, of the angles. sign −1 turns back.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "rows.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;
#define V PACK(T)

__device__ __forceinline__ void turn(T& a, T& b, A cos, A sin) {
    A x = up(a), y = up(b);
    a = down<T>(x * cos - y * sin);
    b = down<T>(x * sin + y * cos);
}

// Pairs (i, i + width/2): a thread turns N neighbouring ones. n: threads' work in all.
template <int N>
__device__ __forceinline__ void halves(const T* x, const A* cos, const A* sin, T* out, i64 n, i64 positions,
                                       i64 inner, i64 width, A sign) {
    i64 half = width / 2, groups = half / N;
    for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n; at += gridDim.x * (i64)blockDim.x) {
        i64 row = at / groups, place = (at - row * groups) * N;
        i64 angle = row / inner % positions * half + place, first = row * width + place;
        Pack<T, N> a = *reinterpret_cast<const Pack<T, N>*>(x + first);
        Pack<T, N> b = *reinterpret_cast<const Pack<T, N>*>(x + first + half);
#pragma unroll
        for (int j = 0; j < N; j++) turn(a.v[j], b.v[j], cos[angle + j], sign * sin[angle + j]);
        *reinterpret_cast<Pack<T, N>*>(out + first) = a;
        *reinterpret_cast<Pack<T, N>*>(out + first + half) = b;
    }
}

// Pairs (2i, 2i + 1): a thread turns N/2 neighbouring ones.
template <int N>
__device__ __forceinline__ void neighbours(const T* x, const A* cos, const A* sin, T* out, i64 n,
                                           i64 positions, i64 inner, i64 width, A sign) {
    i64 groups = width / N;
    for (i64 at = blockIdx.x * (i64)blockDim.x + threadIdx.x; at < n; at += gridDim.x * (i64)blockDim.x) {
        i64 row = at / groups, place = (at - row * groups) * N;
        i64 angle = row / inner % positions * (width / 2) + place / 2, first = row * width + place;
        Pack<T, N> a = *reinterpret_cast<const Pack<T, N>*>(x + first);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            turn(a.v[j], a.v[j + 1], cos[angle + j / 2], sign * sin[angle + j / 2]);
        }
        *reinterpret_cast<Pack<T, N>*>(out + first) = a;
    }
}

extern "C" __global__ void __launch_bounds__(256)
rotary_halves(const T* x, const A* cos, const A* sin, T* out, i64 n, i64 positions, i64 inner, i64 width,
              double sign) {
    halves<1>(x, cos, sin, out, n, positions, inner, width, (A)sign);
}
extern "C" __global__ void __launch_bounds__(256)
rotary_halves_packs(const T* x, const A* cos, const A* sin, T* out, i64 n, i64 positions, i64 inner,
                    i64 width, double sign) {
    halves<V>(x, cos, sin, out, n, positions, inner, width, (A)sign);
}
extern "C" __global__ void __launch_bounds__(256)
rotary_neighbours(const T* x, const A* cos, const A* sin, T* out, i64 n, i64 positions, i64 inner, i64 width,
                  double sign) {
    neighbours<2>(x, cos, sin, out, n, positions, inner, width, (A)sign);
}
extern "C" __global__ void __launch_bounds__(256)
rotary_neighbours_packs(const T* x, const A* cos, const A* sin, T* out, i64 n, i64 positions, i64 inner,
                        i64 width, double sign) {
    neighbours<V>(x, cos, sin, out, n, positions, inner, width, (A)sign);
}
