/* Matrix products in fp32 for x86 CPUs with AVX-512: C = A B, or C += A B.
 *
 * Cut as in Goto and van de Geijn 2008 (and BLIS): a part of B and panels of A are copied into the order in which the
 * innermost loop reads them, and that loop keeps ROWS x COLUMNS numbers of C in registers. MKL, behind torch.mm, runs
 * AVX2 code on processors that are not Intel's, and what torch offers of oneDNN cannot write where it is told to.
 *
 * A number of C is summed over k in one fixed order: it depends neither on how many rows and columns there are nor on
 * the number of threads.
 */

#include <pthread.h>
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
/* Of A and B: a panel of A [ROWS, DEPTH] fits the first cache, and a part of B [DEPTH, WIDTH] the second. */
#define DEPTH 512
#define WIDTH 128
/* Rows of A that are kept copied at a time. */
#define HEIGHT 1024

static inline int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

/* The part of a matrix that begins at (i, j). */
static inline Matrix at(Matrix x, int64_t i, int64_t j)
{
    return (Matrix){x.data + i * x.row + j * x.column, x.row, x.column};
}

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

INLINE void bring_line(Ahead *ahead)
{
    __builtin_prefetch(ahead->row + ahead->column, 0, 2);
    ahead->column += LANES;
    if (ahead->column >= ahead->width) {
        ahead->column = 0;
        ahead->row += ahead->stride;
    }
}

INLINE __mmask16 first_lanes(int64_t n)
{
    return n >= LANES ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* One number of each row of A times one row of B. */
INLINE void step(const int rows, const float *a, const float *b, __m512 *low, __m512 *high)
{
    const __m512 b_low = _mm512_load_ps(b), b_high = _mm512_load_ps(b + LANES);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        const __m512 x = _mm512_set1_ps(a[i]);
        low[i] = _mm512_fmadd_ps(x, b_low, low[i]);
        high[i] = _mm512_fmadd_ps(x, b_high, high[i]);
    }
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
    int64_t k = 0;
    Ahead left = *ahead;
    const int64_t n = least(left.lines, depth);
    for (; k < n; k++) {
        bring_line(&left);
        step(rows, a + k * rows, b + k * COLUMNS, low, high);
    }
    left.lines -= n;
    *ahead = left;
    for (; k < depth; k++)
        step(rows, a + k * rows, b + k * COLUMNS, low, high);
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
void tile_of(int rows, int64_t depth, const float *a, const float *b, float *c, int64_t stride, int64_t columns,
             int add, Ahead *ahead)
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
            n = n < 0 ? 0 : least(n, LANES);
            copy_transposed(n, depth, at(b, 0, j + half).data, b.column, to + half, COLUMNS, 1);
        }
}

/* c [height, wide] of a [height, deep] and a part of B. The panels of A are copied if they were not for an earlier part. */
static AVX512 void multiply_part(int64_t height, int64_t wide, int64_t deep, Matrix a, int copied, float *panels,
                                 const float *part, Ahead *next_part, float *c, int64_t stride, int add)
{
    const int64_t n_panels = (height + ROWS - 1) / ROWS;
    Ahead next_panel = {0};
    for (int64_t panel = 0; panel < n_panels; panel++) {
        /* As even as can be: a last panel of few rows would cost as much as a full one. */
        const int64_t i = height * panel / n_panels, rows = height * (panel + 1) / n_panels - i;
        if (!copied) {
            copy_panel(rows, deep, at(a, i, 0), panels + i * deep);
            if (panel + 1 < n_panels)
                next_panel = ahead_of(at(a, i + rows, 0), rows, deep);
        }
        for (int64_t j = 0; j < wide; j += COLUMNS)
            tile_of((int)rows, deep, panels + i * deep, part + j * deep, c + i * stride + j, stride, wide - j, add,
                    next_panel.lines ? &next_panel : next_part);
    }
}

AVX512 void multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float *c, int64_t stride, int add,
                     float *memory)
{
    float *part = memory, *panels = memory + DEPTH * WIDTH;
    const int64_t n_depths = (depth + DEPTH - 1) / DEPTH;
    for (int64_t top = 0; top < m; top += HEIGHT)
        for (int64_t d = 0; d < n_depths; d++) {
            const int64_t k = depth * d / n_depths, deep = depth * (d + 1) / n_depths - k;
            for (int64_t left = 0; left < n; left += WIDTH) {
                const int64_t height = least(m - top, HEIGHT), wide = least(n - left, WIDTH), right = left + wide;
                copy_part(deep, wide, at(b, k, left), part);
                Ahead next_part = ahead_of(at(b, k, right), deep, least(n - right, WIDTH));
                multiply_part(height, wide, deep, at(a, top, k), left > 0, panels, part, &next_part,
                              c + top * stride + left, stride, add || d > 0);
            }
        }
}

int has_gemm(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
}

static pthread_key_t memory_key;

static void make_memory_key(void) { pthread_key_create(&memory_key, free); }

/* Kept until the thread ends, because to ask for it each time would cost more than to copy. */
float *memory_of_thread(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_memory_key);
    float *memory = pthread_getspecific(memory_key);
    if (!memory) {
        memory = aligned_alloc(64, sizeof(float) * (DEPTH * WIDTH + DEPTH * HEIGHT + LANES));
        if (memory && pthread_setspecific(memory_key, memory)) {
            free(memory);
            memory = NULL;
        }
    }
    return memory;
}

/* c [m, n], whose rows are c_row apart, of a [m, depth] and b [depth, n], each with one stride of 1.
 * Returns 0, or 1 if there was no memory. */
int gemm(int64_t m, int64_t n, int64_t depth, const float *a, int64_t a_row, int64_t a_column, const float *b,
         int64_t b_row, int64_t b_column, float *c, int64_t c_row, int add, int threads)
{
    /* A thread has work from 2^18 products on; the others rest, because OpenMP would end those that a team leaves out. */
    const int team = threads;
    threads = (int)least(team, 1 + ((m * n * depth) >> 18));
    /* Each computes a block of C on its own. What they copy in all grows with the blocks' edges. */
    int64_t down = threads, edges = INT64_MAX;
    for (int64_t some = 1; some <= threads; some++)
        if (threads % some == 0 && m * (threads / some) + n * some < edges) {
            edges = m * (threads / some) + n * some;
            down = some;
        }
    const int64_t across = threads / down, units = (n + COLUMNS - 1) / COLUMNS;
    const Matrix whole_a = {a, a_row, a_column}, whole_b = {b, b_row, b_column};
    int failed = 0;
#pragma omp parallel for num_threads(team) if (threads > 1) reduction(| : failed)
    for (int64_t block = 0; block < threads; block++) {
        const int64_t y = block / across, x = block % across;
        const int64_t top = m * y / down, height = m * (y + 1) / down - top;
        const int64_t left = units * x / across * COLUMNS, right = least(units * (x + 1) / across * COLUMNS, n);
        float *memory = memory_of_thread();
        if (memory)
            multiply(height, right - left, depth, at(whole_a, top, 0), at(whole_b, 0, left), c + top * c_row + left,
                     c_row, add, memory);
        failed |= !memory;
    }
    return failed;
}

#else

int has_gemm(void) { return 0; }

#endif
