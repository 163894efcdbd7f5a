// LayerNorm and RMSNorm over rows: forward, and backward with the gradients of weight and bias.
//
// RMSNorm is what these kernels do where `centred` is 0. `stats` holds what backward needs of each row: the
// means (if centred), then the scales 1/√(variance + eps). Backward goes over the rows once: a block
// keeps the columns' sums of its rows in registers and leaves them in `parts`, which `norm_finish` adds
// up; no atomics, so results repeat bit by bit. Arrays start on 16 bytes.
// variants: ELEMENT=float WEIGHT=float
// variants: ELEMENT=double WEIGHT=double
// variants: ELEMENT=half_t WEIGHT=half_t,float
// variants: ELEMENT=bf16_t WEIGHT=bf16_t,float
#include "mma.cuh"
#include "rows.cuh"

typedef ELEMENT T;
typedef WEIGHT W;
typedef Acc<T>::type A;
#define V PACK(T)
#define HELD 4    // packs of a thread of a block, forward
#define BATCH 2   // packs of two arrays in rows that no block holds
#define MOST 512  // threads of a block in backward

// ---- forward ---------------------------------------------------------------------------------------

template <class I>
__device__ __forceinline__ A square_sum(const Words<T>& words, A mean, const Span<T, I>& span, I first) {
    A sum = 0;
    if (first >= 0 && first + V <= span.width) {
#pragma unroll
        for (int j = 0; j < V; j++) sum += (words.at(j) - mean) * (words.at(j) - mean);
    } else if (first < span.width) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            A d = words.at(j) - mean;
            if (span.holds(first + j)) sum += d * d;
        }
    }
    return sum;
}

template <class I>
__device__ __forceinline__ void normalise(Words<T>& words, const W* __restrict__ weight,
                                          const W* __restrict__ bias, A mean, A scale,
                                          const Span<T, I>& span, I first) {
    if (span.phase == 0 && first + V <= span.width) {  // both loads before the first use
        Pack<W, V> w, b;
#pragma unroll
        for (int j = 0; j < V; j++) w.v[j] = down<W>(1), b.v[j] = down<W>(0);
        if (weight) w = *reinterpret_cast<const Pack<W, V>*>(weight + first);
        if (bias) b = *reinterpret_cast<const Pack<W, V>*>(bias + first);
#pragma unroll
        for (int j = 0; j < V; j++) {
            words.put(j, (words.at(j) - mean) * scale * up(w.v[j]) + up(b.v[j]));
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (!span.holds(first + j)) continue;
        A a = (words.at(j) - mean) * scale;
        if (weight) a *= up(weight[first + j]);
        if (bias) a += up(bias[first + j]);
        words.put(j, a);
    }
}

template <int K, int LANES>
__device__ __forceinline__ void forward(const T* __restrict__ x, const W* __restrict__ weight,
                                        const W* __restrict__ bias, T* __restrict__ out, A* stats, i64 rows,
                                        i64 width, double eps, bool centred) {
    __shared__ A scratch[2][WARP];
    Team<LANES> team(rows);
    x += team.row * width;
    out += team.row * width;
    Span<T, int> span(x, team.there ? width : 0);
    int first = team.lane * V - span.phase, step = team.size * V;
    Words<T> held[K];
    span.load(held, x, first, step, T());
    span.mend(held, x, first, step, T());
    A mean = 0, sum = 0;
    if (centred) {
#pragma unroll
        for (int k = 0; k < K; k++) {
#pragma unroll
            for (int j = 0; j < V; j++) mean += held[k].at(j);
        }
        mean = team.reduce(mean, Add(), scratch[0], (A)0) / (A)width;
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        held[k].forget();
        sum += square_sum(held[k], mean, span, first + k * step);
    }
    sum = team.reduce(sum, Add(), scratch[1], (A)0);
    A scale = 1 / sqrt(sum / (A)width + (A)eps);
    if (team.lane == 0 && team.there) {
        if (centred) stats[team.row] = mean;
        stats[centred ? rows + team.row : team.row] = scale;
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        held[k].forget();
        if (first + k * step < span.width) {
            normalise(held[k], weight, bias, mean, scale, span, first + k * step);
        }
    }
    span.store(out, first, step, held);
}

extern "C" __global__ void __launch_bounds__(512)
norm_long(const T* x, const W* weight, const W* bias, T* out, A* stats, i64 rows, i64 width, double eps,
          i64 centred) {
    __shared__ A scratch[2][WARP];
    Team<BLOCK> team(rows);
    x += team.row * width;
    out += team.row * width;
    Span<T, i64> span(x, width);
    i64 first = team.lane * V - span.phase, step = team.size * V;
    Words<T> held[BATCH];
    A mean = 0, sum = 0;
    if (centred) {
        for (i64 i = first; i < width; i += BATCH * step) {
            span.load(held, x, i, step, T());
            span.mend(held, x, i, step, T());
#pragma unroll
            for (int k = 0; k < BATCH; k++) {
#pragma unroll
                for (int j = 0; j < V; j++) mean += held[k].at(j);
            }
        }
        mean = team.reduce(mean, Add(), scratch[0], (A)0) / (A)width;
    }
    for (i64 i = first; i < width; i += BATCH * step) {
        span.load(held, x, i, step, T());
        span.mend(held, x, i, step, T());
#pragma unroll
        for (int k = 0; k < BATCH; k++) sum += square_sum(held[k], mean, span, i + k * step);
    }
    sum = team.reduce(sum, Add(), scratch[1], (A)0);
    A scale = 1 / sqrt(sum / (A)width + (A)eps);
    if (team.lane == 0) {
        if (centred) stats[team.row] = mean;
        stats[centred ? rows + team.row : team.row] = scale;
    }
    for (i64 i = first; i < width; i += BATCH * step) {
        span.load(held, x, i, step, T());
        span.mend(held, x, i, step, T());
#pragma unroll
        for (int k = 0; k < BATCH; k++) normalise(held[k], weight, bias, mean, scale, span, i + k * step);
        span.store(out, i, step, held);
    }
}

#define FORWARD(name, most, K, LANES)                                                      \
    extern "C" __global__ void __launch_bounds__(most)                                     \
    norm_##name(const T* x, const W* weight, const W* bias, T* out, A* stats, i64 rows,    \
                i64 width, double eps, i64 centred) {                                      \
        forward<K, LANES>(x, weight, bias, out, stats, rows, width, eps, centred);         \
    }
