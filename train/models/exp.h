/* exp, for loops that compilers turn into vectors. */

#ifndef DROPLESS_EXP_H
#define DROPLESS_EXP_H

#include <stdint.h>
#include <string.h>

/* exp(x) within 2 units in the last place, of x from -87 to 87, where it is a normal number, below 0, above exp(87):
 * Cephes' expf, 2^n times a polynomial in the remainder. */
static inline __attribute__((always_inline)) float exp_of(float x)
{
    float t = x > 87.0f ? 87.0f : x;
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
    return x < -87.0f ? 0.0f : p * power;
}

#endif
