/* 1 - beta^t by squaring, with some 100 bits: only additions and multiplications, which give the same bits on
 * every machine. A library's log, exp or pow does not. */

#include "arithmetic.h"
#include "fastopt.h"

/* A number as the sum of two doubles. */
typedef struct {
    double high, low;
} pair;

/* The error of product = a * b by rounding, exactly (Dekker 1971). */
static double product_error(double a, double b, double product)
{
    const double split = 134217729.0; /* 2^27 + 1 */
    const double a_high = split * a - (split * a - a), b_high = split * b - (split * b - b);
    const double a_low = a - a_high, b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
}

static pair multiplied(pair a, pair b)
{
    const double product = a.high * b.high;
    const double rest = product_error(a.high, b.high, product) + (a.high * b.low + a.low * b.high);
    const double sum = product + rest;
    return (pair){sum, rest - (sum - product)};
}

/* beta, beta^2, beta^4, …: those above 1e-20, as far as they were needed. */
typedef struct {
    double beta;
    int count;
    pair powers[64];
} squares;

/* Every step asks for the same one or two betas, so each thread keeps the last two. */
static squares *squares_of(double beta)
{
    static _Thread_local squares kept[2];
    static _Thread_local int oldest;
    for (int k = 0; k < 2; k++)
        if (kept[k].count && kept[k].beta == beta)
            return &kept[k];
    squares *const made = &kept[oldest];
    oldest = 1 - oldest;
    made->beta = beta;
    made->powers[0] = (pair){beta, 0.0};
    made->count = 1;
    return made;
}

double fastopt_bias_correction(double beta, int64_t t)
{
    squares *const known = squares_of(beta);
    pair power = {1.0, 0.0};
    for (int k = 0;;) {
        if (t & 1)
            power = multiplied(power, known->powers[k]);
        t >>= 1;
        if (!t)
            return (1.0 - power.high) - power.low;
        if (++k == known->count) {
            known->powers[k] = multiplied(known->powers[k - 1], known->powers[k - 1]);
            if (known->powers[k].high < 1e-20) /* and the rest of t takes it into the power */
                return 1.0;
            known->count++;
        }
    }
}
