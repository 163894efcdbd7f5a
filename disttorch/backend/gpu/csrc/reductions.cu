// Sums, sums of squares and extremes over the middle axis of outer×n×inner, each element read once.
// The order of additions depends on the shape only, so results repeat bit by bit.
//
// Where n is long it is cut into strips of `chunk`; out is then outer×strips×inner, which a second
// launch reduces. The last launch divides by `divisor`, and takes the root if `root`.
// variants: ELEMENT=float RESULT=float,half_t,bf16_t
// variants: ELEMENT=double RESULT=double
// variants: ELEMENT=half_t RESULT=half_t,float
// variants: ELEMENT=bf16_t RESULT=bf16_t,float
#include "rows.cuh"

typedef ELEMENT T;
typedef RESULT R;
typedef Acc<T>::type A;
#define V PACK(T)
#define BATCH 4  // packs that a thread loads before it uses the first

// What is done to an element (c: its centre) and to two results, and what leaves a result as it is.
struct Sum {
    static __device__ __forceinline__ A of(A x, A) { return x; }
    static __device__ __forceinline__ A neutral() { return 0; }
    __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
struct Squares : Sum {
    static __device__ __forceinline__ A of(A x, A c) { return (x - c) * (x - c); }
};
struct Largest {
    static __device__ __forceinline__ A of(A x, A) { return x; }
    static __device__ __forceinline__ A neutral() { return (A)-INFINITY_; }
    __device__ __forceinline__ A operator()(A a, A b) const { return Max()(a, b); }
};
struct Smallest {
    static __device__ __forceinline__ A of(A x, A) { return x; }
    static __device__ __forceinline__ A neutral() { return (A)INFINITY_; }
    __device__ __forceinline__ A operator()(A a, A b) const { return a < b || a != a ? a : b; }
};

__device__ __forceinline__ R finish(A value, double divisor, i64 root) {
    if (divisor != 1) value = value / (A)divisor;
    if (root) value = sqrt(value);
    return down<R>((decltype(up(R())))value);
}

// ---- inner = 1 -------------------------------------------------------------------------------------

template <class F, int LANES>
__device__ __forceinline__ void reduce_rows(const T* __restrict__ x, const A* centre, R* out, i64 outer,
                                            i64 n, i64 strips, i64 chunk, double divisor, i64 root) {
    __shared__ A scratch[WARP];
    Team<LANES> team(outer * strips);
    if (!team.there) return;
    i64 o = team.row / strips, begin = (team.row - o * strips) * chunk;
    x += o * n + begin;
    Span<T, i64> span(x, begin + chunk < n ? chunk : n - begin);
    i64 step = (i64)team.size * V;
    A c = centre ? centre[o] : (A)0;
    A sums[V];
#pragma unroll
    for (int j = 0; j < V; j++) sums[j] = F::neutral();
    Words<T> held[BATCH];
    for (i64 i = (i64)team.lane * V - span.phase; i < span.width; i += BATCH * step) {
        span.load(held, x, i, step, T());
        span.mend(held, x, i, step, T());
        bool whole = i >= 0 && i + (BATCH - 1) * step + V <= span.width;
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
#pragma unroll
            for (int j = 0; j < V; j++) {
                if (whole || span.holds(i + k * step + j)) sums[j] = F()(sums[j], F::of(held[k].at(j), c));
            }
        }
    }
    A sum = sums[0];
#pragma unroll
    for (int j = 1; j < V; j++) sum = F()(sum, sums[j]);
    sum = team.reduce(sum, F(), scratch, F::neutral());
    if (team.lane == 0) out[team.row] = finish(sum, divisor, root);
}

// ---- inner > 1 -------------------------------------------------------------------------------------

// What a thread reads at once: a pack as it lies in memory, or one element.
template <int N> struct Bits {
    Words<T> words;
    __device__ __forceinline__ void load(const T* from) {
        words.raw = *reinterpret_cast<const Pack<u32, 4>*>(from);
    }
    __device__ __forceinline__ A at(int j) const { return words.at(j); }
};
template <> struct Bits<1> {
    T element;
    __device__ __forceinline__ void load(const T* from) { element = *from; }
    __device__ __forceinline__ A at(int) const { return up(element); }
};

