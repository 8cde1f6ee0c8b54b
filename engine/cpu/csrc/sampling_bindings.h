// The bindings of the chain of samplers.
#pragma once
#include <nanobind/nanobind.h>

namespace lltool {

void bind_sampling(nanobind::module_& m);

} // namespace lltool
