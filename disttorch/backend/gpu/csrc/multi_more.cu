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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rmsprop(
    const __grid_constant__ Table<5> table, A lr, const float* rate, A alpha, A rest, A eps, A wd,
    A momentum, A sign, const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    bool centered = table.at[3][piece.tensor] != 0, buffered = table.at[4][piece.tensor] != 0;
    RmsProp rule = {{sign, wd}, rate ? (A)*rate : lr, alpha, rest, eps, momentum, centered, buffered};
    update(table, piece, rule, scale);
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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) adagrad(
    const __grid_constant__ Table<5> table, A lr, const float* rate, A eps, A wd, A sign,
    const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Adagrad rule = {{sign, wd}, rate ? (A)*rate : lr, eps};
    update(table, Piece(table), rule, scale);
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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) adadelta(
    const __grid_constant__ Table<5> table, A lr, const float* rate, A rho, A rest, A eps, A wd, A sign,
    const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Adadelta rule = {{sign, wd}, rate ? (A)*rate : lr, rho, rest, eps};
    update(table, Piece(table), rule, scale);
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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) adamax(
    const __grid_constant__ Table<5> table, A rate, const A* factors, A rest1, A beta2, A eps, A wd,
    A sign, const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    Adamax rule = {{sign, wd}, factors ? factors[piece.tensor] : rate, rest1, beta2, eps};
    update(table, piece, rule, scale);
}

// Nesterov's Adam and rectified Adam share their means. `keep`: what decoupled decay leaves of a parameter.
struct Means {
    Descent descent;
    A keep, rest1, beta2, rest2;

    __device__ __forceinline__ A operator()(A& p, A g, A& m, A& v) const {
        p = mul(p, keep);
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

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) nadam(
    const __grid_constant__ Table<5> table, A keep, A correction, A now, A ahead, const A* factors, A rest1,
    A beta2, A rest2, A eps, A wd, A sign, const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    if (factors) {
        factors += 4 * piece.tensor;
        keep = factors[0], correction = factors[1], now = factors[2], ahead = factors[3];
    }
    NAdam rule = {{{sign, wd}, keep, rest1, beta2, rest2}, correction, now, ahead, eps};
    update(table, piece, rule, scale);
}

// `rectification`: 0 while too few gradients have been seen.
struct RAdam {
    Means means;
    A lr, correction1, root_correction2, rectification, eps;

    __device__ __forceinline__ void operator()(A& p, A g, A& m, A& v, A&) const {
        means(p, g, m, v);
        A step = mul(m / correction1, lr);
        if (rectification != 0) {
            step = mul(mul(step, root_correction2 / add(root(v), eps)), rectification);
        }
        p = sub(p, step);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) radam(
    const __grid_constant__ Table<5> table, A keep, A lr, A correction1, A root_correction2,
    A rectification, const A* factors, A rest1, A beta2, A rest2, A eps, A wd, A sign, const float* scale,
    const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    if (factors) {
        factors += 5 * piece.tensor;
        keep = factors[0], lr = factors[1], correction1 = factors[2], root_correction2 = factors[3];
        rectification = factors[4];
    }
    RAdam rule = {{{sign, wd}, keep, rest1, beta2, rest2}, lr, correction1, root_correction2,
                  rectification, eps};
    update(table, piece, rule, scale);
}

struct Rprop {
    Descent descent;
    A minus, plus, least, most;

    __device__ __forceinline__ static A sign_of(A x) { return x > 0 ? (A)1 : x < 0 ? (A)-1 : x; }

    __device__ __forceinline__ void operator()(A& p, A g, A& before, A& size, A&) const {
        g = descent(p, g);
        A product = mul(g, before);
        size = mul(size, product > 0 ? plus : product < 0 ? minus : (A)1);
        size = size < least ? least : size > most ? most : size;
        if (product < 0) g = 0;
        p = sub(p, mul(sign_of(g), size));
        before = g;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) rprop(
    const __grid_constant__ Table<5> table, A minus, A plus, A least, A most, A sign, const float* scale,
    const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Rprop rule = {{sign, (A)0}, minus, plus, least, most};
    update(table, Piece(table), rule, scale);
}

struct Asgd {
    Descent descent;
    A keep, eta, mu;

    __device__ __forceinline__ void operator()(A& p, A g, A& average, A&, A&) const {
        g = descent(p, g);
        p = sub(mul(p, keep), mul(g, eta));
        average = mu == 1 ? p : add(average, mul(sub(p, average), mu));
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) asgd(
    const __grid_constant__ Table<5> table, A keep, A eta, A mu, const A* factors, A wd, A sign,
    const float* scale, const float* found_inf) {
    if (found_inf && *found_inf != 0) return;
    Piece piece(table);
    if (factors) {
        factors += 3 * piece.tensor;
        keep = factors[0], eta = factors[1], mu = factors[2];
    }
    Asgd rule = {{sign, wd}, keep, eta, mu};
    update(table, piece, rule, scale);
}
