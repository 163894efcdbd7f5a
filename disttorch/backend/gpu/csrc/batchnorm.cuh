// What the kernels of batch normalisation share: parts, moments, elements in registers.
#include "common.cuh"

typedef ELEMENT T;
typedef PARAM P;
typedef Acc<T>::type A;

#define MANY (16 / (int)sizeof(T))
#define THREADS 256
#define WARPS (THREADS / WARP)

struct Pair {
    A a, b;
};

// A block's part of `total` rows or groups.
struct Part {
    i64 start, end;
};

__device__ __forceinline__ Part part_of(i64 total, i64 splits, i64 split) {
    i64 share = (total + splits - 1) / splits, start = split * share, end = start + share;
    Part p = {start < total ? start : total, end < total ? end : total};
    return p;
}

// Mean and sum of squared deviations of `count` values, of the sums of their differences from `first`
// and of the squares of these; zeros for none.
__device__ __forceinline__ Pair moments_of(Pair sums, A first, i64 count) {
    Pair out = {0, 0};
    if (count) {
        A part = sums.a / (A)count, rest = sums.b - sums.a * part;
        out.a = first + part;
        out.b = rest < 0 ? (A)0 : rest;
    }
    return out;
}

// N elements as they lie in memory, converted where they are used. They are loaded without a branch
// around each load: a branch in which a compiler takes the elements apart would wait for its load before
// the next one is issued, and elements kept apart need two registers for one.
template <int N, bool WIDE = N * sizeof(T) == 16> union Words {
    Pack<T, N> pack;
    __device__ __forceinline__ Words() {}
    __device__ __forceinline__ A at(int j) const { return up(pack.v[j]); }
    __device__ __forceinline__ void forget() {}
};
template <int N> union Words<N, true> {
    Pack<u32, 4> raw;
    Pack<T, N> pack;
    __device__ __forceinline__ Words() {}
    __device__ __forceinline__ A at(int j) const { return up(pack.v[j]); }
    __device__ __forceinline__ void forget() {
#ifndef DISTTORCH_HOST
        asm volatile("" : "+r"(raw.v[0]), "+r"(raw.v[1]), "+r"(raw.v[2]), "+r"(raw.v[3]));
#endif
    }
};

template <int N> __device__ __forceinline__ void load(Words<N>& words, const T* at) {
    if constexpr (N * sizeof(T) == 16) {
        words.raw = *reinterpret_cast<const Pack<u32, 4>*>(at);
    } else {
        words.pack = *reinterpret_cast<const Pack<T, N>*>(at);
    }
}

// By one instruction: a compiler that has put the elements together stores the words one by one.
template <int N> __device__ __forceinline__ void store(T* at, const Words<N>& words) {
    if constexpr (N * sizeof(T) == 16) {
#ifdef DISTTORCH_HOST
        *reinterpret_cast<Pack<u32, 4>*>(at) = words.raw;
#else
        asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(words.raw.v[0]),
                     "r"(words.raw.v[1]), "r"(words.raw.v[2]), "r"(words.raw.v[3])
                     : "memory");
#endif
    } else {
        *reinterpret_cast<Pack<T, N>*>(at) = words.pack;
    }
}

// out = (x − mean)·scale + shift, scale = weight/√(var + eps)
struct Line {
    A level, scale, shift;
};

__device__ __forceinline__ Line line_of(const P* weight, const P* bias, const A* mean, const A* var,
                                        A eps, i64 c) {
    Line l = {mean[c], (A)1 / sqrt(var[c] + eps), bias ? (A)up(bias[c]) : (A)0};
    if (weight) l.scale *= up(weight[c]);
    return l;
}
