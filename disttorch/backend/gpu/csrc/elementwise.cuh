// What the expressions of elementwise.cu are made of: numbers in and out of memory, arithmetic with
// NumPy's rules, and math functions of one name for float and double.

// ---- memory to computing type and back -----------------------------------------------------------

template <class A, class T> __device__ __forceinline__ A get(T x) { return (A)x; }
template <class A> __device__ __forceinline__ A get(half_t x) { return (A)up(x); }
template <class A> __device__ __forceinline__ A get(bf16_t x) { return (A)up(x); }

// put<R>(x): integers wrap around; floats to small integers go through i64, like a processor's
// conversion; anything but 0 is true; 16-bit floats are rounded once.
template <class R> struct Put {
    template <class A> static __device__ __forceinline__ R from(A x) { return (R)x; }
    static __device__ __forceinline__ R from(float x) { return sizeof(R) < 4 ? (R)(i64)x : (R)x; }
    static __device__ __forceinline__ R from(double x) { return sizeof(R) < 4 ? (R)(i64)x : (R)x; }
};
template <> struct Put<bool> {
    template <class A> static __device__ __forceinline__ bool from(A x) { return x != (A)0; }
};
template <> struct Put<half_t> {
    template <class A> static __device__ __forceinline__ half_t from(A x) {
        return Down<half_t>::from((float)x);
    }
};
template <> struct Put<bf16_t> {
    template <class A> static __device__ __forceinline__ bf16_t from(A x) {
        return Down<bf16_t>::from((float)x);
    }
};

// ---- arithmetic ----------------------------------------------------------------------------------

// Signed overflow is undefined in C++; NumPy's integers wrap around.
#define WRAPS(name, sign)                                                                         \
    template <class A> __device__ __forceinline__ A name(A a, A b) { return a sign b; }           \
    __device__ __forceinline__ i32 name(i32 a, i32 b) { return (i32)((u32)a sign(u32) b); }       \
    __device__ __forceinline__ i64 name(i64 a, i64 b) { return (i64)((u64)a sign(u64) b); }
WRAPS(plus, +)
WRAPS(minus, -)
WRAPS(times, *)
#undef WRAPS
__device__ __forceinline__ i32 negative(i32 a) { return minus(0, a); }
__device__ __forceinline__ i64 negative(i64 a) { return minus((i64)0, a); }
__device__ __forceinline__ float negative(float a) { return -a; }
__device__ __forceinline__ double negative(double a) { return -a; }

// NaN wins.
template <class A> __device__ __forceinline__ A larger(A a, A b) { return a > b || a != a ? a : b; }
template <class A> __device__ __forceinline__ A smaller(A a, A b) { return a < b || a != a ? a : b; }

// NumPy's clip: a NaN stays (comparisons with it are false), and the upper bound has the last word.
template <class A> __device__ __forceinline__ A limited(A a, A low, A high) {
    a = a < low ? low : a;
    return a > high ? high : a;
}

__device__ __forceinline__ float truncated_rest(float a, float b) { return fmodf(a, b); }
__device__ __forceinline__ double truncated_rest(double a, double b) { return fmod(a, b); }
template <class A> __device__ __forceinline__ A truncated_rest(A a, A b) {
    return b == (A)-1 || b == 0 ? (A)0 : a % b;  // the smallest number by −1 does not fit
}

