// Cross entropy of logits at class indices: −log softmax(x)[target], without a softmax in memory.
//
// Forward reads the logits once and keeps a row's log Σ exp; backward reads them once more and writes
// their gradient. With weights w of the classes (1 without) and smoothing s the loss of a row x at t is
//     (1 − s)·w_t·(lse − x_t) + s/C·Σ_c w_c·(lse − x_c),
// 0 where t is the ignored index. A target that is no class makes it NaN.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "rows.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;
#define V PACK(T)
#define BATCH 4  // packs that a thread loads before it uses the first

template <class> struct Power { typedef Folded type; };
template <> struct Power<float> { typedef Quick type; };
template <> struct Power<double> { typedef Exact type; };
typedef Power<T>::type E;

// Σ weight·element over the elements of a pack that are the row's.
__device__ __forceinline__ A weigh(const Words<T>& words, const A* weight, const Span<T, int>& span, int first) {
    A sum = 0;
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (span.holds(first + j)) sum += weight ? weight[first + j] * words.at(j) : words.at(j);
    }
    return sum;
}

// stats: R losses, R sums (log Σ exp), R shares (the weight of the target, 0 if ignored), and their total.
// weights_sum: Σ weight (null: C).
template <int LANES>
__device__ __forceinline__ void forward(const T* __restrict__ x, const i64* __restrict__ target,
                                        const A* __restrict__ weight, const A* weights_sum, A* stats,
                                        i64 rows, i64 width, i64 ignored, double smoothing) {
    __shared__ A scratch[3][WARP];
    Team<LANES> team(rows);
    if (!team.there) return;
    x += team.row * width;
    const T lowest = down<T>((A)-INFINITY_);
    i64 t = target[team.row];
    bool known = t >= 0 && t < width;
    T picked = known ? x[t] : lowest;
    Span<T, int> span(x, width);
    int first = team.lane * V - span.phase, step = team.size * V;
    Running<A, E> seen;
    A weighted = 0;
    Words<T> held[BATCH];
    for (int i = first; i < span.width; i += BATCH * step) {
        span.load(held, x, i, step, lowest);
        span.mend(held, x, i, step, lowest);
        seen.see(held);
        if (smoothing != 0) {
#pragma unroll
            for (int k = 0; k < BATCH; k++) weighted += weigh(held[k], weight, span, i + k * step);
        }
    }
    seen.rise(team.reduce(seen.top, Top(), scratch[0], up(lowest)));
    A sum = team.reduce(seen.sum, Add(), scratch[1], (A)0);
    if (smoothing != 0) weighted = team.reduce(weighted, Add(), scratch[2], (A)0);
    if (team.lane != 0) return;
    if (seen.top == up(lowest)) sum = seen.top - seen.top;  // nothing but −inf: NaN, as 0/0
    A all = seen.top + log(sum);
    stats[rows + team.row] = all;
    if (t == ignored) {
        stats[team.row] = stats[2 * rows + team.row] = 0;
        return;
    }
    A share = !known ? (A)0 / (all - all) : weight ? weight[t] : (A)1;
    A loss = known ? (all - up(picked)) * share : share;
    if (smoothing != 0) {
        A even = all * (weights_sum ? *weights_sum : (A)width) - weighted;
        loss = loss * (A)(1 - smoothing) + even * (A)(smoothing / width);
    }
    stats[team.row] = loss;
    stats[2 * rows + team.row] = share;
}

#define FORWARD(name, most, LANES)                                                                      \
    extern "C" __global__ void __launch_bounds__(most)                                                  \
    cross_entropy_##name(const T* x, const i64* target, const A* weight, const A* weights_sum,          \
                         A* stats, i64 rows, i64 width, i64 ignored, double smoothing) {                \
        forward<LANES>(x, target, weight, weights_sum, stats, rows, width, ignored, smoothing);         \
    }
FORWARD(warps, 128, WARP)
FORWARD(rows, 512, BLOCK)

// Sums of losses and of shares over a strip of `chunk` rows each: two values a block.
extern "C" __global__ void __launch_bounds__(512)
loss_strips(const A* stats, A* parts, i64 rows, i64 chunk) {
    __shared__ A scratch[2][WARP];
    Team<BLOCK> team(gridDim.x);
    i64 begin = team.row * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    A loss = 0, share = 0;
#pragma unroll 4
    for (i64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        loss += stats[i];
        share += stats[2 * rows + i];
    }
    loss = team.reduce(loss, Add(), scratch[0], (A)0);
    share = team.reduce(share, Add(), scratch[1], (A)0);
    if (threadIdx.x == 0) {
        parts[team.row] = loss;
        parts[gridDim.x + team.row] = share;
    }
}

