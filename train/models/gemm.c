/* Matrix products in fp32 for x86 CPUs with AVX-512: C = A B, or C += A B.
 *
 * Cut as in Goto and van de Geijn 2008 (and BLIS): a part of B and panels of A are copied into the order in which the
 * innermost loop reads them, and that loop keeps ROWS x COLUMNS numbers of C in registers. MKL, behind torch.mm, runs
 * AVX2 code on processors that are not Intel's, and what torch offers of oneDNN cannot write where it is told to.
 *
 * A number of C is summed over k in one fixed order: it depends neither on how many rows and columns there are nor on
 * the number of threads.
 */

#include <stdint.h>
#include <stdlib.h>

#include "gemm.h"

#ifdef HAS_AVX512_KERNELS
#include <immintrin.h>

#define INLINE static inline __attribute__((always_inline)) AVX512

/* 28 of the 32 registers hold C, two a row of B, one a number of A. */
#define ROWS 14
#define LANES 16
#define COLUMNS (2 * LANES)
/* Of A and B, so that a panel of A [ROWS, DEPTH] stays in the first cache and a part of B [DEPTH, WIDTH] in the second. */
#define DEPTH 512
#define WIDTH 128
/* Rows of A that are kept copied at a time. */
#define HEIGHT 1024

/* What will be copied next, `lines` cache lines of it: rows of `width` numbers, `stride` apart. The innermost loop has
 * one line a step brought to the second cache, or to copy would be to wait for memory. */
typedef struct {
    const float *row;
    int64_t stride, width, column, lines;
} Ahead;

static Ahead ahead_of(Matrix matrix, int64_t rows, int64_t columns)
{
    if (matrix.column == 1)
        return (Ahead){matrix.data, matrix.row, columns, 0, rows * ((columns + LANES - 1) / LANES)};
    /* Panels begin anywhere in a line, so that their rows reach into one more. */
    return (Ahead){matrix.data, matrix.column, rows + LANES - 1, 0, columns * ((rows + 2 * LANES - 2) / LANES)};
}

INLINE __mmask16 first_lanes(int64_t n)
{
    return n >= LANES ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* c [rows, up to COLUMNS] from a [depth, rows] and b [depth, COLUMNS], both as they were copied. */
INLINE void tile(const int rows, int64_t depth, const float *restrict a, const float *restrict b, float *c,
                 int64_t stride, int64_t columns, int add, Ahead *ahead)
{
    __m512 low[ROWS], high[ROWS];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        low[i] = high[i] = _mm512_setzero_ps();
        __builtin_prefetch(c + i * stride, 1);
        __builtin_prefetch(c + i * stride + LANES, 1);
    }
#define STEP                                                                                                           \
    {                                                                                                                  \
        const __m512 b_low = _mm512_load_ps(b), b_high = _mm512_load_ps(b + LANES);                                    \
        _Pragma("GCC unroll 14") for (int i = 0; i < rows; i++)                                                        \
        {                                                                                                              \
            const __m512 x = _mm512_set1_ps(a[i]);                                                                     \
            low[i] = _mm512_fmadd_ps(x, b_low, low[i]);                                                                \
            high[i] = _mm512_fmadd_ps(x, b_high, high[i]);                                                             \
        }                                                                                                              \
        a += rows, b += COLUMNS;                                                                                       \
    }
    int64_t k = 0;
    const int64_t n = ahead->lines < depth ? ahead->lines : depth, stride_ahead = ahead->stride, width = ahead->width;
    int64_t column = ahead->column;
    const float *row = ahead->row;
    for (; k < n; k++) {
        __builtin_prefetch(row + column, 0, 2);
        column += LANES;
        if (column >= width) column = 0, row += stride_ahead;
        STEP
    }
    ahead->lines -= n, ahead->column = column, ahead->row = row;
    for (; k < depth; k++)
        STEP
    const __mmask16 in_low = first_lanes(columns), in_high = first_lanes(columns - LANES);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++, c += stride) {
        if (add) {
            low[i] = _mm512_add_ps(low[i], _mm512_maskz_loadu_ps(in_low, c));
            high[i] = _mm512_add_ps(high[i], _mm512_maskz_loadu_ps(in_high, c + LANES));
        }
        _mm512_mask_storeu_ps(c, in_low, low[i]);
        _mm512_mask_storeu_ps(c + LANES, in_high, high[i]);
    }
}

