// Random numbers of the distributions that a formula makes of uniform bits, and dropout. One thread
// computes all elements of a counter of the Philox stream, so results do not depend on the grid.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"
#include "philox.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

// A counter makes four numbers that are computed in float, or two in double.
static const int PER_DRAW = 16 / sizeof(A);

// Uniform on [0, 1) with as many bits as the type holds: rounding must not reach 1. The last argument
// only chooses the type.
__device__ __forceinline__ float uniform(const Words& w, int j, float) {
    return (float)(w.v[j] >> 8) * (1.0f / 16777216.0f);
}
__device__ __forceinline__ float uniform(const Words& w, int j, half_t) {
    return (float)(w.v[j] >> 21) * (1.0f / 2048.0f);
}
__device__ __forceinline__ float uniform(const Words& w, int j, bf16_t) {
    return (float)(w.v[j] >> 24) * (1.0f / 256.0f);
}
__device__ __forceinline__ double uniform(const Words& w, int j, double) {
    return (double)(((u64)w.v[2 * j] << 32 | w.v[2 * j + 1]) >> 11) * (1.0 / 9007199254740992.0);
}

// Uniform on (0, 1], down to 2^-33 (2^-54): what logarithms are taken of.
__device__ __forceinline__ float above_zero(const Words& w, int j, float) {
    return (float)w.v[j] * (1.0f / 4294967296.0f) + (0.5f / 4294967296.0f);
}
__device__ __forceinline__ double above_zero(const Words& w, int j, double) {
    return uniform(w, j, 0.0) + (0.5 / 9007199254740992.0);
}

// (cos, sin) of 2 pi u. On a GPU through the functions of half turns, which need no long reduction.
__device__ __forceinline__ void cos_sin(float u, float* both) {
#ifdef DISTTORCH_HOST
    both[0] = cosf(6.2831853f * u), both[1] = sinf(6.2831853f * u);
#else
    sincospif(2.0f * u, both + 1, both);
#endif
}
__device__ __forceinline__ void cos_sin(double u, double* both) {
#ifdef DISTTORCH_HOST
    both[0] = cos(6.283185307179586 * u), both[1] = sin(6.283185307179586 * u);
#else
    sincospi(2.0 * u, both + 1, both);
#endif
}

// Two normal numbers from two uniform ones (Box and Muller, 1958).
__device__ __forceinline__ void normals(float u, float angle, float* two) {
    float radius = sqrtf(-2.0f * logf(u));
    cos_sin(angle, two);
    two[0] *= radius, two[1] *= radius;
}
__device__ __forceinline__ void normals(double u, double angle, double* two) {
    double radius = sqrt(-2.0 * log(u));
    cos_sin(angle, two);
    two[0] *= radius, two[1] *= radius;
}

__device__ __forceinline__ float exponential(float u) { return fmaxf(-logf(u), 2.98e-8f); }
__device__ __forceinline__ double exponential(double u) { return fmax(-log(u), 5.5e-17); }

// Write the numbers of counter c. `out` is the start of an allocation, so aligned.
__device__ __forceinline__ void put(T* out, i64 n, i64 c, const A* numbers) {
    Pack<T, PER_DRAW> pack;
#pragma unroll
    for (int j = 0; j < PER_DRAW; j++) pack.v[j] = down<T>(numbers[j]);
    i64 at = c * PER_DRAW;
    if (at + PER_DRAW <= n) {
        *reinterpret_cast<Pack<T, PER_DRAW>*>(out + at) = pack;
        return;
    }
#pragma unroll
    for (int j = 0; j < PER_DRAW; j++)
        if (at + j < n) out[at + j] = pack.v[j];
}

#define FOR_COUNTERS(c, n, each)                                                    \
    for (i64 c = (i64)blockIdx.x * blockDim.x + threadIdx.x; c * (each) < (n); \
         c += (i64)gridDim.x * blockDim.x)

extern "C" __global__ void random_uniform(T* out, i64 n, u64 seed, u64 offset, const u64* state) {
    Stream stream(seed, offset, state);
    FOR_COUNTERS(c, n, PER_DRAW) {
        Words w = stream.draw(c);
        A numbers[PER_DRAW];
#pragma unroll
        for (int j = 0; j < PER_DRAW; j++) numbers[j] = uniform(w, j, T());
        put(out, n, c, numbers);
    }
}

extern "C" __global__ void random_normal(T* out, i64 n, u64 seed, u64 offset, const u64* state) {
    Stream stream(seed, offset, state);
    FOR_COUNTERS(c, n, PER_DRAW) {
        Words w = stream.draw(c);
        A numbers[PER_DRAW];
#pragma unroll
        for (int j = 0; j < PER_DRAW; j += 2) {
            normals(above_zero(w, j, A()), uniform(w, j + 1, A()), numbers + j);
        }
        put(out, n, c, numbers);
    }
}

extern "C" __global__ void random_exponential(T* out, i64 n, u64 seed, u64 offset, const u64* state) {
    Stream stream(seed, offset, state);
    FOR_COUNTERS(c, n, PER_DRAW) {
        Words w = stream.draw(c);
        A numbers[PER_DRAW];
#pragma unroll
        for (int j = 0; j < PER_DRAW; j++) numbers[j] = exponential(above_zero(w, j, A()));
        put(out, n, c, numbers);
    }
}

