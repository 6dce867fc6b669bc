/* Turns one format of formats.def into its entry of the list of formats. */
{QUOTE(FORMAT), QUOTE(PARAMETER), QUOTE(GRADIENT), QUOTE(STATES)},
#include "end_format.h"
