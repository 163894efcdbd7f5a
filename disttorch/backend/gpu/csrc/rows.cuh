// Rows of a contiguous R×C array: who works on one, and how it is read and written.
//
// A row is read in packs of 16 aligned bytes wherever it starts: `phase` elements of its first pack
// lie before it. Elements of a pack that are not the row's are a neutral value, so that what follows
// needs no bounds.

#include "common.cuh"

#define PACK(T) (16 / (int)sizeof(T))

// How many elements before p the 16 bytes that hold it begin.
template <class T> __device__ __forceinline__ int phase_of(const T* p) {
    return (int)(((u64)p & 15) / sizeof(T));
}

// A team works on one row: a warp (several rows a block), or a whole block.
template <bool BLOCK> struct Team {
    i64 row;
    int lane, size;
    __device__ __forceinline__ Team() {
        row = BLOCK ? (i64)blockIdx.x : (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
        lane = BLOCK ? threadIdx.x : threadIdx.x % WARP;
        size = BLOCK ? blockDim.x : WARP;
    }
};

template <bool BLOCK, class A, class F>
__device__ __forceinline__ A team_reduce(A value, F combine, A* scratch, A neutral) {
    if (BLOCK) return block_reduce(value, combine, scratch, neutral);
    return warp_reduce(value, combine);
}

// Elements [first, first + PACK) of a row of `width`. `aligned`: first lies on 16 bytes.
template <class T>
__device__ __forceinline__ Pack<T, PACK(T)> load_pack(const T* row, i64 first, i64 width, bool aligned,
                                                       T neutral) {
    Pack<T, PACK(T)> pack;
    if (aligned && first >= 0 && first + PACK(T) <= width) {
        pack = *reinterpret_cast<const Pack<T, PACK(T)>*>(row + first);
    } else {
#pragma unroll
        for (int j = 0; j < PACK(T); j++) {
            i64 i = first + j;
            pack.v[j] = i >= 0 && i < width ? row[i] : neutral;
        }
    }
    return pack;
}

template <class T>
__device__ __forceinline__ void store_pack(T* row, i64 first, i64 width, bool aligned,
                                           const Pack<T, PACK(T)>& pack) {
    if (aligned && first >= 0 && first + PACK(T) <= width) {
        *reinterpret_cast<Pack<T, PACK(T)>*>(row + first) = pack;
    } else {
#pragma unroll
        for (int j = 0; j < PACK(T); j++) {
            i64 i = first + j;
            if (i >= 0 && i < width) row[i] = pack.v[j];
        }
    }
}

// N values of another type beside N elements of a row: the weights of a norm. `aligned`: p lies on 16
// bytes. Indices outside [0, width) give 0.
template <int N, class W>
__device__ __forceinline__ void load_beside(const W* p, i64 first, i64 width, bool aligned,
                                            typename Acc<W>::type* values) {
    const int V = PACK(W) < N ? PACK(W) : N;
    if (aligned && first >= 0 && first + N <= width) {
#pragma unroll
        for (int part = 0; part < N / V; part++) {
            Pack<W, V> pack = *reinterpret_cast<const Pack<W, V>*>(p + first + part * V);
#pragma unroll
            for (int j = 0; j < V; j++) values[part * V + j] = up(pack.v[j]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) {
            i64 i = first + j;
            values[j] = i >= 0 && i < width ? up(p[i]) : (typename Acc<W>::type)0;
        }
    }
}

// e to the power x. What is rounded to 16 bits, or follows a sum of many, needs no more than the
// hardware's power of 2 (2 units in the last place).
__device__ __forceinline__ float quick_exp(float x) {
#ifdef DISTTORCH_HOST
    return exp(x);
#else
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x * 1.4426950408889634f));
    return out;
#endif
}
__device__ __forceinline__ double quick_exp(double x) { return exp(x); }

// e to the power of what is computed of elements of type T.
template <class T> struct Exp {
    static __device__ __forceinline__ float of(float x) { return quick_exp(x); }
};
template <> struct Exp<float> {
    static __device__ __forceinline__ float of(float x) { return exp(x); }
};
template <> struct Exp<double> {
    static __device__ __forceinline__ double of(double x) { return exp(x); }
};
