/* How numbers are stored, and how they are computed with: load_<storage> and store_<storage> for each.
 *
 * A bfloat16 is the upper half of a float32. To store one, a random number below one unit of its last
 * place is added to the float32 and the lower half is cut off: so it goes up with the probability by
 * which it lies above the lower neighbour, and is right in the mean. Rounding to the nearest would lose
 * whatever is less than half a unit, every time: a second moment with beta2 = 0.999 stands still.
 * (Gupta, Agrawal, Gopalakrishnan, Narayanan 2015, arXiv:1502.02551; Zamirai, Zhang, Aberger, De Sa 2020,
 * arXiv:2010.06192.) A number that is a bfloat16 already stays; beyond the largest comes infinity.
 *
 * The random bits are a function of (random_key, number of the element): no generator has a state, so threads
 * and chunks do not matter. The caller makes the key of a seed and the number of steps taken. */
#ifndef STORAGE_H
#define STORAGE_H

#include <stdint.h>
#include <string.h>

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define UNUSED        __attribute__((unused))

typedef float stored_float32, computed_float32, computed_bfloat16;
typedef double stored_float64, computed_float64;
typedef uint16_t stored_bfloat16, stored_float16;

static ALWAYS_INLINE float as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static ALWAYS_INLINE uint32_t as_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* -- Random bits for one element, 16 at a time, one hash for two -- */

#define WEYL 0x9e3779b9u /* 2^32 divided by the golden ratio: multiples of it lie far apart */

typedef struct {
    uint32_t start, hash;
    unsigned drawn;
} random_bits;

/* The halves of lowbias32 (Wellons 2018), whose every bit depends on every bit of x. A simpler hash, of one
 * multiplication, leaves pairs of neighbours that are not independent. Its last step, x ^ x >> 16, changes
 * the lower half alone, and is made for that alone: shifts are what the loop waits for. */
static ALWAYS_INLINE uint32_t hash_of(const random_bits *random, unsigned number)
{
    uint32_t x = random->start + number / 2 * 0x85ebca6bu;
    x = (x ^ x >> 16) * 0x7feb352du;
    return (x ^ x >> 15) * 0x846ca68bu;
}

static ALWAYS_INLINE uint32_t draw(random_bits *random)
{
    const unsigned drawn = random->drawn++;
    if (drawn % 2)
        return random->hash >> 16;
    const uint32_t x = random->hash = hash_of(random, drawn);
    return (x ^ x >> 16) & 0xffff;
}

/* The same bits by their number, out of turn. */
static ALWAYS_INLINE uint32_t drawn_at(const random_bits *random, unsigned number)
{
    const uint32_t x = hash_of(random, number);
    return number % 2 ? x >> 16 : (x ^ x >> 16) & 0xffff;
}

/* -- Loads and stores -- */

static ALWAYS_INLINE float load_float32(float stored) { return stored; }
static ALWAYS_INLINE double load_float64(double stored) { return stored; }
static ALWAYS_INLINE float load_bfloat16(uint16_t stored) { return as_float((uint32_t)stored << 16); }

/* Without F16C, and without arithmetic on subnormal numbers, which some processors do slowly. */
static ALWAYS_INLINE float load_float16(uint16_t stored)
{
    const uint32_t magnitude = (uint32_t)(stored & 0x7fff) << 13, sign = (uint32_t)(stored & 0x8000) << 16;
    const uint32_t normal = magnitude + (112u << 23); /* the difference of the biases of the exponents */
    const uint32_t special = magnitude + (224u << 23);
    const uint32_t subnormal = as_bits(as_float(magnitude + (113u << 23)) - as_float(113u << 23));
    uint32_t bits = magnitude < 1u << 23 ? subnormal : normal;
    bits = magnitude >= 31u << 23 ? special : bits;
    return as_float(bits | sign);
}

static ALWAYS_INLINE float store_float32(float value, random_bits *random)
{
    (void)random;
    return value;
}

static ALWAYS_INLINE double store_float64(double value, random_bits *random)
{
    (void)random;
    return value;
}

static ALWAYS_INLINE uint16_t store_bfloat16(float value, random_bits *random)
{
    const uint32_t bits = as_bits(value) + draw(random);
    return (value == value ? bits : 0x7fc00000) >> 16;
}

/* -- Decoupled weight decay: what is left of a parameter. lost is 1 - decay -- */

#define decayed_float32(p, decay, lost, random, number) ((decay) * (p))
#define decayed_float64(p, decay, lost, random, number) ((decay) * (p))

/* A bfloat16 may lose less than a float32 can hold of it. So a random number within half a unit of the float32's last
 * place goes with the loss, and the sum is right in the mean as the bfloat16 is. */
static ALWAYS_INLINE float decayed_bfloat16(
    float p, float decay, float lost, const random_bits *random, unsigned number)
{
    const uint32_t exponent = as_bits(p) & 0x7f800000;
    const float unit = as_float(exponent) * 0x1p-39f * ((float)(int32_t)drawn_at(random, number) - 32767.5f);
    const float left = p - (lost * p + unit);
    return lost == 0 || exponent == 0x7f800000 ? decay * p : left;
}

/* -- Rounding to the nearest, of two equally near to the even one -- */

static ALWAYS_INLINE float nearest_float32(double value) { return (float)value; }
static ALWAYS_INLINE double nearest_float64(double value) { return value; }

static ALWAYS_INLINE uint16_t nearest_bfloat16(float value)
{
    const uint32_t bits = as_bits(value);
    return (value == value ? bits + 0x7fff + (bits >> 16 & 1) : 0x7fc00000) >> 16;
}

/* Without F16C, as load_float16. */
static ALWAYS_INLINE uint16_t nearest_float16(float value)
{
    const uint32_t sign = as_bits(value) & 0x80000000, magnitude = as_bits(value) ^ sign;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    /* the sum has its last place where the subnormal numbers have theirs */
    const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - as_bits(0.5f);
    uint32_t bits = magnitude < 113u << 23 ? subnormal : normal;
    bits = magnitude >= 143u << 23 ? 0x7c00 : bits;
    bits = magnitude > 255u << 23 ? 0x7e00 : bits;
    return bits | sign >> 16;
}

/* A float32 that rounds to 16 bits as the float64 does: the last of the 14 bits that are left of the fraction
 * says whether there was anything in it or behind it. */
static ALWAYS_INLINE float sticky_float32(double value)
{
    const uint64_t behind = ((uint64_t)1 << 38) - 1;
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = (bits & ~behind) | (((bits & behind) + behind) & (behind + 1));
    memcpy(&value, &bits, sizeof value);
    return (float)value;
}

#endif
