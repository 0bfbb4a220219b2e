/* From weights to codes: the extremes of blocks, rounding and packing. pipeline/formats/rounding.py has the same
 * in numpy, bit for bit.
 *
 * A part of the library of kernel.c. Values are float32, or FP16 as their bits where `is_half` is set. They have
 * the shape (outer, length, inner), with `inner` side by side: values[o * far + b * near + i]. A block is all b
 * of one o and i, and what is known of blocks has the shape (outer, inner).
 */
#include "values.h"

enum { TILE = 256, LEVELS = 16 };

/* Integers in the order of the floats whose bits they are, and those bits again: negative ones are mirrored. */
INLINE int32_t mirror(int32_t bits)
{
    return bits ^ ((bits >> 31) & INT32_MAX);
}

INLINE int16_t mirror_half(int16_t bits)
{
    return (int16_t)(bits ^ ((bits >> 15) & INT16_MAX));
}

INLINE float float_of(int32_t bits)
{
    return from_bits((uint32_t)bits);
}

INLINE float float_of_half(int16_t bits)
{
    return widen((uint16_t)bits);
}

/* Two functions for values as integers: the extremes of one row, and of each of at most TILE columns. */
#define FIND(in_row, in_columns, integer, mirror, unsigned_part, infinity, to_float)                          \
    INLINE void in_row(const integer *values, size_t length, float *low, float *high)                         \
    {                                                                                                         \
        integer smallest = infinity, largest = 0;                                                             \
        for (size_t i = 0; i < length; i++) {                                                                 \
            const integer size = (integer)(values[i] & unsigned_part);                                        \
            const integer ordered = mirror(values[i]);                                                        \
            largest = size > largest ? size : largest;                                                        \
            smallest = ordered < smallest ? ordered : smallest;                                               \
        }                                                                                                     \
        *low = to_float(mirror(smallest));                                                                    \
        *high = to_float(largest);                                                                            \
    }                                                                                                         \
    INLINE void in_columns(const integer *values, size_t length, size_t near, size_t width, float *low, float *high) \
    {                                                                                                         \
        integer smallest[TILE], largest[TILE] = {0};                                                          \
        for (size_t i = 0; i < width; i++)                                                                    \
            smallest[i] = infinity;                                                                           \
        for (size_t b = 0; b < length; b++)                                                                   \
            for (size_t i = 0; i < width; i++) {                                                              \
                const integer bits = values[b * near + i];                                                    \
                const integer size = (integer)(bits & unsigned_part);                                         \
                const integer ordered = mirror(bits);                                                         \
                largest[i] = size > largest[i] ? size : largest[i];                                           \
                smallest[i] = ordered < smallest[i] ? ordered : smallest[i];                                  \
            }                                                                                                 \
        for (size_t i = 0; i < width; i++) {                                                                  \
            low[i] = to_float(mirror(smallest[i]));                                                           \
            high[i] = to_float(largest[i]);                                                                   \
        }                                                                                                     \
    }
FIND(find_in_row, find_in_columns, int32_t, mirror, INT32_MAX, 0x7F800000, float_of)
FIND(find_in_row_of_halves, find_in_columns_of_halves, int16_t, mirror_half, INT16_MAX, 0x7C00, float_of_half)

WIDEST
/* Finds the smallest value of each block, and its largest magnitude, which is NaN where a value is. */
void trtq_find_extremes(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                        size_t near, float *least, float *most)
{
    const int16_t *halves = values;
    const int32_t *floats = values;

    for (size_t o = 0; o < outer; o++) {
        if (inner == 1 && near == 1) { /* a block lies side by side */
            if (is_half)
                find_in_row_of_halves(halves + o * far, length, least + o, most + o);
            else
                find_in_row(floats + o * far, length, least + o, most + o);
            continue;
        }
        for (size_t start = 0; start < inner; start += TILE) {
            const size_t width = inner - start < TILE ? inner - start : TILE;
            const size_t place = o * far + start, known = o * inner + start;
            if (is_half)
                find_in_columns_of_halves(halves + place, length, near, width, least + known, most + known);
            else
                find_in_columns(floats + place, length, near, width, least + known, most + known);
        }
    }
}

INLINE int8_t round_step(float step, float lowest, float largest)
{
    step = step < lowest ? lowest : step; /* the ends are whole numbers */
    step = step > largest ? largest : step;
    return (int8_t)((step + MAGIC) - MAGIC);
}

WIDEST
/* Divides the values by the scales of their blocks, rounds half to even and holds them within the ends.
 *
 * Codes have the shape of the values, side by side.
 */
