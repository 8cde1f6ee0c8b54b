#define LLTOOL_TABLE engine_scalar
#include "kernels-inl.h"
