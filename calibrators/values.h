/* What the functions of this library share: which code they are compiled to, and how they read values. */
#ifndef TRTQ_VALUES_H
#define TRTQ_VALUES_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#define IS_X86
#include <immintrin.h>
#endif

/* On x86 with glibc the loader chooses the widest vectors that the processor has. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

static const float MAGIC = 12582912.0f; /* adding and taking 1.5 * 2**23 rounds half to even */

INLINE float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Without branches, and without a denormal float32, which processors take long over. */
INLINE float widen(uint16_t half)
{
    const int32_t rest = (half & 0x7FFF) << 13; /* vectors compare signed integers faster */
    const int32_t normal = rest + (112 << 23) + (rest >= (31 << 23) ? 112 << 23 : 0);
    const int32_t small = (int32_t)to_bits(from_bits((uint32_t)rest + (113u << 23)) - from_bits(113u << 23));
    return from_bits((uint32_t)(rest < (1 << 23) ? small : normal) | (uint32_t)(half & 0x8000) << 16);
}

#ifdef IS_X86
/* Every processor with AVX2 has F16C. */
__attribute__((target("avx2,f16c"), unused)) static void widen_by_f16c(const uint16_t *halves, size_t count,
                                                                       float *loaded)
{
    size_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(loaded + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + i))));
    for (; i < count; i++)
        loaded[i] = widen(halves[i]);
}
#endif

/* Reads values, float32 or FP16 as their bits, as float32. */
INLINE void load(const void *values, int32_t is_half, size_t place, size_t count, float *loaded)
{
    if (!is_half) {
        memcpy(loaded, (const float *)values + place, count * sizeof *loaded);
        return;
    }
    const uint16_t *halves = (const uint16_t *)values + place;
#ifdef IS_X86
    if (__builtin_cpu_supports("avx2")) {
        widen_by_f16c(halves, count, loaded);
        return;
    }
#endif
    for (size_t i = 0; i < count; i++)
        loaded[i] = widen(halves[i]);
}
#endif
