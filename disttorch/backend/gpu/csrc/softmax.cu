// Softmax and its logarithm over rows (the last axis) and over columns (any other axis).
//
// Rows of up to 64 KiB stay in registers as they lie in memory, so that each is read once; longer ones are
// read twice. Columns: a thread each. Arrays start on 16 bytes.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "rows.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;
#define V PACK(T)
#define HELD 4   // packs of a thread of a block
#define AHEAD 8  // elements of a column that a thread loads before it uses the first

template <class> struct Power { typedef Folded type; };
template <> struct Power<float> { typedef Exact type; };
template <> struct Power<double> { typedef Exact type; };
typedef Power<T>::type E;

__device__ __forceinline__ A lowest() { return (A)-INFINITY_; }

// What becomes of an element: exp(x − top)·scale, or x − top − shift.
struct Final {
    A top, start, scale, shift;
    bool logs;
    __device__ __forceinline__ Final(A top, A sum, bool logs) : top(top), logs(logs) {
        start = E::from(top);
        scale = 1 / sum;
        shift = logs ? log(sum) : (A)0;
    }
    __device__ __forceinline__ A of(A x) const {
        return logs ? x - top - shift : E::of(x, start) * scale;
    }
    __device__ __forceinline__ void apply(Words<T>& words) const {
#pragma unroll
        for (int j = 0; j < V; j++) words.put(j, of(words.at(j)));
    }
};

// ---- forward ---------------------------------------------------------------------------------------

template <int K, int LANES>
__device__ __forceinline__ void forward(const T* __restrict__ x, T* __restrict__ out, i64 rows, i64 width,
                                        bool logs) {
    __shared__ A scratch[2][WARP];
    Team<LANES> team(rows);
    x += team.row * width;
    out += team.row * width;
    Span<T, int> span(x, team.there ? width : 0);
    int first = team.lane * V - span.phase, step = team.size * V;
    Words<T> held[K];
    span.load(held, x, first, step, down<T>(lowest()));
    span.mend(held, x, first, step, down<T>(lowest()));
    A top = lowest(), sum = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) top = Top()(top, held[k].at(j));
    }
    top = team.reduce(top, Top(), scratch[0], lowest());
    A start = E::from(top);
#pragma unroll
    for (int k = 0; k < K; k++) {
        held[k].forget();
#pragma unroll
        for (int j = 0; j < V; j++) sum += E::of(held[k].at(j), start);
    }
    sum = team.reduce(sum, Add(), scratch[1], (A)0);
    Final last(top, sum, logs);
#pragma unroll
    for (int k = 0; k < K; k++) {
        held[k].forget();
        last.apply(held[k]);
    }
    span.store(out, first, step, held);
}

extern "C" __global__ void __launch_bounds__(512)
softmax_long(const T* x, T* out, i64 rows, i64 width, i64 logs) {
    __shared__ A scratch[2][WARP];
    Team<BLOCK> team(rows);
    x += team.row * width;
    out += team.row * width;
    Span<T, i64> span(x, width);
    i64 first = team.lane * V - span.phase, step = team.size * V;
    Running<A, E> seen;
    Words<T> held[HELD];
    for (i64 i = first; i < width; i += HELD * step) {
        span.load(held, x, i, step, down<T>(lowest()));
        span.mend(held, x, i, step, down<T>(lowest()));
        seen.see(held);
    }
    seen.rise(team.reduce(seen.top, Top(), scratch[0], lowest()));
    A sum = team.reduce(seen.sum, Add(), scratch[1], (A)0);
    if (seen.top == lowest()) sum = seen.top - seen.top;  // nothing but −inf: NaN, as 0/0
    Final last(seen.top, sum, logs);
    for (i64 i = first; i < width; i += HELD * step) {
        span.load(held, x, i, step, down<T>(lowest()));
        span.mend(held, x, i, step, down<T>(lowest()));
#pragma unroll
        for (int k = 0; k < HELD; k++) last.apply(held[k]);
        span.store(out, i, step, held);
    }
}

// x: outer×width×inner, over the middle axis. A thread a column; blockIdx.y the outer index.
extern "C" __global__ void __launch_bounds__(128)
softmax_columns(const T* __restrict__ x, T* __restrict__ out, i64 outer, i64 width, i64 inner, i64 logs) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= inner) return;
    for (i64 o = blockIdx.y; o < outer; o += gridDim.y) {
        const T* from = x + o * width * inner + column;
        T* to = out + o * width * inner + column;
        Running<A, E> seen;
        for (i64 i = 0; i < width; i += AHEAD) {
            T ahead[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                ahead[j] = i + j < width ? from[(i + j) * inner] : down<T>(lowest());
            }
            A top = seen.top;
#pragma unroll
            for (int j = 0; j < AHEAD; j++) top = Top()(top, up(ahead[j]));
            seen.rise(top);
            A start = seen.start(top);
#pragma unroll
            for (int j = 0; j < AHEAD; j++) seen.sum += E::of(up(ahead[j]), start);
        }
        Final last(seen.top, seen.top == lowest() ? seen.top - seen.top : seen.sum, logs);
#pragma unroll 8
        for (i64 i = 0; i < width; i++) to[i * inner] = down<T>(last.of(up(from[i * inner])));
    }
}

