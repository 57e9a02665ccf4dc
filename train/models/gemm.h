/* What gemm.c gives to other kernels: products on one thread. */

#ifndef DROPLESS_GEMM_H
#define DROPLESS_GEMM_H

#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define HAS_AVX512_KERNELS
#define AVX512 __attribute__((target("avx512f,fma")))

/* Where number (i, j) stands: at data[i * row + j * column]; one of both strides is 1. */
typedef struct {
    const float *data;
    int64_t row, column;
} Matrix;

/* c [m, n], whose rows are `stride` apart, = a [m, depth] b [depth, n], or + that. */
__attribute__((visibility("hidden")))
void multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float *c, int64_t stride, int add,
              float *memory);

/* What multiply copies to, this thread's own; NULL if there is none to be had. */
__attribute__((visibility("hidden"))) float *memory_of_thread(void);
#endif

#endif
