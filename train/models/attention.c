/* Causal attention within each document of packed tokens, in fp32 for x86 CPUs with AVX-512: attend_blocks.py's blocks
 * of queries, each with the keys up to its own end, without torch's calls between its products.
 *
 * What softmax gives is computed again in backward, as flash attention does (Dao et al. 2022).
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "exp.h"
#include "gemm.h"

#ifdef HAS_AVX512_KERNELS

/* A block's queries [start, end) meet the keys [first, end). Those of a document follow one another. */
typedef struct {
    int64_t first, start, end;
} Block;

/* Of tokens: q [T, heads, width], k and v [T, kv_heads, width]; begins [T]: where a token's document begins. */
typedef struct {
    int64_t heads, kv_heads, width;
    const int64_t *begins;
    const float *q, *k, *v;
    float scale;
} Attention;

/* In place: what each query of the block makes of each key's value, from the products of both. */
static AVX512 void softmax(const Attention *x, Block block, float *scores)
{
    const int64_t keys = block.end - block.first;
    for (int64_t t = block.start; t < block.end; t++, scores += keys) {
        const int64_t low = x->begins[t] - block.first, high = t + 1 - block.first;
        float most = -INFINITY, sum = 0.0f;
        /* A NaN is never the most; it makes the sum one. */
#pragma omp simd reduction(max : most)
        for (int64_t j = low; j < high; j++)
            most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = low; j < high; j++) {
            scores[j] = exp_of((scores[j] - most) * x->scale);
            sum += scores[j];
        }
        const float share = 1.0f / sum;
        for (int64_t j = 0; j < low; j++)
            scores[j] = 0.0f;
        for (int64_t j = low; j < high; j++)
            scores[j] *= share;
        for (int64_t j = high; j < keys; j++)
            scores[j] = 0.0f;
    }
}

/* In place: the gradient of the products of queries and keys, from that of what softmax made of them. */
static AVX512 void softmax_backward(const Attention *x, Block block, const float *restrict p, float *restrict dp)
{
    const int64_t keys = block.end - block.first;
    for (int64_t t = block.start; t < block.end; t++, p += keys, dp += keys) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < keys; j++)
            sum += p[j] * dp[j];
        for (int64_t j = 0; j < keys; j++)
            dp[j] = p[j] * (dp[j] - sum) * x->scale;
    }
}

static Matrix rows(const float *data, int64_t stride) { return (Matrix){data, stride, 1}; }
static Matrix transposed(const float *data, int64_t stride) { return (Matrix){data, 1, stride}; }

/* [queries, keys] of one head. */
static AVX512 void weights_of(const Attention *x, Block block, int64_t head, float *p, float *memory)
{
    const int64_t queries = block.end - block.start, keys = block.end - block.first;
    const int64_t kv_head = head / (x->heads / x->kv_heads);
    const int64_t q_stride = x->heads * x->width, k_stride = x->kv_heads * x->width;
    const Matrix q = rows(x->q + block.start * q_stride + head * x->width, q_stride);
    const Matrix k = transposed(x->k + block.first * k_stride + kv_head * x->width, k_stride);
    multiply(queries, keys, x->width, q, k, p, keys, 0, memory);
    softmax(x, block, p);
}

static AVX512 void attend_block(const Attention *x, Block block, int64_t kv_head, float *y, float *p, float *memory)
{
    const int64_t queries = block.end - block.start, keys = block.end - block.first, shared = x->heads / x->kv_heads;
    const int64_t q_stride = x->heads * x->width, k_stride = x->kv_heads * x->width;
    const Matrix v = rows(x->v + block.first * k_stride + kv_head * x->width, k_stride);
    for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; head++) {
        weights_of(x, block, head, p, memory);
        multiply(queries, x->width, keys, rows(p, keys), v, y + block.start * q_stride + head * x->width, q_stride, 0,
                 memory);
    }
}

/* add: whether dk and dv hold something of these keys. */
static AVX512 void attend_block_backward(const Attention *x, Block block, int64_t kv_head, int add, const float *dy,
                                         float *dq, float *dk, float *dv, float *p, float *memory)
{
    const int64_t queries = block.end - block.start, keys = block.end - block.first, shared = x->heads / x->kv_heads;
    const int64_t q_stride = x->heads * x->width, k_stride = x->kv_heads * x->width;
    const int64_t at_k = block.first * k_stride + kv_head * x->width;
    float *dp = p + queries * keys;
    for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; head++, add = 1) {
        const int64_t at_q = block.start * q_stride + head * x->width;
        weights_of(x, block, head, p, memory);
        multiply(keys, x->width, queries, transposed(p, keys), rows(dy + at_q, q_stride), dv + at_k, k_stride, add,
                 memory);
        multiply(queries, keys, x->width, rows(dy + at_q, q_stride), transposed(x->v + at_k, k_stride), dp, keys, 0,
                 memory);
        softmax_backward(x, block, p, dp);
        multiply(queries, x->width, keys, rows(dp, keys), rows(x->k + at_k, k_stride), dq + at_q, q_stride, 0, memory);
        multiply(keys, x->width, queries, transposed(dp, keys), rows(x->q + at_q, q_stride), dk + at_k, k_stride, add,
                 memory);
    }
}

/* y as q; dy, if there is one, the gradient of y, and dq, dk, dv those that follow. Returns 0, or 1 without memory. */
static int attend_all(const Attention *x, int64_t n_blocks, const Block *blocks, float *y, const float *dy, float *dq,
                      float *dk, float *dv, int threads)
{
    int64_t most = 0;
    for (int64_t b = 0; b < n_blocks; b++) {
        const int64_t scores = (blocks[b].end - blocks[b].start) * (blocks[b].end - blocks[b].first);
        most = scores > most ? scores : most;
    }
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
    {
        float *memory = memory_of_thread(), *scores = malloc(sizeof(float) * 2 * most);
        failed = !memory || !scores;
        /* A document's blocks add to the same keys: one thread has them all, the last first, which meets every key. */
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < n_blocks * x->kv_heads; unit++) {
            const int64_t last = unit / x->kv_heads, kv_head = unit % x->kv_heads;
            if (failed || (last + 1 < n_blocks && blocks[last + 1].first == blocks[last].first))
                continue;
            for (int64_t b = last; b >= 0 && blocks[b].first == blocks[last].first; b--)
                if (dy)
                    attend_block_backward(x, blocks[b], kv_head, b < last, dy, dq, dk, dv, scores, memory);
                else
                    attend_block(x, blocks[b], kv_head, y, scores, memory);
        }
        free(scores);
    }
    return failed;
}

int attend(int64_t n_blocks, const int64_t *blocks, const int64_t *begins, int64_t heads, int64_t kv_heads,
           int64_t width, float scale, const float *q, const float *k, const float *v, float *y, int threads)
{
    const Attention x = {heads, kv_heads, width, begins, q, k, v, scale};
    return attend_all(&x, n_blocks, (const Block *)blocks, y, NULL, NULL, NULL, NULL, threads);
}

int attend_backward(int64_t n_blocks, const int64_t *blocks, const int64_t *begins, int64_t heads, int64_t kv_heads,
                    int64_t width, float scale, const float *q, const float *k, const float *v, const float *dy,
                    float *dq, float *dk, float *dv, int threads)
{
    const Attention x = {heads, kv_heads, width, begins, q, k, v, scale};
    return attend_all(&x, n_blocks, (const Block *)blocks, NULL, dy, dq, dk, dv, threads);
}

#endif
