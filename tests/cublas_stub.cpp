// A libcublas for the CPU: the functions that disttorch binds, with the parameters of NVIDIA's documents,
// for float and double. It refuses what the real one refuses, so that a wrong order of arguments, a wrong
// size of an attribute or a missing workspace fails. See tests/test_cublas.py.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

typedef int64_t i64;
enum { OK = 0, INVALID = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_TF32 = 77 };

struct Handle { uint64_t magic; void *stream, *workspace; size_t size; int math; };
struct Layout { int type; uint64_t rows, columns; i64 ld; };
struct Description {
    int compute, scale, op_a, op_b;
    uint32_t epilogue;
    void *bias, *aux;
    i64 ld_aux;
};
struct Preference { uint64_t workspace; uint32_t reductions, alignment[4]; };
struct Algorithm { uint64_t data[8]; };
struct Choice { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; };

extern "C" {
int refuse = 0, living = 0, heuristics = 0, last_math = -1, last_compute = -1;
uint32_t last_reductions = 0, last_alignment[4];

static bool usable(Handle *h) { return h && h->magic == 0xB1A5 && h->workspace && h->size >= 1 << 20; }

int cublasCreate_v2(Handle **h) { *h = new Handle{0xB1A5, nullptr, nullptr, 0, 0}; return OK; }
int cublasDestroy_v2(Handle *h) { delete h; return OK; }
int cublasSetStream_v2(Handle *h, void *stream) {  // takes the workspace away, like the real one
    h->stream = stream, h->workspace = nullptr, h->size = 0;
    return OK;
}
int cublasSetWorkspace_v2(Handle *h, void *workspace, size_t size) {
    if ((uintptr_t)workspace % 256) return INVALID;
    h->workspace = workspace, h->size = size;
    return OK;
}
int cublasSetMathMode(Handle *h, int mode) { h->math = mode; return mode == 0 || mode == 16 ? OK : INVALID; }
}

template <class T> static double at(const void *x, int op, i64 ld, i64 i, i64 j) {
    return ((const T *)x)[op ? j + i * ld : i + j * ld];
}

template <class T>
static void product(int op_a, int op_b, i64 m, i64 n, i64 k, const void *alpha, const void *a, i64 lda,
                    const void *b, i64 ldb, const void *beta, const void *c, i64 ldc, void *d, i64 ldd,
                    const Description *more) {
    for (i64 j = 0; j < n; j++)
        for (i64 i = 0; i < m; i++) {
            double sum = 0;
            for (i64 l = 0; l < k; l++) sum += at<T>(a, op_a, lda, i, l) * at<T>(b, op_b, ldb, l, j);
            sum *= *(const T *)alpha;
            if (*(const T *)beta != 0) sum += *(const T *)beta * ((const T *)c)[i + j * ldc];
            if (more && (more->epilogue & 4)) sum += ((const T *)more->bias)[i];
            if (more && more->epilogue == 164) {
                ((T *)more->aux)[i + j * more->ld_aux] = (T)sum;
                sum *= 0.5 * (1 + std::tanh(std::sqrt(2 / M_PI) * (sum + 0.044715 * sum * sum * sum)));
            }
            ((T *)d)[i + j * ldd] = (T)sum;
        }
}

static int run(Handle *h, int op_a, int op_b, i64 m, i64 n, i64 k, const void *alpha, const void *a, int ta,
               i64 lda, const void *b, int tb, i64 ldb, const void *beta, void *c, int tc, i64 ldc, int compute,
               int algorithm) {
    if (!usable(h) || algorithm != -1 || op_a < 0 || op_a > 2 || op_b < 0 || op_b > 2) return INVALID;
    if (lda < (op_a ? k : m) || ldb < (op_b ? n : k) || ldc < m || ta != tb || tb != tc) return INVALID;
    last_math = h->math, last_compute = compute;
    if (ta == R_32F && (compute == COMPUTE_32F || compute == COMPUTE_TF32))
        product<float>(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, c, ldc, nullptr);
    else if (ta == R_64F && compute == COMPUTE_64F)
        product<double>(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, c, ldc, nullptr);
    else
        return NOT_SUPPORTED;
    return OK;
}

