#define LLTOOL_TABLE engine_avx512
#include "kernels-inl.h"
