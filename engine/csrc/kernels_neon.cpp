#define LLTOOL_TABLE engine_neon
#include "kernels-inl.h"
