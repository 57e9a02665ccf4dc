/* The kernels behind glu.py on a CPU, in fp32: memory is read and written once, and exp stays in registers.
 *
 * Plain C without Python's headers, called through ctypes by glu_cpu.py. On x86 it is compiled for three levels of the
 * instruction set, of which the loader takes the highest that the processor has.
 */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#define FOR_EACH_LEVEL __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_LEVEL
#endif

/* 1 / (1 + exp(-x)) within 2 units in the last place: exp by Cephes' expf, 2^n times a polynomial in the remainder. */
static inline __attribute__((always_inline)) float sigmoid(float x)
{
    /* Beyond these exp(-x) is no normal number. */
    float t = x < -87.0f ? 87.0f : -x;
    t = t < -87.0f ? -87.0f : t;
    /* Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits. */
    float shifted = t * 1.44269504f + 12582912.0f;
    float n = shifted - 12582912.0f;
    float r = t - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : 1.0f / (1.0f + p * power);
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
