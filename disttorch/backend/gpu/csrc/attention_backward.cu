// Attention, backward: the weights are computed again from the logarithms that forward kept.
//
// With P the weights, dP = dO·vᵀ and D = Σ dO·O of a row: dv = Pᵀ·dO, dS = P∘(dP − D), dq = dS·k·scale,
// dk = dSᵀ·q·scale (Dao et al., arXiv:2205.14135). One kernel owns tiles of keys and walks over queries,
// another owns tiles of queries and walks over keys: S and dP are made twice, and nothing is added by
// atomics, so that two runs give the same bits.
// variants: ELEMENT=bfloat16,float16 WIDTH=32,64,96,128 EXTRAS=0
// variants: ELEMENT=bfloat16 WIDTH=64 EXTRAS=1,2,3
// variants: ELEMENT=bfloat16 WIDTH=128 EXTRAS=3
#include "attention.cuh"

// Tiles of attention_keys: 16·KEY_M keys a warp, SEEN queries in shared memory, PART of them at once; of
// attention_queries: 16·QUERY_M queries a warp, STEP keys in shared memory, TAKE of them at once. As large
// as fits without spilling, and below 99 KiB of shared memory. Up to 64 wide, what a warp owns stays in
// registers as operands: shared memory, which feeds the tensor cores, is read a third less.
#if WIDTH <= 64
#define KEY_M 2
#define SEEN 64
#define PART 16
#define QUERY_M 2
#define STEP 64
#define TAKE 32
#elif WIDTH <= 96
#define KEY_M 1
#define SEEN 64
#define PART SEEN
#define QUERY_M 1
#define STEP 64
#define TAKE STEP
#else
#define KEY_M 1
#define SEEN 48
#define PART SEEN
#define QUERY_M 1
#define STEP 48
#define TAKE STEP
#endif
#define IN_REGISTERS (WIDTH <= 64 && !MASKED)  // what a warp of attention_keys owns
#define BLOCKS (WIDTH <= 32 ? 3 : 2)           // that a multiprocessor has registers for
#define OWN_KEYS (WARPS * 16 * KEY_M)
#define OWN_QUERIES (WARPS * 16 * QUERY_M)

// Lanes of one row in attention_delta, 8 elements each
#if WIDTH <= 32
#define LANES 4
#elif WIDTH <= 64
#define LANES 8
#else
#define LANES 16
#endif

// delta = Σ dO·O of every row, B×H×L. `THREADS / LANES` rows a block.
extern "C" __global__ void __launch_bounds__(THREADS) attention_delta(
    const T* grad, const T* out, float* delta, i64 rows, i64 queries, i64 heads, i64 value_width,
    i64 grad_batch, i64 grad_head, i64 grad_row, i64 out_batch, i64 out_head, i64 out_row) {
    i64 row = (i64)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
    int part = threadIdx.x % LANES;
    float sum = 0;
    if (row < rows && part * 8 < value_width) {
        i64 query = row % queries, head = row / queries % heads, batch = row / queries / heads;
        Pack<T, 8> a = *(const Pack<T, 8>*)(grad + batch * grad_batch + head * grad_head + query * grad_row +
                                            part * 8);
        Pack<T, 8> b = *(const Pack<T, 8>*)(out + batch * out_batch + head * out_head + query * out_row +
                                            part * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += up(a.v[i]) * up(b.v[i]);
    }
#pragma unroll
    for (int step = LANES / 2; step; step >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, step);
    if (row < rows && part == 0) delta[row] = sum;
}

// Weights of keys that are later than their query become 0. Rows are keys, columns queries; `gap`: by how
// much the key of element 0 is later than its query.
template <int M, int N> __device__ __forceinline__ void forget_later(float (&p)[M][N][4], int gap) {
#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (gap + i * 16 + e / 2 * 8 > j * 8 + e % 2) p[i][j][e] = 0.0f;
        }
    }
}