// Every `step`-th of up to COUNT rows from `first` on, `whole`: all of them before `end`.
template <class F, int N, int COUNT>
__device__ __forceinline__ void add_up(A (&sums)[N], const A (&c)[N], const T* from, i64 first, int step,
                                       i64 end, i64 inner, bool whole) {
    Bits<N> bits[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        if (whole || first + k * step < end) bits[k].load(from + (first + k * step) * inner);
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        if (whole || first + k * step < end) {
#pragma unroll
            for (int j = 0; j < N; j++) sums[j] = F()(sums[j], F::of(bits[k].at(j), c[j]));
        }
    }
}

// A block of blockDim.x·N columns by blockDim.y rows at a time (256 threads); blockIdx.y is the strip.
// N > 1: inner is a multiple of N, and x lies on 16 bytes.
template <class F, int N>
__device__ __forceinline__ void reduce_columns(const T* __restrict__ x, const A* centre, R* out, i64 outer,
                                               i64 n, i64 inner, i64 chunk, double divisor, i64 root) {
    const int AHEAD = 8;  // rows that a thread loads before it uses the first
    __shared__ A shared[256 * N];
    int at = threadIdx.y * blockDim.x + threadIdx.x, rows = blockDim.y;
    i64 column = (blockIdx.x * (i64)blockDim.x + threadIdx.x) * N;
    i64 begin = blockIdx.y * chunk, end = begin + chunk < n ? begin + chunk : n;
    for (i64 o = blockIdx.z; o < outer; o += gridDim.z) {
        A sums[N], c[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            sums[j] = F::neutral();
            c[j] = centre && column < inner ? centre[o * inner + column + j] : (A)0;
        }
        const T* from = x + o * n * inner + column;
        i64 i = column < inner ? begin + threadIdx.y : end;
        for (; i + (AHEAD - 1) * rows < end; i += AHEAD * rows) {
            add_up<F, N, AHEAD>(sums, c, from, i, rows, end, inner, true);
        }
        if (i < end) add_up<F, N, AHEAD>(sums, c, from, i, rows, end, inner, false);
#pragma unroll
        for (int j = 0; j < N; j++) shared[j * 256 + at] = sums[j];
        __syncthreads();
        for (int half = rows / 2; half; half /= 2) {
            if (threadIdx.y < half) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    int here = j * 256 + at;
                    shared[here] = F()(shared[here], shared[here + half * blockDim.x]);
                }
            }
            __syncthreads();
        }
        if (threadIdx.y == 0 && column < inner) {
            R* to = out + (o * gridDim.y + blockIdx.y) * inner + column;
#pragma unroll
            for (int j = 0; j < N; j++) to[j] = finish(shared[j * 256 + at], divisor, root);
        }
    }
}

// ---- the kernels ------------------------------------------------------------------------------------

// The four ways of going through an array, for one way of combining: a warp a row, a block a row, a pack
// of columns a thread, a column a thread.
#define ROWS_OF (const T* x, const A* centre, R* out, i64 outer, i64 n, i64 strips, i64 chunk, \
                 double divisor, i64 root)
#define COLUMNS_OF (const T* x, const A* centre, R* out, i64 outer, i64 n, i64 inner, i64 chunk, \
                    double divisor, i64 root)
#define REDUCTION(name, F)                                                                   \
    extern "C" __global__ void __launch_bounds__(128) warps_##name ROWS_OF {                 \
        reduce_rows<F, WARP>(x, centre, out, outer, n, strips, chunk, divisor, root);       \
    }                                                                                        \
    extern "C" __global__ void __launch_bounds__(512) rows_##name ROWS_OF {                  \
        reduce_rows<F, BLOCK>(x, centre, out, outer, n, strips, chunk, divisor, root);        \
    }                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) packs_##name COLUMNS_OF {              \
        reduce_columns<F, V>(x, centre, out, outer, n, inner, chunk, divisor, root);         \
    }                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) columns_##name COLUMNS_OF {            \
        reduce_columns<F, 1>(x, centre, out, outer, n, inner, chunk, divisor, root);         \
    }

REDUCTION(sum, Sum)
REDUCTION(squares, Squares)
REDUCTION(largest, Largest)
REDUCTION(smallest, Smallest)