/* The number of rows has to be known to the compiler, or C would not be in registers. */
static AVX512 __attribute__((noinline))
void tile_of(int rows, int64_t depth, const float *a, const float *b, float *c, int64_t stride, int64_t columns, int add, Ahead *ahead)
{
#define CASE(n) case n: tile(n, depth, a, b, c, stride, columns, add, ahead); break;
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
        CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
    }
#undef CASE
}

INLINE void transpose(__m512 *r)
{
    __m512 t[LANES];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            const __m512d x = _mm512_castps_pd(t[i + j]), y = _mm512_castps_pd(t[i + 2 + j]);
            r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 16; j += 8) {
            t[i + j] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_f32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

/* to[k * stride + i] = from[i * row + k] for n rows, at most LANES; what is more of the LANES becomes 0 where fill. */
INLINE void copy_transposed(int64_t n, int64_t depth, const float *from, int64_t row, float *to, int64_t stride,
                            int fill)
{
    const __mmask16 stored = fill ? 0xffff : first_lanes(n);
    for (int64_t k = 0; k < depth; k += LANES) {
        __m512 r[LANES];
        const __mmask16 there = first_lanes(depth - k);
        for (int i = 0; i < LANES; i++)
            r[i] = i < n ? _mm512_maskz_loadu_ps(there, from + i * row + k) : _mm512_setzero_ps();
        transpose(r);
        for (int i = 0; i < LANES && k + i < depth; i++)
            _mm512_mask_storeu_ps(to + (k + i) * stride, stored, r[i]);
    }
}

/* `rows` rows of A as [depth, rows]. */
static AVX512 void copy_panel(int64_t rows, int64_t depth, Matrix a, float *to)
{
    if (a.column == 1) {
        copy_transposed(rows, depth, a.data, a.row, to, rows, 0);
        return;
    }
    const __mmask16 stored = first_lanes(rows);
    for (int64_t k = 0; k < depth; k++)
        _mm512_mask_storeu_ps(to + k * rows, stored, _mm512_maskz_loadu_ps(stored, a.data + k * a.column));
}

/* A part of B as [depth, COLUMNS] for COLUMNS of its columns after the other, the last filled with 0. */
static AVX512 void copy_part(int64_t depth, int64_t columns, Matrix b, float *to)
{
    if (b.column == 1) {
        for (int64_t k = 0; k < depth; k++)
            for (int64_t j = 0; j < columns; j += LANES) {
                const __m512 row = _mm512_maskz_loadu_ps(first_lanes(columns - j), b.data + k * b.row + j);
                _mm512_store_ps(to + j / COLUMNS * COLUMNS * depth + k * COLUMNS + j % COLUMNS, row);
            }
        if ((columns + LANES - 1) / LANES % 2)
            for (int64_t k = 0; k < depth; k++)
                _mm512_store_ps(to + columns / COLUMNS * COLUMNS * depth + k * COLUMNS + LANES, _mm512_setzero_ps());
        return;
    }
    for (int64_t j = 0; j < columns; j += COLUMNS, to += COLUMNS * depth)
        for (int64_t half = 0; half < COLUMNS; half += LANES) {
            int64_t n = columns - j - half;
            n = n < 0 ? 0 : n < LANES ? n : LANES;
            copy_transposed(n, depth, b.data + (j + half) * b.column, b.column, to + half, COLUMNS, 1);
        }
}

AVX512 void multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float *c, int64_t stride, int add,
                     float *memory)
{
    float *part = memory, *panels = memory + DEPTH * WIDTH;
    const int64_t n_depths = (depth + DEPTH - 1) / DEPTH;
    for (int64_t top = 0; top < m; top += HEIGHT) {
        const int64_t height = m - top < HEIGHT ? m - top : HEIGHT, n_panels = (height + ROWS - 1) / ROWS;
        for (int64_t d = 0; d < n_depths; d++) {
            const int64_t k = depth * d / n_depths, deep = depth * (d + 1) / n_depths - k;
            for (int64_t left = 0; left < n; left += WIDTH) {
                const int64_t wide = n - left < WIDTH ? n - left : WIDTH;
                const Matrix b_part = {b.data + k * b.row + left * b.column, b.row, b.column};
                copy_part(deep, wide, b_part, part);
                const int64_t next = left + wide, wide_next = n - next < WIDTH ? n - next : WIDTH;
                const Matrix b_next = {b.data + k * b.row + next * b.column, b.row, b.column};
                Ahead ahead_b = ahead_of(b_next, deep, wide_next), ahead_a = {0};
                /* As even as can be: a last panel of few rows would cost as much as a full one. */
                for (int64_t panel = 0; panel < n_panels; panel++) {
                    const int64_t i = height * panel / n_panels, rows = height * (panel + 1) / n_panels - i;
                    const Matrix a_panel = {a.data + (top + i) * a.row + k * a.column, a.row, a.column};
                    if (left == 0) {
                        copy_panel(rows, deep, a_panel, panels + i * deep);
                        const Matrix a_next = {a_panel.data + rows * a.row, a.row, a.column};
                        ahead_a = panel + 1 < n_panels ? ahead_of(a_next, rows, deep) : (Ahead){0};
                    }
                    for (int64_t j = 0; j < wide; j += COLUMNS)
                        tile_of((int)rows, deep, panels + i * deep, part + j * deep, c + (top + i) * stride + left + j,
                                stride, wide - j, add || d > 0, ahead_a.lines ? &ahead_a : &ahead_b);
                }
            }
        }
    }
}

