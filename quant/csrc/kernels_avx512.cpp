#define LLTOOL_TABLE quant_avx512
#include "kernels-inl.h"
