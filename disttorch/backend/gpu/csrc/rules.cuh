// What the update rules of the optimizers share (multi.cu, multi_more.cu): how a rule runs over a piece of
// a tensor. ELEMENT is the parameters' type, STATE that of the states, GRAD that of the gradients. 16-bit
// floats are computed in float and rounded once when they are stored.
//
// The numbers of a rule come as A: a conversion from double in the kernel would be done anew for every
// element, because that takes fewer registers. What depends on the step comes from the host, or, where
// steps are counted on the device, as `factors`, some for each tensor (counts.cu).
#include "common.cuh"
#include "multi.cuh"

typedef ELEMENT T;
typedef STATE S;
typedef GRAD G;
typedef Acc<T>::type A;

static const int LANES = 16 / sizeof(A), THREADS = 256;
static const int BLOCKS = sizeof(A) == 4 ? 3 : 1;  // a multiprocessor: 96 KiB of loads under way

// What all rules know: the sign of the gradient (1 or -1), and L2 decay that is added to it.
struct Descent {
    A sign, wd;

    __device__ __forceinline__ A operator()(A p, A g) const {
        g = mul(g, sign);
        return wd != 0 ? add(mul(p, wd), g) : g;
    }
};

__device__ __forceinline__ A larger(A a, A b) { return a != a || b != b ? add(a, b) : (a < b ? b : a); }

// A rule over a stretch of a tensor: its parameter, gradient and up to three states (null: not there).
template <class Rule> struct Update {
    T* p;
    G* g;
    S *a, *b, *c;
    const Rule& rule;
    bool scaled;
    A factor;

    template <int V, int N> __device__ __forceinline__ void run(int i, int stride) {
        A vp[V][N], vg[V][N], va[V][N], vb[V][N], vc[V][N];
#pragma unroll
        for (int v = 0; v < V; v++) {
            load_pack<N>(p + i + v * stride, vp[v]);
            load_pack<N>(g + i + v * stride, vg[v]);
            if (a) load_pack<N>(a + i + v * stride, va[v]);
            if (b) load_pack<N>(b + i + v * stride, vb[v]);
            if (c) load_pack<N>(c + i + v * stride, vc[v]);
        }
        if (scaled) unscale<V, N>(i, stride, vg);
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int j = 0; j < N; j++) rule(vp[v][j], vg[v][j], va[v][j], vb[v][j], vc[v][j]);
            store_pack<N>(p + i + v * stride, vp[v]);
            if (a) store_pack<N>(a + i + v * stride, va[v]);
            if (b) store_pack<N>(b + i + v * stride, vb[v]);
            if (c) store_pack<N>(c + i + v * stride, vc[v]);
        }
    }

    template <int V, int N> __device__ __forceinline__ void unscale(int i, int stride, A (*values)[N]) {
#pragma unroll
        for (int v = 0; v < V; v++) {
#pragma unroll
            for (int j = 0; j < N; j++) values[v][j] = up(down<G>(values[v][j] / factor));
            store_pack<N>(g + i + v * stride, values[v]);
        }
    }
};

// Run a rule over the block's piece: `rule(p, g, a, b, c)` changes the parameter and the states.
// `scale`: null, or what the gradients are divided by first (they are stored so).
template <class Rule>
__device__ __forceinline__ void update(const Table<5>& table, const Piece& piece, const Rule& rule,
                                       const float* scale) {
    T* p = table.get<T>(0, piece.tensor);
    G* g = table.get<G>(1, piece.tensor);
    S* a = table.get<S>(2, piece.tensor);
    S* b = table.get<S>(3, piece.tensor);
    S* c = table.get<S>(4, piece.tensor);
    bool aligned = ((u64)p | (u64)g | (u64)a | (u64)b | (u64)c) % 16 == 0;
    i64 at = piece.begin;
    Update<Rule> whole = {p + at, g + at, a ? a + at : a, b ? b + at : b, c ? c + at : c,
                          rule, scale != nullptr, scale ? (A)*scale : (A)1};
    over_packs<THREADS, LANES>((int)(piece.end - at), aligned, whole);
}