FORWARD(lanes2, 128, 1, 2)
FORWARD(lanes8, 128, 1, 8)
FORWARD(warp1, 128, 1, WARP)
FORWARD(warp4, 128, 4, WARP)
FORWARD(block, 1024, HELD, BLOCK)

// ---- backward --------------------------------------------------------------------------------------
// x̂ = (x − mean)·scale, h = g·weight; grad x = scale·(h − Σh/C − x̂·Σ(h·x̂)/C), without the first sum in
// RMSNorm; grad weight = Σ_rows g·x̂, grad bias = Σ_rows g.

struct Sums {
    A h, hx;
};

// Over `team` threads, whole warps, of which this one is number `lane`. `scratch` is written anew by the
// next call but one at the earliest, so that its barrier is the only one.
__device__ __forceinline__ Sums reduce(Sums s, Sums* scratch, int lane, int team) {
    s.h = warp_reduce(s.h, Add());
    s.hx = warp_reduce(s.hx, Add());
    if (team == WARP) return s;
    int place = lane % WARP, warp = lane / WARP;
    scratch += threadIdx.x / WARP - warp;
    if (place == 0) scratch[warp] = s;
    __syncthreads();
    if (place < team / WARP) {
        s = scratch[place];
    } else {
        s.h = s.hx = 0;
    }
    s.h = warp_reduce(s.h, Add());
    s.hx = warp_reduce(s.hx, Add());
    return s;
}

// The sums of a block's columns into its row of parts; teams, each with all columns, are added up in
// shared memory one after another.
template <int K>
__device__ __forceinline__ void leave(A (&gw)[K][V], A (&gb)[K][V], A* parts, A* shared, int width, int lane,
                                      int team) {
    A* part_w = parts + (i64)blockIdx.x * width;
    A* part_b = parts + ((i64)gridDim.x + blockIdx.x) * width;
    bool alone = team == blockDim.x;
    A *to_w = alone ? part_w : shared, *to_b = alone ? part_b : shared + width;
    for (int turn = 0; turn < blockDim.x / team; turn++) {
        if (threadIdx.x / team == turn) {
#pragma unroll
            for (int k = 0; k < K; k++) {
#pragma unroll
                for (int j = 0; j < V; j++) {
                    int c = (lane + k * team) * V + j;
                    if (c < width) {
                        to_w[c] = (turn ? to_w[c] : (A)0) + gw[k][j];
                        to_b[c] = (turn ? to_b[c] : (A)0) + gb[k][j];
                    }
                }
            }
        }
        if (!alone) __syncthreads();
    }
    for (int c = threadIdx.x; !alone && c < width; c += blockDim.x) {
        part_w[c] = shared[c];
        part_b[c] = shared[width + c];
    }
}

