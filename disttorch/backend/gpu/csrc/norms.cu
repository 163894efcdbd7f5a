// LayerNorm and RMSNorm over rows: forward, and backward with the gradients of weight and bias.
//
// RMSNorm is what these kernels do where `mean` is null. Backward goes over the rows once: a team keeps
// the columns' sums of its rows in registers and leaves them in `parts`, which a reduction of columns
// adds up; no atomics, so results repeat bit by bit.
// variants: ELEMENT=float WEIGHT=float
// variants: ELEMENT=double WEIGHT=double
// variants: ELEMENT=half_t WEIGHT=half_t,float
// variants: ELEMENT=bf16_t WEIGHT=bf16_t,float
#include "rows.cuh"

typedef ELEMENT T;
typedef WEIGHT W;
typedef Acc<T>::type A;
#define V PACK(T)
#define MANY (sizeof(T) == 4 ? 8 : 4)

// ---- forward ---------------------------------------------------------------------------------------

__device__ __forceinline__ A square_sum(const Pack<T, V>& pack, A mean, i64 first, i64 width) {
    A sum = 0;
    if (first >= 0 && first + V <= width) {
#pragma unroll
        for (int j = 0; j < V; j++) sum += (up(pack.v[j]) - mean) * (up(pack.v[j]) - mean);
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) {
            A d = up(pack.v[j]) - mean;
            if (first + j >= 0 && first + j < width) sum += d * d;
        }
    }
    return sum;
}

__device__ __forceinline__ void normalise(Pack<T, V>& pack, const W* weight, const W* bias, A mean, A scale,
                                          i64 first, i64 width, bool beside) {
    A w[V], b[V];
    if (weight) load_beside<V>(weight, first, width, beside, w);
    if (bias) load_beside<V>(bias, first, width, beside, b);
#pragma unroll
    for (int j = 0; j < V; j++) {
        A a = (up(pack.v[j]) - mean) * scale;
        if (weight) a *= w[j];
        if (bias) a += b[j];
        pack.v[j] = down<T>(a);
    }
}

