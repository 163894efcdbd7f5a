// Norms of many gradients, their clipping, and their unscaling with a check for overflow.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"
#include "multi.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

static const int LANES = 16 / sizeof(A), THREADS = 256;

struct Min {  // NaN wins
    template <class B> __device__ __forceinline__ B operator()(B a, B b) const {
        return a < b || a != a ? a : b;
    }
};

// What is added up of an element, or taken the extreme of, for the norm of an order.
enum Kind { NONZERO, ABSOLUTE, SQUARE, LARGEST, SMALLEST, POWER };

__device__ __forceinline__ A absolute(A x) { return x < 0 ? -x : x; }

__device__ __forceinline__ A neutral(i64 kind) { return kind == SMALLEST ? (A)INFINITY_ : (A)0; }

__device__ __forceinline__ A combine(i64 kind, A sum, A value) {
    if (kind == LARGEST) return Max()(sum, value);
    if (kind == SMALLEST) return Min()(sum, value);
    return sum + value;
}

__device__ __forceinline__ A term(i64 kind, A x, double p) {
    if (kind == SQUARE) return x * x;
    if (kind == NONZERO) return x != 0 ? (A)1 : (A)0;
    return kind == POWER ? (A)pow(absolute(x), (A)p) : absolute(x);
}

__device__ __forceinline__ A over_block(i64 kind, A value, A* scratch) {
    if (kind == LARGEST) return block_reduce(value, Max(), scratch, (A)0);
    if (kind == SMALLEST) return block_reduce(value, Min(), scratch, (A)INFINITY_);
    return block_reduce(value, Add(), scratch, (A)0);
}

// Which element goes to which thread does not depend on the address, so equal values have equal norms.
__device__ __forceinline__ A reduce(const T* x, i64 begin, i64 end, i64 kind, double p, A* scratch) {
    bool aligned = (u64)x % 16 == 0;
    A sum = neutral(kind);
    for (i64 i = begin + threadIdx.x * LANES; i < end; i += THREADS * LANES) {
        A values[LANES];
        load_some<LANES>(x + i, end - i, aligned, values);
#pragma unroll
        for (int j = 0; j < LANES; j++)
            if (i + j < end) sum = combine(kind, sum, term(kind, values[j], p));
    }
    return over_block(kind, sum, scratch);
}

__device__ __forceinline__ T finished(i64 kind, A sum, double p) {
    if (kind == SQUARE) sum = root(sum);
    if (kind == POWER) sum = (A)pow(sum, (A)(1 / p));
    return down<T>(sum);
}

// One part for each chunk of each tensor (a tensor without elements has one, too).
extern "C" __global__ void __launch_bounds__(THREADS) norm_parts(const __grid_constant__ Table<1> table,
                                                                 A* parts, i64 kind, double p) {
    __shared__ A scratch[WARP];
    Piece piece(table);
    A sum = reduce(table.get<const T>(0, piece.tensor), piece.begin, piece.end, kind, p, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// The norm of each tensor from its parts: a block a tensor.
extern "C" __global__ void __launch_bounds__(THREADS) norm_finish(const __grid_constant__ Table<1> table,
                                                                  const A* parts, T* norms, i64 chunks,
                                                                  i64 kind, double p) {
    __shared__ A scratch[WARP];
    int t = blockIdx.x;
    i64 end = t + 1 < table.count ? table.first[t + 1] : chunks;
    A sum = neutral(kind);
    for (i64 i = table.first[t] + threadIdx.x; i < end; i += THREADS) sum = combine(kind, sum, parts[i]);
    sum = over_block(kind, sum, scratch);
    if (threadIdx.x == 0) norms[t] = finished(kind, sum, p);
}

// The norm of one array of at most a chunk, by one block.
extern "C" __global__ void __launch_bounds__(THREADS) norm_small(const T* x, i64 n, T* out, i64 kind,
                                                                 double p) {
    __shared__ A scratch[WARP];
    A sum = reduce(x, 0, n, kind, p, scratch);
    if (threadIdx.x == 0) *out = finished(kind, sum, p);
}

// ---- in place, element by element ------------------------------------------------------------------

template <class F> __device__ __forceinline__ void change(const Table<1>& table, F f) {
    Piece piece(table);
    T* x = table.template get<T>(0, piece.tensor);
    bool aligned = (u64)x % 16 == 0;
    for (i64 i = piece.begin + threadIdx.x * LANES; i < piece.end; i += THREADS * LANES) {
        A values[LANES];
        load_some<LANES>(x + i, piece.end - i, aligned, values);
#pragma unroll
        for (int j = 0; j < LANES; j++) values[j] = f(values[j]);
        store_some<LANES>(x + i, piece.end - i, aligned, values);
    }
}

struct Times {
    A factor;
    __device__ __forceinline__ A operator()(A x) const { return x * factor; }
};

extern "C" __global__ void __launch_bounds__(THREADS) scale_all(const __grid_constant__ Table<1> table,
                                                                const A* factor) {
    change(table, Times{*factor});
}

struct Between {  // a NaN stays
    A low, high;
    __device__ __forceinline__ A operator()(A x) const { return x < low ? low : x > high ? high : x; }
};

extern "C" __global__ void __launch_bounds__(THREADS) clip_all(const __grid_constant__ Table<1> table,
                                                               double low, double high) {
    change(table, Between{(A)low, (A)high});
}

// Divide by a scale (null: leave as it is), and set *found to 1 where a result is not finite.
struct Unscale {
    A inverse;
    float* found;
    __device__ __forceinline__ A operator()(A x) const {
        x *= inverse;
        if (!(absolute(x) < (A)INFINITY_)) *found = 1.0f;
        return x;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) unscale_all(const __grid_constant__ Table<1> table,
                                                                  const float* scale, float* found) {
    float inverse = scale ? (float)(1.0 / (double)*scale) : 1.0f;
    change(table, Unscale{(A)inverse, found});
}

// The scale of the next step: smaller after an overflow, larger after `interval` steps without one.
extern "C" __global__ void update_scale(float* scale, i32* good, const float* found, double growth,
                                        double backoff, i64 interval) {
    if (*found != 0) {
        *scale = *scale * (float)backoff;
        *good = 0;
        return;
    }
    i32 steps = *good + 1;
    if (steps == interval) {
        float grown = *scale * (float)growth;
        if (grown < INFINITY_) *scale = grown;  // an infinite scale could never come back
        steps = 0;
    }
    *good = steps;
}
