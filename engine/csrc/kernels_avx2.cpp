#define LLTOOL_TABLE engine_avx2
#include "kernels-inl.h"