template <int K, bool BLOCK>
__device__ __forceinline__ void forward(const T* __restrict__ x, const W* weight, const W* bias, T* out,
                                        A* means, A* scales, i64 rows, int width, double eps) {
    __shared__ A scratch[WARP];
    Team<BLOCK> team;
    if (team.row >= rows) return;
    x += team.row * width;
    out += team.row * width;
    int phase = phase_of(x);
    bool alike = phase_of(out) == phase;
    Pack<T, V> pack[K];
#pragma unroll
    for (int k = 0; k < K; k++) {
        pack[k] = load_pack(x, (team.lane + k * team.size) * V - phase, width, true, T());
    }
    A mean = 0, sum = 0;
    if (means) {
#pragma unroll
        for (int k = 0; k < K; k++) {
#pragma unroll
            for (int j = 0; j < V; j++) mean += up(pack[k].v[j]);
        }
        mean = team_reduce<BLOCK>(mean, Add(), scratch, (A)0) / width;
    }
#pragma unroll
    for (int k = 0; k < K; k++) sum += square_sum(pack[k], mean, (team.lane + k * team.size) * V - phase, width);
    sum = team_reduce<BLOCK>(sum, Add(), scratch, (A)0);
    A scale = 1 / sqrt(sum / width + (A)eps);
    if (team.lane == 0) {
        if (means) means[team.row] = mean;
        scales[team.row] = scale;
    }
#pragma unroll
    for (int k = 0; k < K; k++) {
        int first = (team.lane + k * team.size) * V - phase;
        if (first < width) {
            normalise(pack[k], weight, bias, mean, scale, first, width, phase == 0);
            store_pack(out, first, width, alike, pack[k]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(1024)
norm_long(const T* x, const W* weight, const W* bias, T* out, A* means, A* scales, i64 rows, i64 width,
          double eps) {
    __shared__ A scratch[WARP];
    Team<true> team;
    x += team.row * width;
    out += team.row * width;
    int phase = phase_of(x);
    bool alike = phase_of(out) == phase;
    i64 begin = (i64)team.lane * V - phase, step = (i64)team.size * V;
    A mean = 0, sum = 0;
    if (means) {
        for (i64 i = begin; i < width; i += step) {
            Pack<T, V> pack = load_pack(x, i, width, true, T());
#pragma unroll
            for (int j = 0; j < V; j++) mean += up(pack.v[j]);
        }
        mean = block_reduce(mean, Add(), scratch, (A)0) / width;
    }
    for (i64 i = begin; i < width; i += step) {
        sum += square_sum(load_pack(x, i, width, true, T()), mean, i, width);
    }
    sum = block_reduce(sum, Add(), scratch, (A)0);
    A scale = 1 / sqrt(sum / width + (A)eps);
    if (team.lane == 0) {
        if (means) means[team.row] = mean;
        scales[team.row] = scale;
    }
    for (i64 i = begin; i < width; i += step) {
        Pack<T, V> pack = load_pack(x, i, width, true, T());
        normalise(pack, weight, bias, mean, scale, i, width, phase == 0);
        store_pack(out, i, width, alike, pack);
    }
}

extern "C" __global__ void __launch_bounds__(128)
norm_warp1(const T* x, const W* weight, const W* bias, T* out, A* means, A* scales, i64 rows, i64 width,
           double eps) {
    forward<1, false>(x, weight, bias, out, means, scales, rows, (int)width, eps);
}
extern "C" __global__ void __launch_bounds__(128)
norm_warp4(const T* x, const W* weight, const W* bias, T* out, A* means, A* scales, i64 rows, i64 width,
           double eps) {
    forward<4, false>(x, weight, bias, out, means, scales, rows, (int)width, eps);
}
extern "C" __global__ void __launch_bounds__(512)
norm_block(const T* x, const W* weight, const W* bias, T* out, A* means, A* scales, i64 rows, i64 width,
           double eps) {
    forward<MANY, true>(x, weight, bias, out, means, scales, rows, (int)width, eps);
}

// ---- backward --------------------------------------------------------------------------------------
// x̂ = (x − mean)·scale, h = g·weight; grad x = scale·(h − Σh/C − x̂·Σ(h·x̂)/C), without the first sum in
// RMSNorm; grad weight = Σ_rows g·x̂, grad bias = Σ_rows g.

struct Sums {
    A h, hx;
};

template <bool BLOCK> __device__ __forceinline__ Sums reduce(Sums s, Sums* scratch) {
    s.h = warp_reduce(s.h, Add());
    s.hx = warp_reduce(s.hx, Add());
    int warps = blockDim.x / WARP, lane = threadIdx.x % WARP;
    if (!BLOCK || warps == 1) return s;
    if (lane == 0) scratch[threadIdx.x / WARP] = s;
    __syncthreads();
    if (lane < warps) {
        s = scratch[lane];
    } else {
        s.h = s.hx = 0;
    }
    __syncthreads();
    s.h = warp_reduce(s.h, Add());
    s.hx = warp_reduce(s.hx, Add());
    return s;
}

// 16 bytes whose elements are taken out anew after `forget`: kept converted between two loops over them,
// they would need two to four times the registers.
union Held {
    u32 words[4];
    Pack<T, V> pack;
    __device__ __forceinline__ Held() {}
    __device__ __forceinline__ A at(int j) const { return up(pack.v[j]); }
    __device__ __forceinline__ void load(const T* row, int first, int width) {
        if (first < width) {
            pack = *reinterpret_cast<const Pack<T, V>*>(row + first);
        } else {
            words[0] = words[1] = words[2] = words[3] = 0;
        }
    }
    __device__ __forceinline__ void forget() {
#ifndef DISTTORCH_HOST
        asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]) : : "memory");
#endif
    }
};

// The sums of a block's columns into its row of parts; warps of a block, each with all columns, are
// added up in shared memory one after another.
template <int K, bool BLOCK>
__device__ __forceinline__ void leave(A (&gw)[K][V], A (&gb)[K][V], A* parts, int width) {
    DYNAMIC_SHARED(A, shared);
    Team<BLOCK> team;
    A* part_w = parts + (i64)blockIdx.x * width;
    A* part_b = parts + ((i64)gridDim.x + blockIdx.x) * width;
    A *to_w = BLOCK ? part_w : shared, *to_b = BLOCK ? part_b : shared + width;
    int turns = BLOCK ? 1 : blockDim.x / WARP;
    for (int turn = 0; turn < turns; turn++) {
        if (BLOCK || threadIdx.x / WARP == turn) {
#pragma unroll
            for (int k = 0; k < K; k++) {
#pragma unroll
                for (int j = 0; j < V; j++) {
                    int c = (team.lane + k * team.size) * V + j;
                    if (c < width) {
                        to_w[c] = (turn ? to_w[c] : (A)0) + gw[k][j];
                        to_b[c] = (turn ? to_b[c] : (A)0) + gb[k][j];
                    }
                }
            }
        }
        if (!BLOCK) __syncthreads();
    }
    for (int c = threadIdx.x; !BLOCK && c < width; c += blockDim.x) {
        part_w[c] = shared[c];
        part_b[c] = shared[width + c];
    }
}

// Width is a multiple of V, all arrays lie on 16 bytes, a row has at most K packs for each thread of a
// team. parts: 2×gridDim.x×width (null: no gradients of weight and bias wanted). Teams of a warp need
// dynamic shared memory for 2·width values of A.
template <int K, bool BLOCK>
__device__ __forceinline__ void backward(const T* __restrict__ g, const T* __restrict__ x, const W* weight,
                                         const A* means, const A* scales, T* grad, A* parts, i64 rows,
                                         int width) {
    __shared__ Sums scratch[WARP];
    Team<BLOCK> team;
    i64 teams = BLOCK ? gridDim.x : (i64)gridDim.x * (blockDim.x / WARP);
    A gw[K][V], gb[K][V];
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) gw[k][j] = gb[k][j] = 0;
    }
    for (i64 row = team.row; row < rows; row += teams) {
        Held gs[K], xs[K];
#pragma unroll
        for (int k = 0; k < K; k++) {
            int first = (team.lane + k * team.size) * V;
            gs[k].load(g + row * width, first, width);
            xs[k].load(x + row * width, first, width);
        }
        A mean = means ? means[row] : (A)0, scale = scales[row];
        Sums s = {0, 0};
#pragma unroll
        for (int k = 0; k < K; k++) {
            int first = (team.lane + k * team.size) * V;
            gs[k].forget();
            xs[k].forget();
            A w[V];
            if (weight) load_beside<V>(weight, first, width, true, w);
#pragma unroll
            for (int j = 0; j < V; j++) {
                A a = gs[k].at(j), xhat = (xs[k].at(j) - mean) * scale;
                gw[k][j] += a * xhat;
                gb[k][j] += a;
                if (weight) a *= w[j];
                s.h += a;
                s.hx += a * xhat;
            }
        }
        s = reduce<BLOCK>(s, scratch);
        A level = means ? s.h / width : (A)0, along = s.hx / width;
#pragma unroll
        for (int k = 0; k < K; k++) {
            int first = (team.lane + k * team.size) * V;
            if (first >= width) continue;
            gs[k].forget();
            xs[k].forget();
            A w[V];
            if (weight) load_beside<V>(weight, first, width, true, w);
#pragma unroll
            for (int j = 0; j < V; j++) {
                A a = gs[k].at(j), xhat = (xs[k].at(j) - mean) * scale;
                if (weight) a *= w[j];
                gs[k].pack.v[j] = down<T>((a - level - xhat * along) * scale);
            }
            *reinterpret_cast<Pack<T, V>*>(grad + row * width + first) = gs[k].pack;
        }
    }
    if (parts) leave<K, BLOCK>(gw, gb, parts, width);
}

