// What the update rules of the optimizers share (multi.cu, multi_more.cu): how a rule runs over a piece of
// a tensor. ELEMENT is the parameters' type, STATE that of the states, GRAD that of the gradients. 16-bit
// floats are computed in float and rounded once when they are stored.
#include "common.cuh"
#include "multi.cuh"

typedef ELEMENT T;
typedef STATE S;
typedef GRAD G;
typedef Acc<T>::type A;

static const int LANES = 16 / sizeof(A), THREADS = 256;

// What all rules know: the sign of the gradient, and L2 decay that is added to it.
struct Descent {
    A wd;
    bool maximize;

    __device__ __forceinline__ A operator()(A p, A g) const {
        if (maximize) g = -g;
        return wd != 0 ? add(mul(p, wd), g) : g;
    }
};

__device__ __forceinline__ A larger(A a, A b) { return a != a || b != b ? add(a, b) : (a < b ? b : a); }

// Run a rule over the block's piece: `rule(p, g, a, b, c)` changes the parameter and the states.
// `scale`: null, or what the gradients are divided by first (they are stored so).
template <int LISTS, class Rule>
__device__ __forceinline__ void update(const Table<LISTS>& table, const Piece& piece, const Rule& rule,
                                       const float* scale) {
    T* p = table.template get<T>(0, piece.tensor);
    G* g = table.template get<G>(1, piece.tensor);
    S* a = table.template get<S>(2, piece.tensor);
    S* b = table.template get<S>(3, piece.tensor);
    S* c = table.template get<S>(4, piece.tensor);
    bool aligned = ((u64)p | (u64)g | (u64)a | (u64)b | (u64)c) % 16 == 0;
    A factor = scale ? (A)*scale : (A)1;
    for (i64 i = piece.begin + threadIdx.x * LANES; i < piece.end; i += THREADS * LANES) {
        i64 left = piece.end - i;
        A vp[LANES], vg[LANES], va[LANES], vb[LANES], vc[LANES];
        load_some<LANES>(p + i, left, aligned, vp);
        load_some<LANES>(g + i, left, aligned, vg);
        if (a) load_some<LANES>(a + i, left, aligned, va);
        if (b) load_some<LANES>(b + i, left, aligned, vb);
        if (c) load_some<LANES>(c + i, left, aligned, vc);
        if (scale) {
#pragma unroll
            for (int j = 0; j < LANES; j++) vg[j] = up(down<G>(vg[j] / factor));
            store_some<LANES>(g + i, left, aligned, vg);
        }
#pragma unroll
        for (int j = 0; j < LANES; j++) rule(vp[j], vg[j], va[j], vb[j], vc[j]);
        store_some<LANES>(p + i, left, aligned, vp);
        if (a) store_some<LANES>(a + i, left, aligned, va);
        if (b) store_some<LANES>(b + i, left, aligned, vb);
        if (c) store_some<LANES>(c + i, left, aligned, vc);
    }
}