// Python's %: the sign of the divisor.
template <class A> __device__ __forceinline__ A rest(A a, A b) {
    A r = truncated_rest(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
__device__ __forceinline__ float signed_rest(float a, float b) {
    float r = rest(a, b);
    return r == 0 ? copysignf(0.0f, b) : r;
}
__device__ __forceinline__ double signed_rest(double a, double b) {
    double r = rest(a, b);
    return r == 0 ? copysign(0.0, b) : r;
}
template <class A> __device__ __forceinline__ A signed_rest(A a, A b) { return rest(a, b); }

__device__ __forceinline__ float rounded_down(float a) { return floorf(a); }
__device__ __forceinline__ double rounded_down(double a) { return floor(a); }

// Python's // for floats: exact where the quotient is a whole number.
template <class A> __device__ __forceinline__ A whole_quotient(A a, A b) {
    if (b == 0) return a / b;
    A r = truncated_rest(a, b), q = (a - r) / b;
    if (r != 0 && (r < 0) != (b < 0)) q -= 1;
    if (q == 0) return a / b * 0;  // the sign of the quotient
    A down = rounded_down(q);
    return q - down > (A)0.5 ? down + 1 : down;
}
__device__ __forceinline__ i32 whole_quotient(i32 a, i32 b) {
    if (b == 0) return 0;
    if (b == -1) return minus(0, a);
    i32 q = a / b;
    return q * b != a && (a < 0) != (b < 0) ? q - 1 : q;
}
__device__ __forceinline__ i64 whole_quotient(i64 a, i64 b) {
    if (b == 0) return 0;
    if (b == -1) return minus((i64)0, a);
    i64 q = a / b;
    return q * b != a && (a < 0) != (b < 0) ? q - 1 : q;
}

template <class A> __device__ __forceinline__ A sign_of(A a) { return (A)((a > 0) - (a < 0)); }

// ---- functions: f(float) and f(double) of one name -----------------------------------------------

#define BOTH(name, single, wide)                                                     \
    __device__ __forceinline__ float name(float x) { return single(x); }             \
    __device__ __forceinline__ double name(double x) { return wide(x); }
#define SAME(name) BOTH(name##_, name##f, name)
SAME(exp) SAME(exp2) SAME(expm1) SAME(log) SAME(log2) SAME(log10) SAME(log1p) SAME(sqrt)
SAME(sin) SAME(cos) SAME(tan) SAME(asin) SAME(acos) SAME(atan) SAME(sinh) SAME(cosh) SAME(tanh)
SAME(asinh) SAME(acosh) SAME(atanh) SAME(erf) SAME(floor) SAME(ceil) SAME(trunc) SAME(rint)
BOTH(abs_, fabsf, fabs)
#undef SAME
#undef BOTH
__device__ __forceinline__ i32 abs_(i32 x) { return x < 0 ? minus(0, x) : x; }
__device__ __forceinline__ i64 abs_(i64 x) { return x < 0 ? minus((i64)0, x) : x; }

#define BOTH(name, single, wide)                                                               \
    __device__ __forceinline__ float name(float x, float y) { return single(x, y); }           \
    __device__ __forceinline__ double name(double x, double y) { return wide(x, y); }
BOTH(pow_, powf, pow)
BOTH(atan2_, atan2f, atan2)
BOTH(hypot_, hypotf, hypot)
#undef BOTH

template <class A> __device__ __forceinline__ bool is_nan(A x) { return x != x; }
template <class A> __device__ __forceinline__ bool is_finite(A x) { return x - x == 0; }

// Without overflow: exp is only taken of what is not positive.
template <class A> __device__ __forceinline__ A sigmoid_(A x) {
    A e = exp_(-abs_(x));
    return (x < 0 ? e : (A)1) / (1 + e);
}
template <class A> __device__ __forceinline__ A softplus_(A x) {
    return (x > 0 || x != x ? x : (A)0) + log1p_(exp_(-abs_(x)));
}

// GELU's functions in a third of the instructions, for results that are rounded to 16 bits: the full ones
// keep arithmetic busy longer than memory. Their errors are below 3e-7, rounding's above 2e-4 of a value.
#ifdef RESULT
#define ROUGH (sizeof(RESULT) == 2 && sizeof(VALUE) == 4)
#else
#define ROUGH false
#endif

// Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26.
__device__ __forceinline__ float rough_cdf(float x) {
    float a = x < 0 ? -x : x, t = __fdividef(1.0f, 1.0f + 0.23164189f * a);  // 0.3275911/√2
    float sum = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f +
                                                                                t * 1.061405429f))));
    float tail = 0.5f * sum * __expf(x * x * -0.5f);
    return x < 0 ? tail : 1.0f - tail;
}
__device__ __forceinline__ float rough_tanh(float x) { return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x)); }

// The distribution function of the standard normal distribution, and its density.
template <class A> __device__ __forceinline__ A normal_cdf(A x) {
    if constexpr (ROUGH) return rough_cdf(x);
    return (A)0.5 * (1 + erf_(x * (A)0.70710678118654752440));
}
template <class A> __device__ __forceinline__ A normal_density(A x) {
    if constexpr (ROUGH) return __expf(x * x * -0.5f) * 0.39894228f;
    return exp_(x * x * (A)-0.5) * (A)0.39894228040143267794;
}

// tanh(√(2/π)·(x + 0.044715·x³)), of the tanh form of GELU
template <class A> __device__ __forceinline__ A gelu_tanh(A x) {
    A inner = (A)0.79788456080286535588 * (x + (A)0.044715 * x * x * x);
    if constexpr (ROUGH) return rough_tanh(inner);
    return tanh_(inner);
}
template <class A> __device__ __forceinline__ A gelu_tanh_slope(A x) {
    A t = gelu_tanh(x);
    return (A)0.5 * (1 + t) +
           (A)0.5 * x * (1 - t * t) * (A)0.79788456080286535588 * (1 + (A)0.134145 * x * x);
}

// Integer powers by squaring; they wrap around.
template <class A> __device__ __forceinline__ A whole_power(A base, i64 exponent) {
    A out = 1;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1) out = times(out, base);
        base = times(base, base);
    }
    return out;
}
