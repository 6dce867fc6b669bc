/* The converters: numbers from one storage to another, scaled and clipped on the way. See fastopt_converter. */

/* T: the type of the arithmetic. narrow(x): what is stored of a T. */
#define CONVERTER(from, to, T, narrow)                                                                 \
    static void JOIN(from, to, converter, ISA)(                                                        \
        void *to_, const void *from_, size_t count, double scale_, double limit_)                      \
    {                                                                                                  \
        stored_##to *const written = to_;                                                              \
        const stored_##from *const read = from_;                                                       \
        const T scale = (T)scale_, limit = (T)limit_;                                                  \
        EACH_ELEMENT_ALONE                                                                             \
        for (size_t i = 0; i < count; i++) {                                                           \
            T x = scale * (T)load_##from(read[i]);                                                     \
            x = limit < x ? limit : x;                                                                 \
            x = -limit > x ? -limit : x;                                                               \
            written[i] = narrow(x);                                                                    \
        }                                                                                              \
    }

/* The loop may be vectorised although `to` may be `from`. */
#if defined(__clang__)
#define EACH_ELEMENT_ALONE _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_ELEMENT_ALONE _Pragma("GCC ivdep")
#endif

#define NARROW_TO_FLOAT16(x)  nearest_float16(sticky_float32(x))
#define NARROW_TO_BFLOAT16(x) nearest_bfloat16(sticky_float32(x))

CONVERTER(float32, float32, float, nearest_float32)
CONVERTER(float64, float32, float, nearest_float32)
CONVERTER(float16, float32, float, nearest_float32)
CONVERTER(bfloat16, float32, float, nearest_float32)
CONVERTER(float64, float64, double, nearest_float64)
CONVERTER(float32, float16, float, nearest_float16)
CONVERTER(float64, float16, double, NARROW_TO_FLOAT16)
CONVERTER(bfloat16, float16, float, nearest_float16)
CONVERTER(float32, bfloat16, float, nearest_bfloat16)
CONVERTER(float64, bfloat16, double, NARROW_TO_BFLOAT16)
CONVERTER(bfloat16, bfloat16, float, nearest_bfloat16)

#define CONVERTER_ENTRY(FROM, TO, from, to) \
    [FASTOPT_##FROM * FASTOPT_STORAGES + FASTOPT_##TO] = JOIN(from, to, converter, ISA)
#define CONVERTERS PASTE(fastopt_converters_, ISA)
extern const fastopt_converter CONVERTERS[];
const fastopt_converter CONVERTERS[FASTOPT_STORAGES * FASTOPT_STORAGES] = {
    CONVERTER_ENTRY(FLOAT32, FLOAT32, float32, float32),
    CONVERTER_ENTRY(FLOAT64, FLOAT32, float64, float32),
    CONVERTER_ENTRY(FLOAT16, FLOAT32, float16, float32),
    CONVERTER_ENTRY(BFLOAT16, FLOAT32, bfloat16, float32),
    CONVERTER_ENTRY(FLOAT64, FLOAT64, float64, float64),
    CONVERTER_ENTRY(FLOAT32, FLOAT16, float32, float16),
    CONVERTER_ENTRY(FLOAT64, FLOAT16, float64, float16),
    CONVERTER_ENTRY(BFLOAT16, FLOAT16, bfloat16, float16),
    CONVERTER_ENTRY(FLOAT32, BFLOAT16, float32, bfloat16),
    CONVERTER_ENTRY(FLOAT64, BFLOAT16, float64, bfloat16),
    CONVERTER_ENTRY(BFLOAT16, BFLOAT16, bfloat16, bfloat16),
};