// dk (B×H/group×S×E) and dv (…×V). Grid: B·H/group·tiles of OWN_KEYS. `heads`: of the queries.
// In the tiles rows are keys and columns are queries: their products are operands as they are.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_keys(
    const T* q, const T* k, const T* v, const T* grad, const float* logs, const float* delta, T* dk, T* dv,
    i64 queries, i64 keys, i64 width, i64 value_width, i64 heads, i64 group, i64 q_batch, i64 q_head,
    i64 q_row, i64 k_batch, i64 k_head, i64 k_row, i64 v_batch, i64 v_head, i64 v_row, i64 grad_batch,
    i64 grad_head, i64 grad_row, i64 dk_batch, i64 dk_head, i64 dk_row, i64 dv_batch, i64 dv_head,
    i64 dv_row, double scale, i64 causal EXTRA_PARAMETERS) {
    const int COLUMNS = PART / 8;
    DYNAMIC_SHARED(T, shared);
    T *k_tile = shared, *v_tile = k_tile + OWN_KEYS * ROW, *q_tile = v_tile + OWN_KEYS * ROW,
      *grad_tile = q_tile + 2 * SEEN * ROW;
    float* numbers = (float*)(grad_tile + 2 * SEEN * ROW);  // logs, then delta of SEEN queries; twice
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    const int L = (int)queries, S = (int)keys, tiles = tiles_of(S, OWN_KEYS);
    const Place place(tiles, (int)(heads / group));
    const int first = place.tile * OWN_KEYS, own = first + warp * 16 * KEY_M;
    k += place.batch * k_batch + place.head * k_head + first * k_row;
    v += place.batch * v_batch + place.head * v_head + first * v_row;
    const int start = causal ? first / SEEN : 0;  // earlier queries do not see these keys
    const int each = max(tiles_of(L, SEEN) - start, 0), count = each * (int)group;
    const float unit = MASKED ? LOG2E : (float)(scale * LOG2E);

    load_tile<OWN_KEYS>(k_tile, k, k_row, S - first, (int)width);
    load_tile<OWN_KEYS>(v_tile, v, v_row, S - first, (int)value_width);
    float dk_sum[KEY_M][WIDTH / 8][4], dv_sum[KEY_M][WIDTH / 8][4];
    clear(dk_sum);
    clear(dv_sum);
#if IN_REGISTERS
    u32 k_rows[KEY_M][WIDTH / 16][4], v_rows[KEY_M][WIDTH / 16][4];
#else
    const T *k_rows = k_tile + warp * 16 * KEY_M * ROW, *v_rows = v_tile + warp * 16 * KEY_M * ROW;
#endif
    int next_head = place.head * (int)group, next_query = start * SEEN;
    int head = next_head, query = next_query;
    for (int n = -1; n < count; n++) {
        wait_for_copies();
        __syncthreads();
        const int seen_query = query;
#if EXTRAS
        const int seen_head = head;
#endif
        if (n + 1 < count) {
            head = next_head, query = next_query;
            next_query += SEEN;
            if (next_query >= L) next_query = start * SEEN, next_head++;
            int half = (n + 1) % 2;
            i64 line = (place.batch * heads + head) * L + query;
            load_tile<SEEN>(q_tile + half * SEEN * ROW,
                            q + place.batch * q_batch + head * q_head + query * q_row, q_row, L - query,
                            (int)width);
            load_tile<SEEN>(grad_tile + half * SEEN * ROW,
                            grad + place.batch * grad_batch + head * grad_head + query * grad_row, grad_row,
                            L - query, (int)value_width);
            if (threadIdx.x < 2 * SEEN) {
                int i = threadIdx.x % SEEN;
                copy_4(numbers + half * 2 * SEEN + threadIdx.x,
                       (threadIdx.x < SEEN ? logs : delta) + line + i, query + i < L);
            }
        }
        if (n < 0) {
#if IN_REGISTERS
            load_rows_of<T, WIDTH, ROW>(k_rows, k_tile + warp * 16 * KEY_M * ROW);
            load_rows_of<T, WIDTH, ROW>(v_rows, v_tile + warp * 16 * KEY_M * ROW);
#endif
            continue;
        }
        const int half = n % 2;
#if EXTRAS
        const Extras extras = EXTRAS_OF(place.batch, seen_head, (u32)(place.batch * heads + seen_head));
#endif
#pragma unroll 1
        for (int at = 0; at < SEEN; at += PART) {
            const int query_at = seen_query + at;
            if (query_at >= L || (causal && query_at + PART <= own)) continue;
            const T* q_at = q_tile + (half * SEEN + at) * ROW;
            const T* grad_at = grad_tile + (half * SEEN + at) * ROW;
            const float* line = numbers + half * 2 * SEEN + at + 2 * t;
            float p[KEY_M][COLUMNS][4], dp[KEY_M][COLUMNS][4];
            clear(p);
            add_product_of_rows<T, WIDTH, ROW>(p, k_rows, q_at);
            clear(dp);
            add_product_of_rows<T, WIDTH, ROW>(dp, v_rows, grad_at);
            // Queries beyond L are zeros, and so are their dO, logs and delta: they add nothing.
#if MASKED
            put_mask<true>(p, extras, query_at + 2 * t, own + g, L, S, (float)scale);
#endif
#pragma unroll
            for (int i = 0; i < KEY_M; i++) {
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        p[i][j][e] = power_of_2(p[i][j][e] * unit - line[j * 8 + e % 2] * LOG2E);
                }
            }
            if (causal && own + 16 * KEY_M - 1 > query_at) forget_later(p, own + g - query_at - 2 * t);
            u32 part[KEY_M][COLUMNS][2];
#if DROPS
            float dropped[KEY_M][COLUMNS][4];
#pragma unroll
            for (int i = 0; i < KEY_M; i++) {
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const bool stays = extras.stays(extras.row_key(query_at + j * 8 + 2 * t + e % 2),
                                                        own + i * 16 + e / 2 * 8 + g);
                        dropped[i][j][e] = stays ? p[i][j][e] : 0.0f;
                        dp[i][j][e] = stays ? dp[i][j][e] * extras.kept : 0.0f;
                    }
                }
            }
            rounded<T>(part, dropped);