extern "C" {
int cublasGemmEx_64(Handle *h, int op_a, int op_b, i64 m, i64 n, i64 k, const void *alpha, const void *a,
                    int ta, i64 lda, const void *b, int tb, i64 ldb, const void *beta, void *c, int tc,
                    i64 ldc, int compute, int algorithm) {
    return run(h, op_a, op_b, m, n, k, alpha, a, ta, lda, b, tb, ldb, beta, c, tc, ldc, compute, algorithm);
}

int cublasGemmStridedBatchedEx_64(Handle *h, int op_a, int op_b, i64 m, i64 n, i64 k, const void *alpha,
                                  const void *a, int ta, i64 lda, long long step_a, const void *b, int tb,
                                  i64 ldb, long long step_b, const void *beta, void *c, int tc, i64 ldc,
                                  long long step_c, i64 count, int compute, int algorithm) {
    i64 size = ta == R_64F ? 8 : 4;
    for (i64 i = 0; i < count; i++)
        if (int status = run(h, op_a, op_b, m, n, k, alpha, (const char *)a + i * step_a * size, ta, lda,
                             (const char *)b + i * step_b * size, tb, ldb, beta,
                             (char *)c + i * step_c * size, tc, ldc, compute, algorithm))
            return status;
    return OK;
}

int cublasLtMatmulDescCreate(Description **d, int compute, int scale) {
    *d = new Description{compute, scale, 0, 0, 1, nullptr, nullptr, 0};
    living++;
    return OK;
}
int cublasLtMatmulDescDestroy(Description *d) { delete d; living--; return OK; }
int cublasLtMatmulDescSetAttribute(Description *d, int attribute, const void *value, size_t size) {
    struct { int attribute; void *place; size_t size; } known[] = {
        {3, &d->op_a, 4}, {4, &d->op_b, 4}, {7, &d->epilogue, 4}, {8, &d->bias, 8}, {11, &d->aux, 8},
        {12, &d->ld_aux, 8}};
    for (auto &k : known)
        if (k.attribute == attribute) {
            if (k.size != size) return INVALID;
            memcpy(k.place, value, size);
            return OK;
        }
    return INVALID;
}
int cublasLtMatrixLayoutCreate(Layout **l, int type, uint64_t rows, uint64_t columns, i64 ld) {
    *l = new Layout{type, rows, columns, ld};
    living++;
    return OK;
}
int cublasLtMatrixLayoutDestroy(Layout *l) { delete l; living--; return OK; }
int cublasLtMatmulPreferenceCreate(Preference **p) {
    *p = new Preference{0, 7, {256, 256, 256, 256}};
    living++;
    return OK;
}
int cublasLtMatmulPreferenceDestroy(Preference *p) { delete p; living--; return OK; }
int cublasLtMatmulPreferenceSetAttribute(Preference *p, int attribute, const void *value, size_t size) {
    if (size != (attribute == 1 ? 8u : 4u)) return INVALID;
    if (attribute == 1) memcpy(&p->workspace, value, 8);
    else if (attribute == 3) memcpy(&p->reductions, value, 4);
    else if (attribute >= 5 && attribute <= 8) memcpy(&p->alignment[attribute - 5], value, 4);
    else return INVALID;
    return OK;
}

static bool shapes_fit(const Description *d, const Layout *a, const Layout *b, const Layout *c, const Layout *e) {
    uint64_t m = e->rows, n = e->columns, k = d->op_a ? a->rows : a->columns;
    bool fits = (d->op_a ? a->columns : a->rows) == m && (d->op_b ? b->columns : b->rows) == k &&
                (d->op_b ? b->rows : b->columns) == n && c->rows == m && c->columns == n;
    for (auto *l : {a, b, c, e}) fits = fits && (uint64_t)l->ld >= l->rows && l->type == a->type;
    return fits && d->scale == a->type;
}

int cublasLtMatmulAlgoGetHeuristic(Handle *h, Description *d, Layout *a, Layout *b, Layout *c, Layout *e,
                                   Preference *p, int wanted, Choice *found, int *count) {
    if (!usable(h) || wanted != 1 || !shapes_fit(d, a, b, c, e)) return INVALID;
    heuristics++;
    last_reductions = p->reductions, last_compute = d->compute;
    memcpy(last_alignment, p->alignment, sizeof last_alignment);
    if (a->type == R_64F && d->epilogue != 1) return NOT_SUPPORTED;
    if ((d->epilogue & 4) && !d->bias) return INVALID;
    if ((d->epilogue & 128) && (!d->aux || d->ld_aux % 8 || (uint64_t)d->ld_aux < e->rows)) return INVALID;
    memset(found, 0xAB, sizeof *found);
    found->algorithm.data[0] = d->epilogue * 1000003 + e->rows;
    found->workspace = p->workspace / 2, found->state = 0;
    *count = 1;
    return OK;
}

int cublasLtMatmul(Handle *h, Description *d, const void *alpha, const void *a, Layout *la, const void *b,
                   Layout *lb, const void *beta, const void *c, Layout *lc, void *e, Layout *le,
                   const Algorithm *algorithm, void *workspace, size_t size, void *stream) {
    if (refuse) return NOT_SUPPORTED;
    if (!usable(h) || workspace != h->workspace || size != h->size || stream != h->stream) return INVALID;
    if (algorithm->data[0] != d->epilogue * 1000003 + le->rows || algorithm->data[7] != 0xABABABABABABABABull)
        return INVALID;
    if (!shapes_fit(d, la, lb, lc, le)) return INVALID;
    i64 m = le->rows, n = le->columns, k = d->op_a ? la->rows : la->columns;
    if (la->type == R_32F)
        product<float>(d->op_a, d->op_b, m, n, k, alpha, a, la->ld, b, lb->ld, beta, c, lc->ld, e, le->ld, d);
    else
        product<double>(d->op_a, d->op_b, m, n, k, alpha, a, la->ld, b, lb->ld, beta, c, lc->ld, e, le->ld, d);
    return OK;
}
}
