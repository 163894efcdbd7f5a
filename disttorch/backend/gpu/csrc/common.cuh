// Types, conversions, and sums over a warp and a block: what every family of kernels includes.
//
// It uses no header of CUDA's, so that NVRTC needs no include path; and nothing but C++ where
// DISTTORCH_HOST is defined, so that a host compiler can run the kernels (tests/cuda_host).

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

#define WARP 32
#define FULL_WARP 0xffffffffu
#define INFINITY_ __int_as_float(0x7f800000)

#ifndef DISTTORCH_HOST
// Shared memory whose size is the launch's; 16-byte aligned, one per kernel.
#define DYNAMIC_SHARED(type, name)                          \
    extern __shared__ __align__(16) unsigned char _dynamic_shared[]; \
    type* name = reinterpret_cast<type*>(_dynamic_shared)
#endif

// ---- 16-bit floats: stored as bits, computed in float, rounded to nearest even ------------------

struct half_t { u16 bits; };
struct bf16_t { u16 bits; };

__device__ __forceinline__ float bits_to_float(u32 bits) {
    union { u32 u; float f; } both;
    both.u = bits;
    return both.f;
}

__device__ __forceinline__ u32 float_to_bits(float value) {
    union { u32 u; float f; } both;
    both.f = value;
    return both.u;
}

__device__ __forceinline__ float up(bf16_t a) { return bits_to_float((u32)a.bits << 16); }

__device__ __forceinline__ float up(half_t a) {
#ifdef DISTTORCH_HOST
    return host_half_to_float(a.bits);
#else
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(a.bits));
    return out;
#endif
}

__device__ __forceinline__ float up(float a) { return a; }
__device__ __forceinline__ double up(double a) { return a; }

template <class T> struct Down;  // Down<T>::from(x): what is computed, as it is stored

template <> struct Down<float> {
    static __device__ __forceinline__ float from(float a) { return a; }
};
template <> struct Down<double> {
    static __device__ __forceinline__ double from(double a) { return a; }
};
template <> struct Down<bf16_t> {
    static __device__ __forceinline__ bf16_t from(float a) {
        bf16_t out;
#ifdef DISTTORCH_HOST
        u32 bits = float_to_bits(a);
        if ((bits & 0x7fffffffu) > 0x7f800000u) {
            out.bits = (u16)((bits >> 16) | 0x40u);  // a NaN stays one
        } else {
            out.bits = (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
        }
#else
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(a));
#endif
        return out;
    }
};
template <> struct Down<half_t> {
    static __device__ __forceinline__ half_t from(float a) {
        half_t out;
#ifdef DISTTORCH_HOST
        out.bits = host_float_to_half(a);
#else
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(a));
#endif
        return out;
    }
};

template <class T> __device__ __forceinline__ T down(decltype(up(T())) a) { return Down<T>::from(a); }

// The type that T is computed with.
template <class T> struct Acc { typedef float type; };
template <> struct Acc<double> { typedef double type; };

// ---- several elements at once --------------------------------------------------------------------

template <class T, int N> struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

// ---- sums and extremes of a warp, and of a block -------------------------------------------------

struct Add {
    template <class A> __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
struct Max {  // NaN wins
    template <class A> __device__ __forceinline__ A operator()(A a, A b) const {
        return a > b || a != a ? a : b;
    }
};

// Every lane gets the same value: the butterfly adds in an order that does not depend on the lane.
template <class A, class F> __device__ __forceinline__ A warp_reduce(A value, F combine) {
#pragma unroll
    for (int step = WARP / 2; step; step >>= 1) {
        value = combine(value, __shfl_xor_sync(FULL_WARP, value, step));
    }
    return value;
}

// Every thread of a one-dimensional block of whole warps gets the same value. `scratch`: 32 values in
// shared memory, free again when the call returns (it ends with a barrier).
template <class A, class F> __device__ __forceinline__ A block_reduce(A value, F combine, A* scratch,
                                                                       A neutral) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    value = warp_reduce(value, combine);
    if (warps == 1) return value;
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = warp_reduce(lane < warps ? scratch[lane] : neutral, combine);
    __syncthreads();
    return value;
}
