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
#define BATCH 4

struct Running {  // the largest element so far, Σ exp(element − it), Σ weight·element
    A top, sum, weighted;
};

__device__ __forceinline__ A finite_shift(A top) { return top == (A)-INFINITY_ ? (A)0 : top; }

// Elements of −inf leave everything as it is; a NaN gets into the sum.
__device__ __forceinline__ void see(Running& r, const Pack<T, V>& pack) {
    A top = r.top;
#pragma unroll
    for (int j = 0; j < V; j++) top = up(pack.v[j]) > top ? up(pack.v[j]) : top;
    A shift = finite_shift(top);
    if (top != r.top) {
        r.sum *= quick_exp(r.top - shift);
        r.top = top;
    }
#pragma unroll
    for (int j = 0; j < V; j++) r.sum += quick_exp(up(pack.v[j]) - shift);
}

__device__ __forceinline__ void see_weighted(Running& r, const T* x, const A* weight, i64 first, i64 width) {
#pragma unroll
    for (int j = 0; j < V; j++) {
        i64 i = first + j;
        if (i >= 0 && i < width) r.weighted += weight ? weight[i] * up(x[i]) : up(x[i]);
    }
}

// losses, sums (log Σ exp) and shares (the weight of the target, 0 if ignored): R of each.
// weights_sum: Σ weight (null: C).
template <bool BLOCK>
__device__ __forceinline__ void forward(const T* __restrict__ x, const i64* target, const A* weight,
                                        const A* weights_sum, A* losses, A* sums, A* shares, i64 rows,
                                        i64 width, i64 ignored, double smoothing) {
    __shared__ A scratch[WARP];
    Team<BLOCK> team;
    if (team.row >= rows) return;
    x += team.row * width;
    int phase = phase_of(x);
    const A lowest = (A)-INFINITY_;
    Running r = {lowest, 0, 0};
    i64 step = (i64)team.size * V;
    for (i64 i = (i64)team.lane * V - phase; i < width; i += BATCH * step) {
        Pack<T, V> pack[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) pack[k] = load_pack(x, i + k * step, width, true, down<T>(lowest));
#pragma unroll
        for (int k = 0; k < BATCH; k++) see(r, pack[k]);
        if (smoothing != 0) {
            for (int k = 0; k < BATCH; k++) see_weighted(r, x, weight, i + k * step, width);
        }
    }
    A top = team_reduce<BLOCK>(r.top, Max(), scratch, lowest);
    A shift = finite_shift(top);
    A sum = team_reduce<BLOCK>(r.sum * quick_exp(r.top - shift), Add(), scratch, (A)0);
    A weighted = smoothing != 0 ? team_reduce<BLOCK>(r.weighted, Add(), scratch, (A)0) : (A)0;
    if (team.lane != 0) return;
    if (top == lowest) sum = top - top;  // nothing but −inf: NaN, as 0/0
    A all = top + log(sum);
    i64 t = target[team.row];
    sums[team.row] = all;
    if (t == ignored) {
        losses[team.row] = shares[team.row] = 0;
        return;
    }
    bool known = t >= 0 && t < width;
    A share = !known ? (A)0 / (all - all) : weight ? weight[t] : (A)1;
    A loss = known ? (all - up(x[t])) * share : share;
    if (smoothing != 0) {
        A even = all * (weights_sum ? *weights_sum : (A)width) - weighted;
        loss = loss * (A)(1 - smoothing) + even * (A)(smoothing / width);
    }
    losses[team.row] = loss;
    shares[team.row] = share;
}

extern "C" __global__ void __launch_bounds__(128)
cross_entropy_warps(const T* x, const i64* target, const A* weight, const A* weights_sum, A* losses, A* sums,
                    A* shares, i64 rows, i64 width, i64 ignored, double smoothing) {
    forward<false>(x, target, weight, weights_sum, losses, sums, shares, rows, width, ignored, smoothing);
}
extern "C" __global__ void __launch_bounds__(512)
cross_entropy_rows(const T* x, const i64* target, const A* weight, const A* weights_sum, A* losses, A* sums,
                   A* shares, i64 rows, i64 width, i64 ignored, double smoothing) {
    forward<true>(x, target, weight, weights_sum, losses, sums, shares, rows, width, ignored, smoothing);
}