// A block works on blockDim.x / team rows at a time. The next rows are on their way to shared memory while
// these are worked on (registers for them would halve the threads); every thread reads what it has
// fetched itself. Width is a multiple of V, at most team·K packs. parts: 2×gridDim.x×width (null: no
// gradients of weight and bias wanted). Dynamic shared memory: 4·K packs a thread.
template <int K>
__device__ __forceinline__ void backward(const T* __restrict__ g, const T* __restrict__ x,
                                         const W* __restrict__ weight, const A* __restrict__ stats,
                                         T* __restrict__ grad, A* parts, int rows, int width, int team,
                                         bool centred) {
    __shared__ Sums scratch[2][MOST / WARP];
    DYNAMIC_SHARED(Words<T>, stage);
    int lane = threadIdx.x % team, begin = lane * V, step = team * V;
    int row = blockIdx.x * (blockDim.x / team) + threadIdx.x / team, stride = gridDim.x * (blockDim.x / team);
    A gw[K][V], gb[K][V];
    Pack<W, V> w[K];
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) gw[k][j] = gb[k][j] = 0, w[k].v[j] = down<W>(1);
        if (weight && begin + k * step < width) {
            w[k] = *reinterpret_cast<const Pack<W, V>*>(weight + begin + k * step);
        }
    }
    // what lies in the two halves of `stage`: packs of g, then of x, each blockDim.x apart
    Words<T>*now = stage + threadIdx.x, *ahead = now + 2 * K * blockDim.x;
    i64 place = (i64)row * width + begin, leap = (i64)stride * width;
    A next_mean, next_scale;
    auto fetch = [&](Words<T>* to, int row, i64 place) {  // zeros where there is no row or it has ended
        bool there = row < rows;
#pragma unroll
        for (int k = 0; k < K; k++) {
            bool given = there && begin + k * step < width;
            copy_16(to + k * blockDim.x, g + place + k * step, given);
            copy_16(to + (K + k) * blockDim.x, x + place + k * step, given);
        }
        next_mean = there && centred ? stats[row] : (A)0;
        next_scale = there ? stats[centred ? rows + row : row] : (A)0;
    };
    fetch(now, row, place);
    const A share = (A)1 / (A)width;
    int turn = 0;
#pragma unroll 1
    for (int i = row - threadIdx.x / team; i < rows; i += stride, place += leap, turn ^= 1) {
        A mean = next_mean, scale = next_scale;
        wait_for_copies();
        fetch(ahead, row + stride, place + leap);
        Sums s = {0, 0};
#pragma unroll
        for (int k = 0; k < K; k++) {
            Words<T> gs = now[k * blockDim.x], xs = now[(K + k) * blockDim.x];
#pragma unroll
            for (int j = 0; j < V; j++) {
                A a = gs.at(j), xhat = (xs.at(j) - mean) * scale;
                gw[k][j] += a * xhat;
                gb[k][j] += a;
                a *= up(w[k].v[j]);
                s.h += a;
                s.hx += a * xhat;
            }
        }
        s = reduce(s, scratch[turn], lane, team);
        // scale·(h − Σh/C − x̂·Σ(h·x̂)/C) as h·scale + ((x − mean)·slope + level)
        A level = centred ? -s.h * share * scale : (A)0, slope = -s.hx * share * scale * scale;
#pragma unroll
        for (int k = 0; k < K; k++) {
            Words<T> gs = now[k * blockDim.x], xs = now[(K + k) * blockDim.x];
#pragma unroll
            for (int j = 0; j < V; j++) {
                gs.put(j, gs.at(j) * up(w[k].v[j]) * scale + ((xs.at(j) - mean) * slope + level));
            }
            if (row < rows && begin + k * step < width) store_16(grad + place + k * step, gs.raw);
        }
        row += stride;
        Words<T>* done = now;
        now = ahead;
        ahead = done;
    }
    wait_for_copies();
    __syncthreads();  // shared memory has another use from here on
    if (parts) leave<K>(gw, gb, parts, reinterpret_cast<A*>(stage), width, lane, team);
}

#define BACKWARD(name, K, blocks)                                                                     \
    extern "C" __global__ void __launch_bounds__(MOST, blocks)                                        \
    norm_backward_##name(const T* g, const T* x, const W* weight, const A* stats, T* grad, A* parts,  \
                         i64 rows, i64 width, i64 team, i64 centred) {                                \
        backward<K>(g, x, weight, stats, grad, parts, (int)rows, (int)width, (int)team, centred);     \
    }