void trtq_round(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                size_t near, const float *scales, float lowest, float largest, int8_t *codes)
{
    float loaded[TILE];

    for (size_t o = 0; o < outer; o++) {
        if (inner == 1 && near == 1) {
            const float scale = scales[o];
            for (size_t first = 0; first < length; first += TILE) {
                const size_t count = length - first < TILE ? length - first : TILE;
                load(values, is_half, o * far + first, count, loaded);
                for (size_t i = 0; i < count; i++)
                    codes[o * length + first + i] = round_step(loaded[i] / scale, lowest, largest);
            }
            continue;
        }
        for (size_t b = 0; b < length; b++)
            for (size_t start = 0; start < inner; start += TILE) {
                const size_t width = inner - start < TILE ? inner - start : TILE;
                const float *own = scales + o * inner + start;
                int8_t *made = codes + (o * length + b) * inner + start;
                load(values, is_half, o * far + b * near + start, width, loaded);
                for (size_t i = 0; i < width; i++)
                    made[i] = round_step(loaded[i] / own[i], lowest, largest);
            }
    }
}

INLINE void count_any(const float *scaled, size_t count, const float *bounds, uint8_t *codes)
{
    for (size_t i = 0; i < count; i++) {
        int32_t code = 0;
#pragma GCC unroll 16
        for (int32_t k = 0; k < LEVELS - 1; k++)
            code += scaled[i] > bounds[k];
        codes[i] = (uint8_t)code;
    }
}

#ifdef IS_X86
/* The same as a binary search: the bound in the middle, then that in the middle of the half, to the last. */
__attribute__((target("avx2"))) static void count_by_avx2(const float *scaled, size_t count, const float *bounds,
                                                          uint8_t *codes)
{
    const __m256 half = _mm256_set1_ps(bounds[7]), low = _mm256_set1_ps(bounds[3]), high = _mm256_set1_ps(bounds[11]);
    const __m256 odd = _mm256_setr_ps(bounds[1], bounds[5], bounds[9], bounds[13], 0, 0, 0, 0);
    const __m256 even = _mm256_setr_ps(bounds[0], bounds[2], bounds[4], bounds[6], bounds[8], bounds[10], bounds[12],
                                       bounds[14]);
    const __m256i order = _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0);
    size_t i = 0;

    for (; i + 8 <= count; i += 8) {
        const __m256 value = _mm256_loadu_ps(scaled + i);
        const __m256 first = _mm256_cmp_ps(value, half, _CMP_GT_OQ); /* -1 as an integer where it is so */
        const __m256 second = _mm256_cmp_ps(value, _mm256_blendv_ps(low, high, first), _CMP_GT_OQ);
        __m256i code = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_castps_si256(first));
        code = _mm256_sub_epi32(_mm256_add_epi32(code, code), _mm256_castps_si256(second));
        const __m256 third = _mm256_cmp_ps(value, _mm256_permutevar8x32_ps(odd, code), _CMP_GT_OQ);
        code = _mm256_sub_epi32(_mm256_add_epi32(code, code), _mm256_castps_si256(third));
        const __m256 last = _mm256_cmp_ps(value, _mm256_permutevar8x32_ps(even, code), _CMP_GT_OQ);
        code = _mm256_sub_epi32(_mm256_add_epi32(code, code), _mm256_castps_si256(last));
        code = _mm256_packus_epi32(code, code);
        code = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(code, code), order);
        _mm_storel_epi64((__m128i *)(codes + i), _mm256_castsi256_si128(code));
    }
    count_any(scaled + i, count - i, bounds, codes + i);
}
#endif

INLINE void count(const float *scaled, size_t count, const float *bounds, uint8_t *codes)
{
#ifdef IS_X86
    if (__builtin_cpu_supports("avx2")) {
        count_by_avx2(scaled, count, bounds, codes);
        return;
    }
#endif
    count_any(scaled, count, bounds, codes);
}

WIDEST
/* Counts, for each value times the inverse of its block's scale, how many of 15 bounds are lower. */
void trtq_count_bounds(const void *values, int32_t is_half, size_t outer, size_t length, size_t inner, size_t far,
                       size_t near, const float *inverses, const float *bounds, uint8_t *codes)
{
    float loaded[TILE];

    for (size_t o = 0; o < outer; o++) {
        const int is_row = inner == 1 && near == 1;
        const size_t rows = is_row ? 1 : length, columns = is_row ? length : inner;
        for (size_t b = 0; b < rows; b++)
            for (size_t start = 0; start < columns; start += TILE) {
                const size_t width = columns - start < TILE ? columns - start : TILE;
                uint8_t *made = codes + (o * rows + b) * columns + start;
                load(values, is_half, o * far + b * near + start, width, loaded);
                if (is_row)
                    for (size_t i = 0; i < width; i++)
                        loaded[i] *= inverses[o];
                else
                    for (size_t i = 0; i < width; i++)
                        loaded[i] *= inverses[o * inner + start + i];
                count(loaded, width, bounds, made);
            }
    }
}

WIDEST
/* Packs two codes of 4 bits a byte, the first in the low half, with the bits of `flip` turned over in each. */
void trtq_pack(const uint8_t *codes, size_t num_bytes, uint8_t flip, uint8_t *packed)
{
    for (size_t i = 0; i < num_bytes; i++)
        packed[i] = (uint8_t)(((codes[2 * i] ^ flip) & 0xF) | ((codes[2 * i + 1] ^ flip) << 4));
}
