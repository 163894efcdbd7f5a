// Softmax and its logarithm over rows (the last axis) and over columns (any other axis).
//
// Rows of up to 16K elements (of 2 or 4 bytes) stay in registers, so that each is read once; longer
// ones are read twice. Columns: a thread each.
// variants: ELEMENT=float,double,half_t,bf16_t
#include "rows.cuh"

typedef ELEMENT T;
typedef Acc<T>::type A;
#define V PACK(T)
// packs a thread of a block holds: as many as registers allow (16-bit ones are wide once converted)
#define MANY (sizeof(T) == 4 ? 8 : 4)

__device__ __forceinline__ A lowest() { return (A)-INFINITY_; }

// ---- forward ---------------------------------------------------------------------------------------

template <int K, bool BLOCK>
__device__ __forceinline__ void forward(const T* __restrict__ x, T* __restrict__ out, i64 rows, int width,
                                        bool logs) {
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
        pack[k] = load_pack(x, (team.lane + k * team.size) * V - phase, width, true, down<T>(lowest()));
    }
    A top = lowest();
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) top = Max()(top, up(pack[k].v[j]));
    }
    top = team_reduce<BLOCK>(top, Max(), scratch, lowest());
    A sum = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) sum += Exp<T>::of(up(pack[k].v[j]) - top);
    }
    sum = team_reduce<BLOCK>(sum, Add(), scratch, (A)0);
    A shift = logs ? log(sum) : (A)0, scale = 1 / sum;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            A a = up(pack[k].v[j]) - top;
            pack[k].v[j] = down<T>(logs ? a - shift : Exp<T>::of(a) * scale);
        }
        store_pack(out, (team.lane + k * team.size) * V - phase, width, alike, pack[k]);
    }
}

// The largest element so far and the sum of exp(element − it).
struct Running {
    A top, sum;
};
__device__ __forceinline__ A shift_of(A top) {  // exp(−inf − (−inf)) would be NaN where nothing was seen
    return top == lowest() ? (A)0 : top;
}
__device__ __forceinline__ void see(Running& r, A a) {
    A top = Max()(r.top, a);
    if (top != r.top) {
        r.sum *= Exp<T>::of(r.top - shift_of(top));
        r.top = top;
    }
    r.sum += Exp<T>::of(a - shift_of(top));
}

extern "C" __global__ void __launch_bounds__(1024)
softmax_long(const T* x, T* out, i64 rows, i64 width, i64 logs) {
    __shared__ A scratch[WARP];
    Team<true> team;
    x += team.row * width;
    out += team.row * width;
    int phase = phase_of(x);
    bool alike = phase_of(out) == phase;
    Running r = {lowest(), 0};
    for (i64 i = (i64)team.lane * V - phase; i < width; i += (i64)team.size * V) {
        Pack<T, V> pack = load_pack(x, i, width, true, down<T>(lowest()));
#pragma unroll
        for (int j = 0; j < V; j++) see(r, up(pack.v[j]));
    }
    A top = block_reduce(r.top, Max(), scratch, lowest());
    A sum = block_reduce(r.sum * Exp<T>::of(r.top - shift_of(top)), Add(), scratch, (A)0);
    if (top == lowest()) sum = top - top;  // nothing but −inf: NaN, as 0/0
    A shift = logs ? log(sum) : (A)0, scale = 1 / sum;
    for (i64 i = (i64)team.lane * V - phase; i < width; i += (i64)team.size * V) {
        Pack<T, V> pack = load_pack(x, i, width, true, down<T>(lowest()));
#pragma unroll
        for (int j = 0; j < V; j++) {
            A a = up(pack.v[j]) - top;
            pack.v[j] = down<T>(logs ? a - shift : Exp<T>::of(a) * scale);
        }
        store_pack(out, i, width, alike, pack);
    }
}