#else
            rounded<T>(part, p);
#endif
            add_product<T, ROW>(dv_sum, part, grad_at);
#pragma unroll
            for (int i = 0; i < KEY_M; i++) {
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        dp[i][j][e] = p[i][j][e] * (dp[i][j][e] - line[SEEN + j * 8 + e % 2]);
                }
            }
            rounded<T>(part, dp);
            add_product<T, ROW>(dk_sum, part, q_at);
        }
    }
    __syncthreads();
#if DROPS
    const float kept = EXTRAS_OF(0, 0, 0).kept;
#else
    const float kept = 1.0f;
#endif
    float kept_of[KEY_M][2], times[KEY_M][2];
#pragma unroll
    for (int i = 0; i < KEY_M; i++) {
        kept_of[i][0] = kept_of[i][1] = kept;
        times[i][0] = times[i][1] = (float)scale;
    }
    dk += place.batch * dk_batch + place.head * dk_head + own * dk_row;
    dv += place.batch * dv_batch + place.head * dv_head + own * dv_row;
    store_tile<KEY_M>(dk, dk_row, S - own, (int)width, k_tile + warp * 16 * KEY_M * ROW, dk_sum, times);
    store_tile<KEY_M>(dv, dv_row, S - own, (int)value_width, v_tile + warp * 16 * KEY_M * ROW, dv_sum,
                      kept_of);
}

// dq, B×H×L×E. Grid: B·H·tiles of OWN_QUERIES.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention_queries(
    const T* q, const T* k, const T* v, const T* grad, const float* logs, const float* delta, T* dq,
    i64 queries, i64 keys, i64 width, i64 value_width, i64 heads, i64 group, i64 q_batch, i64 q_head,
    i64 q_row, i64 k_batch, i64 k_head, i64 k_row, i64 v_batch, i64 v_head, i64 v_row, i64 grad_batch,
    i64 grad_head, i64 grad_row, i64 dq_batch, i64 dq_head, i64 dq_row, double scale,
    i64 causal EXTRA_PARAMETERS) {
    const int COLUMNS = TAKE / 8;
    DYNAMIC_SHARED(T, shared);
    T *q_tile = shared, *grad_tile = q_tile + OWN_QUERIES * ROW, *k_tile = grad_tile + OWN_QUERIES * ROW,
      *v_tile = k_tile + 2 * STEP * ROW;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    const int L = (int)queries, S = (int)keys, tiles = tiles_of(L, OWN_QUERIES);
    const Place place(tiles, (int)heads);
    const int first = (tiles - 1 - place.tile) * OWN_QUERIES, own = first + warp * 16 * QUERY_M;
    q += place.batch * q_batch + place.head * q_head + first * q_row;
    grad += place.batch * grad_batch + place.head * grad_head + first * grad_row;
    k += place.batch * k_batch + place.head / (int)group * k_head;
    v += place.batch * v_batch + place.head / (int)group * v_head;
    int count = tiles_of(S, STEP);
    if (causal) count = min(count, tiles_of(first + OWN_QUERIES, STEP));
#if EXTRAS
    const Extras extras = EXTRAS_OF(place.batch, place.head, blockIdx.x / tiles);
#endif
    const float unit = MASKED ? LOG2E : (float)(scale * LOG2E);

    load_tile<OWN_QUERIES>(q_tile, q, q_row, L - first, (int)width);
    load_tile<OWN_QUERIES>(grad_tile, grad, grad_row, L - first, (int)value_width);
    load_tile<STEP>(k_tile, k, k_row, S, (int)width);
    load_tile<STEP>(v_tile, v, v_row, S, (int)value_width);
    float log[QUERY_M][2], through[QUERY_M][2];
    const i64 line = (i64)(blockIdx.x / tiles) * L;
#pragma unroll
    for (int i = 0; i < QUERY_M; i++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int row = own + i * 16 + r * 8 + g;
            log[i][r] = row < L ? logs[line + row] * LOG2E : 0.0f;
            through[i][r] = row < L ? delta[line + row] : 0.0f;
        }
    }