BACKWARD(block, sizeof(T) == 2 ? 1 : 2, 2)
BACKWARD(wide, sizeof(T) == 2 ? 2 : 4, 1)

// Rows of any width, wherever they start; a block a row. The gradient of x alone.
extern "C" __global__ void __launch_bounds__(512)
norm_backward_long(const T* __restrict__ g, const T* __restrict__ x, const W* __restrict__ weight,
                   const A* stats, T* __restrict__ grad, i64 rows, i64 width, i64 centred) {
    __shared__ Sums scratch[WARP];
    i64 row = blockIdx.x;
    g += row * width;
    x += row * width;
    grad += row * width;
    Span<T, i64> span(x, width);
    i64 begin = (i64)threadIdx.x * V - span.phase, step = (i64)blockDim.x * V;
    bool beside = span.phase == 0;
    A mean = centred ? stats[row] : (A)0, scale = stats[centred ? rows + row : row];
    Words<T> gs[BATCH], xs[BATCH];
    Sums s = {0, 0};
    for (i64 i = begin; i < width; i += BATCH * step) {
        span.load(gs, g, i, step, T());
        span.load(xs, x, i, step, T());
        span.mend(gs, g, i, step, T());
        span.mend(xs, x, i, step, T());
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            A w[V];
            if (weight) load_beside<V>(weight, i + k * step, width, beside, w);
#pragma unroll
            for (int j = 0; j < V; j++) {
                A a = gs[k].at(j);
                if (weight) a *= w[j];
                s.h += a;
                s.hx += a * ((xs[k].at(j) - mean) * scale);
            }
        }
    }
    s = reduce(s, scratch, threadIdx.x, blockDim.x);
    A level = centred ? s.h / (A)width : (A)0, along = s.hx / (A)width;
    for (i64 i = begin; i < width; i += BATCH * step) {
        span.load(gs, g, i, step, T());
        span.load(xs, x, i, step, T());
        span.mend(gs, g, i, step, T());
        span.mend(xs, x, i, step, T());
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            A w[V];
            if (weight) load_beside<V>(weight, i + k * step, width, beside, w);
#pragma unroll
            for (int j = 0; j < V; j++) {
                A a = gs[k].at(j);
                if (weight) a *= w[j];
                gs[k].put(j, (a - level - (xs[k].at(j) - mean) * scale * along) * scale);
            }
        }
        span.store(grad, i, step, gs);
    }
}

// Sums over the rows of strip blockIdx.y, a thread a column: parts as above, strips in place of blocks.
extern "C" __global__ void __launch_bounds__(128)
norm_columns(const T* __restrict__ g, const T* __restrict__ x, const A* __restrict__ stats, A* parts, i64 rows,
             i64 width, i64 chunk, i64 centred) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= width) return;
    i64 begin = blockIdx.y * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    const A* scales = centred ? stats + rows : stats;
    A gw = 0, gb = 0;
#pragma unroll 4
    for (i64 row = begin; row < end; row++) {
        A a = up(g[row * width + column]);
        gw += a * ((up(x[row * width + column]) - (centred ? stats[row] : (A)0)) * scales[row]);
        gb += a;
    }
    parts[blockIdx.y * width + column] = gw;
    parts[((i64)gridDim.y + blockIdx.y) * width + column] = gb;
}

// The gradients of weight and bias: sums of the columns of parts, 2×count×width. A block sums 32 columns
// with 16 rows of threads; blocks of the second half do the bias.
extern "C" __global__ void __launch_bounds__(MOST)
norm_finish(const A* __restrict__ parts, W* weight, W* bias, i64 count, i64 width) {
    __shared__ A shared[MOST];
    int lane = threadIdx.x % WARP, turns = MOST / WARP, half = gridDim.x / 2;
    bool second = blockIdx.x >= half;
    i64 column = (i64)(second ? blockIdx.x - half : blockIdx.x) * WARP + lane;
    const A* from = parts + (second ? count * width : 0) + column;
    A sum = 0;
    if (column < width) {
#pragma unroll 8
        for (i64 i = threadIdx.x / WARP; i < count; i += turns) sum += from[i * width];
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int rest = turns / 2; rest; rest /= 2) {
        if (threadIdx.x / WARP < rest) shared[threadIdx.x] += shared[threadIdx.x + rest * WARP];
        __syncthreads();
    }
    if (threadIdx.x < WARP && column < width) (second ? bias : weight)[column] = down<W>(shared[lane]);
}
