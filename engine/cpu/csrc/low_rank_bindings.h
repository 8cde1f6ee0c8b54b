// Adds the operations of adapters to the executor's class.
#pragma once
#include "session.h"

namespace lltool {

void bind_low_rank(nb::module_& m, nb::class_<Session>& executor);

} // namespace lltool