// Sums of losses and of shares over a strip of `chunk` rows each: two values a block.
extern "C" __global__ void __launch_bounds__(512)
loss_strips(const A* losses, const A* shares, A* loss_parts, A* share_parts, i64 rows, i64 chunk) {
    __shared__ A scratch[WARP];
    i64 begin = blockIdx.x * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    A loss = 0, share = 0;
    for (i64 i = begin + threadIdx.x; i < end; i += blockDim.x) {
        loss += losses[i];
        share += shares[i];
    }
    loss = block_reduce(loss, Add(), scratch, (A)0);
    share = block_reduce(share, Add(), scratch, (A)0);
    if (threadIdx.x == 0) {
        loss_parts[blockIdx.x] = loss;
        share_parts[blockIdx.x] = share;
    }
}

// The sum of all losses (mean: over that of all shares), to one of `out` and `wide`; and the latter sum.
extern "C" __global__ void __launch_bounds__(512)
loss_total(const A* losses, const A* shares, T* out, A* wide, A* total, i64 rows, i64 mean) {
    __shared__ A scratch[WARP];
    A loss = 0, share = 0;
    for (i64 i = threadIdx.x; i < rows; i += blockDim.x) {
        loss += losses[i];
        share += shares[i];
    }
    loss = block_reduce(loss, Add(), scratch, (A)0);
    share = block_reduce(share, Add(), scratch, (A)0);
    if (threadIdx.x == 0) {
        if (mean) loss = loss / share;
        if (wide) {
            *wide = loss;
        } else {
            *out = down<T>(loss);
        }
        *total = share;
    }
}

// grad_c = g·[(1 − s)·w_t·(p_c − [c = t]) + s/C·(W·p_c − w_c)], p = exp(x − lse), W = Σ w_c; g is divided
// by `total` if there is one. The gradient of the loss is one of g and wide, a value per row if `each`.
template <bool BLOCK>
__device__ __forceinline__ void backward(const T* __restrict__ x, const i64* target, const A* weight,
                                         const A* weights_sum, const A* sums, const A* shares,
                                         const A* total, const T* g, const A* wide, T* grad, i64 rows,
                                         int width, i64 ignored, double smoothing, bool each) {
    Team<BLOCK> team;
    i64 row = team.row;
    if (row >= rows) return;
    x += row * width;
    grad += row * width;
    i64 t = target[row];
    bool counts = t != ignored;
    A scale = wide ? wide[each ? row : 0] : up(g[each ? row : 0]);
    if (total) scale = scale / *total;
    A all = sums[row], share = shares[row] * (A)(1 - smoothing) * scale, even = 0;
    if (smoothing != 0) even = (A)(smoothing / width) * scale;
    A factor = share + even * (weights_sum ? *weights_sum : (A)width);
    int at = (int)t, phase = phase_of(x), step = team.size * V;
    bool alike = phase_of(grad) == phase;
    for (int i = team.lane * V - phase; i < width; i += BATCH * step) {
        Pack<T, V> pack[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) pack[k] = load_pack(x, i + k * step, width, true, T());
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int first = i + k * step;
#pragma unroll
            for (int j = 0; j < V; j++) {
                int c = first + j;
                A a = quick_exp(up(pack[k].v[j]) - all) * factor;
                if (even != 0) a -= even * (weight && c >= 0 && c < width ? weight[c] : (A)1);
                if (c == at) a -= share;
                pack[k].v[j] = down<T>(counts ? a : (A)0);
            }
            store_pack(grad, first, width, alike, pack[k]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
cross_entropy_backward_warps(const T* x, const i64* target, const A* weight, const A* weights_sum,
                             const A* sums, const A* shares, const A* total, const T* g, const A* wide,
                             T* grad, i64 rows, i64 width, i64 ignored, double smoothing, i64 each) {
    backward<false>(x, target, weight, weights_sum, sums, shares, total, g, wide, grad, rows, (int)width,
                    ignored, smoothing, each);
}
extern "C" __global__ void __launch_bounds__(512)
cross_entropy_backward_rows(const T* x, const i64* target, const A* weight, const A* weights_sum,
                            const A* sums, const A* shares, const A* total, const T* g, const A* wide,
                            T* grad, i64 rows, i64 width, i64 ignored, double smoothing, i64 each) {
    backward<true>(x, target, weight, weights_sum, sums, shares, total, g, wide, grad, rows, (int)width,
                   ignored, smoothing, each);
}