int has_gemm(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
}

/* What a thread copies to; kept, because to ask for it each time would cost more than to copy. */
float *memory_of_thread(void)
{
    static _Thread_local float *memory;
    if (!memory)
        memory = aligned_alloc(64, sizeof(float) * (DEPTH * WIDTH + DEPTH * HEIGHT + LANES));
    return memory;
}

/* c [m, n], whose rows are c_row apart, of a [m, depth] and b [depth, n], each with one stride of 1.
 * Returns 0, or 1 if there was no memory. */
int gemm(int64_t m, int64_t n, int64_t depth, const float *a, int64_t a_row, int64_t a_column, const float *b,
         int64_t b_row, int64_t b_column, float *c, int64_t c_row, int add, int threads)
{
    /* A thread is worth waking for 2^18 products. */
    const int64_t worth = 1 + ((m * n * depth) >> 18);
    threads = threads < worth ? threads : (int)worth;
    /* Each computes a block of C on its own. What they copy in all grows with the blocks' edges. */
    int64_t down = threads, least = INT64_MAX;
    for (int64_t some = 1; some <= threads; some++)
        if (threads % some == 0 && m * (threads / some) + n * some < least) {
            least = m * (threads / some) + n * some;
            down = some;
        }
    const int64_t across = threads / down;
    int failed = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(| : failed)
    for (int64_t block = 0; block < threads; block++) {
        const int64_t y = block / across, x = block % across;
        const int64_t units = (n + COLUMNS - 1) / COLUMNS;
        const int64_t top = m * y / down, bottom = m * (y + 1) / down;
        const int64_t left = units * x / across * COLUMNS, end = units * (x + 1) / across * COLUMNS;
        const int64_t right = end < n ? end : n;
        float *memory = memory_of_thread();
        if (!memory) {
            failed = 1;
            continue;
        }
        const Matrix rows = {a + top * a_row, a_row, a_column}, columns = {b + left * b_column, b_row, b_column};
        multiply(bottom - top, right - left, depth, rows, columns, c + top * c_row + left, c_row, add, memory);
    }
    return failed;
}

#else

int has_gemm(void) { return 0; }

#endif
