// Adam and SGD over many tensors: the formulas of optim_kernels.py, element by element, in the same order
// of operations. A tensor's arrays are the parameter, its gradient and up to three states.
// variants: ELEMENT=float STATE=float GRAD=float,half_t,bf16_t
// variants: ELEMENT=half_t STATE=half_t,float GRAD=half_t
// variants: ELEMENT=bf16_t STATE=bf16_t,float GRAD=bf16_t
// variants: ELEMENT=double STATE=double GRAD=double
#include "rules.cuh"

struct Adam {
    Descent descent;
    A keep, step_size, correction, beta2, rest1, rest2, eps;
    bool amsgrad;

    __device__ __forceinline__ void operator()(A& p, A g, A& m, A& v, A& vmax) const {
        p = mul(p, keep);
        g = descent(p, g);
        m = add(m, mul(sub(g, m), rest1));
        v = add(mul(v, beta2), mul(mul(g, rest2), g));
        A second = v;
        if (amsgrad) second = vmax = larger(vmax, v);
        p = sub(p, mul(m, step_size) / add(root(second) / correction, eps));
    }
};

// `keep` is what decoupled decay leaves of a parameter: 1 without.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) adam(
    const __grid_constant__ Table<5> table, A keep, A step_size, A correction, const A* factors, A beta2,
    A rest1, A rest2, A eps, A wd, A sign, const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    if (factors) {
        factors += 3 * piece.tensor;
        keep = factors[0], step_size = factors[1], correction = factors[2];
    }
    bool amsgrad = table.at[4][piece.tensor] != 0;
    Adam rule = {{sign, wd}, keep, step_size, correction, beta2, rest1, rest2, eps, amsgrad};
    update(table, piece, rule, scale);
}

struct Sgd {
    Descent descent;
    A lr, momentum, rest;
    bool buffered, nesterov, first;

    __device__ __forceinline__ void operator()(A& p, A g, A& b, A&, A&) const {
        g = descent(p, g);
        if (buffered) {
            b = first ? g : add(mul(b, momentum), mul(g, rest));
            g = nesterov ? add(g, mul(b, momentum)) : b;
        }
        p = sub(p, mul(g, lr));
    }
};

// `rate`: null, or the learning rate on the device; `rest`: what dampening leaves of a gradient.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) sgd(
    const __grid_constant__ Table<5> table, A lr, const float* rate, A momentum, A rest, A wd, A sign,
    i64 nesterov, i64 first, const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    bool buffered = table.at[2][piece.tensor] != 0;
    Sgd rule = {{sign, wd}, rate ? (A)*rate : lr, momentum, rest, buffered, nesterov != 0, first != 0};
    update(table, piece, rule, scale);
}
