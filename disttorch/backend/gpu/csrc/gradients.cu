// Norms of many gradients, their clipping, and their unscaling with a check for overflow.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "common.cuh"
#include "multi.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;

static const int LANES = 16 / sizeof(T), THREADS = 256;

struct Min {  // NaN wins
    template <class B> __device__ __forceinline__ B operator()(B a, B b) const {
        return a < b || a != a ? a : b;
    }
};

__device__ __forceinline__ A absolute(A x) { return x < 0 ? -x : x; }

// For the norm of an order: what an element counts, how counts are put together, what they start from.
// The numbers are those of gradients.py.
enum Kind { NONZERO, ABSOLUTE, SQUARE, LARGEST, SMALLEST, POWER };

template <int KIND> struct Order : Add {
    double p;
    __device__ __forceinline__ explicit Order(double power) : p(power) {}
    __device__ __forceinline__ static A neutral() { return (A)0; }
    __device__ __forceinline__ A term(A x) const {
        if (KIND == SQUARE) return x * x;
        if (KIND == NONZERO) return x != 0 ? (A)1 : (A)0;
        return KIND == POWER ? (A)pow(absolute(x), (A)p) : absolute(x);
    }
};
template <> struct Order<LARGEST> : Max {
    __device__ __forceinline__ explicit Order(double) {}
    __device__ __forceinline__ static A neutral() { return (A)0; }
    __device__ __forceinline__ A term(A x) const { return absolute(x); }
};
template <> struct Order<SMALLEST> : Min {
    __device__ __forceinline__ explicit Order(double) {}
    __device__ __forceinline__ static A neutral() { return (A)INFINITY_; }
    __device__ __forceinline__ A term(A x) const { return absolute(x); }
};

// Which element goes to which thread, and when, does not depend on the address, so equal values have equal
// norms. A thread has the loads of four packs under way before it adds.
template <class O> __device__ __forceinline__ A terms(const T* x, int size, const O& order) {
    const int V = 4, PACKS = THREADS * LANES;
    bool aligned = (u64)x % 16 == 0;
    A sum = O::neutral(), values[V][LANES];
    int i = threadIdx.x * LANES;
    for (; i + (V - 1) * PACKS + LANES <= size; i += V * PACKS) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const T* from = x + i + v * PACKS;
            if (aligned) load_pack<LANES>(from, values[v]);
            else {
#pragma unroll
                for (int j = 0; j < LANES; j++) values[v][j] = up(from[j]);
            }
        }
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int j = 0; j < LANES; j++) sum = order(sum, order.term(values[v][j]));
        }
    }
    for (; i < size; i += PACKS) {
        for (int j = 0; j < LANES && i + j < size; j++) sum = order(sum, order.term(up(x[i + j])));
    }
    return sum;
}

template <class O>
__device__ __forceinline__ A reduce_as(const T* x, int size, const O& order, A* scratch) {
    return block_reduce(terms(x, size, order), order, scratch, O::neutral());
}

__device__ __forceinline__ A reduce(const T* x, int size, i64 kind, double p, A* scratch) {
    if (kind == SQUARE) return reduce_as(x, size, Order<SQUARE>(p), scratch);
    if (kind == LARGEST) return reduce_as(x, size, Order<LARGEST>(p), scratch);
    if (kind == SMALLEST) return reduce_as(x, size, Order<SMALLEST>(p), scratch);
    if (kind == ABSOLUTE) return reduce_as(x, size, Order<ABSOLUTE>(p), scratch);
    if (kind == NONZERO) return reduce_as(x, size, Order<NONZERO>(p), scratch);
    return reduce_as(x, size, Order<POWER>(p), scratch);
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
    const T* x = table.get<const T>(0, piece.tensor) + piece.begin;
    A sum = reduce(x, (int)(piece.end - piece.begin), kind, p, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

template <class O> __device__ __forceinline__ A join(const A* parts, i64 begin, i64 end, A* scratch) {
    O order(0);
    A sum = O::neutral();
    for (i64 i = begin + threadIdx.x; i < end; i += THREADS) sum = order(sum, parts[i]);
    return block_reduce(sum, order, scratch, O::neutral());
}

__device__ __forceinline__ A over_parts(const A* parts, i64 begin, i64 end, i64 kind, A* scratch) {
    if (kind == LARGEST) return join<Order<LARGEST>>(parts, begin, end, scratch);
    if (kind == SMALLEST) return join<Order<SMALLEST>>(parts, begin, end, scratch);
    return join<Order<SQUARE>>(parts, begin, end, scratch);
}

// The norm of each tensor from its parts: a block a tensor.
extern "C" __global__ void __launch_bounds__(THREADS) norm_finish(const __grid_constant__ Table<1> table,
                                                                  const A* parts, T* norms, i64 chunks,
                                                                  i64 kind, double p) {
    __shared__ A scratch[WARP];
    int t = blockIdx.x;
    i64 end = t + 1 < table.count ? table.first[t + 1] : chunks;
    A sum = over_parts(parts, table.first[t], end, kind, scratch);
    if (threadIdx.x == 0) norms[t] = finished(kind, sum, p);
}

// The norm of one array of at most a chunk, by one block.
extern "C" __global__ void __launch_bounds__(THREADS) norm_small(const T* x, i64 n, T* out, i64 kind,
                                                                 double p) {
    __shared__ A scratch[WARP];
    A sum = reduce(x, (int)n, kind, p, scratch);
    if (threadIdx.x == 0) *out = finished(kind, sum, p);
}

// ---- in place, element by element ------------------------------------------------------------------

template <class F> struct Change {
    T* x;
    const F& f;

    template <int V, int N> __device__ __forceinline__ void run(int i, int stride) {
        A values[V][N];
#pragma unroll
        for (int v = 0; v < V; v++) load_pack<N>(x + i + v * stride, values[v]);
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int j = 0; j < N; j++) values[v][j] = f(values[v][j]);
            store_pack<N>(x + i + v * stride, values[v]);
        }
    }
};

template <class F> __device__ __forceinline__ void change(const Table<1>& table, const F& f) {
    Piece piece(table);
    T* x = table.get<T>(0, piece.tensor) + piece.begin;
    Change<F> whole = {x, f};
    over_packs<THREADS, LANES>((int)(piece.end - piece.begin), (u64)x % 16 == 0, whole);
}

struct Times {
    A factor;
    __device__ __forceinline__ A operator()(A x) const { return x * factor; }
};

extern "C" __global__ void __launch_bounds__(THREADS) scale_all(const __grid_constant__ Table<1> table,
                                                                const A* factor) {
    change(table, Times{*factor});
}

// By how much gradients of a norm are to be scaled so that it is at most `most`, as
// numbers of the norm's type; a NaN stays.
extern "C" __global__ void clip_factor(const T* norm, A* factor, double most) {
    A shifted = up(down<T>(up(*norm) + (A)1e-6)), ratio = up(down<T>((A)most / shifted));
    *factor = ratio > 1 ? (A)1 : ratio;
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
