#undef FORMAT
#undef PARAMETER
#undef GRADIENT
#undef STATES
