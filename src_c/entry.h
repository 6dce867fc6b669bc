/* One format of formats.def as a line of a list: FORMAT_ENTRY, which whoever wants the list defines. */
FORMAT_ENTRY
#undef FORMAT
#undef PARAMETER
#undef GRADIENT
#undef STATES
