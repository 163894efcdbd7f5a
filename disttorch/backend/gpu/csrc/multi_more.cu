// The less frequent update rules over many tensors: the formulas of optim_kernels.py and
// optim_kernels_more.py, element by element, in the same order of operations.
// variants: ELEMENT=float STATE=float GRAD=float
// variants: ELEMENT=half_t STATE=half_t GRAD=half_t
// variants: ELEMENT=bf16_t STATE=bf16_t GRAD=bf16_t
// variants: ELEMENT=double STATE=double GRAD=double
#include "rules.cuh"

struct RmsProp {
    Descent descent;
    A lr, alpha, rest, eps, momentum;
    bool centered, buffered;

    __device__ __forceinline__ void operator()(A& p, A g, A& s, A& mean, A& b) const {
        g = descent(p, g);
        s = add(mul(s, alpha), mul(mul(g, rest), g));
        A average = s;
        if (centered) {
            mean = add(mean, mul(sub(g, mean), rest));
            average = sub(s, mul(mean, mean));
        }
        average = add(root(average), eps);
        if (buffered) {
            b = add(mul(b, momentum), g / average);
            p = sub(p, mul(b, lr));
        } else {
            p = sub(p, mul(g, lr) / average);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) rmsprop(
    const __grid_constant__ Table<5> table, double lr, double alpha, double eps, double wd, double momentum,
    i64 centered, i64 buffered, i64 maximize) {
    RmsProp rule = {{(A)wd, maximize != 0}, (A)lr, (A)alpha, (A)(1 - alpha), (A)eps, (A)momentum,
                    centered != 0, buffered != 0};
    update(table, Piece(table), rule, nullptr);
}

struct Adagrad {
    Descent descent;
    A lr, eps;

    __device__ __forceinline__ void operator()(A& p, A g, A& s, A&, A&) const {
        g = descent(p, g);
        s = add(s, mul(g, g));
        p = sub(p, mul(g, lr) / add(root(s), eps));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) adagrad(
    const __grid_constant__ Table<5> table, double lr, double eps, double wd, i64 maximize) {
    Adagrad rule = {{(A)wd, maximize != 0}, (A)lr, (A)eps};
    update(table, Piece(table), rule, nullptr);
}

struct Adadelta {
    Descent descent;
    A lr, rho, rest, eps;

    __device__ __forceinline__ void operator()(A& p, A g, A& s, A& d, A&) const {
        g = descent(p, g);
        s = add(mul(s, rho), mul(mul(g, g), rest));
        A delta = mul(root(add(d, eps)) / root(add(s, eps)), g);
        d = add(mul(d, rho), mul(mul(delta, delta), rest));
        p = sub(p, mul(delta, lr));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) adadelta(
    const __grid_constant__ Table<5> table, double lr, double rho, double eps, double wd, i64 maximize) {
    Adadelta rule = {{(A)wd, maximize != 0}, (A)lr, (A)rho, (A)(1 - rho), (A)eps};
    update(table, Piece(table), rule, nullptr);
}

struct Adamax {
    Descent descent;
    A rate, rest1, beta2, eps;

    __device__ __forceinline__ void operator()(A& p, A g, A& m, A& u, A&) const {
        g = descent(p, g);
        m = add(m, mul(sub(g, m), rest1));
        u = larger(mul(u, beta2), add(g < 0 ? -g : g, eps));
        p = sub(p, mul(m / u, rate));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) adamax(
    const __grid_constant__ Table<5> table, double rate, double beta1, double beta2, double eps, double wd,
    i64 maximize) {
    Adamax rule = {{(A)wd, maximize != 0}, (A)rate, (A)(1 - beta1), (A)beta2, (A)eps};
    update(table, Piece(table), rule, nullptr);
}

// Nesterov's Adam and rectified Adam share their means.
struct Means {
    Descent descent;
    A keep, rest1, beta2, rest2;
    bool decays;

    __device__ __forceinline__ Means(double lr, double beta1, double beta2_, double wd, i64 decoupled,
                                     i64 maximize)
        : descent{(A)(decoupled ? 0.0 : wd), maximize != 0}, keep((A)(1 - lr * wd)), rest1((A)(1 - beta1)),
          beta2((A)beta2_), rest2((A)(1 - beta2_)), decays(decoupled && wd != 0) {}

    __device__ __forceinline__ A operator()(A& p, A g, A& m, A& v) const {
        if (decays) p = mul(p, keep);
        g = descent(p, g);
        m = add(m, mul(sub(g, m), rest1));
        v = add(mul(v, beta2), mul(mul(g, g), rest2));
        return g;
    }
};

struct NAdam {
    Means means;
    A correction, now, ahead, eps;

    __device__ __forceinline__ void operator()(A& p, A g, A& m, A& v, A&) const {
        g = means(p, g, m, v);
        A divisor = add(root(v / correction), eps);
        p = sub(p, mul(g / divisor, now));
        p = sub(p, mul(m / divisor, ahead));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) nadam(
    const __grid_constant__ Table<5> table, double lr, double beta1, double beta2, double eps, double wd,
    double correction, double now, double ahead, i64 decoupled, i64 maximize) {
    NAdam rule = {Means(lr, beta1, beta2, wd, decoupled, maximize), (A)correction, (A)now, (A)ahead, (A)eps};
    update(table, Piece(table), rule, nullptr);
}

struct RAdam {
    Means means;
    A correction1, lr, root_correction2, rectification, eps;
    bool rectified;

    __device__ __forceinline__ void operator()(A& p, A g, A& m, A& v, A&) const {
        means(p, g, m, v);
        A step = mul(m / correction1, lr);
        if (rectified) {
            step = mul(mul(step, root_correction2 / add(root(v), eps)), rectification);
        }
        p = sub(p, step);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) radam(
    const __grid_constant__ Table<5> table, double lr, double beta1, double beta2, double eps, double wd,
    double correction1, double root_correction2, double rectification, i64 rectified, i64 decoupled,
    i64 maximize) {
    RAdam rule = {Means(lr, beta1, beta2, wd, decoupled, maximize), (A)correction1, (A)lr,
                  (A)root_correction2, (A)rectification, (A)eps, rectified != 0};
    update(table, Piece(table), rule, nullptr);
}
