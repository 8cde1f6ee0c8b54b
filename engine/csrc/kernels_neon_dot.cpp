#define LLTOOL_TABLE engine_neon_dot
#include "kernels-inl.h"
