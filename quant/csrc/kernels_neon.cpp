#define LLTOOL_TABLE quant_neon
#include "kernels-inl.h"
