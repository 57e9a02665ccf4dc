/* What stands between the GEMMs on a CPU, in fp32: memory is read and written once, and exp stays in registers.
 *
 * Plain C without Python's headers, called through ctypes by kernels_cpu.py. On x86 it is compiled for three levels of the
 * instruction set, of which the loader takes the highest that the processor has.
 */

#include <stdint.h>

#include "exp.h"

#if defined(__x86_64__) && defined(__linux__)
#define FOR_EACH_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_LEVEL
#endif

static inline __attribute__((always_inline)) float sigmoid(float x)
{
    /* Below this exp(-x) is no normal number. */
    return x < -87.0f ? 0.0f : 1.0f / (1.0f + exp_of(-x));
}

static FOR_EACH_LEVEL
void glu_part(int64_t numel, const float *restrict h1, const float *restrict h2, float *restrict act)
{
    for (int64_t i = 0; i < numel; i++)
        act[i] = h1[i] * sigmoid(h1[i]) * h2[i];
}

static FOR_EACH_LEVEL
void glu_backward_row(int64_t width, float *restrict dact, const float *restrict h1, const float *restrict h2,
                      float weight, float *restrict dh2, float *restrict act, float *restrict dweight)
{
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < width; i++) {
        float gate = sigmoid(h1[i]), silu = h1[i] * gate, d = dact[i] * weight;
        total += dact[i] * silu * h2[i];
        act[i] = silu * h2[i] * weight;
        dh2[i] = d * silu;
        dact[i] = d * h2[i] * (gate + silu * (1.0f - gate));
    }
    *dweight = total;
}

/* [numel] each. */
void glu(int64_t numel, const float *h1, const float *h2, float *act, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int part = 0; part < threads; part++) {
        int64_t from = numel * part / threads, to = numel * (part + 1) / threads;
        glu_part(to - from, h1 + from, h2 + from, act + from);
    }
}

/* [rows, width] each, weights and dweights [rows]; dh1 overwrites dact. */
void glu_backward(int64_t rows, int64_t width, float *dact, const float *h1, const float *h2, const float *weights,
                  float *dh2, float *act, float *dweights, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = row * width;
        glu_backward_row(width, dact + at, h1 + at, h2 + at, weights[row], dh2 + at, act + at, dweights + row);
    }
}

/* As clamp does, a NaN stays what it is. */
static inline __attribute__((always_inline)) float clamp(float x, float clip)
{
    x = x < -clip ? -clip : x;
    return x > clip ? clip : x;
}

static FOR_EACH_LEVEL
void clip_and_rotate_head(int64_t half, const float *restrict x, const float *restrict cos, const float *restrict sin,
                          float clip, float *restrict out)
{
    for (int64_t i = 0; i < half; i++) {
        float low = clamp(x[i], clip), high = clamp(x[half + i], clip);
        out[i] = low * cos[i] - high * sin[i];
        out[half + i] = high * cos[i] + low * sin[i];
    }
}

static FOR_EACH_LEVEL
void clip_and_rotate_head_backward(int64_t half, const float *restrict dout, const float *restrict x,
                                   const float *restrict cos, const float *restrict sin, float clip,
                                   float *restrict dx)
{
    for (int64_t i = 0; i < half; i++) {
        float low = x[i], high = x[half + i];
        float dlow = dout[i] * cos[i] + dout[half + i] * sin[i];
        float dhigh = dout[half + i] * cos[i] - dout[i] * sin[i];
        dx[i] = low < -clip || low > clip ? 0.0f : dlow;
        dx[half + i] = high < -clip || high > clip ? 0.0f : dhigh;
    }
}

static FOR_EACH_LEVEL
void clip_row(int64_t width, const float *restrict x, float clip, float *restrict out)
{
    for (int64_t i = 0; i < width; i++)
        out[i] = clamp(x[i], clip);
}

static FOR_EACH_LEVEL
void clip_row_backward(int64_t width, const float *restrict dout, const float *restrict x, float clip,
                       float *restrict dx)
{
    for (int64_t i = 0; i < width; i++)
        dx[i] = x[i] < -clip || x[i] > clip ? 0.0f : dout[i];
}

/* qkv [tokens, heads + 2 * kv_heads, width] clamped; queries and keys turned by the angles of
 * [tokens, width], whose second half is the first again. */
void clip_and_rotate(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width, const float *qkv, const float *cos,
                     const float *sin, float clip, float *q, float *k, float *v, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t token = 0; token < tokens; token++) {
        const float *x = qkv + token * (heads + 2 * kv_heads) * width;
        const float *c = cos + token * width, *s = sin + token * width;
        for (int64_t head = 0; head < heads; head++, x += width)
            clip_and_rotate_head(width / 2, x, c, s, clip, q + (token * heads + head) * width);
        for (int64_t head = 0; head < kv_heads; head++, x += width)
            clip_and_rotate_head(width / 2, x, c, s, clip, k + (token * kv_heads + head) * width);
        clip_row(kv_heads * width, x, clip, v + token * kv_heads * width);
    }
}

/* dqkv as qkv. */
void clip_and_rotate_backward(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t width, const float *dq,
                              const float *dk, const float *dv, const float *qkv, const float *cos, const float *sin,
                              float clip, float *dqkv, int threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (int64_t token = 0; token < tokens; token++) {
        int64_t at = token * (heads + 2 * kv_heads) * width;
        const float *c = cos + token * width, *s = sin + token * width;
        for (int64_t head = 0; head < heads; head++, at += width)
            clip_and_rotate_head_backward(width / 2, dq + (token * heads + head) * width, qkv + at, c, s, clip,
                                          dqkv + at);
        for (int64_t head = 0; head < kv_heads; head++, at += width)
            clip_and_rotate_head_backward(width / 2, dk + (token * kv_heads + head) * width, qkv + at, c, s, clip,
                                          dqkv + at);
        clip_row_backward(kv_heads * width, dv + token * kv_heads * width, qkv + at, clip, dqkv + at);
    }
}