// Integers on [low, low + range): the high word of 64 random bits times the range (Lemire, 2019, without
// his rejection: no number's probability is off by more than 2^-64).
extern "C" __global__ void random_integers(i64* out, i64 n, i64 low, u64 range, u64 seed, u64 offset,
                                           const u64* state) {
    Stream stream(seed, offset, state);
    FOR_COUNTERS(c, n, 2) {
        Words w = stream.draw(c);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            u64 word = (u64)w.v[2 * j] << 32 | w.v[2 * j + 1];
            if (2 * c + j < n) out[2 * c + j] = (i64)((u64)low + times_high(word, range));
        }
    }
}

// The draws themselves, four words a counter.
extern "C" __global__ void random_words(u32* out, i64 n, u64 seed, u64 offset, const u64* state) {
    Stream stream(seed, offset, state);
    FOR_COUNTERS(c, n, 4) {
        Words w = stream.draw(c);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (4 * c + j < n) out[4 * c + j] = w.v[j];
    }
}

// ---- masks and dropout: 16 bits an element, so eight elements a counter --------------------------

// True with probability threshold / 2^16.
extern "C" __global__ void random_mask(u8* keep, i64 n, i64 threshold, u64 seed, u64 offset,
                                       const u64* state) {
    Stream stream(seed, offset, state);
    FOR_COUNTERS(c, n, 8) {
        Words w = stream.draw(c);
        Pack<u8, 8> mask;
#pragma unroll
        for (int j = 0; j < 8; j++) mask.v[j] = piece16(w, j) < (u32)threshold;
        if (8 * c + 8 <= n) {
            *reinterpret_cast<Pack<u8, 8>*>(keep + 8 * c) = mask;
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (8 * c + j < n) keep[8 * c + j] = mask.v[j];
        }
    }
}

// Eight elements as 16-byte accesses, where they may be.
static const int LANES = 16 / sizeof(T);

__device__ __forceinline__ void load8(const T* from, T* eight) {
#pragma unroll
    for (int j = 0; j < 8; j += LANES) {
        Pack<T, LANES> pack = *reinterpret_cast<const Pack<T, LANES>*>(from + j);
#pragma unroll
        for (int k = 0; k < LANES; k++) eight[j + k] = pack.v[k];
    }
}

__device__ __forceinline__ void store8(T* to, const T* eight) {
#pragma unroll
    for (int j = 0; j < 8; j += LANES) {
        Pack<T, LANES> pack;
#pragma unroll
        for (int k = 0; k < LANES; k++) pack.v[k] = eight[j + k];
        *reinterpret_cast<Pack<T, LANES>*>(to + j) = pack;
    }
}

__device__ __forceinline__ T scaled_or_zero(bool keep, T x, A scale) {
    return keep ? down<T>(up(x) * scale) : down<T>((A)0);
}

// out = x times scale where kept, else 0 (Srivastava et al., 2014). `out` and `keep` are the starts of
// allocations; x may lie anywhere.
extern "C" __global__ void dropout_forward(const T* x, T* out, u8* keep, i64 n, i64 threshold, double scale,
                                           u64 seed, u64 offset, const u64* state) {
    Stream stream(seed, offset, state);
    bool aligned = (u64)x % 16 == 0;
    FOR_COUNTERS(c, n, 8) {
        i64 at = 8 * c;
        if (aligned && at + 8 <= n) {
            T values[8];
            load8(x + at, values);
            Words w = stream.draw(c);
            Pack<u8, 8> mask;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                mask.v[j] = piece16(w, j) < (u32)threshold;
                values[j] = scaled_or_zero(mask.v[j], values[j], (A)scale);
            }
            store8(out + at, values);
            *reinterpret_cast<Pack<u8, 8>*>(keep + at) = mask;
        } else {
            Words w = stream.draw(c);
            for (int j = 0; j < 8 && at + j < n; j++) {
                u32 word = j < 4 ? (j < 2 ? w.v[0] : w.v[1]) : (j < 6 ? w.v[2] : w.v[3]);
                bool kept = (word >> (j % 2 * 16) & 0xffffu) < (u32)threshold;
                keep[at + j] = kept;
                out[at + j] = scaled_or_zero(kept, x[at + j], (A)scale);
            }
        }
    }
}

extern "C" __global__ void dropout_backward(const T* g, const u8* keep, T* out, i64 n, double scale) {
    bool aligned = ((u64)g | (u64)out) % 16 == 0 && (u64)keep % 8 == 0;
    FOR_COUNTERS(c, n, 8) {
        i64 at = 8 * c;
        if (aligned && at + 8 <= n) {
            T values[8];
            load8(g + at, values);
            Pack<u8, 8> mask = *reinterpret_cast<const Pack<u8, 8>*>(keep + at);
#pragma unroll
            for (int j = 0; j < 8; j++) values[j] = scaled_or_zero(mask.v[j], values[j], (A)scale);
            store8(out + at, values);
        } else {
            for (i64 i = at; i < at + 8 && i < n; i++) out[i] = scaled_or_zero(keep[i], g[i], (A)scale);
        }
    }
}

// ---- the state that a graph's kernels read ---------------------------------------------------------

extern "C" __global__ void set_stream(u64* state, u64 seed, u64 offset) {
    state[0] = seed;
    state[1] = offset;
}
