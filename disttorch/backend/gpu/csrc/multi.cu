// Adam and SGD over many tensors: the formulas of optim_kernels.py, element by element, in the same order
// of operations. A tensor's arrays are the parameter, its gradient and up to three states.
// variants: ELEMENT=float STATE=float GRAD=float,half_t,bf16_t
// variants: ELEMENT=half_t STATE=half_t,float GRAD=half_t
// variants: ELEMENT=bf16_t STATE=bf16_t,float GRAD=bf16_t
// variants: ELEMENT=double STATE=double GRAD=double
#include "rules.cuh"

// ---- Adam ------------------------------------------------------------------------------------------

struct Adam {
    Descent descent;
    A keep, beta2, rest1, rest2, eps, step_size, correction;
    bool decays, amsgrad;

    __device__ __forceinline__ void operator()(A& p, A g, A& m, A& v, A& vmax) const {
        if (decays) p = mul(p, keep);
        g = descent(p, g);
        m = add(m, mul(sub(g, m), rest1));
        v = add(mul(v, beta2), mul(mul(g, rest2), g));
        A second = v;
        if (amsgrad) second = vmax = larger(vmax, v);
        p = sub(p, mul(m, step_size) / add(root(second) / correction, eps));
    }
};

__device__ __forceinline__ Adam adam_rule(double lr, double beta1, double beta2, double eps, double wd,
                                          double step, i64 decoupled, i64 maximize, i64 amsgrad) {
    Adam rule;
    rule.descent.wd = (A)(decoupled ? 0.0 : wd);
    rule.descent.maximize = maximize;
    rule.decays = decoupled && wd != 0;
    rule.keep = (A)(1 - lr * wd);
    rule.beta2 = (A)beta2;
    rule.rest1 = (A)(1 - beta1);
    rule.rest2 = (A)(1 - beta2);
    rule.eps = (A)eps;
    rule.step_size = (A)(lr / (1 - pow(beta1, step)));
    rule.correction = (A)sqrt(1 - pow(beta2, step));
    rule.amsgrad = amsgrad;
    return rule;
}

// `step_size` and `correction` come from the host, which knows the step.
extern "C" __global__ void __launch_bounds__(THREADS) adam(
    const __grid_constant__ Table<5> table, double lr, double beta1, double beta2, double eps, double wd,
    double step_size, double correction, i64 decoupled, i64 maximize, i64 amsgrad, const float* scale,
    const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Adam rule = adam_rule(lr, beta1, beta2, eps, wd, 1.0, decoupled, maximize, amsgrad);
    rule.step_size = (A)step_size;
    rule.correction = (A)correction;
    update(table, Piece(table), rule, scale);
}

// The sixth list has the steps, and `rate` may be the learning rate: numbers on the device, so that a
// graph's replays count on.
extern "C" __global__ void __launch_bounds__(THREADS) adam_counted(
    const __grid_constant__ Table<6> table, double lr, double beta1, double beta2, double eps, double wd,
    const float* rate, i64 decoupled, i64 maximize, i64 amsgrad, const float* scale,
    const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    __shared__ Adam rule;
    Piece piece(table);
    if (threadIdx.x == 0) {
        double step = *table.get<float>(5, piece.tensor);
        rule = adam_rule(rate ? (double)*rate : lr, beta1, beta2, eps, wd, step, decoupled, maximize,
                         amsgrad);
    }
    __syncthreads();
    update(table, piece, rule, scale);
}

// Steps on the device go up by one, but where the gradients have overflowed.
extern "C" __global__ void count_steps(const __grid_constant__ Table<1> table, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    for (int t = threadIdx.x; t < table.count; t += blockDim.x) *table.get<float>(0, t) += 1.0f;
}

// ---- SGD ---------------------------------------------------------------------------------------------

struct Sgd {
    Descent descent;
    A lr, momentum, rest;
    bool buffered, dampened, nesterov, first;

    __device__ __forceinline__ void operator()(A& p, A g, A& b, A&, A&) const {
        g = descent(p, g);
        if (buffered) {
            b = first ? g : add(mul(b, momentum), dampened ? mul(g, rest) : g);
            g = nesterov ? add(g, mul(b, momentum)) : b;
        }
        p = sub(p, mul(g, lr));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) sgd(
    const __grid_constant__ Table<5> table, double lr, double momentum, double dampening, double wd,
    const float* rate, i64 buffered, i64 nesterov, i64 maximize, i64 first, const float* scale,
    const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Sgd rule = {{(A)wd, maximize != 0}, rate ? (A)*rate : (A)lr, (A)momentum, (A)(1 - dampening),
                buffered != 0, dampening != 0, nesterov != 0, first != 0};
    update(table, Piece(table), rule, scale);
}