extern "C" __global__ void __launch_bounds__(256, 2)
norm_backward_warp1(const T* g, const T* x, const W* weight, const A* means, const A* scales, T* grad,
                    A* parts, i64 rows, i64 width) {
    backward<1, false>(g, x, weight, means, scales, grad, parts, rows, (int)width);
}
extern "C" __global__ void __launch_bounds__(256, 2)
norm_backward_warp3(const T* g, const T* x, const W* weight, const A* means, const A* scales, T* grad,
                    A* parts, i64 rows, i64 width) {
    backward<3, false>(g, x, weight, means, scales, grad, parts, rows, (int)width);
}
extern "C" __global__ void __launch_bounds__(512)
norm_backward_block(const T* g, const T* x, const W* weight, const A* means, const A* scales, T* grad,
                    A* parts, i64 rows, i64 width) {
    backward<sizeof(T) == 2 ? 2 : 4, true>(g, x, weight, means, scales, grad, parts, rows, (int)width);
}

// Rows of any width, wherever they start; a block a row. The gradient of x alone.
extern "C" __global__ void __launch_bounds__(512)
norm_backward_long(const T* __restrict__ g, const T* __restrict__ x, const W* weight, const A* means,
                   const A* scales, T* grad, i64 rows, i64 width) {
    __shared__ Sums scratch[WARP];
    i64 row = blockIdx.x;
    g += row * width;
    x += row * width;
    grad += row * width;
    int phase = phase_of(x);
    bool alike = phase_of(g) == phase, fits = phase_of(grad) == phase, beside = phase == 0;
    i64 begin = (i64)threadIdx.x * V - phase, step = (i64)blockDim.x * V;
    A mean = means ? means[row] : (A)0, scale = scales[row];
    Sums s = {0, 0};
    for (i64 i = begin; i < width; i += step) {
        Pack<T, V> gs = load_pack(g, i, width, alike, T()), xs = load_pack(x, i, width, true, T());
        A w[V];
        if (weight) load_beside<V>(weight, i, width, beside, w);
#pragma unroll
        for (int j = 0; j < V; j++) {
            A a = up(gs.v[j]);
            if (weight) a *= w[j];
            s.h += a;
            s.hx += a * ((up(xs.v[j]) - mean) * scale);
        }
    }
    s = reduce<true>(s, scratch);
    A level = means ? s.h / width : (A)0, along = s.hx / width;
    for (i64 i = begin; i < width; i += step) {
        Pack<T, V> gs = load_pack(g, i, width, alike, T()), xs = load_pack(x, i, width, true, T());
        A w[V];
        if (weight) load_beside<V>(weight, i, width, beside, w);
#pragma unroll
        for (int j = 0; j < V; j++) {
            A a = up(gs.v[j]);
            if (weight) a *= w[j];
            gs.v[j] = down<T>((a - level - (up(xs.v[j]) - mean) * scale * along) * scale);
        }
        store_pack(grad, i, width, fits, gs);
    }
}

// Sums over the rows of strip blockIdx.y, a thread a column: parts as above, strips in place of blocks.
extern "C" __global__ void __launch_bounds__(128)
norm_columns(const T* __restrict__ g, const T* __restrict__ x, const A* means, const A* scales, A* parts,
             i64 rows, i64 width, i64 chunk) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= width) return;
    i64 begin = blockIdx.y * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    A gw = 0, gb = 0;
#pragma unroll 4
    for (i64 row = begin; row < end; row++) {
        A a = up(g[row * width + column]);
        gw += a * ((up(x[row * width + column]) - (means ? means[row] : (A)0)) * scales[row]);
        gb += a;
    }
    parts[blockIdx.y * width + column] = gw;
    parts[((i64)gridDim.y + blockIdx.y) * width + column] = gb;
}