#define FORWARD(name, most, K, LANES)                                         \
    extern "C" __global__ void __launch_bounds__(most)                        \
    softmax_##name(const T* x, T* out, i64 rows, i64 width, i64 logs) {       \
        forward<K, LANES>(x, out, rows, width, logs);                         \
    }
FORWARD(lanes2, 128, 1, 2)
FORWARD(lanes8, 128, 1, 8)
FORWARD(warp1, 128, 1, WARP)
FORWARD(warp4, 128, 4, WARP)
FORWARD(block, 1024, HELD, BLOCK)

// ---- backward --------------------------------------------------------------------------------------
// softmax: out·(g − Σ g·out); its logarithm: g − exp(out)·Σ g

__device__ __forceinline__ A part(A g, A out, bool logs) { return logs ? g : g * out; }
__device__ __forceinline__ A slope(A g, A out, A total, bool logs) {
    return logs ? g - E::of(out, (A)0) * total : out * (g - total);
}

template <int K, class I>
__device__ __forceinline__ void load_both(const Span<T, I>& span, Words<T> (&gs)[K], Words<T> (&outs)[K],
                                          const T* g, const T* out, I first, I step) {
    T none = down<T>((A)0);
    span.load(gs, g, first, step, none);
    span.load(outs, out, first, step, none);
    span.mend(gs, g, first, step, none);
    span.mend(outs, out, first, step, none);
}

template <int K> __device__ __forceinline__ A parts(Words<T> (&gs)[K], Words<T> (&outs)[K], bool logs) {
    A total = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) total += part(gs[k].at(j), outs[k].at(j), logs);
    }
    return total;
}

template <int K>
__device__ __forceinline__ void slopes(Words<T> (&gs)[K], Words<T> (&outs)[K], A total, bool logs) {
#pragma unroll
    for (int k = 0; k < K; k++) {
        gs[k].forget();
        outs[k].forget();
#pragma unroll
        for (int j = 0; j < V; j++) gs[k].put(j, slope(gs[k].at(j), outs[k].at(j), total, logs));
    }
}

template <int K, int LANES>
__device__ __forceinline__ void backward(const T* __restrict__ g, const T* __restrict__ out,
                                         T* __restrict__ grad, i64 rows, i64 width, bool logs) {
    __shared__ A scratch[WARP];
    Team<LANES> team(rows);
    g += team.row * width;
    out += team.row * width;
    grad += team.row * width;
    Span<T, int> span(out, team.there ? width : 0);
    int first = team.lane * V - span.phase, step = team.size * V;
    Words<T> gs[K], outs[K];
    load_both(span, gs, outs, g, out, first, step);
    A total = team.reduce(parts(gs, outs, logs), Add(), scratch, (A)0);
    slopes(gs, outs, total, logs);
    span.store(grad, first, step, gs);
}

extern "C" __global__ void __launch_bounds__(512)
softmax_backward_long(const T* g, const T* out, T* grad, i64 rows, i64 width, i64 logs) {
    __shared__ A scratch[WARP];
    Team<BLOCK> team(rows);
    g += team.row * width;
    out += team.row * width;
    grad += team.row * width;
    Span<T, i64> span(out, width);
    i64 first = team.lane * V - span.phase, step = team.size * V;
    Words<T> gs[HELD], outs[HELD];
    A total = 0;
    for (i64 i = first; i < width; i += HELD * step) {
        load_both(span, gs, outs, g, out, i, step);
        total += parts(gs, outs, logs);
    }
    total = team.reduce(total, Add(), scratch, (A)0);
    for (i64 i = first; i < width; i += HELD * step) {
        load_both(span, gs, outs, g, out, i, step);
        slopes(gs, outs, total, logs);
        span.store(grad, i, step, gs);
    }
}

extern "C" __global__ void __launch_bounds__(128)
softmax_backward_columns(const T* __restrict__ g, const T* __restrict__ out, T* __restrict__ grad, i64 outer,
                         i64 width, i64 inner, i64 logs) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= inner) return;
    for (i64 o = blockIdx.y; o < outer; o += gridDim.y) {
        i64 start = o * width * inner + column;
        A total = 0;
#pragma unroll 8
        for (i64 i = 0; i < width; i++) {
            i64 at = start + i * inner;
            total += part(up(g[at]), up(out[at]), logs);
        }
#pragma unroll 8
        for (i64 i = 0; i < width; i++) {
            i64 at = start + i * inner;
            grad[at] = down<T>(slope(up(g[at]), up(out[at]), total, logs));
        }
    }
}

#define BACKWARD(name, most, K, LANES)                                                          \
    extern "C" __global__ void __launch_bounds__(most)                                          \
    softmax_backward_##name(const T* g, const T* out, T* grad, i64 rows, i64 width, i64 logs) { \
        backward<K, LANES>(g, out, grad, rows, width, logs);                                    \
    }
BACKWARD(lanes2, 128, 1, 2)
BACKWARD(lanes8, 128, 1, 8)
BACKWARD(warp1, 128, 1, WARP)
BACKWARD(warp4, 128, 4, WARP)
BACKWARD(block, 512, HELD, BLOCK)
