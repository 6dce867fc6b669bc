#undef OPTIMIZER
#undef STATE
#undef OPTIONAL
#undef SCALARS
