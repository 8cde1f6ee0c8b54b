#define LLTOOL_TABLE quant_avx2
#include "kernels-inl.h"