// x: outer×width×inner, over the middle axis. A thread a column; blockIdx.y the outer index.
extern "C" __global__ void softmax_columns(const T* x, T* out, i64 outer, i64 width, i64 inner, i64 logs) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= inner) return;
    for (i64 o = blockIdx.y; o < outer; o += gridDim.y) {
        const T* from = x + o * width * inner + column;
        T* to = out + o * width * inner + column;
        Running r = {lowest(), 0};
        for (i64 i = 0; i < width; i++) see(r, up(from[i * inner]));
        A sum = r.top == lowest() ? r.top - r.top : r.sum;
        A shift = logs ? log(sum) : (A)0, scale = 1 / sum;
        for (i64 i = 0; i < width; i++) {
            A a = up(from[i * inner]) - r.top;
            to[i * inner] = down<T>(logs ? a - shift : Exp<T>::of(a) * scale);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
softmax_warp1(const T* x, T* out, i64 rows, i64 width, i64 logs) {
    forward<1, false>(x, out, rows, (int)width, logs);
}
extern "C" __global__ void __launch_bounds__(128)
softmax_warp4(const T* x, T* out, i64 rows, i64 width, i64 logs) {
    forward<4, false>(x, out, rows, (int)width, logs);
}
extern "C" __global__ void __launch_bounds__(512)
softmax_block(const T* x, T* out, i64 rows, i64 width, i64 logs) {
    forward<MANY, true>(x, out, rows, (int)width, logs);
}

// ---- backward --------------------------------------------------------------------------------------
// softmax: out·(g − Σ g·out); its logarithm: g − exp(out)·Σ g

__device__ __forceinline__ A part(A g, A out, bool logs) { return logs ? g : g * out; }
__device__ __forceinline__ A slope(A g, A out, A total, bool logs) {
    return logs ? g - Exp<T>::of(out) * total : out * (g - total);
}

template <int K, bool BLOCK>
__device__ __forceinline__ void backward(const T* __restrict__ g, const T* __restrict__ out,
                                         T* __restrict__ grad, i64 rows, int width, bool logs) {
    __shared__ A scratch[WARP];
    Team<BLOCK> team;
    if (team.row >= rows) return;
    g += team.row * width;
    out += team.row * width;
    grad += team.row * width;
    int phase = phase_of(out);
    bool alike = phase_of(g) == phase, fits = phase_of(grad) == phase;
    Pack<T, V> gs[K], outs[K];
#pragma unroll
    for (int k = 0; k < K; k++) {
        int first = (team.lane + k * team.size) * V - phase;
        gs[k] = load_pack(g, first, width, alike, down<T>((A)0));
        outs[k] = load_pack(out, first, width, true, down<T>((A)0));
    }
    A total = 0;
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) total += part(up(gs[k].v[j]), up(outs[k].v[j]), logs);
    }
    total = team_reduce<BLOCK>(total, Add(), scratch, (A)0);
#pragma unroll
    for (int k = 0; k < K; k++) {
#pragma unroll
        for (int j = 0; j < V; j++) {
            gs[k].v[j] = down<T>(slope(up(gs[k].v[j]), up(outs[k].v[j]), total, logs));
        }
        store_pack(grad, (team.lane + k * team.size) * V - phase, width, fits, gs[k]);
    }
}

extern "C" __global__ void __launch_bounds__(1024)
softmax_backward_long(const T* g, const T* out, T* grad, i64 rows, i64 width, i64 logs) {
    __shared__ A scratch[WARP];
    Team<true> team;
    g += team.row * width;
    out += team.row * width;
    grad += team.row * width;
    int phase = phase_of(out);
    bool alike = phase_of(g) == phase, fits = phase_of(grad) == phase;
    A total = 0;
    for (i64 i = (i64)team.lane * V - phase; i < width; i += (i64)team.size * V) {
        Pack<T, V> gs = load_pack(g, i, width, alike, down<T>((A)0));
        Pack<T, V> outs = load_pack(out, i, width, true, down<T>((A)0));
#pragma unroll
        for (int j = 0; j < V; j++) total += part(up(gs.v[j]), up(outs.v[j]), logs);
    }
    total = block_reduce(total, Add(), scratch, (A)0);
    for (i64 i = (i64)team.lane * V - phase; i < width; i += (i64)team.size * V) {
        Pack<T, V> gs = load_pack(g, i, width, alike, down<T>((A)0));
        Pack<T, V> outs = load_pack(out, i, width, true, down<T>((A)0));
#pragma unroll
        for (int j = 0; j < V; j++) gs.v[j] = down<T>(slope(up(gs.v[j]), up(outs.v[j]), total, logs));
        store_pack(grad, i, width, fits, gs);
    }
}

extern "C" __global__ void softmax_backward_columns(const T* g, const T* out, T* grad, i64 outer, i64 width,
                                                    i64 inner, i64 logs) {
    i64 column = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (column >= inner) return;
    for (i64 o = blockIdx.y; o < outer; o += gridDim.y) {
        i64 start = o * width * inner + column;
        A total = 0;
        for (i64 i = 0; i < width; i++) {
            i64 at = start + i * inner;
            total += part(up(g[at]), up(out[at]), logs);
        }
        for (i64 i = 0; i < width; i++) {
            i64 at = start + i * inner;
            grad[at] = down<T>(slope(up(g[at]), up(out[at]), total, logs));
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
softmax_backward_warp1(const T* g, const T* out, T* grad, i64 rows, i64 width, i64 logs) {
    backward<1, false>(g, out, grad, rows, (int)width, logs);
}
extern "C" __global__ void __launch_bounds__(128)
softmax_backward_warp4(const T* g, const T* out, T* grad, i64 rows, i64 width, i64 logs) {
    backward<4, false>(g, out, grad, rows, (int)width, logs);
}
extern "C" __global__ void __launch_bounds__(512)
softmax_backward_block(const T* g, const T* out, T* grad, i64 rows, i64 width, i64 logs) {
    backward<MANY, true>(g, out, grad, rows, (int)width, logs);
}