// The sum of `count` losses (mean: over that of all shares, which lie `between` elements behind them), to one
// of `out` and `wide`; and the latter sum to the end of stats.
extern "C" __global__ void __launch_bounds__(1024)
loss_total(const A* losses, i64 between, T* out, A* wide, A* stats, i64 rows, i64 count, i64 mean) {
    __shared__ A scratch[2][WARP];
    Team<BLOCK> team(1);
    A loss = 0, share = 0;
#pragma unroll 8
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        loss += losses[i];
        share += losses[between + i];
    }
    loss = team.reduce(loss, Add(), scratch[0], (A)0);
    share = team.reduce(share, Add(), scratch[1], (A)0);
    if (threadIdx.x == 0) {
        if (mean) loss = loss / share;
        if (wide) {
            *wide = loss;
        } else {
            *out = down<T>(loss);
        }
        stats[3 * rows] = share;
    }
}

// grad_c = g·[(1 − s)·w_t·(p_c − [c = t]) + s/C·(W·p_c − w_c)], p = exp(x − lse), W = Σ w_c; g is divided
// by the total of the shares if `mean`. The gradient of the loss is one of g and wide, a value per row if `each`.
template <int LANES>
__device__ __forceinline__ void backward(const T* __restrict__ x, const i64* __restrict__ target,
                                         const A* __restrict__ weight, const A* weights_sum,
                                         const A* stats, const T* g, const A* wide, T* __restrict__ grad,
                                         i64 rows, i64 width, i64 ignored, double smoothing, bool each,
                                         bool mean) {
    Team<LANES> team(rows);
    if (!team.there) return;
    i64 row = team.row, t = target[row];
    x += row * width;
    grad += row * width;
    Span<T, int> span(x, width);
    int begin = team.lane * V - span.phase, step = team.size * V;
    Words<T> held[BATCH];
    if (t == ignored) {
#pragma unroll
        for (int k = 0; k < BATCH; k++) held[k].clear();
        for (int i = begin; i < span.width; i += BATCH * step) span.store(grad, i, step, held);
        return;
    }
    A scale = wide ? wide[each ? row : 0] : up(g[each ? row : 0]);
    if (mean) scale = scale / stats[3 * rows];
    A share = stats[2 * rows + row] * (A)(1 - smoothing) * scale, even = 0;
    if (smoothing != 0) even = (A)(smoothing / width) * scale;
    A start = E::from(stats[rows + row]), factor = share + even * (weights_sum ? *weights_sum : (A)width);
    int at = t >= 0 && t < width ? (int)t : -2 * V;  // no pack begins there
    for (int i = begin; i < span.width; i += BATCH * step) {
        span.load(held, x, i, step, T());
        span.mend(held, x, i, step, T());
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int first = i + k * step;
            A slope[V];
#pragma unroll
            for (int j = 0; j < V; j++) slope[j] = E::of(held[k].at(j), start) * factor;
            if (even != 0) {
#pragma unroll
                for (int j = 0; j < V; j++) {
                    slope[j] -= even * (weight && span.holds(first + j) ? weight[first + j] : (A)1);
                }
            }
            if (first <= at && at < first + V) {
#pragma unroll
                for (int j = 0; j < V; j++) slope[j] -= first + j == at ? share : (A)0;
            }
#pragma unroll
            for (int j = 0; j < V; j++) held[k].put(j, slope[j]);
        }
        span.store(grad, i, step, held);
    }
}

#define BACKWARD(name, most, LANES)                                                                     \
    extern "C" __global__ void __launch_bounds__(most)                                                  \
    cross_entropy_backward_##name(const T* x, const i64* target, const A* weight, const A* weights_sum, \
                                  const A* stats, const T* g, const A* wide, T* grad, i64 rows,         \
                                  i64 width, i64 ignored, double smoothing, i64 each, i64 mean) {       \
        backward<LANES>(x, target, weight, weights_sum, stats, g, wide, grad, rows, width, ignored,     \
                        smoothing, each, mean);                                                         \
    }
BACKWARD(warps, 128, WARP)
BACKWARD(rows, 512, BLOCK)
