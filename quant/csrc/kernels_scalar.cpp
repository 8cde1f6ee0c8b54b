#define LLTOOL_TABLE quant_scalar
#include "kernels-inl.h"