#if WIDTH <= 64
    u32 q_rows[QUERY_M][WIDTH / 16][4], grad_rows[QUERY_M][WIDTH / 16][4];
#else
    const T* q_rows = q_tile + warp * 16 * QUERY_M * ROW;
    const T* grad_rows = grad_tile + warp * 16 * QUERY_M * ROW;
#endif
    float dq_sum[QUERY_M][WIDTH / 8][4];
    clear(dq_sum);
    for (int n = 0; n < count; n++) {
        wait_for_copies();
        __syncthreads();
        if (n + 1 < count) {
            int next = (n + 1) * STEP, half = (n + 1) % 2 * STEP * ROW;
            load_tile<STEP>(k_tile + half, k + next * k_row, k_row, S - next, (int)width);
            load_tile<STEP>(v_tile + half, v + next * v_row, v_row, S - next, (int)value_width);
        }
#if WIDTH <= 64
        if (n == 0) {
            load_rows_of<T, WIDTH, ROW>(q_rows, q_tile + warp * 16 * QUERY_M * ROW);
            load_rows_of<T, WIDTH, ROW>(grad_rows, grad_tile + warp * 16 * QUERY_M * ROW);
        }
#endif
#pragma unroll 1
        for (int at = 0; at < STEP; at += TAKE) {
            const int column = n * STEP + at;
            if (column >= S || (causal && column >= own + 16 * QUERY_M)) break;
            const T *k_at = k_tile + (n % 2 * STEP + at) * ROW, *v_at = v_tile + (n % 2 * STEP + at) * ROW;
            float p[QUERY_M][COLUMNS][4], dp[QUERY_M][COLUMNS][4];
            clear(p);
            add_product_of_rows<T, WIDTH, ROW>(p, q_rows, k_at);
            clear(dp);
            add_product_of_rows<T, WIDTH, ROW>(dp, grad_rows, v_at);
#if MASKED
            put_mask<false>(p, extras, own + g, column + 2 * t, L, S, (float)scale);
#endif
#pragma unroll
            for (int i = 0; i < QUERY_M; i++) {
#pragma unroll
                for (int r = 0; r < 2; r++) {
#if DROPS
                    const u32 key = extras.row_key(own + i * 16 + r * 8 + g);
#endif
#pragma unroll
                    for (int j = 0; j < COLUMNS; j++) {
#pragma unroll
                        for (int e = 2 * r; e < 2 * r + 2; e++) {
                            float slope = dp[i][j][e];
#if DROPS
                            const bool stays = extras.stays(key, column + j * 8 + 2 * t + e % 2);
                            slope = stays ? slope * extras.kept : 0.0f;
#endif
                            float weight = power_of_2(p[i][j][e] * unit - log[i][r]);
                            dp[i][j][e] = weight * (slope - through[i][r]);
                        }
                    }
                }
            }
            if (column + TAKE > S || (causal && column + TAKE - 1 > own))
                cover(dp, own + g, column + 2 * t, S, causal, 0.0f);
            u32 part[QUERY_M][COLUMNS][2];
            rounded<T>(part, dp);
            add_product<T, ROW>(dq_sum, part, k_at);
        }
    }
    wait_for_copies();
    __syncthreads();
    float times[QUERY_M][2];
#pragma unroll
    for (int i = 0; i < QUERY_M; i++) times[i][0] = times[i][1] = (float)scale;
    dq += place.batch * dq_batch + place.head * dq_head + own * dq_row;
    store_tile<QUERY_M>(dq, dq_row, L - own, (int)width, q_tile + warp * 16 * QUERY_M * ROW, dq_sum, times);
}
